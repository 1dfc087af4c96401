"""Run files and judgement files: TREC's columns, runs as JSON, BEIR's qrels.

A run's documents are read in ranking order: by score descending, ties in the order of the file. A TREC line is
split at tabs if it has any, since ids may hold spaces (BRIGHT), else at white space. A file whose name ends in
``.gz`` is decompressed.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from limrank.errors import UserError
from limrank.files import AnyPath, opened, path_of
from limrank.parsing import brief, decode, finite_number, parse_json, whole_number
from limrank.records import Qrels, Run

BEIR_HEADER = ["query-id", "corpus-id", "score"]

LONGEST_ID = 1000
"""Characters."""

LONGEST_QUERY = 1 << 20
"""Characters. A query is never truncated, and no model's context holds more."""

LONGEST_LINE = 1 << 27
"""Bytes. A file with a longer line is not a text file, or is a decompression bomb."""


def read_lines(path: str | AnyPath) -> Iterator[tuple[int, str]]:
    """Yield ``(line_number, line)`` of a text file, without line ends and blank lines.

    Raises:
        UserError: the file is missing, is not a file, cannot be read, or is not UTF-8 (or gzip).
    """
    with opened(path) as file:
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
            if len(raw) == LONGEST_LINE:
                raise UserError(f"{path}:{number}: a line of more than {LONGEST_LINE >> 20} MiB")
            line = decode(raw, f"{path}:{number}").removeprefix("\ufeff").rstrip("\r\n")
            if line.strip():
                yield number, line


def read_run(path: str | AnyPath, *, may_be_empty: bool = False) -> Run:
    """Read a run: JSON (``{query_id: {doc_id: score}}``) if the name ends in ``.json`` or ``.json.gz``, else TREC
    (``query_id Q0 doc_id rank score tag``).

    Documents are ordered by score, as in trec_eval; the rank column is ignored.

    Args:
        may_be_empty: a file that ranks nothing is a run too.

    Raises:
        UserError: an entry is bad (the message names its line), a document is ranked twice for a query (it
            names both lines), or the file ranks nothing.
    """
    is_json = path_of(path).name.removesuffix(".gz").endswith(".json")
    run = _read_json_run(path) if is_json else _read_trec_run(path)
    if not may_be_empty and not any(run.values()):
        raise UserError(f"{path}: the run is empty: it ranks no document")
    return {query_id: dict(ranking(scores)) for query_id, scores in run.items()}


def ranking(scores: dict[str, float]) -> list[tuple[str, float]]:
    """``(doc_id, score)``, best first; ties keep their order."""
    return sorted(scores.items(), key=lambda item: -item[1])


def read_qrels(path: str | AnyPath) -> Qrels:
    """Read judgements: BEIR's three tab-separated columns under ``query-id corpus-id score``, or TREC's four
    (``query_id iteration doc_id grade``). The number of columns decides, line by line.

    Raises:
        UserError: a line is bad, or two lines give a document different grades; the message names the lines.
    """
    qrels: Qrels = {}
    seen: dict[tuple[str, str], int] = {}
    for number, line in read_lines(path):
        columns = _columns(line)
        if columns == BEIR_HEADER:
            continue
        if len(columns) not in (3, 4):
            raise UserError(
                f"{path}:{number}: {_count(columns)}; judgements have 3 (query-id corpus-id score) "
                "or 4 (query_id iteration doc_id grade)"
            )
        query_id, doc_id, text = columns[0], columns[-2], columns[-1]
        _check_ids(f"{path}:{number}", query_id, doc_id)
        grade = whole_number(text, f"{path}:{number}: the grade")
        first = seen.setdefault((query_id, doc_id), number)
        if qrels.setdefault(query_id, {}).setdefault(doc_id, grade) != grade:
            raise UserError(
                f"{path}:{number}: document {brief(doc_id)} of query {brief(query_id)} has another grade on line {first}"
            )
    return qrels


def write_run_trec(path_or_file: str | Path | TextIO, run: Run, tag: str = "limrank") -> None:
    """Write a run in TREC's six columns, best document first, ranks from 1.

    :func:`run_separator` chooses the separator.

    Raises:
        UserError: no TREC file can hold one of the ids (:func:`id_fault`).
    """
    ids = {doc_id for scores in run.values() for doc_id in scores} | run.keys()
    _check_writable(ids, "run")
    gap = run_separator(ids)
    lines = (
        run_line(query_id, doc_id, rank, float(score), gap, tag)
        for query_id, scores in run.items()
        for rank, (doc_id, score) in enumerate(ranking(scores), start=1)
    )
    _write_lines(path_or_file, lines)


def run_separator(ids: Iterable[str]) -> str:
    """The separator of a run's columns: a tab if an id holds white space (such as a no-break space), else a space."""
    return "\t" if any(an_id.split() != [an_id] for an_id in ids) else " "


def run_line(query_id: str, doc_id: str, rank: int, score: float, gap: str = " ", tag: str = "limrank") -> str:
    """A line of a TREC run, without its line end."""
    return gap.join((query_id, "Q0", doc_id, str(rank), repr(score), tag))


def write_qrels(path: str | Path, qrels: Qrels) -> None:
    """Write judgements as BEIR's tab-separated file with a header.

    Raises:
        UserError: no such file can hold one of the ids (:func:`id_fault`).
    """
    _check_writable({doc_id for grades in qrels.values() for doc_id in grades} | qrels.keys(), "qrels")
    rows = (f"{query_id}\t{doc_id}\t{grade}" for query_id, grades in qrels.items() for doc_id, grade in grades.items())
    _write_lines(path, ("\t".join(BEIR_HEADER), *rows))


def _write_lines(path_or_file: str | Path | TextIO, lines: Iterable[str]) -> None:
    if not isinstance(path_or_file, str | Path):
        path_or_file.writelines(line + "\n" for line in lines)
        return
    opened = gzip.open if str(path_or_file).endswith(".gz") else open
    with opened(path_or_file, "wt", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)


def _columns(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else line.split()


def _count(columns: list[str]) -> str:
    return f"{len(columns)} column{'' if len(columns) == 1 else 's'}"


def _check_writable(ids: set[str], what: str) -> None:
    for an_id in sorted(ids):
        if fault := id_fault(an_id):
            raise UserError(f"the id {brief(an_id)} {fault}: no {what} file can carry it")


def id_fault(an_id: str) -> str | None:
    """Why a run or judgement file cannot hold an id; None if it can."""
    if not an_id.strip() or any(mark in an_id for mark in "\t\r\n"):
        return "is empty or holds a tab or a line end"
    if "\0" in an_id:
        return "holds a NUL"
    return f"has more than {LONGEST_ID} characters" if len(an_id) > LONGEST_ID else None


def check_length(name: str, text: str, where: str) -> None:
    """Raises UserError: a text that prompts hold in full is longer than any prompt."""
    if len(text) > LONGEST_QUERY:
        raise UserError(f"{where}: {name} has {len(text)} characters: no model reads more than {LONGEST_QUERY} of it")


def _check_ids(where: str, query_id: str, doc_id: str) -> None:
    for name, an_id in (("query", query_id), ("document", doc_id)):
        if fault := id_fault(an_id):
            raise UserError(f"{where}: the {name}'s id {brief(an_id)} {fault}")


def _read_trec_run(path: str | AnyPath) -> Run:
    run: Run = {}
    seen: dict[tuple[str, str], int] = {}
    for number, line in read_lines(path):
        columns = _columns(line)
        if len(columns) != 6:
            raise UserError(
                f"{path}:{number}: {_count(columns)}; a TREC run has 6 (query_id Q0 doc_id rank score tag), "
                "and the name of a JSON run ends in .json"
            )
        query_id, _, doc_id, _, score, _ = columns
        _check_ids(f"{path}:{number}", query_id, doc_id)
        first = seen.setdefault((query_id, doc_id), number)
        if first != number:
            raise UserError(
                f"{path}:{number}: document {brief(doc_id)} is ranked twice for query {brief(query_id)}: see line {first}"
            )
        run.setdefault(query_id, {})[doc_id] = finite_number(score, f"{path}:{number}: the score")
    return run


def _read_json_run(path: str | Path) -> Run:
    with opened(path) as file:
        values = parse_json(file.read(), str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: a JSON run is an object: {{query_id: {{doc_id: score}}}}")
    run: Run = {}
    for query_id, scores in values.items():
        query = f"{path}: query {brief(query_id)}"
        if not isinstance(scores, dict):
            raise UserError(f"{query}: should be an object {{doc_id: score}}")
        for doc_id in scores:
            _check_ids(str(path), query_id, doc_id)
        run[query_id] = {
            doc_id: finite_number(score, f"{query}, document {brief(doc_id)}: the score")
            for doc_id, score in scores.items()
        }
    return run
