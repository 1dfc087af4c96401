"""The keys of ``scoring`` that are newer than run directories: what they take, and the hash without them."""

import pytest

from limrank.config import ScoringConfig
from limrank.config.recipe import parse_config
from limrank.errors import UserError

RERANK = {"job": "rerank", "run_dir": "runs/a", "engine": {"kind": "fake"}}
LATER = {"samples", "temperature", "labels", "min_score", "calibration"}


def refusal(scoring, job=RERANK, key="scoring"):
    with pytest.raises(UserError) as refused:
        parse_config(job | {key: scoring}, "recipe")
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("mode", ["none", "direct", "think", "budget", "cascade"])
def test_keys_that_are_newer_than_run_directories_leave_the_hash_alone(mode):
    assert not LATER & ScoringConfig(mode=mode).hashed(set()).keys()


def test_the_hash_covers_how_chains_are_sampled():
    scoring = ScoringConfig(mode="think", samples=4, temperature=0.5)
    assert {key: scoring.hashed(set())[key] for key in ("samples", "temperature")} == {"samples": 4, "temperature": 0.5}
    # Without a chain nothing is sampled.
    direct = ScoringConfig(mode="direct", temperature=0.5)
    assert direct.hashed(set()) == ScoringConfig(mode="direct").hashed(set())


@pytest.mark.parametrize("mode", ["none", "direct"])
def test_several_chains_need_a_mode_that_writes_chains(mode):
    assert refusal({"mode": mode, "samples": 2}) == (
        f"recipe: scoring.samples: is 2, and scoring.mode {mode} writes no chain to sample: take think, budget or cascade"
    )


@pytest.mark.parametrize("samples", [0, -1, 65, 10**30, 1.5, True, "many", [], float("nan"), float("inf")], ids=repr)
def test_a_number_of_chains_is_a_small_whole_number(samples):
    assert refusal({"mode": "think", "samples": samples}).startswith("recipe: scoring.samples: ")


@pytest.mark.parametrize("temperature", [-0.1, 2.1, 10**30, False, "hot", [], float("nan"), float("inf")], ids=repr)
def test_a_temperature_is_a_number_from_0_to_2(temperature):
    assert refusal({"mode": "think", "temperature": temperature}).startswith("recipe: scoring.temperature: ")


def test_greedy_chains_are_not_averaged():
    assert refusal({"mode": "think", "samples": 2, "temperature": 0}).startswith(
        "recipe: scoring.temperature: is 0, at"
    )


@pytest.mark.parametrize(
    "key", [{"samples": 2}, {"temperature": 0.5}, {"labels": ["0", "1"]}, {"min_score": 0.5}], ids=str
)
def test_a_judge_reads_no_key_of_a_reranker(key):
    (name,) = key
    job = {"job": "synthesize", "run_dir": "runs/a"}
    assert f"scoring.{name}: is for rerankers" in refusal({"mode": "budget"} | key, job)
    pipeline = {"job": "pipeline", "run_dir": "runs/a"}
    assert f"judge_scoring.{name}: is for rerankers" in refusal({"mode": "budget"} | key, pipeline, "judge_scoring")


def test_samples_decide_the_temperature():
    given = [
        ScoringConfig(mode="think", **keys).chain_temperature for keys in ({}, {"samples": 2}, {"temperature": 0.3})
    ]
    assert given == [0.0, 0.7, 0.3]


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        ([], "should have at least 2 items"),
        (["1"], "should have at least 2 items"),
        ([str(each) for each in range(21)], "should have at most 20 items"),
        (["1", "2", "1"], "has '1' twice"),
        (["1", " 2"], "has ' 2', and a label is a word or a number"),
        (["1", "2\n"], "has '2\\n', and a label is a word or a number"),
        (["1", "{{query}}"], "has '{{query}}', and a label is a word or a number"),
        (["1", "</think>"], "has '</think>', and a label is a word or a number"),
        (["1", "x" * 41], "and a label is a word or a number of at most 40 characters"),
        (["1", ""], "is empty"),
        (["1", "a\0"], "holds a NUL"),
        (["1", None], "valid string"),
        ([0, 1], "valid string"),
        ([False, True], "should not be false"),
        ([1.5, float("nan")], "valid string"),
        ([["1"], ["2"]], "valid string"),
        ("01", "valid tuple"),
        ({"0": 1}, "valid tuple"),
        (7, "valid tuple"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_labels_are_a_few_distinct_words(labels, fault):
    message = refusal({"labels": labels})
    assert message.startswith("recipe: scoring.labels") and fault in message


def test_the_hash_covers_labels_and_their_order():
    one, other = ({"labels": each} for each in (("0", "1"), ("1", "0")))
    assert ScoringConfig(**one).hashed(set()) != ScoringConfig(**other).hashed(set()) != ScoringConfig().hashed(set())


@pytest.mark.parametrize("least", [-0.1, 1.1, 10**30, True, "much", [], float("nan"), float("inf")], ids=repr)
def test_a_threshold_is_a_number_from_0_to_1(least):
    assert refusal({"min_score": least}).startswith("recipe: scoring.min_score: ")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ({"min_score": 0}, "scoring.min_score: compares scores, and scoring.mode none gives none"),
        ({"labels": ["0", "1"]}, "scoring.labels: are what a model answers, and scoring.mode none asks no model"),
        ({"calibration": "c.json"}, "scoring.calibration: changes scores, and scoring.mode none gives none"),
        ({"fuse": {"first_stage": 0.3}}, "scoring.fuse: mode none has no scores to fuse with the first stage's: "),
    ],
    ids=str,
)
def test_what_needs_scores_needs_a_mode_that_gives_them(key, message):
    assert refusal({"mode": "none"} | key).startswith(f"recipe: {message}")


def test_a_pipeline_takes_neither_labels_nor_a_calibration():
    pipeline = {"job": "pipeline", "run_dir": "runs/a"}
    assert refusal({"labels": ["0", "1"]}, pipeline) == (
        "recipe: scoring.labels: a pipeline trains true and false: rerank with labels by a job of its own"
    )
    assert refusal({"calibration": "c.json"}, pipeline) == (
        "recipe: scoring.calibration: belongs to one model, and a pipeline ranks with two: leave it to a rerank job"
    )


@pytest.mark.parametrize("path", ["", " ", 7, True, [], {}, "a\0b", "x" * 300], ids=lambda value: repr(value)[:9])
def test_a_calibration_is_a_path(path):
    assert refusal({"calibration": path}).startswith("recipe: scoring.calibration")
