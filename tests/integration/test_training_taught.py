"""A teacher's scores are learned: a random two-layer Llama with SmolLM2's tokenizer, on lists of passages."""

import io
import json
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import distributed

from helpers.tiny_model import make_tiny
from helpers.training import TRUE_FALSE, into, settings
from limrank.config import TrainJob
from limrank.errors import UserError
from limrank.training import encoding, job
from limrank.training.batches import pack
from limrank.training.forward import direct_log_odds, mean_loss, of_units, row_loss, training_units
from limrank.training.loop import total_steps, train
from limrank.training.model import load_for_training
from limrank.training.prepare import prepare
from limrank.training.state import TrainState

COLOURS = {"red": 0.1, "green": 0.4, "blue": 0.2, "grey": 0.3}
OBJECTIVES = ["margin_mse", "listnet"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"), tied=True)


@pytest.fixture(scope="module")
def train_file(tmp_path_factory):
    """Ten lists. Whatever is asked, the teacher puts green first, then grey, blue and red."""
    path = tmp_path_factory.mktemp("data") / "lists.jsonl"
    passages = [f"A {colour} one." for colour in COLOURS]
    lists = [{"query": f"need {n}", "passages": passages, "scores": list(COLOURS.values())} for n in range(10)]
    path.write_text("".join(json.dumps(each) + "\n" for each in lists))
    return path


def train_job(model_dir, train_file, run_dir, **training):
    given = {"target": "direct", "objective": "listnet", "train_file": str(train_file)} | training
    return TrainJob(
        run_dir=str(run_dir),
        model={"id": str(model_dir), "dtype": "float32"},
        workers={"replicas": 1, "cpus": 1},
        training=settings(**given),
    )


def start(config, workers=1):
    """A fresh model's state, and the examples."""
    torch.manual_seed(0)
    prepared = prepare(config)
    model, _ = load_for_training(config.model.id, config.training, torch.float32)
    units = len(training_units(prepared.training, config.training.objective))
    return TrainState(model, config.training, total_steps(units, config.training, workers)), prepared.training


def fit(config, on_step, workers=1):
    state, examples = start(config, workers)
    train(state, examples, config.training, seed=1, labels=TRUE_FALSE, on_step=on_step(state))
    return state, examples


def agreement(odds, scores):
    """The share of a list's pairs that both put in the same order: Kendall's tau from 0 to 1."""
    pairs = [(one, other) for one in range(len(odds)) for other in range(one)]
    return sum((odds[a] > odds[b]) == (scores[a] > scores[b]) for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_teacher_s_order_is_learned(model_dir, train_file, tmp_path, objective):
    config = train_job(model_dir, train_file, tmp_path, objective=objective, epochs=30, batch_size=10)
    lines = []
    state, examples = fit(config, lambda _: into(lines))
    odds = direct_log_odds(state.model, examples, TRUE_FALSE, 8, "cpu")
    lists = [odds[start : start + 4] for start in range(0, 40, 4)]
    assert min(agreement(each, list(COLOURS.values())) for each in lists) == 1
    untrained, _ = start(config)
    before = direct_log_odds(untrained.model, examples, TRUE_FALSE, 8, "cpu")
    assert agreement(before[:4], list(COLOURS.values())) < 1
    assert lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["examples"] == 30 * 40
    if objective == "margin_mse":  # distances, too: the teacher's are 1, 1, 1 times 0.1 / its spread
        best_first = sorted(lists[0], reverse=True)
        steps = [upper - lower for upper, lower in pairwise(best_first)]
        assert steps == pytest.approx([0.1 / prepare(config).plan["teacher_temperature"]] * 3, rel=0.25)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_packed_row_has_the_loss_of_its_lists_one_by_one(model_dir, train_file, tmp_path, objective):
    state, examples = start(train_job(model_dir, train_file, tmp_path, objective=objective))
    loss, units = row_loss(state.model.eval(), objective, TRUE_FALSE), training_units(examples, objective)
    lists = of_units(examples, units)
    together = loss(pack(lists)).item()
    assert together == pytest.approx(sum(loss(pack([each])).item() for each in lists), rel=1e-5)
    assert mean_loss(loss, examples, objective, 3, "cpu") == pytest.approx(together / 10, rel=1e-5)


def test_steps_do_not_depend_on_the_accumulation(model_dir, train_file, tmp_path):
    losses = []
    for batch_size, accumulation in ((6, 1), (2, 3), (1, 6)):
        lines = []
        changes = {"batch_size": batch_size, "gradient_accumulation": accumulation, "objective": "margin_mse"}
        fit(train_job(model_dir, train_file, tmp_path, **changes), lambda _, lines=lines: into(lines))
        losses.append([line["loss"] for line in lines])
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(model_dir, train_file, tmp_path):
    config, kept = train_job(model_dir, train_file, tmp_path), io.BytesIO()

    def keeping(state):
        return lambda metrics, over: torch.save(state.state_dict(), kept) if metrics["step"] == 3 else None

    whole, examples = fit(config, keeping)
    again, _ = start(config)
    kept.seek(0)
    again.load_state_dict(torch.load(kept, weights_only=True))
    lines = []
    train(again, examples, config.training, seed=1, labels=TRUE_FALSE, on_step=into(lines))
    assert [line["step"] for line in lines] == list(range(4, 11))
    for name, parameter in again.parameters.items():
        torch.testing.assert_close(parameter, whole.parameters[name], msg=name)


def member(rank, folder, config):
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        lines = []
        fit(config, lambda _: into(lines), workers=2)
        torch.save([line["loss"] for line in lines], f"{folder}/{rank}")
    finally:
        distributed.destroy_process_group()


def test_two_processes_make_the_steps_of_one(model_dir, train_file, tmp_path):
    """Three lists a process and step; at the end of an epoch one of them has less to do."""
    config = partial(train_job, model_dir, train_file, tmp_path, objective="margin_mse")
    torch.multiprocessing.spawn(member, (str(tmp_path), config(batch_size=1, gradient_accumulation=3)), nprocs=2)
    lines = []
    fit(config(batch_size=1, gradient_accumulation=6), lambda _: into(lines))
    for rank in range(2):
        assert torch.load(tmp_path / str(rank)) == pytest.approx([line["loss"] for line in lines], rel=1e-4)


def test_a_plan_says_the_temperature_and_what_is_left_out(model_dir, train_file, tmp_path):
    planned = job.plan(train_job(model_dir, train_file, tmp_path, validation_share=0.2))
    assert (planned["units"], planned["examples"], planned["validation_examples"]) == (8, 32, 8)
    assert planned["teacher_temperature"] == pytest.approx(0.1 * 1.25**0.5)  # of 1, 2, 3, 4 tenths
    assert planned["warnings"] == []
    given = job.plan(train_job(model_dir, train_file, tmp_path, teacher_temperature=0.5, list_size=2, max_examples=6))
    assert (given["teacher_temperature"], given["units"], given["examples"]) == (0.5, 3, 6)
    one = tmp_path / "one.jsonl"
    one.write_text(train_file.read_text() + '{"query": "other", "passages": ["a"], "scores": [1]}\n')
    (warning,) = job.plan(train_job(model_dir, one, tmp_path))["warnings"]
    assert "1 of 41 passages are left out: 1 are of a query without two different scores" in warning


def test_scores_or_labels_that_an_objective_needs_are_asked_for(model_dir, train_file, tmp_path):
    with pytest.raises(
        UserError, match=r"lists.jsonl:1: keys .*: a teacher's scores without labels: take training.obj"
    ):
        job.plan(train_job(model_dir, train_file, tmp_path, objective="softmax"))
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text('{"query": "q", "passage": "p", "label": true}\n')
    with pytest.raises(UserError, match="no example has a teacher's score, which training.objective=listnet learns"):
        job.plan(train_job(model_dir, labelled, tmp_path))


def test_a_cluster_carries_the_scores(model_dir, train_file, tmp_path, local_ray, monkeypatch):
    """In blocks with labels, without, and with both."""
    monkeypatch.setattr(encoding, "BLOCK", 3)
    mixed = tmp_path / "mixed.jsonl"
    pairs = [{"query": f"q{n // 4}", "passage": f"p{n}", "score": n, "label": n == 5} for n in range(8)]
    mixed.write_text(
        "".join(json.dumps(each | ({"label": None} if n < 4 else {})) + "\n" for n, each in enumerate(pairs))
    )
    config = train_job(model_dir, mixed, tmp_path)
    here, there = prepare(config), prepare(config, encode=encoding.encode_on_cluster)
    assert [each.label for each in there.training] == [None] * 4 + [False, True, False, False]
    for one, other in zip(here.training, there.training, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert (one.score, one.label, one.query, one.line) == (other.score, other.label, other.query, other.line)
