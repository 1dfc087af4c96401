"""Packed rows, held-out nDCG and early stopping against plain loops over one example at a time."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, MistralConfig

from helpers.tiny_model import make_tiny
from helpers.training import PROMPT, TRUE_FALSE, encode, into, label_loss, perturb, settings
from limrank import models, prompts
from limrank.config import DevConfig, TrainJob
from limrank.errors import EngineError, UserError
from limrank.evaluation.metrics import evaluate
from limrank.storage import Storage
from limrank.training import fit
from limrank.training.attention import PACKED, check_length, check_packing, register
from limrank.training.batches import epoch_steps, pack, single_units
from limrank.training.dev import read_dev_set
from limrank.training.examples import encode_examples, set_target
from limrank.training.forward import direct_log_odds, mean_loss, packed_logits
from limrank.training.loop import total_steps, train
from limrank.training.metrics import read_metrics
from limrank.training.model import load_for_training
from limrank.training.objectives import weight
from limrank.training.prepare import prepare
from limrank.training.sources import read_examples
from limrank.training.state import TrainState

DEV = DevConfig(data={"format": "pydocs", "split": "dev", "max_queries": 4}, first_stage={"depth": 5})


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"), tied=True)


@pytest.fixture(scope="module")
def train_file(tmp_path_factory):
    """Ten queries, each with a passage that is relevant and two that are not."""
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    with path.open("w") as file:
        for query in range(10):
            for passage in range(3):
                prompt = PROMPT.format(query=f"need {query}", passage=f"passage {passage} " * (1 + query % 4 + passage))
                label = "true" if passage == query % 3 else "false"
                file.write(json.dumps({"prompt": prompt, "completion": f"\nIt says {query}.\n</think> {label}"}) + "\n")
    return path


@pytest.fixture
def loaded(model_dir):
    model, tokenizer = load_for_training(model_dir, settings(), torch.float32)
    perturb(model)
    return model.eval(), tokenizer


def direct(train_file, tokenizer):
    examples = set_target(read_examples(train_file), "direct")
    encoding = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    return encode_examples(examples, encoding, tokenizer.eos_token_id, 2500, str(train_file))


def plain_logits(model, ids):
    """Of one sequence by itself, as (tokens, vocabulary)."""
    return model(input_ids=torch.from_numpy(ids.astype("int64"))[None]).logits[0]


def test_an_example_sees_nothing_of_its_neighbours(loaded, train_file):
    model, tokenizer = loaded
    assert model.config._attn_implementation == PACKED
    first, second, third = encode(train_file, tokenizer)[:3]
    with torch.no_grad():
        row = packed_logits(model, pack([[first], [second], [third]]))
        for example, logits in zip(
            (first, second, third), row.split([each.completion_tokens for each in (first, second, third)]), strict=True
        ):
            alone = plain_logits(model, example.ids)[example.prompt_tokens - 1 : -1]
            torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_passages_of_a_query_share_its_beginning_and_nothing_else(model_dir, train_file, checkpointing):
    """Logits and gradients are those of separate sequences."""
    model, tokenizer = load_for_training(model_dir, settings(gradient_checkpointing=checkpointing), torch.float32)
    perturb(model)
    examples = direct(train_file, tokenizer)
    units = [[examples[index] for index in unit] for unit in (range(3), range(3, 6), [7])]
    row = pack(units)
    assert [len(segment) for segment in row.segments] == [4, 4, 1]
    assert row.input_ids.shape[1] < sum(len(example.ids) for unit in units for example in unit)

    def gradients():
        found = {name: each.grad.clone() for name, each in model.named_parameters() if each.requires_grad}
        model.zero_grad()
        return found

    logits = packed_logits(model, row)
    logits.log_softmax(-1)[:, 3].sum().backward()
    together = gradients()
    alone = torch.cat([plain_logits(model, each.ids)[each.prompt_tokens - 1 : -1] for unit in units for each in unit])
    alone.log_softmax(-1)[:, 3].sum().backward()
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together, gradients(), atol=1e-4, rtol=1e-4)


DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_packaged_model_can_be_packed_whatever_it_is_rounded_to(method, dtype):
    """In bfloat16 some of its logits in a row differ by 6.7 % of the largest, only by rounding."""
    packaged = models.resolve("smollm2-135m-instruct")
    model, _ = load_for_training(packaged, settings(method=method), dtype)
    layers, before = model.config.num_hidden_layers, [each.clone() for each in list(model.parameters())[:3]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_packing(model)
    # The check leaves it unchanged.
    assert (model.config.num_hidden_layers, model.config._attn_implementation) == (layers, PACKED)
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=False))


SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "pad_token_id": 0,
}
CONV = {"layer_types": ["full_attention", "full_attention", "full_attention", "conv"]}
LINEAR = {"layer_types": ["full_attention"] * 3 + ["linear_attention"], "num_experts": 4, "num_experts_per_tok": 2}


def of_kind(name, **more):
    """A model of random weights, small as it comes from its makers: a share may be tiny."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SHAPE | more)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    model.set_attn_implementation(PACKED)
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3", "Mistral", "Mixtral", "SmolLM3", "Olmo2", "Granite"])
def test_models_of_these_kinds_can_be_packed(name, dtype):
    check_packing(of_kind(name).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "more", "why"),
    [
        ("Gemma2", {"head_dim": 16}, "softcap"),
        ("GptOss", {"head_dim": 16, "num_local_experts": 4}, "s_aux"),
        ("Mamba", {}, "in a packed row differ"),  # a state from token to token
        ("Lfm2", CONV, "in a packed row differ"),  # the last layer convolves neighbours
        ("Qwen3Next", LINEAR | {"head_dim": 16}, "in a packed row differ"),
    ],
)
def test_models_that_mix_sequences_or_attend_otherwise_are_refused(name, more, why, dtype):
    with pytest.raises(UserError, match=f"{why}.*cannot train models of this kind"):
        check_packing(of_kind(name, **more).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_that_does_not_hand_on_where_a_sequence_ends_is_refused(dtype):
    model = of_kind("Llama").to(dtype)

    class Deaf(type(model.model)):
        def forward(self, *arguments, segments=None, **options):
            return super().forward(*arguments, **options)

    model.model.__class__ = Deaf
    with pytest.raises(UserError, match="in a packed row differ"):
        check_packing(model)


def test_examples_that_are_longer_than_a_model_sees_are_refused(model_dir, train_file, tmp_path):
    shape = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 40}
    config = MistralConfig(sliding_window=32, **shape)
    check_length(config, 32)
    with pytest.raises(UserError, match="33 tokens is longer than the model's attention window of 32"):
        check_length(config, 33)
    with pytest.raises(UserError, match="41 tokens is longer than the model's context of 40"):
        check_length(config, 41)
    # Before a worker is started, and in a dry run.
    shutil.copytree(model_dir, tmp_path / "model")
    AutoConfig.from_pretrained(model_dir, max_position_embeddings=50).save_pretrained(tmp_path / "model")
    job = TrainJob(
        run_dir="unused", model={"id": str(tmp_path / "model")}, training=settings(train_file=str(train_file))
    )
    with pytest.raises(UserError, match=r"longer than the model's context of 50: set training.cutoff_tokens=50"):
        prepare(job)
    longest = prepare(job.model_copy(update={"training": settings(train_file=str(train_file), cutoff_tokens=50)}))
    assert longest.plan["longest_tokens"] == 50 and longest.plan["cut"]


def test_a_mixed_model_learns_both_halves_alike(model_dir, train_file):
    config = TrainJob(
        run_dir="unused",
        model={"id": str(model_dir), "dtype": "float32"},
        training=settings(train_file=str(train_file), target="mixed"),
    )
    examples = prepare(config).training
    direct = [example for example in examples if example.completion_tokens == 1]
    thought = [example for example in examples if example.completion_tokens > 1]
    assert 0 < len(direct) < 30
    assert weight("label", [direct]) == pytest.approx(weight("label", [thought]))
    # And so in the loss: of one row it is that of each half, as often as it counts.
    model, _ = load_for_training(model_dir, config.training, torch.float32)
    loss = label_loss(model)
    with torch.no_grad():
        together = loss(pack([[each] for each in examples])).item()
        halves = [loss(pack([[replace(each, token_weight=1.0)] for each in half])).item() for half in (direct, thought)]
    assert together == pytest.approx(halves[0] * direct[0].token_weight + halves[1], rel=1e-5)


@pytest.mark.parametrize("target", ["think", "direct", "mixed"])
def test_ten_steps_are_those_of_a_plain_loop(model_dir, train_file, target):
    """One example a forward pass, no packing, transformers' own attention and loss."""
    training = settings(epochs=2, batch_size=2, gradient_accumulation=3, warmup_ratio=0.2, target=target)

    def fresh():
        torch.manual_seed(0)
        model, tokenizer = load_for_training(model_dir, training, torch.float32)
        examples = encode_examples(
            set_target(read_examples(train_file), target),
            lambda text: tokenizer.encode(text, add_special_tokens=False),
            tokenizer.eos_token_id,
            2500,
            str(train_file),
        )
        return model, examples, TrainState(model, training, total_steps(len(examples), training, workers=1))

    model, examples, state = fresh()
    lines = []
    train(state, examples, training, seed=1, labels=TRUE_FALSE, on_step=into(lines))
    assert len(lines) == 10
    model, examples, _ = fresh()
    model.set_attn_implementation("sdpa")
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses = []
    for number in range(10):
        # Two steps of warm-up, then a cosine to zero.
        rate = number / 2 if number < 2 else (1 + math.cos(math.pi * (number - 2) / 8)) / 2
        optimizer.param_groups[0]["lr"] = 1e-2 * rate
        step = epoch_steps(single_units(examples), 6, seed=1, epoch=number // 5)[number % 5]
        tokens = sum(examples[index].completion_tokens for (index,) in step)
        total = 0.0
        for (index,) in step:
            ids = torch.from_numpy(examples[index].ids.astype("int64"))[None]
            labels = ids.clone()
            labels[:, : examples[index].prompt_tokens] = -100
            loss = model(input_ids=ids, labels=labels).loss * examples[index].completion_tokens
            (loss / tokens).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total / tokens)
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=1e-5)


def count_passes(layers):
    """A list that gets longer each time that a layer goes forward."""
    passes = []
    for layer in layers:
        layer.mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    return passes


def test_checkpointed_gradients_are_the_same(model_dir, train_file):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model, tokenizer = load_for_training(model_dir, settings(gradient_checkpointing=checkpointing), torch.float32)
        perturb(model)
        passes = count_passes(model.get_base_model().model.layers)
        label_loss(model.train())(pack([[each] for each in encode(train_file, tokenizer)[:3]])).backward()
        assert len(passes) == 2 * (2 if checkpointing else 1)  # of two layers
        gradients.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
    assert gradients[0] and gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_held_out_ndcg_is_that_of_pairs_scored_one_by_one(loaded):
    model, tokenizer = loaded
    dev = read_dev_set(DEV, tokenizer, "Query: {{ query }}\nPassage: {{ passage }}\n<think>", 400)
    assert len(dev.pairs) == 20 and len({query_id for query_id, _ in dev.documents}) == 4
    assert tokenizer.decode(dev.pairs[0].ids).endswith("<think>\n</think> true")
    odds = direct_log_odds(model, dev.pairs, TRUE_FALSE, 3, "cpu")
    run = {}
    with torch.no_grad():
        for pair, found, (query_id, doc_id) in zip(dev.pairs, odds, dev.documents, strict=True):
            logits = plain_logits(model, pair.ids[:-1])[-1]
            expected = (logits[TRUE_FALSE[0]] - logits[TRUE_FALSE[1]]).item()
            assert found == pytest.approx(expected, abs=1e-5)
            run.setdefault(query_id, {})[doc_id] = expected
    assert dev.ndcg(odds) == pytest.approx(evaluate(dev.qrels, run, ["nDCG@10"]).mean["nDCG@10"])
    # Of equal scores the first stage's order stays.
    first = {}
    for place, (query_id, doc_id) in enumerate(dev.documents):
        first.setdefault(query_id, {})[doc_id] = -place
    assert dev.ndcg([0.0] * 20) == pytest.approx(evaluate(dev.qrels, first, ["nDCG@10"]).mean["nDCG@10"])


def test_a_dev_set_without_candidates_is_refused(loaded, tmp_path):
    (tmp_path / "run.trec").write_text("another Q0 document 1 1.0 x\n")
    dev = DevConfig(data=DEV.data, first_stage={"kind": "run", "path": str(tmp_path / "run.trec")})
    with pytest.raises(UserError, match="has no list for any of the 4 queries of pydocs/dev"):
        read_dev_set(dev, loaded[1], "{{ query }} {{ passage }}", 300)


def test_held_out_data_that_is_no_number_stops_the_training(model_dir, train_file):
    """The weights that a last step broke are no model, and not the best one."""
    training = settings(batch_size=10, target="direct", eval_steps=1)
    model, tokenizer = load_for_training(model_dir, training, torch.float32)
    examples = direct(train_file, tokenizer)
    dev = read_dev_set(DEV, tokenizer, "{{ query }} {{ passage }}", 300)
    for held_out, message in (({"validation": examples[:4]}, "held-out loss"), ({"dev": dev}, "dev set's log-odds")):
        state = TrainState(model, training, 3)
        state.optimizer.register_step_post_hook(break_weights)
        with pytest.raises(EngineError, match=f"step 1: the .*{message} is nan; lower training.learning_rate"):
            train(state, examples, training, seed=1, labels=TRUE_FALSE, **held_out)
        assert state.progress.best_step is None
        model, _ = load_for_training(model_dir, training, torch.float32)


def break_weights(optimizer, *_):
    for each in optimizer.param_groups[0]["params"]:
        each.data.fill_(float("nan"))


@pytest.mark.parametrize("objective", ["binary", "softmax", "ranknet"])
def test_a_query_s_relevant_passage_rises(model_dir, objective, tmp_path):
    """Whatever is asked, the green one is right, second of the three."""
    pairs = [(query, colour) for query in range(10) for colour in ("red", "green", "blue")]
    lines = [
        {"query": f"need {query}", "passage": f"A {colour} one.", "label": colour == "green"} for query, colour in pairs
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # Ten queries a step, or their thirty pairs.
    batch = 30 if objective == "binary" else 10
    training = settings(epochs=30, batch_size=batch, target="direct", objective=objective)
    torch.manual_seed(0)
    model, tokenizer = load_for_training(model_dir, training, torch.float32)
    examples = direct(file, tokenizer)
    state, lines = TrainState(model, training, total_steps(batch, training, workers=1)), []
    train(state, examples, training, seed=1, labels=TRUE_FALSE, on_step=into(lines))
    assert lines[0]["loss"] == pytest.approx(math.log(3) if objective == "softmax" else math.log(2), rel=0.05)
    odds = direct_log_odds(model, examples, TRUE_FALSE, 8, "cpu")
    assert all(odds[start + 1] > max(odds[start], odds[start + 2]) for start in range(0, 30, 3))
    assert lines[-1]["examples"] == 30 * 30


def test_evaluations_without_an_improvement_end_the_training(model_dir, train_file):
    """With a tiny learning rate the first evaluation is the best one."""
    training = settings(epochs=9, batch_size=5, learning_rate=1e-12, eval_steps=2, patience=2, target="direct")
    model, tokenizer = load_for_training(model_dir, training, torch.float32)
    examples, lines = direct(train_file, tokenizer), []
    dev = read_dev_set(DEV, tokenizer, "{{ query }} {{ passage }}", 300)
    state = TrainState(model, training, total_steps(30, training, workers=1))
    over = []
    progress = train(
        state,
        examples,
        training,
        seed=1,
        labels=TRUE_FALSE,
        validation=examples[:4],
        dev=dev,
        on_step=lambda metrics, is_over: (lines.append(metrics), over.append(is_over)),
    )
    assert (
        [line["step"] for line in lines if "ndcg" in line]
        == [2, 4, 6]
        == [line["step"] for line in lines if "validation_loss" in line]
    )
    assert (progress.step, progress.best_step, over) == (6, 2, [False] * 5 + [True])


@pytest.mark.parametrize("export", ["best", "last"])
def test_the_weights_that_the_recipe_names_are_exported(
    model_dir, train_file, tmp_path, local_ray, monkeypatch, export
):
    """Held-out loss falls and then rises at a rate that is too high; and there is an event file."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    shape = {"epochs": 6, "batch_size": 5, "learning_rate": 0.1, "eval_steps": 2, "validation_share": 0.3}
    config = TrainJob(
        run_dir=str(tmp_path),
        model={"id": str(model_dir), "dtype": "float32"},
        workers={"replicas": 1, "cpus": 1},
        training=settings(train_file=str(train_file), target="direct", tensorboard=True, export=export, **shape),
        dev=DEV,
    )
    result = fit.fit(config, Storage(str(tmp_path)))
    looks = [line for line in read_metrics(Storage(str(tmp_path))) if "ndcg" in line]
    assert looks and all("validation_loss" in line for line in looks)
    best = max(looks, key=lambda line: line["ndcg"])
    assert result.best_step == best["step"] < result.steps == looks[-1]["step"]
    exported = best if export == "best" else looks[-1]
    assert result.exported_step == exported["step"] and best["ndcg"] > looks[-1]["ndcg"]
    register()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation=PACKED)
    held_out = prepare(config).validation
    loss = mean_loss(label_loss(model), held_out, "label", 4, "cpu")
    assert loss == pytest.approx(exported["validation_loss"], rel=1e-4)
    if export == "best":  # the last weights have collapsed: log-odds differ by 1e-7, and rounding orders them
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        dev = read_dev_set(DEV, tokenizer, prompts.load("relevance"), config.training.cutoff_tokens)
        odds = direct_log_odds(model, dev.pairs, TRUE_FALSE, 4, "cpu")
        assert dev.ndcg(odds) == pytest.approx(exported["ndcg"], abs=1e-6)
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"- weights of step {exported['step']}, the {export}" in card
    states = [torch.load(file, weights_only=True) for file in (tmp_path / "checkpoints").glob("*/state.pt")]
    by_step = {state["progress"]["step"]: state["parameters"] for state in states}
    assert by_step.keys() == {best["step"], result.steps}
    trained = {name.replace(".default.", "."): value for name, value in by_step[exported["step"]].items()}
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    learned = [name for name in adapter if "lora_" in name]
    assert learned and all(torch.equal(adapter[name], trained[name]) for name in learned)
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert fit.fit(config, Storage(str(tmp_path))) == result
