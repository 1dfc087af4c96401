import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from helpers.units import words
from limrank.config import DataConfig, EvaluateJob, EvaluationConfig
from limrank.errors import UserError
from limrank.evaluation.inputs import drop_excluded
from limrank.evaluation.job import console_table, evaluate_job
from limrank.evaluation.system import evaluate_run
from limrank.records import Query

QUERIES = '{"_id": "q1", "text": "why does dough rise"}\n{"_id": "q2", "text": "salt", "excluded_ids": ["d9"]}\n'
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td1\t1\nq2\td2\t0\n"
RUN = "q1 Q0 d1 1 -1 x\nq1 Q0 d2 2 -2 x\nq2 Q0 d2 1 -1 x\nq2 Q0 d1 2 -2 x\n"
MEASURES = EvaluationConfig(measures=("RR", "P@1"), bootstrap_samples=200)


@pytest.fixture
def rerank_dir(tmp_path):
    """What a rerank job leaves: it moved d1 of q1 from rank 2 to rank 1."""
    directory = tmp_path / "run"
    (directory / "rows").mkdir(parents=True)
    (directory / "run.trec").write_text(RUN)
    (directory / "queries.jsonl").write_text(QUERIES)
    (directory / "qrels.tsv").write_text(QRELS)
    rows = [("q1", "d1", 2), ("q1", "d2", 1), ("q2", "d2", 1), ("q2", "d1", 2)]
    columns = dict(zip(("query_id", "doc_id", "first_stage_rank"), zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(columns), directory / "rows" / "chunk-0.parquet")
    recipe = {"job": "rerank", "model": {"id": "/models/smol"}, "scoring": {"mode": "direct"}}
    (directory / "config.yaml").write_text(yaml.safe_dump(recipe))
    manifest = {
        "counts": {"units": 2, "rows": 4, "failed": 0},
        "seconds": {"engine_startup": 40.0, "work": 0.5},
        "tokens": {"prompt": 390, "cached_prompt": 100, "generated": 10},
        "versions": {"vllm": "0.32.0"},
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


@pytest.fixture
def collection(tmp_path):
    folder = tmp_path / "bread"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "Yeast."}\n{"_id": "d2", "text": "Salt."}\n')
    (folder / "queries.jsonl").write_text(QUERIES)
    (folder / "qrels" / "test.tsv").write_text(QRELS)
    return DataConfig(format="beir", path=str(folder))


def printed(result):
    console = Console(file=io.StringIO(), width=120)
    console.print(console_table(result))
    return console.file.getvalue()


def test_a_rerank_job_is_compared_with_its_first_stage(rerank_dir):
    result = evaluate_job(EvaluateJob(run_dir=str(rerank_dir), evaluation=MEASURES))
    assert result.warnings == []
    assert result.system.name == "smol, direct"
    assert result.system.scores.per_query == {"RR": {"q1": 1.0, "q2": 0.5}, "P@1": {"q1": 1.0, "q2": 0.0}}
    assert result.first_stage.scores.mean == {"RR": 0.5, "P@1": 0.0}
    assert result.differences["P@1"].difference == 0.5
    assert (result.system.pairs_per_second, result.system.tokens_per_pair) == (8.0, 100.0)
    metrics = json.loads((rerank_dir / "metrics.json").read_text())
    assert metrics["RR"] == {"mean": 0.75, "low": 0.5, "high": 1.0}
    assert metrics["first_stage"]["RR"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert metrics["differences"]["RR"] == {"mean": 0.25, "low": 0.0, "high": 0.5}
    assert (metrics["queries"], metrics["missing"]) == (2, 0)
    assert metrics["bootstrap"] == {"samples": 200, "confidence": 0.95, "seed": 12345}
    report = (rerank_dir / "report.html").read_text()
    assert "why does dough rise" in report
    assert "vllm 0.32.0" in report
    assert "0.7500" in printed(result)
    assert "+0.2500 (+0.0000 to +0.5000)" in printed(result)


@pytest.fixture
def fused_dir(rerank_dir):
    """The run is fused: without fusion d1 of q1 was on rank 2, and d1 of q2 on rank 1."""
    (rerank_dir / "run.pure.trec").write_text("q1 Q0 d2 1 -1 x\nq1 Q0 d1 2 -2 x\nq2 Q0 d1 1 -1 x\nq2 Q0 d2 2 -2 x\n")
    path = rerank_dir / "manifest.json"
    fusion = {"weight": 0.3, "dev_run": "/dev", "dev_queries": 4, "dev_ndcg": {"0": 0.1, "0.3": 0.2, "1": 0.1}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"job": "rerank", "status": "done", "fusion": fusion}))
    return rerank_dir


def test_a_fused_run_is_reported_in_three_orders(fused_dir):
    result = evaluate_job(EvaluateJob(run_dir=str(fused_dir), evaluation=MEASURES))
    assert (result.system.name, result.pure.name) == ("smol, direct, fused 0.3", "smol, direct")
    # First stage: 1/2 and 1/2. Pure: 1/2 and 1. Fused: 1 and 1/2.
    assert result.first_stage.scores.per_query["RR"] == {"q1": 0.5, "q2": 0.5}
    assert result.pure.scores.per_query["RR"] == {"q1": 0.5, "q2": 1.0}
    assert result.system.scores.per_query["RR"] == {"q1": 1.0, "q2": 0.5}
    assert result.differences["RR"] == (0.25, 0.0, 0.5)
    assert result.pure_differences["RR"] == (0.25, 0.0, 0.5)
    assert result.fusion_differences["RR"] == (0.0, -0.5, 0.5)
    metrics = json.loads((fused_dir / "metrics.json").read_text())
    assert metrics["RR"] == metrics["pure"]["RR"] == {"mean": 0.75, "low": 0.5, "high": 1.0}
    assert metrics["pure_differences"]["RR"] == {"mean": 0.25, "low": 0.0, "high": 0.5}
    assert metrics["fusion_differences"]["RR"] == {"mean": 0.0, "low": -0.5, "high": 0.5}
    table = [line.replace("│", " ").split() for line in printed(result).splitlines() if "│" in line]
    assert [row[:3] for row in table[:3]] == [
        ["RR", "first", "stage"],
        ["RR", "pure", "0.7500"],
        ["RR", "fused", "0.7500"],
    ]
    assert table[0][3:] == ["0.5000", "0.5000", "–", "0.5000"]
    assert table[1][6:] == ["+0.2500", "(+0.0000", "to", "+0.5000)"]
    assert table[2][10:] == ["+0.0000", "(-0.5000", "to", "+0.5000)"]
    report = words((fused_dir / "report.html").read_text())
    assert "smol, direct, fused 0.3" in report
    assert (
        "Fusion with the first stage makes no difference that these queries can show: RR 0.0000 (−0.5000 to +0.5000)."
        in report
    )


def test_a_fused_run_in_the_first_stage_s_order_is_still_compared_with_it(fused_dir):
    (fused_dir / "run.trec").write_text("q1 Q0 d2 1 -1 x\nq1 Q0 d1 2 -2 x\nq2 Q0 d2 1 -1 x\nq2 Q0 d1 2 -2 x\n")
    result = evaluate_job(EvaluateJob(run_dir=str(fused_dir), evaluation=MEASURES))
    assert result.differences["RR"] == (0.0, 0.0, 0.0)
    assert result.fusion_differences["RR"] == (-0.25, -0.5, 0.0)


def test_whether_a_run_is_fused_is_the_manifest_s_to_say(fused_dir):
    path = fused_dir / "manifest.json"
    values = json.loads(path.read_text())
    # A file that is not of this run.
    path.write_text(json.dumps({key: value for key, value in values.items() if key != "fusion"}))
    assert evaluate_job(EvaluateJob(run_dir=str(fused_dir), evaluation=MEASURES)).pure is None
    # A copied run without a manifest.
    path.unlink()
    result = evaluate_job(EvaluateJob(run_dir=str(fused_dir), evaluation=MEASURES))
    assert (result.system.name, result.pure.name) == ("smol, direct, fused", "smol, direct")
    path.write_text(json.dumps(values))
    (fused_dir / "run.pure.trec").unlink()
    with pytest.raises(
        UserError, match=r"run_dir: no run\.pure\.trec in .*, whose run is fused; the same `limrank rerank`"
    ):
        evaluate_job(EvaluateJob(run_dir=str(fused_dir), evaluation=MEASURES))


@pytest.mark.parametrize(
    "fusion", [1, [], {"weight": "x"}, {"weight": 2}, {"weight": -1}, {"weight": True}, {"dev_ndcg": []}]
)
def test_a_manifest_with_another_kind_of_fusion_is_refused(fused_dir, fusion):
    path = fused_dir / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fusion": fusion}))
    with pytest.raises(UserError, match=r"manifest\.json is not one of limrank's \(fusion") as caught:
        evaluate_job(EvaluateJob(run_dir=str(fused_dir), evaluation=MEASURES))
    assert "\n" not in str(caught.value)


def test_per_query_values_are_a_table(rerank_dir):
    evaluate_job(EvaluateJob(run_dir=str(rerank_dir), evaluation=MEASURES))
    table = pq.read_table(rerank_dir / "per_query.parquet")
    assert table.to_pydict() == {"query_id": ["q1", "q2"], "RR": [1.0, 0.5], "P@1": [1.0, 0.0]}
    assert table.schema.metadata[b"limrank.schema"] == b"per_query"
    assert table.schema.metadata[b"limrank.schema_version"] == b"1"


def test_where_nothing_was_reranked_the_first_stage_stands_alone(rerank_dir):
    rows = pq.read_table(rerank_dir / "rows" / "chunk-0.parquet")
    rows = rows.set_column(2, "first_stage_rank", pa.array([1, 2, 1, 2]))
    pq.write_table(rows, rerank_dir / "rows" / "chunk-0.parquet")
    result = evaluate_job(EvaluateJob(run_dir=str(rerank_dir), evaluation=MEASURES))
    assert result.first_stage is None
    assert "first_stage" not in json.loads((rerank_dir / "metrics.json").read_text())


def test_a_selected_query_that_the_run_lacks_counts_zero(rerank_dir):
    (rerank_dir / "run.trec").write_text("q1 Q0 d1 1 -1 x\nq7 Q0 d1 1 -1 x\n")
    (rerank_dir / "qrels.tsv").write_text(QRELS + "q8\td1\t1\n")
    result = evaluate_job(EvaluateJob(run_dir=str(rerank_dir), evaluation=MEASURES))
    assert result.system.scores.mean == {"RR": 0.5, "P@1": 0.5}
    assert result.warnings == [
        f"{rerank_dir}/run.trec: 1 of its 2 lists are for queries that queries.jsonl does not have, such as 'q7': "
        "they are left out",
        "qrels.tsv: the judgements of 1 queries that queries.jsonl lacks are left out",
        "smol, direct: ranks nothing for 1 judged queries; each counts 0 in every mean",
    ]
    (rerank_dir / "run.trec").write_text("q7 Q0 d1 1 -1 x\n")
    with pytest.raises(UserError, match=r"run\.trec: has no list for any of the 2 queries of queries\.jsonl: its 1 "):
        evaluate_job(EvaluateJob(run_dir=str(rerank_dir), evaluation=MEASURES))


def test_any_run_is_judged_by_the_data(tmp_path, collection):
    run = tmp_path / "mine.trec"
    # d9 is excluded for q2, so that d1 is the first.
    run.write_text("q1 Q0 d1 1 5 x\nq2 Q0 d9 1 9 x\nq2 Q0 d1 2 8 x\n")
    out = tmp_path / "out"
    evaluation = MEASURES.model_copy(update={"run": str(run)})
    result = evaluate_job(EvaluateJob(run_dir=str(out), data=collection, evaluation=evaluation))
    assert result.system.name == "mine.trec"
    assert result.system.scores.mean == {"RR": 1.0, "P@1": 1.0}
    assert {file.name for file in out.iterdir()} == {"metrics.json", "per_query.parquet", "report.html"}
    one = collection.model_copy(update={"max_queries": 1})
    result = evaluate_job(EvaluateJob(run_dir=str(out), data=one, evaluation=evaluation))
    assert result.system.scores.queries == ["q1"]


def test_a_run_s_ids_are_checked_before_it_is_judged(tmp_path, collection):
    def evaluated(name, text, **data):
        run = tmp_path / name
        run.write_text(text)
        evaluation = MEASURES.model_copy(update={"run": str(run)})
        given = collection.model_copy(update=data)
        return evaluate_job(EvaluateJob(run_dir=str(tmp_path / "out"), data=given, evaluation=evaluation)), run

    result, run = evaluated("a.trec", "q1 Q0 d1 1 5 x\nq1 Q0 d8 2 4 x\nq7 Q0 d1 1 5 x\n")
    assert result.warnings[-3:] == [
        f"{run}: 1 of its 2 lists are for queries that bread/test does not have, such as 'q7': they are left out",
        f"{run}: the corpus lacks 1 of the 2 documents that it ranks, such as 'd8' of query 'q1'",
        "a.trec: ranks nothing for 1 judged queries; each counts 0 in every mean",
    ]
    # A selection's other queries are no surprise, nor is what BM25 would be asked looked for.
    result, run = evaluated(
        "b.json", '{"q1": {"d1": 1}, "q2": {"d1": 1}}', max_queries=1, first_stage_queries="gpt4_reason"
    )
    assert not [warning for warning in result.warnings if str(run) in warning or run.name in warning]
    with pytest.raises(
        UserError, match=r"c\.json: has no list for any of the 2 queries of bread/test: its 1 query ids"
    ):
        evaluated("c.json", '{"1": {"d1": 1}}')
    with pytest.raises(
        UserError, match="lacks 2 of the 2 documents .*: its ids seem to be of another layout; the corpus has 'd1'"
    ):
        evaluated("d.trec", "q1 Q0 D1 1 5 x\nq2 Q0 D2 1 4 x\n")
    # What is judged is known, whether its text is there or not.
    (Path(collection.path) / "qrels" / "test.tsv").write_text(QRELS + "q1\tD1\t1\n")
    result, _ = evaluated("d.trec", "q1 Q0 D1 1 5 x\nq2 Q0 D2 1 4 x\n")
    assert result.system.scores.mean["RR"] == 0.5


@pytest.mark.parametrize(("revision", "message"), [("a75a0eb", "a75a0eb"), (None, "the hub's newest")])
def test_a_report_tells_the_data_s_revision(rerank_dir, revision, message):
    path = rerank_dir / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": {"name": "litsearch", "revision": revision}}))
    evaluate_job(EvaluateJob(run_dir=str(rerank_dir), evaluation=MEASURES))
    assert f"data revision {message}" in words((rerank_dir / "report.html").read_text())


def test_a_manifest_whose_revision_is_no_text_is_refused(rerank_dir):
    (rerank_dir / "manifest.json").write_text(json.dumps({"data": {"name": "litsearch", "revision": 5}}))
    with pytest.raises(UserError, match=r"manifest.json is not one of limrank's \(data.revision: .*, got 5\)"):
        evaluate_job(EvaluateJob(run_dir=str(rerank_dir), evaluation=MEASURES))


def test_what_is_missing_is_named(tmp_path, rerank_dir, collection):
    with pytest.raises(UserError, match=r"run_dir: no run\.trec in .*; run `limrank rerank` first"):
        evaluate_job(EvaluateJob(run_dir=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match=r"data: is needed with evaluation\.run"):
        evaluate_job(EvaluateJob(run_dir=str(tmp_path), evaluation=EvaluationConfig(run="x.trec")))
    with pytest.raises(UserError, match=r"x\.trec: no such file"):
        evaluate_job(EvaluateJob(run_dir=str(tmp_path), data=collection, evaluation=EvaluationConfig(run="x.trec")))
    with pytest.raises(UserError, match="'nDGC' is not a measure"):
        evaluate_job(EvaluateJob(run_dir=str(rerank_dir), evaluation=EvaluationConfig(measures=("nDGC",))))
    (rerank_dir / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(UserError, match="none of its queries is judged"):
        evaluate_job(EvaluateJob(run_dir=str(rerank_dir)))
    with pytest.raises(UserError, match="run_dir: ftp://bucket/run: no directory, and no store"):
        evaluate_job(EvaluateJob(run_dir="ftp://bucket/run"))


def test_a_run_of_pairs_has_no_judgements(rerank_dir):
    (rerank_dir / "config.yaml").write_text("data: {format: pairs, path: /data/pairs.parquet}\n")
    (rerank_dir / "qrels.tsv").unlink()
    with pytest.raises(UserError, match=r"reranked pairs, which carry no judgements; .* as evaluation\.run, with data"):
        evaluate_job(EvaluateJob(run_dir=str(rerank_dir)))


def test_p_mrr_is_measured_where_instructions_change():
    qrels = {"a-og": {"x": 1}, "a-changed": {"y": 1}}
    run = {"a-og": {"x": 2.0, "y": 1.0}, "a-changed": {"y": 2.0, "x": 1.0}}
    evaluation = evaluate_run(run, qrels, ["RR"], samples=50, seed=1, flipped={"a": ["x"]})
    assert evaluation.intervals == {"RR": (1.0, 1.0, 1.0), "p-MRR": (0.5, 0.5, 0.5)}
    assert evaluate_run(run, qrels, ["RR"], samples=50, seed=1).intervals.keys() == {"RR"}


def test_excluded_documents_leave_the_ranking():
    run = {"q": {"a": 2.0, "b": 1.0}, "r": {"a": 1.0}}
    assert drop_excluded(run, [Query("q", "", excluded=frozenset({"a"}))]) == {"q": {"b": 1.0}, "r": {"a": 1.0}}


# ---- a threshold ---------------------------------------------------------------------


def test_a_run_that_no_pair_reached_counts_zero(rerank_dir):
    (rerank_dir / "run.trec").write_text("")
    with pytest.raises(UserError, match="the run is empty"):
        evaluate_job(EvaluateJob(run_dir=str(rerank_dir), evaluation=MEASURES))
    recipe = {"job": "rerank", "model": {"id": "/models/smol"}, "scoring": {"mode": "direct", "min_score": 0.9}}
    (rerank_dir / "config.yaml").write_text(yaml.safe_dump(recipe))
    evaluation = MEASURES.model_copy(update={"measures": ("nDCG@10", "RR", "R@100", "P@1")})
    result = evaluate_job(EvaluateJob(run_dir=str(rerank_dir), evaluation=evaluation))
    assert set(result.system.scores.mean.values()) == {0.0}
    assert result.first_stage.scores.mean["RR"] == 0.5
    assert result.warnings == [
        "run: pairs below scoring.min_score 0.9 are not in the run; its first stage has them all",
        "smol, direct: ranks nothing for 2 judged queries; each counts 0 in every mean",
    ]
    assert printed(result) and (rerank_dir / "report.html").exists()


def test_an_empty_run_of_somebody_else_is_refused(tmp_path, collection):
    run = tmp_path / "mine.trec"
    run.write_text("")
    evaluation = MEASURES.model_copy(update={"run": str(run)})
    with pytest.raises(UserError, match="the run is empty"):
        evaluate_job(EvaluateJob(run_dir=str(tmp_path / "out"), data=collection, evaluation=evaluation))


def test_what_failed_is_not_in_a_run_with_a_threshold(rerank_dir):
    manifest = json.loads((rerank_dir / "manifest.json").read_text())
    manifest["counts"]["failed"] = 3
    (rerank_dir / "manifest.json").write_text(json.dumps(manifest))
    recipe = {"job": "rerank", "model": {"id": "/models/smol"}, "scoring": {"mode": "direct", "min_score": 0.5}}
    (rerank_dir / "config.yaml").write_text(yaml.safe_dump(recipe))
    result = evaluate_job(EvaluateJob(run_dir=str(rerank_dir), evaluation=MEASURES))
    assert result.warnings[0] == "run: 3 failures; what failed is not in the run"
