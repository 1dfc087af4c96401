"""``run.trec`` and ``run.json`` from a rerank job's committed rows."""

from __future__ import annotations

import json
from collections.abc import Iterator

from limrank.batch.rows import read_rows
from limrank.data.trec import run_line, run_separator
from limrank.storage import Storage


def write_runs(storage: Storage) -> None:
    """Write both files as a stream, with one chunk in memory at a time.

    The score in both is ``-rank``, so that every tool reads the same order, also for ties.
    """
    gap = run_separator(
        each for query_id, ranked in _rankings(storage) for each in (query_id, *(doc for _, doc in ranked))
    )
    with storage.writing(), storage.open_output("run.trec") as trec, storage.open_output("run.json") as whole:
        separator = "{"
        for query_id, ranked in _rankings(storage):
            for rank, doc_id in ranked:
                trec.write(run_line(query_id, doc_id, rank, -rank, gap).encode() + b"\n")
            entry = json.dumps({doc_id: float(-rank) for rank, doc_id in ranked}, ensure_ascii=False)
            whole.write(f"{separator}\n{json.dumps(query_id, ensure_ascii=False)}: {entry}".encode())
            separator = ","
        whole.write(b"{}\n" if separator == "{" else b"\n}\n")


def _rankings(storage: Storage) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    for table in read_rows(storage, "rows", ("query_id", "doc_id", "rank")):
        ranked: dict[str, list[tuple[int, str]]] = {}
        for row in table.to_pylist():
            ranked.setdefault(row["query_id"], []).append((row["rank"], row["doc_id"]))
        for query_id, ranks in ranked.items():
            yield query_id, sorted(ranks)
