"""The jobs as functions, as far as they need no Ray; the others are in tests/integration/test_api.py."""

import asyncio
import threading
from dataclasses import FrozenInstanceError
from typing import get_type_hints

import pytest

from helpers.beir import QRELS, write_beir
from limrank import api, evaluate, rerank, serve, synthesize, train
from limrank.config import (
    DataConfig,
    EvaluateJob,
    EvaluationConfig,
    RerankJob,
    ScoringConfig,
    ServeJob,
    SynthesizeJob,
    TrainJob,
)
from limrank.errors import UserError

FIRST_STAGE = {"mode": "none"}


@pytest.fixture
def beir(tmp_path):
    return write_beir(tmp_path / "beir")


@pytest.mark.parametrize(
    ("keys", "job"),
    [
        (api.SynthesizeKeys, SynthesizeJob),
        (api.TrainKeys, TrainJob),
        (api.RerankKeys, RerankJob),
        (api.ServeKeys, ServeJob),
    ],
)
def test_keyword_arguments_are_the_recipe_s_keys(keys, job):
    assert set(get_type_hints(keys)) == set(job.model_fields) - {"job"}


def test_keyword_arguments_rerank_and_the_result_is_typed(beir, tmp_path):
    result = rerank(run_dir=tmp_path / "run", data={"format": "beir", "path": beir}, scoring=FIRST_STAGE)
    assert result.run_dir == str(tmp_path / "run")
    assert (result.failed, result.warnings) == (0, [])
    assert list(result.run) == ["q1", "q2"]
    assert list(result.run["q1"].items()) == [("d1", -1.0), ("d3", -2.0)]
    assert result.rows.select(["query_id", "doc_id", "rank", "score", "status"]).to_pylist()[0] == {
        "query_id": "q1",
        "doc_id": "d1",
        "rank": 1,
        "score": None,
        "status": "skipped",
    }
    assert result.qrels == QRELS
    assert result.stats["counts"] == {"units": 2, "rows": result.rows.num_rows, "failed": 0}
    with pytest.raises(FrozenInstanceError):
        result.failed = 1


def test_a_config_object_is_the_same_call(beir, tmp_path):
    data = DataConfig(format="beir", path=str(beir))
    by_keys = rerank(run_dir=tmp_path / "run", data=data, scoring=ScoringConfig(mode="none"))
    config = RerankJob(run_dir=str(tmp_path / "run"), data=data, scoring=ScoringConfig(mode="none"))
    by_config = rerank(config)
    assert by_config == by_keys
    assert by_config.stats["resumed"]
    assert by_config.stats["config_hash"] == by_keys.stats["config_hash"]


def test_paths_are_relative_to_where_the_call_is(beir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = RerankJob(run_dir="run", data=DataConfig(format="beir", path="beir"), scoring=ScoringConfig(mode="none"))
    assert rerank(config).run_dir == str(tmp_path / "run")


def test_none_unsets_a_key_as_null_does(beir, tmp_path):
    data = {"format": "beir", "path": beir, "max_queries": None}
    assert rerank(run_dir=tmp_path / "run", data=data, scoring=FIRST_STAGE).stats["counts"]["units"] == 2


def test_another_config_s_run_is_kept_unless_it_may_go(beir, tmp_path):
    data = {"format": "beir", "path": beir}
    rerank(run_dir=tmp_path / "run", data=data, scoring=FIRST_STAGE)
    shallow = {"run_dir": tmp_path / "run", "data": data, "scoring": FIRST_STAGE, "first_stage": {"depth": 1}}
    with pytest.raises(UserError, match="run_dir .*overwrite"):
        rerank(**shallow)
    assert len(rerank(**shallow, overwrite=True).run["q1"]) == 1


@pytest.mark.parametrize("in_thread", [False, True])
def test_it_works_in_a_running_loop_and_outside_the_main_thread(beir, tmp_path, in_thread):
    async def cell():
        data = {"format": "beir", "path": beir}
        return rerank(run_dir=tmp_path / "run", data=data, scoring=FIRST_STAGE)

    found = []
    if in_thread:
        thread = threading.Thread(target=lambda: found.append(asyncio.run(cell())))
        thread.start()
        thread.join()
    else:
        found.append(asyncio.run(cell()))
    assert list(found[0].run) == ["q1", "q2"]


def test_nothing_is_printed_unless_it_is_asked_for(beir, tmp_path, capfd):
    rerank(run_dir=tmp_path / "run", data={"format": "beir", "path": beir}, scoring=FIRST_STAGE)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rerank(run_dir="run", modle={"id": "x"}), "rerank(): modle: unknown key; did you mean model?"),
        (lambda: rerank(data={"format": "pydocs"}), "rerank(): run_dir: is needed"),
        (lambda: rerank(run_dir="run", data={"format": "beir"}), "rerank(): data.path is needed for data.format=beir"),
        (
            lambda: rerank(TrainJob(run_dir="run", training={"train_file": "x"})),
            "rerank(): takes a RerankJob or keyword arguments (got TrainJob)",
        ),
        (
            lambda: rerank(RerankJob(run_dir="run"), seed=1),
            "rerank(): takes a config or keyword arguments, not both (got seed)",
        ),
        (
            lambda: rerank(run_dir="run", scoring=FIRST_STAGE, address="http://host:8265"),
            "address 'http://host:8265': is neither local nor auto; the command line submits to http://HOST:8265",
        ),
        (lambda: train(run_dir="run", training={}), "train(): training.train_file is needed"),
        (
            lambda: synthesize(run_dir="run", synthesis={"kinds": []}),
            "synthesize(): synthesis.kinds: tuple should have at least 1 item after validation, not 0 (got [])",
        ),
        (
            lambda: serve(scoring={"mode": "fast"}).__enter__(),
            "serve(): scoring.mode: input should be 'none', 'direct', 'think', 'budget' or 'cascade' (got 'fast')",
        ),
    ],
)
def test_a_mistake_is_one_line(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        call()
    assert str(raised.value) == message
    assert list(tmp_path.iterdir()) == []


RUN = {"q1": {"d1": 1, "d2": 2.5}, "q2": {"d3": 0.5}}
GRADES = {"q1": {"d1": 1}, "q2": {"d3": 2, "d4": 0}, "q3": {"d5": 1}}


def test_dictionaries_are_evaluated_with_intervals_and_by_query():
    result = evaluate(RUN, GRADES, ["RR", "P@1"])
    # q1's document is second, q2's first, and q3 is not ranked: it counts 0.
    assert result.per_query["RR"] == {"q1": 0.5, "q2": 1.0, "q3": 0.0}
    mean, low, high = result.measures["RR"]
    assert mean == pytest.approx(0.5)
    assert 0 <= low <= mean <= high <= 1
    assert result.measures["P@1"].mean == pytest.approx(1 / 3)
    assert result.missing == ["q3"]


def test_files_and_dictionaries_are_the_same(tmp_path):
    (tmp_path / "run.trec").write_text("q1 Q0 d2 1 2.5 x\nq1 Q0 d1 2 1 x\nq2 Q0 d3 1 0.5 x\n")
    (tmp_path / "qrels.tsv").write_text("q1\td1\t1\nq2\td3\t2\nq2\td4\t0\nq3\td5\t1\n")
    by_path = evaluate(tmp_path / "run.trec", str(tmp_path / "qrels.tsv"), "nDCG@10")
    assert by_path == evaluate(RUN, GRADES, ["nDCG@10"])


def test_a_reranked_run_is_evaluated_by_its_own_judgements(beir, tmp_path):
    result = rerank(run_dir=tmp_path / "run", data={"format": "beir", "path": beir}, scoring=FIRST_STAGE)
    by_value = evaluate(result.run, result.qrels, ["RR"])
    assert by_value.measures["RR"].mean == 1.0
    settings = EvaluationConfig(measures=("RR",))
    by_job = evaluate(EvaluateJob(run_dir=result.run_dir, evaluation=settings))
    assert by_job.measures == by_value.measures
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((RUN,), "evaluate(): qrels is needed: a dictionary or a file of judgements"),
        ((RUN, {}), "there are no judgements to evaluate the run by"),
        ((RUN, {"q9": {"d1": 1}}), "evaluate(): the run (query 'q1', …) shares no query with the judgements"),
        (({1: {"d1": 1.0}}, GRADES), "evaluate(): run: should be {query_id: {doc_id: score}}, ids as text"),
        ((RUN, {"q1": ["d1"]}), "evaluate(): qrels: should be {query_id: {doc_id: grade}}, ids as text"),
        (
            ({"q1": {"d1": "high"}}, GRADES),
            "evaluate(): run, query 'q1', document 'd1': the score should be a number (got 'high')",
        ),
        (({"q1": {"d1": float("nan")}}, GRADES), "evaluate(): run, query 'q1', document 'd1': the score is not finite"),
        (
            (RUN, {"q1": {"d1": 0.5}}),
            "evaluate(): qrels, query 'q1', document 'd1': the grade should be a whole number (got 0.5)",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(arguments, message):
    with pytest.raises(UserError) as raised:
        evaluate(*arguments)
    assert str(raised.value) == message


def test_settings_of_the_bootstrap_are_checked():
    with pytest.raises(UserError, match=r"evaluate\(\): evaluation.bootstrap_samples: input should be greater than 0"):
        evaluate(RUN, GRADES, bootstrap_samples=0)
    with pytest.raises(UserError, match="'nDCG@ten' is not a measure"):
        evaluate(RUN, GRADES, ["nDCG@ten"])
