"""A writer is trained: a random two-layer Llama with SmolLM2's tokenizer, on passages and their queries."""

import json

import pytest
import torch

from helpers.tiny_model import make_tiny
from helpers.training import settings
from limrank import models
from limrank.config import RerankJob, TrainJob
from limrank.errors import UserError
from limrank.reranking import job as reranking
from limrank.storage import Storage
from limrank.training import encoding, fit, job
from limrank.training.batches import pack
from limrank.training.forward import row_loss
from limrank.training.metrics import read_metrics
from limrank.training.model import load_for_training
from limrank.training.prepare import choose, prepare

COLOURS = ("red", "green", "blue", "grey")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"), tied=True)


@pytest.fixture(scope="module")
def train_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    pairs = [
        {"query": f"which {colour} {n}", "passage": f"A {colour} one. " * (n + 1)}
        for n in range(4)
        for colour in COLOURS
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in pairs))
    return path


def train_job(model_dir, train_file, run_dir, **training):
    return TrainJob(
        run_dir=str(run_dir),
        model={"id": str(model_dir), "dtype": "float32"},
        workers={"replicas": 1, "cpus": 1},
        training=settings(task="writer", train_file=str(train_file), **training),
    )


def test_the_loss_is_that_of_the_query_and_the_end(model_dir, train_file, tmp_path):
    """As transformers computes it, of the prompt's text encoded by the model's own tokenizer."""
    config = train_job(model_dir, train_file, tmp_path)
    model, tokenizer = load_for_training(model_dir, config.training, torch.float32)
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0] == 49152  # no think tokens
    examples, theirs = prepare(config).training[:3], 0.0
    for line, example in zip(train_file.read_text().splitlines(), examples, strict=False):
        pair = json.loads(line)
        prompt = tokenizer.encode(f"Passage: {pair['passage']}\nSearch query:")
        written = [*tokenizer.encode(f" {pair['query']}"), tokenizer.eos_token_id]
        assert example.ids.tolist() == prompt + written
        labels = torch.tensor([[-100] * len(prompt) + written])
        with torch.no_grad():
            theirs += model(input_ids=torch.tensor([prompt + written]), labels=labels).loss.item() * len(written)
    loss = row_loss(model.eval(), "label", None)
    with torch.no_grad():
        assert loss(pack([[example] for example in examples])).item() == pytest.approx(theirs, rel=1e-5)


def test_a_plan_of_a_writer(model_dir, train_file, tmp_path):
    planned = job.plan(train_job(model_dir, train_file, tmp_path, max_examples=12, validation_share=0.25))
    assert (planned["task"], planned["target"]) == ("writer", None)
    assert (planned["examples"], planned["validation_examples"], planned["warnings"]) == (9, 3, [])
    with pytest.raises(UserError, match="pairs.jsonl:1: prompt and query do not fit in training.cutoff_tokens=5"):
        job.plan(train_job(model_dir, train_file, tmp_path, cutoff_tokens=5))


def test_a_writer_is_trained_and_exported(model_dir, train_file, tmp_path, local_ray, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    monkeypatch.setattr(encoding, "BLOCK", 5)
    config = train_job(model_dir, train_file, tmp_path, epochs=4, batch_size=4, validation_share=0.25)
    chosen = choose(config)
    here, there = prepare(config, chosen), prepare(config, chosen, encode=encoding.encode_on_cluster)
    for one, other in zip(here.training, there.training, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert (one.line, one.prompt_tokens, one.label, one.query) == (
            other.line,
            other.prompt_tokens,
            None,
            other.query,
        )
    result = fit.fit(config, Storage(str(tmp_path)), prepared=there)
    losses = [line["loss"] for line in read_metrics(Storage(str(tmp_path)))]
    assert losses[-1] < losses[0] and result.validation_loss < losses[0]

    folder = tmp_path / "model"
    assert models.task_of(str(folder)) == models.ModelTask("writer", "Passage: {{ passage }}\nSearch query:")
    assert models.task_of(str(tmp_path / "adapter")) == models.task_of(str(folder))
    assert "# A writer of search queries" in (folder / "README.md").read_text()
    assert len(AutoTokenizer.from_pretrained(folder)) == AutoModelForCausalLM.from_pretrained(folder).config.vocab_size
    with pytest.raises(UserError, match="limrank trained it to write queries"):
        reranking._scorer(RerankJob(run_dir=str(tmp_path / "run"), model={"id": str(folder)}))
    assert fit.fit(config, Storage(str(tmp_path))) == result  # nothing is left to do
