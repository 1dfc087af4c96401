"""A pipeline's evaluation: three rerank runs written by hand, in one table and one report."""

import io
import json

import pytest
import yaml
from rich.console import Console

from limrank.config import PipelineJob
from limrank.errors import UnavailableError, UserError
from limrank.evaluation import systems

QUERIES = '{"_id": "q1", "text": "why does dough rise"}\n{"_id": "q2", "text": "salt"}\n'
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td1\t1\n"


def write_run(folder, order, mode, tokens, status="done"):
    """A finished rerank run that ranks both queries in one order."""
    folder.mkdir()
    trec = [f"{query} Q0 {doc} {rank} {-rank} x\n" for query in ("q1", "q2") for rank, doc in enumerate(order, 1)]
    (folder / "run.trec").write_text("".join(trec))
    (folder / "queries.jsonl").write_text(QUERIES)
    (folder / "qrels.tsv").write_text(QRELS)
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"id": "/m"}, "scoring": {"mode": mode}}))
    manifest = {"job": "rerank", "status": status, "counts": {"rows": 4}, "seconds": {"work": 0.5}}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"tokens": {"prompt": tokens, "generated": 0}}))
    return str(folder)


@pytest.fixture
def config(tmp_path):
    data = {"format": "pydocs", "split": "dev"}
    return PipelineJob(run_dir=str(tmp_path), data=data, evaluation={"measures": ["RR"], "bootstrap_samples": 100})


def test_each_system_has_a_row_and_the_report_is_in_the_pipeline_s_directory(config, tmp_path):
    result = systems.run(
        config,
        {
            "first stage": write_run(tmp_path / "first-stage", ["d2", "d1"], "none", 0),
            "base model": write_run(tmp_path / "rerank-base", ["d2", "d1"], "direct", 400),
            "tuned model": write_run(tmp_path / "rerank-tuned", ["d1", "d2"], "direct", 380),
        },
    )
    table, base, tuned, line = result.messages
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    rows = [line.replace("│", " ").split() for line in console.file.getvalue().splitlines() if "│" in line]
    # The first stage costs no model anything: no speed, no tokens.
    assert rows == [
        ["first", "stage", "0.5000", "0.5000–0.5000", "–", "–"],
        ["base", "model", "0.5000", "0.5000–0.5000", "8.0", "100"],
        ["tuned", "model", "1.0000", "1.0000–1.0000", "8.0", "95"],
    ]
    assert (
        base
        == "Against the first stage, base model: RR 0.0000 (0.0000 to 0.0000), no difference that these queries can show."
    )
    assert tuned == "Against the first stage, tuned model: RR +0.5000 (+0.5000 to +0.5000), above it."
    assert line == f"report: {tmp_path / 'report.html'}"
    report = (tmp_path / "report.html").read_text()
    assert "First stage, base model, tuned model" in report
    assert "pydocs dev, 2 queries, depth 100" in report and "why does dough rise" in report
    assert "evaluated with" in report and "pytrec-eval-terrier" in report


def test_a_fused_system_has_a_row_without_and_one_with_fusion(tmp_path):
    config = PipelineJob(
        run_dir=str(tmp_path),
        data={"format": "pydocs", "split": "dev"},
        scoring={"fuse": {"first_stage": 0.25}},
        evaluation={"measures": ["RR"], "bootstrap_samples": 100},
    )
    tuned = write_run(tmp_path / "rerank-tuned", ["d1", "d2"], "direct", 380)
    pure = (tmp_path / "rerank-tuned" / "run.trec").read_text()
    (tmp_path / "rerank-tuned" / "run.pure.trec").write_text(pure.replace("d1", "d3").replace("d2", "d1"))
    manifest = tmp_path / "rerank-tuned" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"fusion": {"weight": 0.25}}))
    first_stage = write_run(tmp_path / "first-stage", ["d2", "d1"], "none", 0)
    result = systems.run(config, {"first stage": first_stage, "tuned model": tuned})
    table, *others, finding, _ = result.messages
    assert [each.partition(":")[0] for each in others] == [
        "Against the first stage, tuned model",
        "Against the first stage, tuned model, fused 0.25",
    ]
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    rows = [line.replace("│", " ").split() for line in console.file.getvalue().splitlines() if "│" in line]
    assert rows == [
        ["first", "stage", "0.5000", "0.5000–0.5000", "–", "–"],
        ["tuned", "model", "0.5000", "0.5000–0.5000", "8.0", "95"],
        ["tuned", "model,", "fused", "0.25", "1.0000", "1.0000–1.0000", "8.0", "95"],
    ]
    assert "the same candidates in three orders" in console.file.getvalue()
    assert finding == "Fusion with the first stage helps here: RR +0.5000 (+0.5000 to +0.5000)."
    report = (tmp_path / "report.html").read_text()
    assert "First stage, tuned model, tuned model, fused 0.25" in report
    assert finding in report and "direct; fused with 0.25 of the first stage" in report


def test_what_the_evaluation_warns_of_is_passed_on(config, tmp_path):
    folder = write_run(tmp_path / "one", ["d1", "d2"], "direct", 400)
    manifest = tmp_path / "one" / "manifest.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(values | {"counts": {"rows": 4, "failed": 1}}))
    other = write_run(tmp_path / "other", ["d2", "d1"], "direct", 400)
    (warning,) = systems.run(config, {"base model": folder, "tuned model": other}).warnings
    assert "1" in warning and "fail" in warning


def test_a_run_that_is_not_finished_or_of_other_queries_is_refused(config, tmp_path):
    one = write_run(tmp_path / "one", ["d1", "d2"], "none", 0)
    other = write_run(tmp_path / "other", ["d1", "d2"], "direct", 400, status="failed")
    with pytest.raises(UnavailableError, match="other: not a finished rerank run: it is failed"):
        systems.run(config, {"first stage": one, "base model": other})
    third = write_run(tmp_path / "third", ["d1", "d2"], "direct", 400)
    (tmp_path / "third" / "queries.jsonl").write_text(QUERIES.replace("salt", "pepper"))
    with pytest.raises(UserError, match="third: other queries than .*one has"):
        systems.run(config, {"first stage": one, "base model": third})
