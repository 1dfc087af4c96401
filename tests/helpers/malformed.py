"""Malformed files and values against every command that reads them.

    cd tests && python -m helpers.malformed [WORD ...]      # only the cases whose kind or name holds a WORD

Each case is tried in a folder of its own through ``limrank.cli.main``. What is malformed should be
refused: exit 2 and one short line on stderr. What only looks strange should be accepted: exit 0.
Anything else is a crash. The small files are in ``tests/malformed/KIND/``, where ``ok-*`` are to be
accepted; the large ones are made here.

To add a case, add a line to a list: a file in one of the folders, an entry of a dictionary below, or a
:class:`Case` in a list of another module that :func:`all_cases` takes in.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers import REPOSITORY
from helpers.tampered import COMMANDS, tampered, tamperings

SECONDS = 20
"""Time limit of a case."""

LONGEST_LINE = 500
CORPUS = REPOSITORY / "tests" / "malformed"
"""The folder of small files."""

NOBODY = 65534
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Case:
    """``prepare`` is given an empty folder, the working directory, and gives the arguments of limrank.
    ``as_nobody``: it is tried by a user who may not read everything. ``reads_back``: a run directory
    is read, of which a damaged part may as well be made again (exit 0), or end the job (exit 1)."""

    kind: str
    name: str
    prepare: Callable[[Path], list[str]]
    accepted: bool = False
    says: str = ""
    as_nobody: bool = False
    reads_back: bool = False


@dataclass(frozen=True)
class Outcome:
    verdict: str
    """``refused``, ``accepted`` or ``crashed``."""
    line: str
    """What was said, or how it crashed."""


# ---- what is well formed -------------------------------------------------------------

RECIPES = {
    "rerank": {
        "data": {"format": "beir", "path": "data"},
        "engine": {"kind": "fake"},
        "scoring": {"mode": "none"},
        "first_stage": {"depth": 2},
    },
    "synthesize": {"engine": {"kind": "fake"}, "synthesis": {"seeds": "seeds.jsonl", "personas": "personas.jsonl"}},
    "train": {"training": {"train_file": "train.jsonl"}},
    "evaluate": {"data": {"format": "beir", "path": "data"}, "evaluation": {"run": "run.trec"}},
    "serve": {"engine": {"kind": "fake"}},
    "pipeline": {
        "data": {"format": "beir", "path": "data"},
        "engine": {"kind": "fake"},
        "synthesis": {"seeds": "seeds.jsonl"},
    },
}

GOOD = {
    "data/corpus.jsonl": '{"_id": "d1", "text": "a cat"}\n{"_id": "d2", "text": "a dog"}\n',
    "data/queries.jsonl": '{"_id": "q1", "text": "cat"}\n',
    "data/qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\n",
    "run.trec": "q1 Q0 d1 1 2.0 tag\nq1 Q0 d2 2 1.0 tag\n",
    "run.json": '{"q1": {"d1": 2.0, "d2": 1.0}}',
    "seeds.jsonl": '{"id": "s1", "query": "a cat", "passage": "cats sleep"}\n',
    "personas.jsonl": '{"id": "p1", "persona": "a vet"}\n',
    "train.jsonl": '{"prompt": "relevant?", "completion": "</think> true"}\n',
}


def write_good(folder: Path) -> None:
    """Every file that the recipes name."""
    for name, text in GOOD.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def write_recipe(folder: Path, job: str, values: dict | None = None) -> list[str]:
    """A recipe of a job, and the arguments that try it without starting anything."""
    recipe = {"job": job, "run_dir": "out"} | (RECIPES[job] if values is None else values)
    (folder / "r.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return [job, "r.yaml"] if job in ("rerank", "evaluate") else [job, "r.yaml", "--dry-run"]


def overridden(job: str, *overrides: str) -> Callable[[Path], list[str]]:
    """A good recipe with ``-s`` overrides."""

    def prepare(folder: Path) -> list[str]:
        write_good(folder)
        return [*write_recipe(folder, job), *(word for each in overrides for word in ("-s", each))]

    return prepare


def replaced(
    job: str, name: str, content: bytes | Callable[[Path], None], *overrides: str
) -> Callable[[Path], list[str]]:
    """A good recipe, one of whose files is another: bytes, or what a function makes at its path."""

    def prepare(folder: Path) -> list[str]:
        arguments = overridden(job, *overrides)(folder)
        path = folder / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
        return arguments

    return prepare


# ---- trying one ----------------------------------------------------------------------


class _TooLongError(BaseException):
    """No Exception, so that nothing takes it for a fault of a file."""


def attempt(case: Case) -> Outcome:
    """Try a case in a new folder. It changes the working directory for as long as it runs."""
    before = Path.cwd()
    out, err = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory(prefix="malformed-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        arguments = case.prepare(folder)
        os.chdir(folder)
        try:
            with _limited(SECONDS), _as(case), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = _main(arguments)
        except _TooLongError:
            return Outcome("crashed", f"no answer within {SECONDS} s")
        except (Exception, SystemExit) as error:
            return Outcome("crashed", f"{type(error).__name__}: {str(error)[:200]}")
        finally:
            os.chdir(before)
            _writable(folder)
    if case.reads_back:
        # Warnings, and what another command prints first, are not the point.
        message = [line for line in err.getvalue().splitlines() if not line.startswith("warning: ")]
        return _outcome(2 if code == 1 else code, "", "\n".join(message))
    return _outcome(code, out.getvalue(), err.getvalue())


def fault(case: Case, outcome: Outcome) -> str | None:
    """What is wrong with how a case went; None where it went as it should."""
    if case.reads_back and outcome.verdict in ("accepted", "refused"):
        return None
    expected = "accepted" if case.accepted else "refused"
    if outcome.verdict != expected:
        return f"{outcome.verdict}, and should be {expected}: {outcome.line}"
    return None if case.says in outcome.line else f"does not say {case.says!r}: {outcome.line}"


def _main(arguments: list[str]) -> int:
    from limrank.cli import main

    return main(arguments)


def _outcome(code: int, out: str, err: str) -> Outcome:
    if code == 0:
        return Outcome("accepted", err.strip())
    line = err.removesuffix("\n")
    flaws = {
        f"exit {code}": code != 2,
        "something on stdout": out,
        "more than one line": "\n" in line,
        "does not begin with limrank:": not line.startswith("limrank: "),
        f"{len(line)} characters": len(line) > LONGEST_LINE,
        "control characters": _CONTROL.search(line),
    }
    if found := [flaw for flaw, is_there in flaws.items() if is_there]:
        return Outcome("crashed", f"{', '.join(found)}: {line[-300:]!r}")
    return Outcome("refused", line)


@contextlib.contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TooLongError

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


@contextlib.contextmanager
def _as(case: Case) -> Iterator[None]:
    """As a user without root's rights over files, where the case wants that."""
    if not case.as_nobody or os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def _writable(folder: Path) -> None:
    for path, _, _ in os.walk(folder):
        Path(path).chmod(0o755)


# ---- the cases -----------------------------------------------------------------------

DEEP = 50_000

JSON_VALUES = {
    "nested deep": b"[" * DEEP + b"]" * DEEP,
    "nested deep, cut off": b'{"a":' * DEEP,
    "5,000 digits": b"9" * 5000,
    "400 digits": b"9" * 400,
    "overflow": b"1e999",
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "half a surrogate": rb'"\ud800"',
    "a key twice": b'{"a": 1, "a": 2}',
    "not UTF-8": b'"caf\xe9"',
    "a raw NUL": b'"\0"',
    "a raw line end": b'"a\rb',
    "python": b"None",
    "cut off": b'{"a": [1,',
}
"""Faults of one JSON value, wherever it stands."""

RECORDS = {
    "corpus": (
        "data/corpus.jsonl",
        b'{"_id": "d1", "text": "a cat", "more": %s}\n',
        ("rerank", "evaluate", "pipeline"),
    ),
    "queries": ("data/queries.jsonl", b'{"_id": "q1", "text": "cat", "more": %s}\n', ("rerank", "evaluate")),
    "seeds": ("seeds.jsonl", b'{"id": "s1", "query": "a", "passage": "b", "more": %s}\n', ("synthesize",)),
    "personas": ("personas.jsonl", b'{"id": "p1", "persona": "a vet", "more": %s}\n', ("synthesize",)),
    "train": ("train.jsonl", b'{"prompt": "a", "completion": "</think> true", "more": %s}\n', ("train",)),
    "train-array": ("train.jsonl", b'[{"prompt": "a", "completion": "</think> true", "more": %s}]', ("train",)),
    "run-json": ("run.json", b'{"q1": {"d1": %s}}', ("evaluate", "rerank")),
}
"""Files of JSON records: their name, one record with a place for a value, and the jobs that read them."""

_READS = {
    ("evaluate", "run.json"): ["evaluation.run=run.json"],
    ("rerank", "run.json"): ["first_stage.kind=run", "first_stage.path=run.json"],
    ("rerank", "run.trec"): ["first_stage.kind=run", "first_stage.path=run.trec"],
}
"""What tells a job to read a file that its recipe does not name."""

WHOLE_FILES = {
    "empty": b"",
    "blank": b" \n\n\t\n",
    "UTF-16": '{"_id": "d1", "text": "a"}\n'.encode("utf-16"),
    "binary": bytes(range(256)),
    "a list": b"[1, 2]\n",
    "a number": b"1\n",
    "null": b"null\n",
    "nothing but brackets": b"[" * DEEP,
}
"""Files that no reader of records takes."""

FOLDERS = {
    "corpus": ("data/corpus.jsonl", ("rerank", "evaluate", "synthesize-beir")),
    "queries": ("data/queries.jsonl", ("rerank", "evaluate", "synthesize-beir")),
    "qrels": ("data/qrels/test.tsv", ("rerank", "evaluate", "synthesize-beir")),
    "run": ("run.trec", ("evaluate", "rerank")),
    "run-json": ("run.json", ("evaluate", "rerank")),
    "seeds": ("seeds.jsonl", ("synthesize",)),
    "personas": ("personas.jsonl", ("synthesize",)),
    "train": ("train.jsonl", ("train",)),
    "recipe": ("r.yaml", ("rerank", "synthesize", "train", "evaluate", "serve", "pipeline")),
}
"""Folders of ``tests/malformed``: the name that a file of it takes, and the jobs that read it."""


def _tried(job: str, name: str, content: bytes | Callable[[Path], None]) -> Callable[[Path], list[str]]:
    if job == "synthesize-beir":
        return replaced("synthesize", name, content, "synthesis.seeds=data")
    return replaced(job, name, content, *_READS.get((job, name), ()))


def _files() -> Iterator[Case]:
    for kind, (name, record, jobs) in RECORDS.items():
        for what, value in JSON_VALUES.items():
            for job in jobs:
                yield Case(kind, f"{what} ({job})", _tried(job, name, record % value))
    for kind, (name, jobs) in FOLDERS.items():
        for what, content in WHOLE_FILES.items():
            for job in jobs:
                yield Case(kind, f"{what} ({job})", _tried(job, name, content))
        for file in sorted((CORPUS / kind).glob("*")):
            for job in jobs:
                yield Case(
                    kind, f"{file.name} ({job})", _tried(job, name, file.read_bytes()), file.name.startswith("ok-")
                )


OVERRIDES: dict[str, list[str]] = {
    "rerank": [
        *(f"seed={value}" for value in ("true", "1.5", "-1", "2001-13-45", "!!int abc", ".inf", "&a [*a]", "8:00")),
        *(f"seed={value}" for value in ("9" * 5000, "9" * 400, "[" * DEEP, "{a: 1, a: 2}", "!!python/name:os.system")),
        *(f"first_stage.k1={value}" for value in (".inf", "-.nan", "1e999", "true", "'inf'", "0x" + "f" * 5000)),
        *(f"run_dir={value}" for value in ("", " ", "a\0b", "a" * 300, "a" * 5000, "a/" * 3000)),
        *(f"model.id={value}" for value in ("", "a\0b", "m" * 5000)),
        *(f"engine.kind={value}" for value in ("", "true", "[fake]", "x" * 5000)),
        "engine.kind=openai",
        *(f"{key}=1" for key in ("", ".", "a..b", "k" * 5000, "a.b.c.d", "seed.low", "\0")),
        "nothing",
        "x" * 5000,
        *("workers.replicas=[true, 4]", "workers.replicas=[4, 1]", "workers.cpus=.inf", "workers.accelerator= "),
        *(
            "scoring.prompt=" + "p" * 5000,
            "scoring.prompt=a\0b",
            "scoring.prompt={{ query",
            "scoring.prompt=" + "p" * 300,
        ),
        *("data.split=", "data.split=../../x", "data.split=" + "s" * 5000, "data.max_queries=1e999", "data.format=hub"),
        *("engine.api_key_env=", "engine.api_key_env=A=B", "engine.poison=", "engine.startup_timeout_s=1e300"),
    ],
    "serve": [
        *(f"serving.host={value}" for value in ("", " ", "a b", "localhost:80", "http://here", "a\0b", "h" * 5000)),
        *(f"serving.port={value}" for value in ("70000", "-1", "true", "8:00", "")),
        "serving.max_queued_requests=0",
        *(f"serving.max_queued_pairs={value}" for value in ("0", "true", ".nan", "9" * 400, "")),
        *(f"serving.spread_pairs={value}" for value in ("0", "true", ".inf", "")),
        *(f"serving.target_pairs_per_replica={value}" for value in ("0", "-5", ".nan", "many")),
        *(f"serving.scale_down_after_s={value}" for value in ("0", ".inf", "soon")),
        *(f"serving.modes={value}" for value in ("direct", "[none]", "[think, think]", "['']", "7")),
        *(f"serving.aliases={value}" for value in ("name", "['']", "[a, a]", "[" + "n" * 5000 + "]")),
    ],
    "train": [
        "training.learning_rate=.inf",
        "training.learning_rate=true",
        "training.lora_targets=['']",
        "training.epochs=9" + "9" * 30,
    ],
    "evaluate": [
        "evaluation.measures=['']",
        "evaluation.measures=[]",
        "evaluation.measures=[" + "x" * 5000 + "]",
        "evaluation.bootstrap_samples=9999999999",
        "evaluation.compare=['']",
        "evaluation.compare=[a\0b, c]",
    ],
    "synthesize": [
        "synthesis.domains={'': 1}",
        "synthesis.difficulties={direct: true}",
        "synthesis.difficulties={direct: .inf}",
        "synthesis.kinds=[daily, daily]",
        "synthesis.decontaminate=['']",
        "synthesis.embedder=",
        "synthesis.prompts.query=" + "p" * 5000,
        "synthesis.top_p=0",
    ],
}
"""Values of ``-s`` that no job takes."""

ACCEPTED_OVERRIDES = {
    "rerank": ["seed='12'", "seed=010", "first_stage.k1=1e0", "first_stage.depth=10.0", "allow_failures=yes"]
}


def _overrides() -> Iterator[Case]:
    for job, overrides in OVERRIDES.items():
        for each in overrides:
            yield Case("-s", f"{job} {each[:60]!r}", overridden(job, each))
    for job, overrides in ACCEPTED_OVERRIDES.items():
        for each in overrides:
            yield Case("-s", f"{job} {each[:60]!r}", overridden(job, each), accepted=True)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound, contextlib.chdir(path.parent):  # the name may not be long
        bound.bind(path.name)


PLACES: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a socket": _socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "an empty folder": Path.mkdir,
}
"""What may lie where a file is meant."""

FILES = ("data/corpus.jsonl", "data/queries.jsonl", "data/qrels/test.tsv", "run.trec", "run.json", "seeds.jsonl",
         "personas.jsonl", "train.jsonl")  # fmt: skip

PATH_KEYS = {
    "data.path": "rerank",
    "first_stage.path": "rerank",
    "synthesis.seeds": "synthesize",
    "synthesis.personas": "synthesize",
    "training.train_file": "train",
    "evaluation.run": "evaluate",
}
PATHS = {
    "too long": "a" * 5000,
    "too long a part": "b/" + "a" * 300,
    "a NUL": "a\0b",
}


def _job_of(name: str) -> str:
    """A job that reads a file of :data:`GOOD`, or the recipe."""
    jobs = {"run": "evaluate", "seeds": "synthesize", "personas": "synthesize", "train": "train"}
    return next((job for start, job in jobs.items() if name.startswith(start)), "rerank")


def _places() -> Iterator[Case]:
    for name in FILES:
        job = _job_of(name)
        for what, make in PLACES.items():
            yield Case("place", f"{name}: {what}", _tried(job, name, make))
        yield Case("place", f"{name}: not to be read", _tried(job, name, lambda path: path.touch(0)), as_nobody=True)
    for folder, job in (("data", "rerank"), ("data/qrels", "rerank"), ("data", "evaluate"), ("model", "rerank")):
        overrides = MODEL_READS[job] if folder == "model" else ()
        yield Case("place", f"{folder}: not to be entered ({job})", _closed(folder, job, overrides), as_nobody=True)
    for key, job in PATH_KEYS.items():
        more = ["first_stage.kind=run"] if key == "first_stage.path" else []
        for what, path in PATHS.items():
            yield Case("path", f"{key}: {what}", overridden(job, *more, f"{key}={path}"))
    for what, path in PATHS.items():
        yield Case("path", f"recipe: {what}", lambda folder, path=path: ["rerank", path])
        yield Case("path", f"--compare: {what}", lambda folder, path=path: ["evaluate", "--compare", path, "other"])


def _closed(folder: str, job: str, overrides: list[str] | tuple[()]) -> Callable[[Path], list[str]]:
    prepare = overridden(job, *overrides)

    def closed(place: Path) -> list[str]:
        arguments = prepare(place)
        (place / folder).mkdir(exist_ok=True)
        (place / folder).chmod(0)
        return arguments

    return closed


def _missing() -> Iterator[Case]:
    """A file that is not there may be the output of a stage before: a dry run goes on, the rest does not."""
    for key, job in PATH_KEYS.items():
        more = ["first_stage.kind=run"] if key == "first_stage.path" else []
        for path in ("nowhere/at/all", "r.yaml/x"):
            accepted = job in ("synthesize", "train") and key != "synthesis.personas"
            yield Case("missing", f"{key}: {path}", overridden(job, *more, f"{key}={path}"), accepted)
    for model in ("a b/c d", "../..", "a//b", "~nobody-here/x", "m" * 300, "nowhere", "."):
        yield Case("missing", f"model: {model[:60]}", _with_model(model))


def _with_model(model: str) -> Callable[[Path], list[str]]:
    return overridden("rerank", "scoring.mode=direct", "engine.kind=vllm", f"model.id={model}")


# ---- tables and models ---------------------------------------------------------------

PARQUET = {"pairs.parquet": "rerank", "seeds.parquet": "synthesize", "train.parquet": "train"}
_READS[("rerank", "pairs.parquet")] = ["data.format=pairs", "data.path=pairs.parquet"]
_READS[("synthesize", "seeds.parquet")] = ["synthesis.seeds=seeds.parquet"]
_READS[("train", "train.parquet")] = ["training.train_file=train.parquet"]

PAIR = {"query_id": ["q1"], "query": ["a"], "doc_id": ["d1"], "text": ["b"]}
SEED = {"id": ["s1"], "query": ["a"], "passage": ["b"]}
EXAMPLE = {"prompt": ["a"], "completion": ["</think> true"]}


COLUMNS: dict[str, list[tuple[str, dict[str, list]]]] = {
    "pairs.parquet": [
        ("no rows", {key: PAIR[key][:0] for key in PAIR}),
        *((f"{key} null", PAIR | {key: [None]}) for key in PAIR),
        *((f"{key} list", PAIR | {key: [["a"]]}) for key in PAIR),
        *((f"{key} object", PAIR | {key: [{"a": 1}]}) for key in PAIR),
        *((f"{key} bytes", PAIR | {key: [b"\xff"]}) for key in PAIR),
        *((f"{key} float", PAIR | {key: [1.5]}) for key in PAIR),
        *((f"{key} true", PAIR | {key: [True]}) for key in PAIR),
        *((f"{key} missing", {other: PAIR[other] for other in PAIR if other != key}) for key in PAIR),
        *((f"score {value}", PAIR | {"score": [value]}) for value in (float("nan"), float("inf"), "high", True, [1.0])),
        *(
            (f"{key} {value!r}", PAIR | {key: [value]})
            for key in ("query_id", "doc_id")
            for value in ("", " ", "a\tb", "a\0b")
        ),
        ("id of 5,000 characters", PAIR | {"doc_id": ["d" * 5000]}),
        ("a pair twice", {key: PAIR[key] * 2 for key in PAIR}),
    ],
    "seeds.parquet": [
        ("no rows", {key: SEED[key][:0] for key in SEED}),
        *((f"{key} null", SEED | {key: [None]}) for key in ("query", "passage")),
        *((f"{key} list", SEED | {key: [["a"]]}) for key in SEED),
        *((f"{key} bytes", SEED | {key: [b"\xff"]}) for key in SEED),
        *((f"{key} float", SEED | {key: [1.5]}) for key in SEED),
        *((f"{key} missing", {other: SEED[other] for other in SEED if other != key}) for key in ("query", "passage")),
    ],
    "train.parquet": [
        ("no rows", {key: EXAMPLE[key][:0] for key in EXAMPLE}),
        *((f"{key} null", EXAMPLE | {key: [None]}) for key in EXAMPLE),
        *((f"{key} list", EXAMPLE | {key: [["a"]]}) for key in EXAMPLE),
        *((f"{key} bytes", EXAMPLE | {key: [b"\xff"]}) for key in EXAMPLE),
        *((f"{key} missing", {other: EXAMPLE[other] for other in EXAMPLE if other != key}) for key in EXAMPLE),
    ],
}
"""Tables that no job takes, by the file."""


def _table(columns: dict[str, list]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns), path)

    return write


def _dates(path: Path) -> None:
    """A time that no Python object holds, where a text is meant."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = "prompt" if path.name == "train.parquet" else "query"
    good = {"pairs.parquet": PAIR, "seeds.parquet": SEED, "train.parquet": EXAMPLE}[path.name]
    times = pa.array([2**62], pa.timestamp("us"))
    pq.write_table(pa.table(good | {name: times}), path)


def _damaged(path: Path) -> None:
    """A table whose pages are not what its end says."""
    columns = {"pairs.parquet": PAIR, "seeds.parquet": SEED, "train.parquet": EXAMPLE}[path.name]
    _table({key: [f"{value}{row}" for row in range(500) for value in values] for key, values in columns.items()})(path)
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(data)


def _cut(path: Path) -> None:
    _damaged(path)
    path.write_bytes(path.read_bytes()[:-20])


def _tables() -> Iterator[Case]:
    for name, job in PARQUET.items():
        for what, content in WHOLE_FILES.items():
            yield Case("parquet", f"{name}: {what}", _tried(job, name, content))
        for what, make in ({"damaged": _damaged, "cut off": _cut, "dates": _dates} | PLACES).items():
            yield Case("parquet", f"{name}: {what}", _tried(job, name, make))
        for what, columns in COLUMNS[name]:
            yield Case("parquet", f"{name}: {what}", _tried(job, name, _table(columns)))


SAVED = {
    "state.json": b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "a", "_format_columns": null, '
    b'"_format_kwargs": {}, "_format_type": null, "_output_all_columns": false, "_split": "train"}',
    "dataset_info.json": b"{}",
    "data-00000-of-00001.arrow": b"",
}
"""The files of a folder that ``datasets`` saved, of which the rows are damaged."""

SAVED_READS = {
    "rerank": ["data.format=pairs", "data.path=saved"],
    "synthesize": ["synthesis.seeds=saved"],
    "train": ["training.train_file=saved"],
}


def _saved() -> Iterator[Case]:
    for job, overrides in SAVED_READS.items():
        for name in (*SAVED, "dataset_dict.json"):
            for what, content in ({"missing": None} | WHOLE_FILES).items():
                files = {key: value for key, value in (SAVED | {name: content}).items() if value is not None}
                yield Case("saved dataset", f"{name} {what} ({job})", _in_folder(job, "saved", files, overrides))


MODEL = {"config.json": b'{"model_type": "llama"}', "tokenizer_config.json": b"{}", "tokenizer.json": b"{}"}
MODEL_READS = {"rerank": ["scoring.mode=direct", "engine.kind=vllm", "model.id=model"], "train": ["model.id=model"]}


def _models() -> Iterator[Case]:
    for job, overrides in MODEL_READS.items():
        for name in MODEL:
            for what, content in ({"missing": None} | WHOLE_FILES).items():
                files = {key: value for key, value in (MODEL | {name: content}).items() if value is not None}
                yield Case("model", f"{name} {what} ({job})", _in_folder(job, "model", files, overrides))


def _in_folder(job: str, folder: str, files: dict[str, bytes], overrides: list[str]) -> Callable[[Path], list[str]]:
    def prepare(place: Path) -> list[str]:
        arguments = overridden(job, *overrides)(place)
        (place / folder).mkdir()
        for name, content in files.items():
            (place / folder / name).write_bytes(content)
        return arguments

    return prepare


LONG_TEXTS = {
    "data/queries.jsonl": b'{"_id": "q1", "text": "%s"}\n',
    "seeds.jsonl": b'{"query": "%s", "passage": "b"}\n',
    "personas.jsonl": b'{"persona": "%s"}\n',
    "train.jsonl": b'{"%s": "a"}\n',
    "run.json": b'{"%s": {"d1": 1}}\n',
    "run.trec": b"%s",
    "data/qrels/test.tsv": b"q1\t%s\t1\n",
    "r.yaml": b"%s",
}
"""Fields for 50 MB that no model reads, and no file of a run holds."""


def _long() -> Iterator[Case]:
    for name, record in LONG_TEXTS.items():
        yield Case("50 MB", name, _tried(_job_of(name), name, _with_long(record)))
    for name in ("data/corpus.jsonl", "data/queries.jsonl"):
        yield Case("50 MB", f"{name}.gz: nothing but zeros", _tried("rerank", name, _zeros))


def _with_long(record: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(record % (b"word " * 10_000_000)) and None


def _zeros(path: Path) -> None:
    """A quarter of a gigabyte without a line end, packed into a quarter of a megabyte."""
    with gzip.open(path.with_name(f"{path.name}.gz"), "wb", 1) as file:
        for _ in range(256):
            file.write(bytes(1 << 20))


MORE: list[Case] = [
    Case(
        "-s",
        "pipeline training.patience without held-out data",
        overridden("pipeline", "training.patience=2", "training.validation_share=0"),
        says="training.patience needs held-out data",
    ),
    Case(
        "-s", "pipeline workers.tensor_parallel=2", overridden("pipeline", "workers.tensor_parallel=2"), accepted=True
    ),
    Case("path", "too long once it is absolute", overridden("rerank", "data.path=" + "a/" * 2040)),
]
"""Cases of any kind, one by one."""


def _tampered() -> Iterator[Case]:
    for what, tamper in tamperings().items():
        for command, arguments in COMMANDS.items():
            if " is " in what and "--dry-run" in arguments:
                continue  # it reads whole what the command itself reads
            yield Case(f"run: {command}", what, tampered(tamper, arguments), reads_back=True)


def all_cases() -> list[Case]:
    return [
        *(*_files(), *_overrides(), *_places(), *_missing(), *_tables(), *_saved(), *_models(), *_long()),
        *(*_tampered(), *MORE),
    ]


def main(words: list[str]) -> int:
    cases = [case for case in all_cases() if not words or any(word in f"{case.kind} {case.name}" for word in words)]
    tried: dict[str, Counter[str]] = {}
    faults = []
    for case in cases:
        outcome = attempt(case)
        counts = tried.setdefault(case.kind, Counter())
        counts["tried"] += 1
        counts[outcome.verdict] += 1
        if (wrong := fault(case, outcome)) is not None:
            counts["wrong"] += 1
            faults.append(f"{case.kind}, {case.name}: {wrong}")
    columns = ("tried", "refused", "accepted", "crashed", "wrong")
    print(f"{'kind':<24}" + "".join(f"{column:>10}" for column in columns))
    for kind, counts in [*tried.items(), ("all", sum(tried.values(), Counter()))]:
        print(f"{kind:<24}" + "".join(f"{counts[column]:>10}" for column in columns))
    for each in faults:
        print(each)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
