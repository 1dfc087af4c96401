"""A train job a worker or the driver of which is killed ends with the weights and the curve
of one that nobody disturbed."""

import json
import os
import random
import shutil
import signal
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from helpers.killing import SEED
from helpers.runs import Run, complaint, named, wait_until
from limrank import models
from limrank.storage import Storage
from limrank.training.metrics import read_metrics

WORKER = ("RayTrainWorker",)
STEPS = 24
REPLICAS = 2


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A model of random weights that takes a moment a step, and examples for so many steps."""
    folder = tmp_path_factory.mktemp("training")
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=49152, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, **shape)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(models.resolve("smollm2-135m-instruct")).save_pretrained(folder / "model")
    draw = random.Random(1)
    words = ["merge", "sorted", "feeds", "heap", "count", "words", "file", "lock", "thread", "timer", "queue"]
    with (folder / "train.jsonl").open("w") as file:
        for number in range(STEPS * 2 * REPLICAS * 5 // 4):
            query, passage = (" ".join(draw.choices(words, k=length)) for length in (6, 60))
            file.write(json.dumps({"query": query, "passage": passage, "label": number % 2}) + "\n")
    return folder


def command(work, run_dir, sharding="none"):
    recipe = run_dir.with_suffix(".yaml")
    recipe.write_text(
        yaml.safe_dump(
            {
                "job": "train",
                "run_dir": str(run_dir),
                "model": {"id": str(work / "model"), "dtype": "float32"},
                "workers": {"replicas": REPLICAS, "cpus": 1},
                "training": {
                    "train_file": str(work / "train.jsonl"),
                    "method": "full",
                    "target": "direct",
                    "epochs": 1,
                    "learning_rate": 1e-3,
                    "batch_size": 2,
                    "gradient_accumulation": 1,
                    "validation_share": 0.2,
                    "eval_steps": 3,
                    "save_steps": 4,
                    "sharding": sharding,
                },
            }
        )
    )
    return [sys.executable, "-m", "limrank", "train", str(recipe), "--address", "local"]


def outcome(run_dir):
    metrics = read_metrics(Storage(str(run_dir)))
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    return [line["loss"] for line in metrics], load_file(run_dir / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(work):
    run_dir = work / "undisturbed"
    with Run(command(work, run_dir), log=work / "undisturbed.log") as run:
        assert run.wait() == 0, run.log.read_text()[-3000:]
    return outcome(run_dir)


@pytest.mark.parametrize(
    ("victim", "sharding", "tolerance"), [("worker", "none", 1e-6), ("driver", "none", 1e-6), ("worker", "full", 1e-4)]
)
@pytest.mark.parametrize("moment", [0, *(pytest.param(number, marks=pytest.mark.faults) for number in range(1, 5))])
def test_what_is_killed_changes_nothing(work, undisturbed, victim, sharding, tolerance, moment, tmp_path):
    """Weights in parts add up in another order: there it is a little."""
    run_dir = tmp_path / "run"
    after = random.Random(f"{SEED} {victim} {moment}").randrange(5, STEPS - 4)
    print(f"LIMRANK_FAULT_SEED={SEED}: {victim} after step {after} of {run_dir}")
    with Run(command(work, run_dir, sharding), log=tmp_path / "run.log") as run:
        wait_until(lambda: run.ended() or len(read_metrics(Storage(str(run_dir)))) >= after, f"step {after}")
        assert not run.ended(), run.log.read_text()[-3000:]
        if victim == "driver":
            os.kill(run.process.pid, 9)
            run.wait()
            run.leave()
        else:
            os.kill(next(each.pid for each in run.seen() if named(each, WORKER)), 9)
            assert run.wait() == 0, run.log.read_text()[-3000:]
    if victim == "driver":
        with Run(command(work, run_dir, sharding), log=tmp_path / "again.log") as again:
            assert again.wait() == 0, again.log.read_text()[-3000:]
            assert again.left() == []
    losses, weights = outcome(run_dir)
    assert losses == pytest.approx(undisturbed[0], abs=tolerance)
    for name, tensor in undisturbed[1].items():
        difference = (weights[name] - tensor).abs()
        # Adam divides by the gradient's size, so rounding shows where a gradient is almost zero.
        assert (difference.max() if sharding == "none" else difference.mean()) <= tolerance, name


def test_ctrl_c_ends_a_training_as_it_ends_any_job(work, tmp_path):
    """Ray Train's own handler would end it with 0."""
    run_dir = tmp_path / "run"
    with Run(command(work, run_dir), log=tmp_path / "run.log") as run:
        wait_until(lambda: run.ended() or read_metrics(Storage(str(run_dir))), "a first step")
        os.kill(run.process.pid, signal.SIGINT)
        assert run.wait() == 130, run.log.read_text()[-3000:]
        assert complaint(run.log.read_text()) == "limrank: stopped by SIGINT"
        assert run.left() == []
    assert json.loads((run_dir / "manifest.json").read_text())["status"] == "interrupted"


def test_an_export_that_was_lost_is_made_again(work, undisturbed):
    """As after a death between the last checkpoint and the export: of the best look's weights."""
    run_dir = work / "undisturbed"
    looks = [line for line in read_metrics(Storage(str(run_dir))) if "validation_loss" in line]
    best = min(looks, key=lambda line: line["validation_loss"])
    assert f"weights of step {best['step']}," in (run_dir / "model" / "README.md").read_text()
    shutil.rmtree(run_dir / "model")
    with Run(command(work, run_dir), log=work / "exported.log") as run:
        assert run.wait() == 0, run.log.read_text()[-3000:]
    weights = load_file(run_dir / "model" / "model.safetensors")
    assert weights.keys() == undisturbed[1].keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in undisturbed[1].items())
