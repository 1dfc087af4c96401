"""Run files and judgement files: TREC's columns, the JSON form of runs, BEIR's qrels.

A run's documents come back in ranking order: by score descending, ties in the order of
the file. A TREC line is split at tabs where it has any, since ids may hold spaces (BRIGHT),
else at white space. Files whose name ends in ``.gz`` are read through gzip.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from limrank.errors import UserError
from limrank.records import Qrels, Run

BEIR_HEADER = ["query-id", "corpus-id", "score"]


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield ``(line_number, line)`` of a text file, without line ends and blank lines.

    Raises:
        UserError: the file is missing, cannot be read, or is not UTF-8 (or not gzip).
    """
    opened = gzip.open if str(path).endswith(".gz") else open
    number = 0
    try:
        with opened(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.decode().removeprefix("\ufeff").rstrip("\r\n")
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}:{number}: not UTF-8 text") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def read_run(path: str | Path) -> Run:
    """Read a ranking: JSON (``{query_id: {doc_id: score}}``) where the name ends in
    ``.json`` or ``.json.gz``, else TREC (``query_id Q0 doc_id rank score tag``).

    The score orders, as in trec_eval; the rank column is not looked at.

    Raises:
        UserError: naming the line of a bad entry, or both lines of a document that is
            ranked twice for a query.
    """
    is_json = str(path).removesuffix(".gz").endswith(".json")
    run = _read_json_run(path) if is_json else _read_trec_run(path)
    return {query_id: dict(ranking(scores)) for query_id, scores in run.items()}


def ranking(scores: dict[str, float]) -> list[tuple[str, float]]:
    """``(doc_id, score)`` best first; ties stay in the order given."""
    return sorted(scores.items(), key=lambda item: -item[1])


def read_qrels(path: str | Path) -> Qrels:
    """Read judgements: BEIR's three tab-separated columns under ``query-id corpus-id
    score``, or TREC's four (``query_id iteration doc_id grade``), told apart line by line.

    Raises:
        UserError: naming a bad line, or both lines of two grades that contradict.
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
        try:
            grade = int(text)
        except ValueError:
            raise UserError(f"{path}:{number}: the grade {text!r} is not a whole number") from None
        first = seen.setdefault((query_id, doc_id), number)
        if qrels.setdefault(query_id, {}).setdefault(doc_id, grade) != grade:
            raise UserError(
                f"{path}:{number}: document {doc_id!r} of query {query_id!r} has another grade on line {first}"
            )
    return qrels


def write_run_trec(path_or_file: str | Path | TextIO, run: Run, tag: str = "limrank") -> None:
    """Write a ranking in TREC's six columns, best document first, ranks from 1.

    The columns are separated as :func:`run_separator` says.

    Raises:
        UserError: an id is empty or holds a tab or a line end, which no TREC file can carry.
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
    """What separates a run's columns: a tab where an id holds white space (a no-break
    space too), else a single space."""
    return "\t" if any(an_id.split() != [an_id] for an_id in ids) else " "


def run_line(query_id: str, doc_id: str, rank: int, score: float, gap: str = " ", tag: str = "limrank") -> str:
    """One line of a TREC run, without its end."""
    return gap.join((query_id, "Q0", doc_id, str(rank), repr(score), tag))


def write_qrels(path: str | Path, qrels: Qrels) -> None:
    """Write judgements as BEIR's tab-separated file, header included.

    Raises:
        UserError: an id is empty or holds a tab or a line end.
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
        if not an_id.strip() or any(mark in an_id for mark in "\t\r\n"):
            raise UserError(f"the id {an_id!r} is empty or holds a tab or a line end: no {what} file can carry it")


def _read_trec_run(path: str | Path) -> Run:
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
        first = seen.setdefault((query_id, doc_id), number)
        if first != number:
            raise UserError(
                f"{path}:{number}: document {doc_id!r} is ranked twice for query {query_id!r}: see line {first}"
            )
        run.setdefault(query_id, {})[doc_id] = _score(score, f"{path}:{number}")
    return run


def _read_json_run(path: str | Path) -> Run:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise UserError(f"{path}: the key {key!r} is there twice")
            found[key] = value
        return found

    # Blank lines are put back as they were, so that the decoder's line numbers are the file's.
    lines: list[str] = []
    for number, line in read_lines(path):
        lines += [""] * (number - 1 - len(lines)) + [line]
    try:
        values = json.loads("\n".join(lines), object_pairs_hook=refuse_duplicates)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a JSON run is an object: {{query_id: {{doc_id: score}}}}")
    run: Run = {}
    for query_id, scores in values.items():
        if not isinstance(scores, dict):
            raise UserError(f"{path}: query {query_id!r}: should be an object {{doc_id: score}}")
        run[query_id] = {
            doc_id: _score(score, f"{path}: query {query_id!r}, document {doc_id!r}")
            for doc_id, score in scores.items()
        }
    return run


def _score(value: Any, where: str) -> float:
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"{where}: the score {value!r} is not a finite number")
    return score
