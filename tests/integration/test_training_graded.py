"""Graded labels are learned and scored: a random two-layer Llama with SmolLM2's tokenizer, on lists of passages."""

import asyncio
import json

import pytest
import torch

from helpers.tiny_model import make_tiny
from helpers.training import settings
from limrank import models
from limrank.config import RerankJob, ScoringConfig, TrainJob
from limrank.engines.base import Limits, label_token_ids
from limrank.errors import UserError
from limrank.records import Candidate, Query
from limrank.reranking import job as reranking
from limrank.scoring import prompt_template, score_pair
from limrank.storage import Storage
from limrank.training import encoding, fit, job
from limrank.training.metrics import read_metrics
from limrank.training.prepare import prepare

TO_TEN = tuple(map(str, range(11)))
GRADES = {"red": 1, "green": 10, "blue": 4, "grey": 0}
"""One and ten share their first token."""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"), tied=True)


@pytest.fixture(scope="module")
def train_file(tmp_path_factory):
    """Ten lists. Whatever is asked, green answers it fully."""
    path = tmp_path_factory.mktemp("data") / "lists.jsonl"
    passages = [f"A {colour} one." for colour in GRADES]
    lists = [{"query": f"need {n}", "passages": passages, "labels": list(GRADES.values())} for n in range(10)]
    path.write_text("".join(json.dumps(each) + "\n" for each in lists))
    return path


def train_job(model_dir, train_file, run_dir, **training):
    given = {"target": "direct", "labels": TO_TEN, "train_file": str(train_file)} | training
    return TrainJob(
        run_dir=str(run_dir),
        model={"id": str(model_dir), "dtype": "float32"},
        workers={"replicas": 1, "cpus": 1},
        training=settings(**given),
    )


class Transformers:
    """Label log-probabilities of a model in this process."""

    def __init__(self, folder):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.limits = Limits(2048, 8)

    async def label_logprobs(self, prompt, labels):
        with torch.inference_mode():
            logprobs = torch.log_softmax(self.model(torch.tensor([prompt])).logits[0, -1], -1)
        ids = label_token_ids(self.tokenizer, labels)
        return dict(zip(labels, logprobs[ids].tolist(), strict=True))


def test_a_model_learns_the_grades_that_scoring_reads(model_dir, train_file, tmp_path, local_ray, monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    monkeypatch.setattr(encoding, "BLOCK", 7)
    config = train_job(model_dir, train_file, tmp_path, method="full", epochs=60, batch_size=8)
    here, there = prepare(config), prepare(config, encode=encoding.encode_on_cluster)
    for one, other in zip(here.training, there.training, strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert (one.prompt_tokens, one.label, one.query) == (other.prompt_tokens, other.label, other.query)
    fit.fit(config, Storage(str(tmp_path)), prepared=there)
    losses = [line["loss"] for line in read_metrics(Storage(str(tmp_path)))]
    assert losses[-1] < 0.1 < losses[0]

    folder, scoring = tmp_path / "model", ScoringConfig(labels=TO_TEN)
    assert models.task_of(str(folder)) == models.ModelTask("reranker", prompt_template(scoring), TO_TEN)
    engine = Transformers(folder)
    for colour, grade in GRADES.items():
        candidate = Candidate("d", f"A {colour} one.", 1, 0.0)
        judgment = asyncio.run(score_pair(Query("q", "need 3"), candidate, engine, scoring))
        assert judgment.score == pytest.approx(grade / 10, abs=0.05), colour

    with pytest.raises(UserError, match="it is asked for true and false: set scoring.labels="):
        reranking._scorer(RerankJob(run_dir=str(tmp_path / "run"), model={"id": str(folder)}))


def test_a_plan_counts_the_labels_and_names_the_ends_of_a_teacher_s_scale(model_dir, train_file, tmp_path):
    planned = job.plan(train_job(model_dir, train_file, tmp_path))
    assert planned["labels"] == {"0": 10, "1": 10, "4": 10, "10": 10} and planned["label_ends"] is None
    (warning,) = planned["warnings"]
    assert warning.endswith(
        "no training example has the label 2, 3, 5, 6, 7, 8, 9: the model does not learn to answer it"
    )
    taught = tmp_path / "taught.jsonl"
    taught.write_text('{"query": "q", "passages": ["a", "b", "c"], "scores": [-3, 1, 5]}\n')
    planned = job.plan(train_job(model_dir, taught, tmp_path, labels=("no", "partly", "yes")))
    assert (planned["labels"], planned["label_ends"]) == ({"no": 1, "partly": 1, "yes": 1}, [-3, 5])


def test_labels_that_the_tokenizer_lacks_are_refused_by_the_key(model_dir, train_file, tmp_path):
    labels = (*TO_TEN, "1000000")
    with pytest.raises(UserError, match="^training.labels: '1000000' is 7 tokens after </think>"):
        job.plan(train_job(model_dir, train_file, tmp_path, labels=labels))
