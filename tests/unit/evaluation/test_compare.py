"""Rerank runs written by hand, and what comparing them says."""

import io
import json
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from limrank.cli import main
from limrank.evaluation.compare import compare, conclusion, short_names
from limrank.evaluation.compare_job import console_table
from limrank.evaluation.inputs import read_compared, unique_names
from limrank.evaluation.plot import Point, draw_quality

QUERIES = [f"q{number}" for number in range(10)]
FIRST_STAGE_RANK = 4
"""Where the first stage puts every query's one relevant document: its reciprocal rank is 0.25."""


def write_run(root, mode, ranks, generated=0, *, model="/models/smol", queries=QUERIES, depth=4, **settings):
    """What a finished rerank job leaves. ``ranks`` are those that it gave the relevant
    document ``yes`` of each query, among ``depth`` candidates."""
    (root / "rows").mkdir(parents=True)
    rows, trec = [], []
    for query_id, relevant_rank in zip(queries, ranks, strict=True):
        others = [f"no{number}" for number in range(1, depth)]
        for rank, doc_id in enumerate([*others[: relevant_rank - 1], "yes", *others[relevant_rank - 1 :]], start=1):
            before = FIRST_STAGE_RANK if doc_id == "yes" else int(doc_id[2:]) + (int(doc_id[2:]) >= FIRST_STAGE_RANK)
            rows.append({"query_id": query_id, "doc_id": doc_id, "first_stage_rank": before})
            trec.append(f"{query_id} Q0 {doc_id} {rank} {-rank} x\n")
    pq.write_table(pa.Table.from_pylist(rows), root / "rows" / "chunk-000000.parquet")
    (root / "run.trec").write_text("".join(trec))
    (root / "queries.jsonl").write_text("".join(f'{{"_id": "{each}", "text": "need {each}"}}\n' for each in queries))
    (root / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"{each}\tyes\t1\n" for each in queries))
    recipe = {"job": "rerank", "model": {"id": model}, "scoring": {"mode": mode, **settings}}
    (root / "config.yaml").write_text(yaml.safe_dump(recipe))
    manifest = {
        "job": "rerank",
        "status": "done",
        "counts": {"units": len(queries), "rows": len(rows), "failed": 0},
        "seconds": {"work": 10.0},
        "tokens": {"prompt": 1000 if generated else 0, "generated": generated},
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    return str(root)


@pytest.fixture
def runs(tmp_path):
    """Direct puts 4 of 10 first and the rest second; a short chain 9; a long one all but
    one, which it loses."""
    return [
        write_run(tmp_path / "think", "think", [1] * 9 + [4], generated=20_000),
        write_run(tmp_path / "direct", "direct", [1] * 4 + [2] * 6, generated=40),
        write_run(tmp_path / "budget", "budget", [1] * 9 + [2], generated=1_000, max_think_tokens=64),
    ]


def compared(directories, samples=300):
    return compare(read_compared(directories), ["RR", "P@1"], samples, seed=1)


def by_name(comparison):
    return {each.name: each for each in comparison.compared}


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_runs_are_held_against_the_one_that_generated_most(runs):
    comparison = compared(runs)
    assert [each.name for each in comparison.compared] == [
        "first stage",
        "smol, direct",
        "smol, budget 64",
        "smol, think",
    ]
    found = by_name(comparison)
    assert [round(each.quality.mean, 4) for each in comparison.compared] == [0.25, 0.7, 0.95, 0.925]
    assert [each.generated for each in comparison.compared] == [0.0, 4.0, 100.0, 2000.0]
    assert [comparison.share(each) for each in comparison.compared] == [0.0, 0.002, 0.05, 1.0]
    assert found["smol, direct"].prompt == 100.0
    assert found["smol, direct"].evaluation.pairs_per_second == 4.0
    assert found["smol, direct"].from_reference.difference == pytest.approx(-0.225)
    assert found["smol, think"].from_reference is None
    assert found["smol, think"].from_first_stage.difference == pytest.approx(0.675)
    # Better on one query, the same on nine: at worst the same.
    assert found["smol, budget 64"].from_reference.low == 0.0
    assert found["smol, budget 64"].non_inferior
    assert not found["smol, direct"].non_inferior


def test_the_frontier_leaves_out_what_something_cheaper_is_as_good_as(runs):
    assert [each.name for each in compared(runs).compared if each.on_frontier] == [
        "first stage",
        "smol, direct",
        "smol, budget 64",
    ]


def test_thinking_that_helps_and_what_does_for_less(runs):
    helps, enough = conclusion(compared(runs))
    assert helps.startswith(
        "Thinking helps here: RR 0.7000 with smol, direct, 0.9250 with smol, think; difference +0.2"
    )
    assert helps.endswith(", for 500 times the generated tokens.")
    assert enough == (
        "The cheapest that is not inferior to smol, think (by 0.01) is smol, budget 64, with 5.0% of its generated tokens."
    )


@pytest.mark.parametrize(
    ("ranks", "verdict"),
    [
        # As often better as worse; always worse.
        ([1] * 5 + [2] * 5, "Thinking does not help here, as far as these queries can tell: "),
        ([3] * 10, "Thinking hurts here: "),
    ],
)
def test_thinking_that_does_not_help(tmp_path, ranks, verdict):
    direct = write_run(tmp_path / "a", "direct", [2] * 5 + [1] * 5, generated=40)
    think = write_run(tmp_path / "b", "think", ranks, generated=8_000)
    sentences = conclusion(compared([direct, think]))
    assert sentences[0].startswith(verdict)
    assert sentences[0].endswith("for 200 times the generated tokens.")


def test_longer_against_shorter_chains(tmp_path):
    short = write_run(tmp_path / "a", "budget", [2] * 10, generated=4_000)
    long = write_run(tmp_path / "b", "think", [1] * 10, generated=8_000)
    comparison = compared([short, long])
    assert conclusion(comparison)[0].startswith("Thinking longer helps here: RR 0.5000 with smol, budget 256, ")
    assert conclusion(comparison)[1] == "Nothing cheaper is shown to be within 0.01 of smol, think."
    assert "2.0 times" in conclusion(comparison)[0]


def test_a_run_no_better_than_the_first_stage_is_reported(tmp_path):
    same = write_run(tmp_path / "a", "direct", [FIRST_STAGE_RANK] * 10, generated=40)
    none = write_run(tmp_path / "b", "none", [FIRST_STAGE_RANK] * 10)
    comparison = compared([same, none])
    # The run that is the first stage is not drawn twice, and has no speed of a model.
    assert [each.name for each in comparison.compared] == ["first stage", "smol, direct"]
    assert comparison.first_stage.evaluation.pairs_per_second is None
    assert conclusion(comparison) == [
        "The cheapest that is not inferior to smol, direct (by 0.01) is the first stage, which generates nothing.",
        "No run is shown to be better than the first stage (0.2500).",
    ]


def test_different_candidates_have_no_common_first_stage(tmp_path, capsys):
    shallow = write_run(tmp_path / "a", "direct", [1] * 10, generated=40)
    deep = write_run(tmp_path / "b", "direct", [1] * 10, generated=80, depth=8)
    assert compared([shallow, deep]).first_stage is None
    assert main(["evaluate", "--compare", shallow, deep, "-s", f"run_dir={tmp_path}/out"]) == 0
    assert capsys.readouterr().err == (
        "warning: the runs reorder different candidates: some of the difference is due to the first stage\n"
    )


def test_two_models_of_one_name_are_two_models(tmp_path):
    """Trained models all lie in a folder called ``model``: a chain of one is not held
    against the other's direct answer."""
    direct = write_run(tmp_path / "a", "direct", [2] * 10, generated=40, model="/runs/a/train/model")
    think = write_run(tmp_path / "b", "think", [1] * 10, generated=8_000, model="/runs/b/train/model")
    comparison = compared([direct, think])
    assert short_names(comparison) == ["first stage", "model, direct", "model, think"]
    assert conclusion(comparison) == ["Nothing cheaper is shown to be within 0.01 of model, think."]


def test_names_are_distinguished_by_where_the_runs_lie():
    names = unique_names(["smol, direct", "smol, think", "smol, direct"], ["/r/a/run", "/r/c", "/r/b/run"])
    assert names == ["smol, direct (a/run)", "smol, think", "smol, direct (b/run)"]


def test_the_table_leaves_out_the_model_that_all_share(runs):
    console = Console(file=io.StringIO(), width=120)
    console.print(console_table(compared(runs)))
    printed = console.file.getvalue()
    assert max(map(len, printed.splitlines())) <= 120
    direct = next(line for line in printed.splitlines() if line.startswith("│ direct"))
    assert [cell.strip() for cell in direct.strip("│").split("│")][2:5] == ["4", "0.2%", "4.0"]


# ---- the command ---------------------------------------------------------------------


def test_the_command_needs_no_recipe(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["-s", "evaluation.measures=[RR, P@1]", "-s", "evaluation.bootstrap_samples=300"]
    assert main(["evaluate", "--compare", "think", "direct", "budget", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "Thinking helps here: " in out and f"report: {tmp_path}/runs/compare/report.html\n" in out
    metrics = json.loads((tmp_path / "runs" / "compare" / "metrics.json").read_text())
    assert (metrics["measure"], metrics["queries"], metrics["reference"]) == ("RR", 10, "smol, think")
    assert [each["run_dir"] for each in metrics["runs"]] == [
        None,
        *(f"{tmp_path}/{n}" for n in ("direct", "budget", "think")),
    ]
    budget = metrics["runs"][2]
    assert budget["name"] == "smol, budget 64"
    assert budget["measures"]["P@1"]["mean"] == 0.9
    assert (budget["generated_tokens_per_query"], budget["prompt_tokens_per_query"]) == (100.0, 100.0)
    assert (budget["pairs_per_second"], budget["share_of_reference_tokens"]) == (4.0, 0.05)
    assert (budget["non_inferior"], budget["on_frontier"]) == (True, True)
    assert budget["difference_from_reference"]["mean"] == pytest.approx(0.025)
    assert "difference_from_reference" not in metrics["runs"][3]
    report = (tmp_path / "runs" / "compare" / "report.html").read_text()
    assert metrics["conclusion"][0] in report
    assert 'src="data:image/png;base64,' in report


def test_a_recipe_may_compare(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(
        "job: evaluate\nrun_dir: out\nevaluation: {compare: [think, direct], measures: [RR]}\n"
    )
    assert main(["evaluate", "r.yaml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"  compare:\n  - {tmp_path}/think\n  - {tmp_path}/direct\n" in out
    assert "#   runs: ['smol, think', 'smol, direct']\n#   queries: 10\n" in out
    assert not (tmp_path / "out").exists()
    assert main(["evaluate", "r.yaml"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.png", "metrics.json", "report.html"]


def refused(capsys, *arguments):
    assert main(["evaluate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("limrank: ") and err.count("\n") == 1
    return err[len("limrank: ") : -1]


def test_what_cannot_be_compared_is_exit_2(runs, tmp_path, capsys):
    think, direct, _ = runs
    nowhere, other = f"{tmp_path}/nowhere", tmp_path / "other"
    assert refused(capsys, "--compare", think) == "evaluation.compare: name at least two run directories (got 1)"
    assert refused(capsys, "--compare", think, think) == f"evaluation.compare: {think} is given twice"
    message = f"{nowhere}: not a finished rerank run: there is no manifest.json in it"
    assert refused(capsys, "--compare", think, nowhere) == message
    assert "ftp://b/r: no directory, and no store" in refused(capsys, "--compare", think, "ftp://b/r")
    message = refused(capsys, "--compare", think, direct, "-s", f"run_dir={direct}")
    assert message == f"run_dir: {direct} is one of the runs to compare: take another with -s run_dir=…"
    assert refused(capsys, "--compare", think, direct, "-s", "evaluation.run=x").startswith("evaluation.run and ")
    assert "'nDGC' is not a measure" in refused(capsys, "--compare", think, direct, "-s", "evaluation.measures=[nDGC]")
    assert refused(capsys, "--compare", think, direct, "-s", "job=rerank").startswith("--compare: job: ")
    message = "evaluate takes one recipe (got 2); several run directories go with --compare"
    assert refused(capsys, "a.yaml", "b.yaml") == message
    write_run(other, "direct", [1] * 9, generated=40, queries=QUERIES[:9])
    message = f"{other}: other queries than {think} has (query 'q9'); compare runs of the same data and selection"
    assert refused(capsys, "--compare", think, str(other)) == message


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"status": "failed"}, "it is failed; the same `limrank rerank` command resumes it"),
        ({"job": "synthesize"}, "but one of 'synthesize'"),
        ({"tokens": {}}, "its manifest.json counts no generated tokens"),
    ],
)
def test_a_run_that_is_not_finished_is_exit_2(runs, tmp_path, capsys, changes, complaint):
    edit(tmp_path / "direct" / "manifest.json", **changes)
    message = refused(capsys, "--compare", *runs)
    assert message.startswith(f"{tmp_path}/direct: not a finished rerank run") and message.endswith(complaint)


def test_other_judgements_are_exit_2(runs, tmp_path, capsys):
    with (tmp_path / "direct" / "qrels.tsv").open("a") as file:
        file.write("q1\tno1\t1\n")
    assert refused(capsys, "--compare", *runs).startswith(
        f"{tmp_path}/direct: other judgements than {tmp_path}/think has"
    )


def test_failures_are_a_warning(runs, tmp_path, capsys):
    edit(tmp_path / "direct" / "manifest.json", counts={"units": 10, "rows": 40, "failed": 3})
    assert main(["evaluate", "--compare", *runs, "-s", f"run_dir={tmp_path}/out"]) == 0
    err = capsys.readouterr().err
    assert err == "warning: direct: 3 failures; what failed is ranked after everything that was scored\n"


# ---- the picture ---------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [(0.0, 0.0), (0.0, 100.0), (50.0, 40_000.0)])
def test_the_picture_is_a_png_whatever_the_tokens(tokens):
    points = [Point("cheap", tokens[0], 0.3, 0.2, 0.4, True), Point("dear", tokens[1], 0.3, 0.3, 0.3, False)]
    png = draw_quality(points, "nDCG@10")
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (960, 600)
