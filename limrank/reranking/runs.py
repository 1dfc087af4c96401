"""``run.trec`` and ``run.json`` from a rerank job's committed rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from limrank.batch.rows import read_rows
from limrank.data.trec import run_line, run_separator
from limrank.errors import StorageError
from limrank.scoring.fusion import fused_order
from limrank.storage import Storage

RUN, PURE = "run", "run.pure"
"""The files' names, without ``.trec`` and ``.json``. A fused run has the order without fusion in ``run.pure``."""

PURE_COLUMNS = ("query_id", "doc_id", "rank")
SCORED_COLUMNS = (*PURE_COLUMNS, "score")
FUSED_COLUMNS = (*SCORED_COLUMNS, "first_stage_score", "first_stage_rank")
"""The columns of rows that the order without fusion, and the fused order, depend on."""

RAW = "raw_score"
"""The score before calibration, which ranks. Rows without a calibration lack the column, or have null."""

Rows = list[dict[str, Any]]


def write_runs(storage: Storage, weight: float | None = None, *, min_score: float | None = None) -> int:
    """Write the files as a stream, with one chunk in memory at a time.

    The score in them is ``-rank``, so that every tool reads the same order, also for ties.

    Args:
        weight: of the first stage in a fused order; None: the order by score alone, and ``run.pure`` is removed.
        min_score: pairs with a lower score, and pairs without one, are left out. A query may then have no document.
            None: all pairs are there.

    Returns:
        the number of queries whose candidates have no first-stage scores, so that fusion took ``-rank``; 0 without
        fusion.

    Raises:
        StorageError: rows are damaged, or the files cannot be written.
    """
    gap = run_separator(each for query_id, rows in rankings(storage) for each in (query_id, *_documents(rows)))
    if weight is None:
        with _run_files(storage, RUN, gap) as run:
            for query_id, rows in rankings(storage, SCORED_COLUMNS if min_score is not None else PURE_COLUMNS):
                run.add(query_id, _documents(rows, min_score))
        for ending in ("trec", "json"):
            storage.remove(f"{PURE}.{ending}")
        return 0
    without_scores = 0
    with _run_files(storage, RUN, gap) as run, _run_files(storage, PURE, gap) as pure:
        for query_id, rows in rankings(storage, FUSED_COLUMNS):
            run.add(query_id, _documents(fused(rows, weight, storage), min_score))
            pure.add(query_id, _documents(rows, min_score))
            without_scores += any(row["first_stage_score"] is None for row in rows)
    return without_scores


def rankings(storage: Storage, columns: Sequence[str] = PURE_COLUMNS) -> Iterator[tuple[str, Rows]]:
    """Each query's rows in the order without fusion, with one chunk in memory at a time. With ``score`` comes
    :data:`RAW`, where the rows have it.

    Raises:
        StorageError: as ``read_rows``.
    """
    for table in read_rows(storage, "rows", columns, (RAW,) if "score" in columns else ()):
        ranked: dict[str, Rows] = {}
        for row in table.to_pylist():
            ranked.setdefault(row["query_id"], []).append(row)
        for query_id, rows in ranked.items():
            yield query_id, sorted(rows, key=lambda row: (row["rank"], row["doc_id"]))


def fused(rows: Rows, weight: float, storage: Storage) -> Rows:
    """A query's rows, with :data:`FUSED_COLUMNS` and, where they are calibrated, :data:`RAW`, in their fused order.

    Scores before calibration are fused: a calibration keeps the order, and may make scores equal.

    Args:
        storage: of the rows, for the message.

    Raises:
        StorageError: a score is out of range, or a rank is missing.
    """
    first_stage, ranks = ([row[name] for row in rows] for name in FUSED_COLUMNS[-2:])
    scores = [row["score"] if row.get(RAW) is None else row[RAW] for row in rows]
    try:
        if None in ranks:
            raise ValueError("a first_stage_rank is null")
        return [rows[index] for index in fused_order(scores, first_stage, ranks, weight)]
    except (ValueError, TypeError) as error:  # TypeError: columns of another type
        raise StorageError(
            f"run_dir {storage.root}: the rows of query {rows[0]['query_id']!r} are damaged ({error}): delete their "
            "file in rows/, and the same command writes them once more"
        ) from None


class _RunFiles:
    """A run that is being written in both forms."""

    def __init__(self, trec: Any, whole: Any, gap: str) -> None:
        self._trec, self._whole, self._gap = trec, whole, gap
        self._separator = "{"

    def add(self, query_id: str, doc_ids: Sequence[str]) -> None:
        """Write a query's documents, best first."""
        ranks = {doc_id: rank for rank, doc_id in enumerate(doc_ids, start=1)}
        for doc_id, rank in ranks.items():
            self._trec.write(run_line(query_id, doc_id, rank, -rank, self._gap).encode() + b"\n")
        entry = json.dumps({doc_id: float(-rank) for doc_id, rank in ranks.items()}, ensure_ascii=False)
        self._whole.write(f"{self._separator}\n{json.dumps(query_id, ensure_ascii=False)}: {entry}".encode())
        self._separator = ","

    def end(self) -> None:
        self._whole.write(b"{}\n" if self._separator == "{" else b"\n}\n")


@contextmanager
def _run_files(storage: Storage, name: str, gap: str) -> Iterator[_RunFiles]:
    with storage.writing(), storage.open_output(f"{name}.trec") as trec, storage.open_output(f"{name}.json") as whole:
        files = _RunFiles(trec, whole, gap)
        yield files
        files.end()


def _documents(rows: Rows, min_score: float | None = None) -> list[str]:
    return [row["doc_id"] for row in rows if min_score is None or _reaches(row["score"], min_score)]


def reaching(storage: Storage, min_score: float) -> tuple[int, int]:
    """The number of pairs with at least this score, and the number of queries that have one."""
    found = [
        row["query_id"]
        for table in read_rows(storage, "rows", ("query_id", "score"))
        for row in table.to_pylist()
        if _reaches(row["score"], min_score)
    ]
    return len(found), len(set(found))


def _reaches(score: float | None, min_score: float) -> bool:
    return score is not None and score >= min_score
