"""Run directories that somebody has tampered with, for ``helpers/malformed.py``.

Each tampering is tried with every command that reads a run back. What can be made again is (exit 0);
what cannot is refused in one line: exit 2, or 1 where a run of limrank's is damaged and cannot go on.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

DEEP = b"[" * 50_000

CHUNK = "chunk-000000.parquet"


def _is(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        _nothing(path)
        path.write_bytes(content)

    return write


def _nothing(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _folder(path: Path) -> None:
    _nothing(path)
    path.mkdir()
    (path / "of-a-person").write_text("mine")


def _pipe(path: Path) -> None:
    _nothing(path)
    os.mkfifo(path)


def _loop(path: Path) -> None:
    _nothing(path)
    path.symlink_to(path.name)


ANY = {
    "missing": _nothing,
    "empty": _is(b""),
    "binary": _is(bytes(range(256))),
    "a folder": _folder,
    "a pipe": _pipe,
    "a link to itself": _loop,
}
"""What may become of any file."""

TEXTS = {
    "a list": _is(b"[1, 2]\n"),
    "a number": _is(b"1\n"),
    "null": _is(b"null\n"),
    "nested deep": _is(DEEP),
    "5,000 digits": _is(b'{"a": ' + b"9" * 5000 + b"}"),
    "an empty object": _is(b"{}\n"),
}
"""What may also become of a JSON or YAML file."""

NAMES = ("manifest.json", "config.yaml", "plan.json", "lock.json", "queries.jsonl", "qrels.tsv", "run.trec", "run.json")
TABLES = (f"rows/{CHUNK}", f"failures/{CHUNK}", "units/part-00000.parquet")
FOLDERS = ("rows", "failures", "units", "attempts", "metrics.json", "report.html", "per_query.parquet", "compare.png")


def _with(name: str, **parts: object) -> Callable[[Path], None]:
    """A JSON file with other parts."""

    def write(run: Path) -> None:
        values = json.loads((run / name).read_text()) if name.endswith(".json") else _yaml(run / name)
        (run / name).write_text(json.dumps(values | parts))

    return write


def _yaml(path: Path) -> dict:
    import yaml

    return yaml.safe_load(path.read_text())


STRANGE = (None, True, -1, "x", ["x"], {"x": {"y": 1}}, 10**400)


def _keys() -> dict[str, Callable[[Path], None]]:
    """Every key of what limrank reads back, with values of every type."""
    found = {}
    for key in ("schema_version", "job", "status", "config_hash", "versions", "counts", "seconds", "tokens", "rates"):
        for value in STRANGE:
            found[f"manifest.json: {key} is {str(value)[:20]}"] = _with("manifest.json", **{key: value})
    for part, key in (("counts", "rows"), ("counts", "failed"), ("tokens", "generated"), ("seconds", "work")):
        for value in ("many", None, [], -1, True, 10**400):
            found[f"manifest.json: {part}.{key} is {str(value)[:20]}"] = _with("manifest.json", **{part: {key: value}})
    for key in ("data", "model", "scoring"):
        for value in (None, True, 1, "x", [], {"x": 1}):
            found[f"config.yaml: {key} is {value}"] = _with("config.yaml", **{key: value})
    for scoring in ({"mode": []}, {"mode": "budget", "max_think_tokens": "x"}, {"mode": "budget"}, {"mode": 1}):
        found[f"config.yaml: scoring is {scoring}"] = _with("config.yaml", scoring=scoring)
    for value in (None, True, "x", {}, [1], [[1]], [["a", "b", "c"]], [[-1, 0, 0]], [[1, 1, 1]] * 3, []):
        found[f"plan.json: chunks are {value}"] = _with("plan.json", chunks=value)
    for key, value in (("pid", "x"), ("renewed", "x"), ("token", None), ("host", [])):
        found[f"lock.json: {key} is {value}"] = _lock(**{key: value})
    return found


def _lock(**parts: object) -> Callable[[Path], None]:
    holder = {"token": "t", "host": "h", "pid": 1, "renewed": 0.0}
    return lambda run: (run / "lock.json").write_text(json.dumps(holder | parts)) and None


def _other_columns(name: str) -> Callable[[Path], None]:
    """A table of somebody's own under a name of limrank's."""

    def write(run: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"mine": [1, 2]}), run / name)

    return write


def _other_values(name: str, **columns: list) -> Callable[[Path], None]:
    """A file of limrank's in which columns have other values, with its receipt."""

    def write(run: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(run / name)
        for column, values in columns.items():
            place = table.column_names.index(column)
            table = table.set_column(place, column, pa.array(values * len(table)))
        pq.write_table(table, run / name)

    return write


def _receipt(text: bytes) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        import pyarrow.parquet as pq

        table = pq.read_table(run / "rows" / CHUNK)
        pq.write_table(table.replace_schema_metadata({b"limrank.receipt": text}), run / "rows" / CHUNK)

    return write


def _beside(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda run: (run / name).write_bytes(content) and None


def _copied(name: str, to: str) -> Callable[[Path], None]:
    return lambda run: shutil.copy(run / name, run / to) and None


def tamperings() -> dict[str, Callable[[Path], None]]:
    """What somebody does to a run directory, by what it is called."""
    found: dict[str, Callable[[Path], None]] = {}
    for name in NAMES:
        for what, make in (ANY | (TEXTS if name.endswith((".json", ".yaml")) else {})).items():
            found[f"{name}: {what}"] = lambda run, name=name, make=make: make(run / name)
    for name in TABLES:
        for what, make in ANY.items():
            found[f"{name}: {what}"] = lambda run, name=name, make=make: make(run / name)
        found[f"{name}: other columns"] = _other_columns(name)
    for name in FOLDERS:
        for what in ("empty", "a pipe", "a folder", "a link to itself"):
            found[f"{name}: {what}"] = lambda run, name=name, make=ANY[what]: make(run / name)
    found |= _keys()
    for text in (b"", b"{}", b"[]", b"null", b"\xff", b'{"chunk": "x"}', DEEP):
        found[f"rows/{CHUNK}: the receipt is {text[:20]!r}"] = _receipt(text)
    for column, values in (("query_id", [1]), ("query_id", [None]), ("doc_id", [None]), ("first_stage_rank", ["x"])):
        found[f"rows/{CHUNK}: {column} is {values[0]}"] = _other_values(f"rows/{CHUNK}", **{column: values})
    for column, values in (("unit_id", [None]), ("error", [1]), ("attempts", ["x"])):
        found[f"failures/{CHUNK}: {column} is {values[0]}"] = _other_values(f"failures/{CHUNK}", **{column: values})
    for name in (
        "rows/notes.txt",
        "rows/mine.parquet",
        "rows/chunk-x.parquet",
        "failures/notes.txt",
        "failures/a.parquet",
    ):
        found[f"{name} beside"] = _beside(name, b"mine")
    found["rows: a copy of a chunk"] = _copied(f"rows/{CHUNK}", "rows/chunk-000001.parquet")
    found["rows: a copy of a chunk by a file manager"] = _copied(f"rows/{CHUNK}", "rows/chunk-000000 (copy).parquet")
    return found


RECIPE = {
    "job": "rerank",
    "run_dir": "out",
    "data": {"format": "beir", "path": "data"},
    "engine": {"kind": "fake"},
    "scoring": {"mode": "none"},
    "first_stage": {"depth": 2},
}
COMMANDS = {
    "evaluate": ["evaluate", "e.yaml"],
    "evaluate --dry-run": ["evaluate", "e.yaml", "--dry-run"],
    "--compare": ["evaluate", "--compare", "out", "other"],
    "failures": ["failures", "out"],
    "rerank": ["rerank", "r.yaml"],
    "rerank --overwrite": ["rerank", "r.yaml", "--overwrite"],
    "rerank --dry-run": ["rerank", "r.yaml", "--dry-run"],
}


@cache
def _finished() -> Path:
    """A folder with data, recipes and two finished runs, of which a part failed."""
    from dataclasses import asdict

    import pyarrow as pa

    from limrank.cli import main
    from limrank.records import Failure, failure_schema
    from limrank.storage import Storage

    folder = Path(tempfile.mkdtemp(prefix="tampered-")).resolve()
    (folder / "data" / "qrels").mkdir(parents=True)
    (folder / "data" / "corpus.jsonl").write_text('{"_id": "d1", "text": "a cat"}\n{"_id": "d2", "text": "a dog"}\n')
    (folder / "data" / "queries.jsonl").write_text('{"_id": "q1", "text": "cat dog"}\n{"_id": "q2", "text": "dog"}\n')
    (folder / "data" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n")
    (folder / "r.yaml").write_text(json.dumps(RECIPE))
    (folder / "e.yaml").write_text(json.dumps({"job": "evaluate", "run_dir": "out"}))
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        for name in ("out", "other"):
            assert main(["rerank", "r.yaml", "-s", f"run_dir={name}"]) == 0
    for name in ("out", "other"):
        run = Storage(str(folder / name))
        failed = Failure("q1", "score", "RowError", "no answer", 3)
        run.write_table(f"failures/{CHUNK}", pa.Table.from_pylist([asdict(failed)], schema=failure_schema()))
        manifest = json.loads(run.read_text("manifest.json"))
        run.write_text("manifest.json", json.dumps(manifest | {"tokens": {"prompt": 10, "generated": 10}}))
    return folder


def tampered(tamper: Callable[[Path], None], arguments: list[str]) -> Callable[[Path], list[str]]:
    """A command on a finished run that was tampered with."""

    def prepare(folder: Path) -> list[str]:
        shutil.copytree(_finished(), folder, dirs_exist_ok=True)
        tamper(folder / "out")
        return arguments

    return prepare
