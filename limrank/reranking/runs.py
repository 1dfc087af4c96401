"""``run.trec`` and ``run.json`` from a rerank job's committed rows."""

from __future__ import annotations

import json
from collections.abc import Iterator

from limrank.batch.rows import read_rows
from limrank.data.trec import run_line, run_separator
from limrank.storage import Storage


def write_runs(storage: Storage, *, min_score: float | None = None) -> None:
    """Write both files as a stream, with one chunk in memory at a time.

    The score in both is ``-rank``, so that every tool reads the same order, also for ties.

    Args:
        min_score: pairs with a lower score, and pairs without one, are left out. A query may then have no
            document. None: all pairs are there.
    """
    gap = run_separator(
        each for query_id, ranked in _rankings(storage) for each in (query_id, *(doc for _, doc in ranked))
    )
    with storage.writing(), storage.open_output("run.trec") as trec, storage.open_output("run.json") as whole:
        separator = "{"
        for query_id, ranked in _rankings(storage, min_score):
            for rank, doc_id in ranked:
                trec.write(run_line(query_id, doc_id, rank, -rank, gap).encode() + b"\n")
            entry = json.dumps({doc_id: float(-rank) for rank, doc_id in ranked}, ensure_ascii=False)
            whole.write(f"{separator}\n{json.dumps(query_id, ensure_ascii=False)}: {entry}".encode())
            separator = ","
        whole.write(b"{}\n" if separator == "{" else b"\n}\n")


def reaching(storage: Storage, min_score: float) -> tuple[int, int]:
    """The number of pairs with at least this score, and the number of queries that have one."""
    found = [
        (row["query_id"], row["doc_id"])
        for table in read_rows(storage, "rows", ("query_id", "doc_id", "score"))
        for row in table.to_pylist()
        if _reaches(row["score"], min_score)
    ]
    return len(found), len({query_id for query_id, _ in found})


def _reaches(score: float | None, min_score: float | None) -> bool:
    return min_score is None or (score is not None and score >= min_score)


def _rankings(storage: Storage, min_score: float | None = None) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    columns = ("query_id", "doc_id", "rank") + (() if min_score is None else ("score",))
    for table in read_rows(storage, "rows", columns):
        ranked: dict[str, list[tuple[int, str]]] = {}
        for row in table.to_pylist():
            kept = ranked.setdefault(row["query_id"], [])
            if _reaches(row.get("score"), min_score):
                kept.append((row["rank"], row["doc_id"]))
        for query_id, ranks in ranked.items():
            yield query_id, sorted(ranks)
