"""What only the whole pool tells: queries that are there twice, what repeats a benchmark,
and which examples a model is to be trained on. ``rows/`` stays as it was written."""

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
    """A run's rows as they end: ``rejected`` has reason and detail of each example that one
    seed's rows would have kept; ``selection`` is None where all that are kept are exported."""

    storage: Storage
    rejected: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    selection: Selection | None = None

    def rows(self) -> Iterator[Row]:
        """All rows, in the order of their files, with the final ``kept``, ``reject_reason``
        and ``reject_detail``, and with ``selected``."""
        chosen = None if self.selection is None else frozenset(self.selection.example_ids)
        for row in _read(self.storage):
            if found := self.rejected.get(row["example_id"]):
                reason, detail = found
                row |= {"kept": False, "reject_reason": reason, "reject_detail": detail}
            row["selected"] = row["kept"] if chosen is None else row["example_id"] in chosen
            yield row


def dedupe_and_select(storage: Storage, settings: SynthesisConfig, benchmarks: Benchmarks | None, seed: int) -> Pool:
    """Look over the kept rows of a run: ``contaminated`` ones and those of a
    ``duplicate_query`` go; and ``settings.size`` of the others are selected.

    Of several queries that are one, the first stays in the order of the files, but that
    those with a positive and a negative come before those without.
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
