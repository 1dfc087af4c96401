"""The pool of all kept rows: duplicate queries, copies of benchmarks, and the examples to train on.
``rows/`` is only read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from limrank.batch.rows import read_rows
from limrank.config import SynthesisConfig
from limrank.records import synthesis_row_schema
from limrank.storage import Storage
from limrank.synthesis.contamination import Benchmarks
from limrank.synthesis.embeddings import embedder
from limrank.synthesis.select import Selection, select
from limrank.synthesis.synthesizer import query_id
from limrank.text.near_duplicates import find_duplicates

Row = dict[str, Any]


@dataclass(frozen=True)
class Pool:
    """The rows of a run in their final state.

    ``rejected``: example id → reason and detail, for rows that their seed kept and the pool does not.
    ``selection`` is None if all kept rows are exported.
    """

    storage: Storage
    rejected: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    selection: Selection | None = None

    def rows(self) -> Iterator[Row]:
        """All rows in the order of their files, with their final ``kept``, ``reject_reason``,
        ``reject_detail`` and ``selected``."""
        chosen = None if self.selection is None else frozenset(self.selection.example_ids)
        for row in _read(self.storage):
            if found := self.rejected.get(row["example_id"]):
                reason, detail = found
                row |= {"kept": False, "reject_reason": reason, "reject_detail": detail}
            row["selected"] = row["kept"] if chosen is None else row["example_id"] in chosen
            yield row


def dedupe_and_select(storage: Storage, settings: SynthesisConfig, benchmarks: Benchmarks | None, seed: int) -> Pool:
    """Reject kept rows that are ``contaminated`` or have a ``duplicate_query``, and select
    ``settings.size`` of the others.

    The first of several duplicate queries stays: first those with a positive and a negative, then in
    the order of the files.
    """
    rejected: dict[str, tuple[str, str]] = {}
    queries: dict[str, str] = {}
    labels: dict[str, set[bool]] = {}
    for row in _kept(storage):
        if benchmarks and (found := benchmarks.example_overlap(row["query"], row["instruction"], row["passage"])):
            rejected[row["example_id"]] = "contaminated", str(found)
        else:
            queries.setdefault(_query_id(row), row["query"])
            labels.setdefault(_query_id(row), set()).add(row["label"])
    firsts = find_duplicates(sorted(queries.items(), key=lambda each: -len(labels[each[0]])), settings.near_duplicate)
    for row in _kept(storage):
        if first := firsts.get(_query_id(row)):
            rejected.setdefault(row["example_id"], ("duplicate_query", first))
    pool = Pool(storage, rejected)
    if settings.size is None:
        return pool
    embed = embedder(settings.embedder)
    return Pool(storage, rejected, select(pool.rows(), settings.size, settings.select, seed=seed, embed=embed))


def _query_id(row: Row) -> str:
    return query_id(row["seed_id"], row["query_kind"], row["persona_id"])


def _kept(storage: Storage) -> Iterator[Row]:
    return (row for row in _read(storage) if row["kept"])


def _read(storage: Storage) -> Iterator[Row]:
    for table in read_rows(storage, "rows", synthesis_row_schema().names):
        yield from table.to_pylist()
