"""Training with real models: a random two-layer Llama with SmolLM2's tokenizer, and SmolLM2 itself."""

import json
import math
import shutil

import pytest
import torch
from transformers import AutoConfig

from helpers.tiny_model import make_tiny
from helpers.training import PROMPT, TRUE_FALSE, encode, into, label_loss, perturb, settings
from limrank import models
from limrank.config import TrainJob
from limrank.errors import EngineError, UserError
from limrank.storage import Storage
from limrank.training import encoding, fit, job, memory
from limrank.training.attention import check_packing
from limrank.training.batches import pack
from limrank.training.forward import mean_loss
from limrank.training.loop import total_steps, train
from limrank.training.memory import Row, training_bytes
from limrank.training.metrics import read_metrics
from limrank.training.model import load_for_training, merge_and_save
from limrank.training.prepare import prepare
from limrank.training.state import TrainState

REAL = "smollm2-135m-instruct"


@pytest.fixture(scope="module", params=["tied", "untied"])
def tiny_model(request, tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp(request.param), tied=request.param == "tied")


@pytest.fixture(scope="module")
def tied_model(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="module")
def train_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    lines = []
    for number in range(8):
        label = ("true", "false")[number % 2]
        prompt = PROMPT.format(query=f"merge {number} sorted feeds", passage="heapq.merge(*iterables) " * (number + 1))
        lines.append({"prompt": prompt, "completion": f"\nIt is about {'heaps ' * number}.\n</think> {label}"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def reference_loss(model, example):
    """What transformers makes of one example without padding, given its labels."""
    ids = torch.from_numpy(example.ids.astype("int64"))[None]
    labels = ids.clone()
    labels[:, : example.prompt_tokens] = -100
    return model(input_ids=ids, labels=labels).loss.item()


def logits(model, example):
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(example.ids.astype("int64"))[None]).logits


def test_encoding_in_parts_equals_encoding_the_whole(tied_model, train_file):
    _, tokenizer = load_for_training(tied_model, settings(), torch.float32)
    line = json.loads(train_file.read_text().splitlines()[3])
    whole = tokenizer.encode(line["prompt"] + line["completion"], add_special_tokens=False)
    assert encode(train_file, tokenizer)[3].ids.tolist() == [*whole, tokenizer.eos_token_id]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_packed_row_s_loss_is_that_of_its_examples_one_by_one(tiny_model, train_file, method):
    model, tokenizer = load_for_training(tiny_model, settings(method=method), torch.float32)
    perturb(model)
    examples = encode(train_file, tokenizer)[:3]
    ours = label_loss(model)(pack([[example] for example in examples])).item()
    theirs = sum(reference_loss(model, example) * example.completion_tokens for example in examples)
    assert ours == pytest.approx(theirs, rel=1e-5)
    tokens = sum(example.completion_tokens for example in examples)
    assert mean_loss(label_loss(model), examples, "label", 2, "cpu") == pytest.approx(theirs / tokens, rel=1e-5)


def test_new_embeddings_are_the_mean_of_the_learned(tiny_model):
    model, tokenizer = load_for_training(tiny_model, settings(method="full"), torch.float32)
    added = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert added == [49152, 49153]
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        torch.testing.assert_close(layer.weight[added], layer.weight[:49152].mean(0).expand(2, -1))


def test_the_loss_is_weighted_by_tokens_whatever_the_accumulation(tied_model, train_file):
    losses, weights = [], []
    for batch_size, accumulation in ((8, 1), (2, 4), (3, 3)):
        training = settings(batch_size=batch_size, gradient_accumulation=accumulation, warmup_ratio=0)
        torch.manual_seed(0)
        model, tokenizer = load_for_training(tied_model, training, torch.float32)
        examples = encode(train_file, tokenizer)
        expected = mean_loss(label_loss(model), examples, "label", 1, "cpu")
        lines = []
        state = TrainState(model, training, total_steps(len(examples), training, workers=1))
        train(state, examples, training, seed=1, labels=TRUE_FALSE, on_step=into(lines))
        assert lines[0]["loss"] == pytest.approx(expected, rel=1e-5)
        losses.append([line["loss"] for line in lines])
        weights.append(torch.cat([each.detach().flatten() for each in state.parameters.values()]))
    for other in (1, 2):
        assert losses[other] == pytest.approx(losses[0], rel=1e-4)
        # Adam divides by the gradient's size, so rounding shows where a gradient is almost zero.
        assert (weights[other] - weights[0]).abs().mean() < 1e-4


def test_schedule_counts_and_rates(tied_model, train_file):
    training = settings(epochs=5, warmup_ratio=0.2)
    model, tokenizer = load_for_training(tied_model, training, torch.float32)
    examples = encode(train_file, tokenizer)
    lines = []
    state = TrainState(model, training, total_steps(len(examples), training, workers=1))
    progress = train(
        state,
        examples,
        training,
        seed=1,
        labels=TRUE_FALSE,
        validation=examples[:2],
        on_step=into(lines),
    )
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert progress.examples == 40
    assert progress.tokens == 5 * sum(len(example.ids) for example in examples)
    assert [line["learning_rate"] for line in lines[:5]] == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01])
    assert lines[12]["learning_rate"] == pytest.approx(0.01 * (1 + math.cos(math.pi / 2)) / 2)
    assert [line["epoch"] for line in lines if "validation_loss" in line] == [1, 2, 3, 4, 5]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_seed_makes_a_run_repeatable(tied_model, train_file):
    training = settings()

    def losses(seed):
        torch.manual_seed(seed)
        model, tokenizer = load_for_training(tied_model, training, torch.float32)
        examples = encode(train_file, tokenizer)
        state, lines = TrainState(model, training, total_steps(len(examples), training, workers=1)), []
        train(state, examples, training, seed=seed, labels=TRUE_FALSE, on_step=into(lines))
        return [line["loss"] for line in lines]

    once = losses(1)
    assert losses(1) == once != losses(2)


def test_a_loss_that_is_not_a_number_names_step_and_lines(tied_model, train_file):
    training = settings(batch_size=8)
    model, tokenizer = load_for_training(tied_model, training, torch.float32)
    model.get_base_model().model.norm.weight.data[0] = float("nan")
    state = TrainState(model, training, 2)
    with pytest.raises(EngineError, match=r"step 1: the loss is nan \(lines 8, 7, 6, 5, 4, 3, 2, 1 of"):
        train(state, encode(train_file, tokenizer), training, seed=1, labels=TRUE_FALSE)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tied_model, train_file, tmp_path, dropout):
    """What is dropped by chance, too, is what it was."""
    training = settings(epochs=2, batch_size=2)
    shutil.copytree(tied_model, tmp_path / "model")
    AutoConfig.from_pretrained(tied_model, attention_dropout=dropout).save_pretrained(tmp_path / "model")

    def fresh():
        torch.manual_seed(0)
        model, tokenizer = load_for_training(tmp_path / "model", training, torch.float32)
        row = pack([[each] for each in encode(train_file, tokenizer)[:2]])
        once, again = (label_loss(model.train())(row).item() for _ in range(2))
        assert (once != again) == (dropout > 0)
        return TrainState(model, training, 8), encode(train_file, tokenizer)

    kept = {}

    def keep(metrics, over):
        if metrics["step"] == 3:
            kept.update(torch.load(save(state.state_dict()), weights_only=True))

    state, examples = fresh()
    train(state, examples, training, seed=1, labels=TRUE_FALSE, on_step=keep)
    again, _ = fresh()
    again.load_state_dict(kept)
    lines = []
    train(again, examples, training, seed=1, labels=TRUE_FALSE, on_step=into(lines))
    assert [line["step"] for line in lines] == [4, 5, 6, 7, 8]
    for name, parameter in again.parameters.items():
        torch.testing.assert_close(parameter, state.parameters[name], msg=name)


def save(state):
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


@pytest.mark.parametrize(("method", "embeddings"), [("lora", "added"), ("lora", "all"), ("full", "added")])
def test_the_merged_model_is_the_adapter_model(tiny_model, train_file, tmp_path, method, embeddings):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = load_for_training(tiny_model, settings(method=method, lora_embeddings=embeddings), torch.float32)
    perturb(model)
    model.eval()
    example = encode(train_file, tokenizer)[0]
    before = logits(model, example)
    directory = tmp_path / "model"
    merge_and_save(model, tokenizer, Storage(str(tmp_path)), torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(directory)
    assert (logits(merged, example) - before).abs().max() < 1e-4
    assert merged.config.vocab_size == merged.get_input_embeddings().weight.shape[0] == 49154
    tied = merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert tied == merged.config.tie_word_embeddings
    reloaded = AutoTokenizer.from_pretrained(directory)
    assert reloaded.encode("</think> true") == [49153, 2629]
    assert reloaded.encode("</think> false") == [49153, 7065]
    assert (tmp_path / "adapter").is_dir() == (method == "lora")
    assert {path.name for path in tmp_path.iterdir()} <= {"adapter", "model"}


def test_an_adapter_is_put_on_the_layers_that_are_named(tied_model):
    model, _ = load_for_training(tied_model, settings(lora_targets=["q_proj", "v_proj"]), torch.float32)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora_" in name}
    assert adapted == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match=r"no linear layer lm_head, query; it has down_proj, .*, v_proj$"):
        load_for_training(tied_model, settings(lora_targets=["lm_head", "q_proj", "query"]), torch.float32)


def test_what_is_trained_of_the_embeddings(tiny_model):
    """Their added rows, or the one or two matrices whole."""
    tied = AutoConfig.from_pretrained(tiny_model).tie_word_embeddings
    for embeddings, rows in (("added", 2), ("all", 49154)):
        model, _ = load_for_training(tiny_model, settings(lora_embeddings=embeddings), torch.float32)
        trained = [each for name, each in model.named_parameters() if each.requires_grad and "lora_" not in name]
        assert [tuple(each.shape) for each in trained] == [(rows, 64)] * (1 if tied else 2)


@pytest.mark.parametrize("embeddings", ["added", "all"])
def test_the_saved_adapter_loads_on_the_base_model(tied_model, train_file, tmp_path, embeddings):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model, tokenizer = load_for_training(tied_model, settings(lora_embeddings=embeddings), torch.float32)
    perturb(model)
    model.eval()
    example = encode(train_file, tokenizer)[0]
    before = logits(model, example)
    merge_and_save(model, tokenizer, Storage(str(tmp_path)), torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tied_model)
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    again = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert (logits(again, example) - before).abs().max() < 1e-4


@pytest.mark.parametrize("embeddings", ["added", "all"])
def test_bfloat16_keeps_what_is_trained_in_float32(tied_model, train_file, embeddings):
    training = settings(epochs=4, lora_embeddings=embeddings)
    model, tokenizer = load_for_training(tied_model, training, torch.bfloat16)
    check_packing(model)
    kinds = {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad}
    assert kinds == {torch.bfloat16}
    state = TrainState(model, training, 16)
    assert {parameter.dtype for parameter in state.parameters.values()} == {torch.float32}
    lines = []
    train(
        state,
        encode(train_file, tokenizer),
        training,
        seed=1,
        labels=TRUE_FALSE,
        mixed_precision=True,
        on_step=into(lines),
    )
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_a_model_that_trained_before_gets_no_second_think_tokens(tied_model, tmp_path):
    model, tokenizer = load_for_training(tied_model, settings(), torch.float32)
    directory = tmp_path / "model"
    merge_and_save(model, tokenizer, Storage(str(tmp_path)), torch.float32)
    model, tokenizer = load_for_training(directory, settings(), torch.float32)
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0] == 49154
    assert not [name for name, each in model.named_parameters() if each.requires_grad and "lora" not in name]


def test_the_real_model_learns(train_file, tmp_path):
    from transformers import AutoModelForCausalLM

    training = settings(epochs=2, batch_size=2, learning_rate=2e-3, lora_rank=8, lora_alpha=16)
    model, tokenizer = load_for_training(models.resolve(REAL), training, torch.float32)
    examples = encode(train_file, tokenizer)[:2]
    expected = reference_loss(model, examples[0])
    assert mean_loss(label_loss(model), examples[:1], "label", 1, "cpu") == pytest.approx(expected, rel=1e-5)
    state = TrainState(model, training, 2)
    before = mean_loss(label_loss(model), examples, "label", 4, "cpu")
    train(state, examples, training, seed=1, labels=TRUE_FALSE)
    assert mean_loss(label_loss(model), examples, "label", 4, "cpu") < 0.8 * before
    model.eval()
    trained = logits(model, examples[0])
    merge_and_save(model, tokenizer, Storage(str(tmp_path)), torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert (logits(merged, examples[0]) - trained).abs().max() < 1e-4


# ---- the whole job, on Ray -----------------------------------------------------------


def train_job(model, train_file, run_dir, replicas=1, **training):
    return TrainJob(
        run_dir=str(run_dir),
        model={"id": str(model), "dtype": "float32"},
        workers={"replicas": replicas, "cpus": 1},
        training=settings(train_file=str(train_file), **training),
    )


def test_a_plan_counts_without_ray_or_weights(tied_model, train_file, tmp_path):
    config = train_job(tied_model, train_file, tmp_path, replicas=2, validation_share=0.25, epochs=3, target="direct")
    planned = job.plan(config)
    assert (planned["examples"], planned["validation_examples"]) == (6, 2)
    assert (planned["units_a_step"], planned["steps"], planned["workers"]) == (4, 6, 2)
    assert planned["cut"] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("sharding", "embeddings"), [("none", "added"), ("full", "added"), ("full", "all")])
def test_a_run_trains_exports_and_resumes(
    tied_model, train_file, tmp_path, local_ray, monkeypatch, sharding, embeddings
):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Ray Train checks its workers every two seconds, which is most of a run this small.
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")

    # Five training examples, four a step: in each epoch's last step a worker has nothing to do.
    shape = {"epochs": 4, "max_examples": 7, "validation_share": 0.3, "learning_rate": 3e-3, "save_steps": 3}
    shape |= {"sharding": sharding, "lora_embeddings": embeddings}
    config = train_job(tied_model, train_file, tmp_path, replicas=2, batch_size=1, gradient_accumulation=2, **shape)
    seen = []
    result = fit.fit(config, Storage(str(tmp_path)), seen.append)
    metrics = read_metrics(Storage(str(tmp_path)))
    assert seen == metrics
    assert [line["step"] for line in metrics] == list(range(1, 9))
    outputs = {"checkpoints", "adapter", "model", "metrics.jsonl", "curves.png"}
    assert {path.name for path in tmp_path.iterdir()} == outputs
    assert (result.examples, result.steps, result.truncated) == (7, 8, 0)
    assert result.final_loss == metrics[-1]["loss"]
    assert result.validation_loss == metrics[-1]["validation_loss"] < metrics[1]["validation_loss"]

    # Two workers make the same steps as a single process.
    single = train_in_one_process(config)
    for name in ("loss", "learning_rate", "examples"):
        assert [line[name] for line in metrics] == pytest.approx([line[name] for line in single], rel=1e-4)
    assert metrics[-1]["validation_loss"] == pytest.approx(single[-1]["validation_loss"], rel=1e-4)

    tokenizer = AutoTokenizer.from_pretrained(result.model_dir)
    assert len(tokenizer.encode("</think>")) == 1
    exported = AutoModelForCausalLM.from_pretrained(result.model_dir)
    assert exported.generation_config.eos_token_id == tokenizer.eos_token_id
    assert (tmp_path / "model" / "generation_config.json").is_file()
    adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert adapted.get_input_embeddings().weight.shape[0] == len(tokenizer)
    for folder in ("model", "adapter"):
        card = (tmp_path / folder / "README.md").read_text()
        assert "5 examples of train.jsonl, 2 held out" in card
        assert tied_model.name in card and str(tied_model.parent) not in card
    assert "This is only the adapter" in card and "- lora_targets: all linear layers" in card
    assert f"- lora_embeddings: {embeddings}" in card

    # A second call has nothing to do, and returns the same.
    assert fit.fit(config, Storage(str(tmp_path)), seen.append) == result
    assert read_metrics(Storage(str(tmp_path))) == metrics == seen

    # A plan that the checkpoints do not fit is refused, by the worker, in one line.
    other = train_job(tied_model, train_file, tmp_path, batch_size=1, gradient_accumulation=2, **shape)
    with pytest.raises(UserError, match=r"belong to another plan \(steps 8 → 12, units_a_step 4 → 2\)") as error:
        fit.fit(other, Storage(str(tmp_path)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0, 0.01])
def test_where_nothing_is_held_out_the_last_checkpoints_are_kept(
    tied_model, train_file, tmp_path, local_ray, monkeypatch, share
):
    """Of eight examples one in a hundred is none."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    config = train_job(tied_model, train_file, tmp_path, save_steps=1, keep_checkpoints=2, validation_share=share)
    steps = fit.fit(config, Storage(str(tmp_path))).steps
    states = [torch.load(file, weights_only=True) for file in (tmp_path / "checkpoints").glob("*/state.pt")]
    assert sorted(state["progress"]["step"] for state in states) == [steps - 2, steps - 1, steps]


def train_in_one_process(config):
    """The same steps in this process: twice the accumulation for half the workers."""
    prepared = prepare(config)
    examples, validation = prepared.training, prepared.validation
    training = config.training.model_copy(update={"gradient_accumulation": 4})
    torch.manual_seed(config.seed)
    model, _ = load_for_training(config.model.id, training, torch.float32)
    state = TrainState(model, training, total_steps(len(examples), training, workers=1))
    lines = []
    train(
        state,
        examples,
        training,
        seed=config.seed,
        labels=TRUE_FALSE,
        validation=validation,
        on_step=into(lines),
    )
    return lines


def test_what_the_cluster_cannot_give_is_refused(tied_model, train_file, tmp_path, local_ray):
    with pytest.raises(UserError, match="8 replicas of 1 CPUs each do not fit"):
        fit.fit(train_job(tied_model, train_file, tmp_path, replicas=8), Storage(str(tmp_path)))
    config = train_job(tied_model, train_file, tmp_path)
    on_gpus = config.model_copy(update={"workers": config.workers.model_copy(update={"gpus": 2})})
    with pytest.raises(UserError, match=r"2 GPUs .*lower .*workers\.gpus"):
        fit.fit(on_gpus, Storage(str(tmp_path)))


def test_a_file_that_teaches_nothing_is_reported_before_anything_starts(tied_model, train_file, tmp_path):
    with pytest.raises(UserError, match="9 workers for 8 training examples of .*: take fewer workers"):
        job.plan(train_job(tied_model, train_file, tmp_path, replicas=9))
    one = tmp_path / "one.jsonl"
    one.write_text(train_file.read_text().splitlines()[0] + "\n")
    planned = job.plan(train_job(tied_model, one, tmp_path, validation_share=0.1))
    assert planned["examples"] == 1 and len(planned["warnings"]) == 2
    assert "all 1 training examples have one label" in planned["warnings"][0]
    assert "0.1 of 1 examples is not one whole query: nothing is held out" in planned["warnings"][1]
    with pytest.raises(UserError, match="nothing is held out, and training.patience=2 waits for it"):
        job.plan(train_job(tied_model, one, tmp_path, validation_share=0.1, patience=2))
    compared = {"target": "direct", "objective": "softmax"}
    with pytest.raises(UserError, match="no query has a relevant and another passage"):
        job.plan(train_job(tied_model, one, tmp_path, **compared))
    two = tmp_path / "two.jsonl"
    lines = [{"query": f"q{number // 4}", "passage": f"p{number}", "label": number % 4 == 0} for number in range(9)]
    two.write_text("".join(json.dumps(line) + "\n" for line in lines))
    planned = job.plan(train_job(tied_model, two, tmp_path, **compared))
    assert planned["units"] == 2 and "1 of 9 examples are left out" in planned["warnings"][0]
    with pytest.raises(UserError, match=r"training.max_examples=3: every query of .*has more passages: raise it"):
        job.plan(train_job(tied_model, two, tmp_path, max_examples=3, **compared))
    with pytest.raises(UserError, match="3 workers for 2 training queries of .*: take fewer workers"):
        job.plan(train_job(tied_model, two, tmp_path, replicas=3, **compared))


def test_the_error_of_a_worker_is_one_line():
    from ray.train import ControllerError, WorkerGroupError

    lost = RuntimeError("gloo: connection closed\nby peer")
    error = fit._cause(WorkerGroupError("", {0: lost, 1: EngineError("training stopped at step 3")}))
    assert str(error) == "training stopped at step 3"
    error = fit._cause(WorkerGroupError("", {1: lost}))
    assert isinstance(error, EngineError)
    assert str(error) == "training worker 1 failed: RuntimeError: by peer"
    error = fit._cause(ControllerError(OSError("When completing a part:\nslow down")))
    assert str(error) == "training failed: OSError: slow down"


def test_a_cluster_encodes_as_this_process_does(tied_model, train_file, tmp_path, local_ray, monkeypatch):
    monkeypatch.setattr(encoding, "BLOCK", 3)
    config = train_job(tied_model, train_file, tmp_path, cutoff_tokens=60)
    here, there = prepare(config), prepare(config, encode=encoding.encode_on_cluster)
    assert [each.line for each in there.training] == [1, 2, 3, 4, 5, 6, 7, 8]
    for one, other in zip(here.training, there.training, strict=True):
        assert one.ids.tolist() == other.ids.tolist() and other.ids.dtype == "int32"
        for name in ("line", "prompt_tokens", "label", "query", "truncated", "token_weight"):
            assert getattr(one, name) == getattr(other, name)
    assert {each.truncated for each in there.training} == {False, True}
    short = train_job(tied_model, train_file, tmp_path, cutoff_tokens=20)
    with pytest.raises(UserError, match=r"train.jsonl:\d: instruction, query and label do not fit in .*=20"):
        prepare(short, encode=encoding.encode_on_cluster)


def test_memory_is_estimated_before_it_is_taken(tied_model, train_file, tmp_path, local_ray):
    lora, full = (train_job(tied_model, train_file, tmp_path, method=method) for method in ("lora", "full"))
    count = sum(each.numel() for each in load_for_training(tied_model, full.training, torch.float32)[0].parameters())
    count -= 2 * 64  # the rows of the added tokens
    # Weights, gradient and two moments, 4 bytes each.
    assert training_bytes(full, Row(0, 0)) - memory._PROCESS == 16 * count
    model, _ = load_for_training(tied_model, lora.training, torch.float32)
    adapter = sum(each.numel() for name, each in model.named_parameters() if "lora_" in name)
    assert training_bytes(lora, Row(0, 0)) - memory._PROCESS == 4 * count + 16 * adapter
    # With all of the embeddings, which are one matrix here.
    whole = train_job(tied_model, train_file, tmp_path, lora_embeddings="all")
    assert training_bytes(whole, Row(0, 0)) - training_bytes(lora, Row(0, 0)) == 16 * 49152 * 64
    # Of rank 4 on two layers' q_proj (64 × 64) and v_proj (64 × 32).
    two = train_job(tied_model, train_file, tmp_path, lora_targets=["q_proj", "v_proj"])
    assert training_bytes(two, Row(0, 0)) - memory._PROCESS == 4 * count + 16 * 2 * 4 * (128 + 96)
    # 100 tokens, two layers: 10 × 64 + 4 × 128 floats; 7 with logits.
    activations = 4 * (2 * 100 * (10 * 64 + 4 * 128) + 4 * 7 * 49152)
    assert training_bytes(full, Row(100, 7)) - training_bytes(full, Row(0, 0)) == activations
    # Checkpointed: the two layers' inputs, and one layer's.
    checkpointed = train_job(tied_model, train_file, tmp_path, method="full", gradient_checkpointing=True)
    saved = 4 * 100 * (10 * 64 + 4 * 128 - 2 * 64)
    assert training_bytes(full, Row(100, 7)) - training_bytes(checkpointed, Row(100, 7)) == saved
    planned = job.plan(train_job(tied_model, train_file, tmp_path, batch_size=100_000_000))
    assert planned["largest_row_tokens"] == planned["tokens"] // planned["epochs"]
    huge = train_job(tied_model, train_file, tmp_path, lora_rank=10_000_000)
    with pytest.raises(
        UserError, match="one worker's weights, optimizer and activations take about .* GiB, and no node"
    ):
        fit.fit(huge, Storage(str(tmp_path)))


def dying(storage, reached):
    """One trainer for each call. It ends after so many steps: in turn its controller fails, its controller
    crashes, or a worker crashes."""
    from ray.exceptions import ActorDiedError
    from ray.train import ControllerError, WorkerGroupError

    calls = []

    class Dying:
        def fit(self):
            step = reached[len(calls)]
            calls.append(step)
            storage.write_text("metrics.jsonl", "".join(f'{{"step": {each}}}\n' for each in range(1, step + 1)))
            lost = RuntimeError(f"lost in call {len(calls)}")
            raise (ControllerError(lost), ActorDiedError(), WorkerGroupError("died", {0: lost}))[len(calls) % 3 - 1]

    return Dying, calls


def test_crashes_are_tolerated_as_long_as_training_makes_progress(tmp_path):
    """Four crashes without a new step between them end it; each repeats some steps."""
    for reached, message in (
        ([2, 2, 3, 1, 2, 3], "training worker 0 failed: RuntimeError: lost in call 6"),
        ([2, 2, 1, 2], "training failed: RuntimeError: lost in call 4"),
        ([1, 3, 3, 2, 5, 4, 5, 3], "training failed: ActorDiedError: The actor died"),
    ):
        storage = Storage(str(tmp_path / str(len(reached))))
        trainer, calls = dying(storage, [*reached, 9])
        with pytest.raises(EngineError, match=message):
            fit._fit(trainer, storage)
        assert calls == reached


def test_workers_that_the_cluster_has_no_resources_for_end_the_training(
    tied_model, train_file, tmp_path, local_ray, monkeypatch
):
    import ray

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "0.5")
    monkeypatch.setattr(fit, "MINUTES_WAITED", 2)

    @ray.remote(num_cpus=ray.cluster_resources()["CPU"])
    class Other:
        def ready(self):
            return True

    other = Other.remote()
    ray.get(other.ready.remote())
    with pytest.raises(
        EngineError, match="the cluster had no resources for the workers within 2 minutes: it lost a node"
    ):
        fit.fit(train_job(tied_model, train_file, tmp_path), Storage(str(tmp_path)))
    ray.kill(other)
