"""`limrank failures`: run directories written by hand, and what is said about them."""

import json
from dataclasses import asdict

import pyarrow as pa
import pytest

from limrank.cli import main
from limrank.diagnostics import failures
from limrank.diagnostics.failures import normalise
from limrank.records import Failure, failure_schema
from limrank.storage import Storage


def run_dir(root, *files, job="rerank", status="done", counts=None):
    """A run directory; each of ``files`` is a list of (unit_id, step, error_type, error, attempts)."""
    storage = Storage(str(root))
    storage.write_text("manifest.json", json.dumps({"job": job, "status": status, "counts": counts or {}}))
    for number, rows in enumerate(files):
        table = pa.Table.from_pylist([asdict(Failure(*row)) for row in rows], schema=failure_schema())
        storage.write_table(f"failures/chunk-{number:06d}.parquet", table)
    return str(root)


def too_long(pair, tokens):
    return (pair, "score", "RowError", f"{tokens} prompt tokens and 1 more exceed the context of 2048", 1)


def printed(capsys, *arguments):
    assert main(["failures", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_failures_of_one_kind_are_one_group_over_all_files(tmp_path, capsys):
    crashed = ("q7", "score", "EngineError", "the engine crashed 2 times while it ran this unit in isolation", 4)
    root = run_dir(
        tmp_path / "run",
        [too_long("q1\td3", 2301), crashed],
        [too_long("q2\td9", 9120), too_long("q3\td1", 4000)],
        [("q8", *crashed[1:4], 5)],
        counts={"units": 40, "rows": 400, "failed": 5},
    )
    lines = printed(capsys, root)
    assert lines[:5] == [
        f"{root} (rerank, done): 5 failures among 40 units and 400 rows",
        "      3 (0.8% of rows)  score: RowError, 1 attempt",
        "        e.g. q1 · d3: 2301 prompt tokens and 1 more exceed the context of 2048",
        "      2 (5.0% of units)  score: EngineError, 4–5 attempts",
        "        e.g. q7: the engine crashed 2 times while it ran this unit in isolation",
    ]
    assert lines[5:] == ["The same command retries these once; `allow_failures: true` accepts them."]


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("1234 prompt tokens and 1 more", "N prompt tokens and N more"),
        ("label ' true' of d12 is at -inf", "label … of N is at N"),
        ("no \"x y\" in `z`: vLLM's own words, the engine's too", "no … in …: vLLM's own words, the engine's too"),
        ("request 0b7e1c2a-5f4d timed out after 1.5 s", "request N timed out after N s"),
        ("biology cannot be read, biological can", "ID cannot be read, biological can"),
    ],
)
def test_ids_numbers_and_quoted_words_do_not_tell_kinds_apart(message, kind):
    assert normalise(message, "biology\theapq.merge") == kind


def test_the_rest_of_many_groups_is_counted(tmp_path, capsys):
    names = "abcdefghijklmno"
    many = [(f"q{i}", "score", "RowError", f"trouble {name}", 1) for i, name in enumerate(names)]
    lines = printed(capsys, run_dir(tmp_path / "run", many, [many[14]]))
    assert lines[1] == "      2  score: RowError, 1 attempt"
    assert lines[2].endswith("q14: trouble o")
    assert sum("e.g." in line for line in lines) == 12
    assert lines[-2] == "        … and 3 more groups with 3 failures"


def test_kinds_beyond_what_is_held_are_counted_together(monkeypatch):
    monkeypatch.setattr(failures, "MAX_GROUPS", 2)
    kinds = [Failure("u", "echo", "RowError", f"trouble {name}", 1) for name in "abcda"]
    assert [(found.example.error, found.count) for found in failures.group(iter(kinds))] == [
        ("trouble a", 2),
        ("trouble c", 2),
        ("trouble b", 1),
    ]


def test_long_messages_are_truncated_to_the_screen(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    line = printed(capsys, run_dir(tmp_path / "run", [("q1", "score", "RowError", "so\nlong " * 40, 1)]))[2]
    assert line.startswith("        e.g. q1: so long so long") and len(line) == 60 and line.endswith("…")


def test_what_the_manifest_does_not_count_has_no_share(tmp_path, capsys):
    rows = [("s1/daily", "write", "RowError", "no answer", 1), ("s1/daily/0", "judge", "RowError", "no answer", 1)]
    root = run_dir(tmp_path / "run", rows, job="synthesize", counts={"units": 10, "rows": 50, "failed": 2})
    assert printed(capsys, root)[1::2][:2] == [
        "      1  write: RowError, 1 attempt",
        "      1 (2.0% of rows)  judge: RowError, 1 attempt",
    ]


def test_a_pipeline_s_stages_are_distinguished(tmp_path, capsys):
    root = run_dir(tmp_path / "line", job="pipeline")
    run_dir(tmp_path / "line" / "rerank-base", [too_long("q1\td3", 2301)], counts={"units": 4, "rows": 40})
    run_dir(tmp_path / "line" / "train", job="train")
    (tmp_path / "line" / "serve").mkdir()
    lines = printed(capsys, root)
    assert lines[0] == f"{root}/rerank-base (rerank, done): 1 failures among 4 units and 40 rows"
    assert "train" not in "".join(lines)


def test_no_failures(tmp_path, capsys):
    root = run_dir(tmp_path / "run", status="running")
    assert printed(capsys, root) == [f"{root} (rerank, running): nothing failed"]
    line = run_dir(tmp_path / "line", job="pipeline")
    assert printed(capsys, line) == [f"{line} (pipeline, done): nothing failed"]


@pytest.mark.parametrize(
    ("manifest", "complaint"),
    [
        (None, "{0}: not a run directory: there is no manifest.json in it"),
        (
            "{oops",
            "run_dir {0}: its manifest.json is not one of limrank's "
            "(not JSON: Expecting property name enclosed in double quotes (column 2))",
        ),
        ('["job", "status"]', "run_dir {0}: its manifest.json is not one of limrank's (not a JSON object, but list)"),
        ('{"job": "rerank"}', "run_dir {0}: its manifest.json is not one of limrank's (it names no job and status)"),
    ],
)
def test_what_is_no_run_directory_is_exit_2(tmp_path, capsys, manifest, complaint):
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    assert main(["failures", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"limrank: {complaint.format(tmp_path)}\n"


def test_no_such_store_is_exit_2(tmp_path, capsys):
    assert main(["failures", "oops://bucket/run"]) == 2
    err = capsys.readouterr().err
    assert (
        err.startswith("limrank: run_dir oops://bucket/run: its manifest.json cannot be read: ")
        and err.count("\n") == 1
    )
