"""What a teacher is, and the grades that a run directory keeps (``grades.parquet``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from limrank.batch.rows import read_if_whole
from limrank.engines.base import Usage, meter
from limrank.errors import EndpointError
from limrank.records import Document, Query
from limrank.scoring import prompt_query
from limrank.storage import Storage


@dataclass(frozen=True, slots=True)
class Grade:
    """A teacher's score of a passage. A reranker's also has its p(true) and, if it thought, its chain."""

    score: float
    probability: float | None = None
    reasoning: str | None = None


class Teacher(Protocol):
    def grade(self, queries: Sequence[Query], passages: Sequence[Sequence[Document]]) -> list[list[Grade | None]]:
        """The grades of each query's passages, in their order; None where the teacher has none."""
        ...

    @property
    def warnings(self) -> list[str]:
        """Sentences on what was asked so far and has no grade."""
        return []

    @property
    def refusal(self) -> str | None:
        """Why every request so far failed; None if one did not."""
        return None


KEPT = "grades.parquet"
"""The grades of a run directory, by the hash of query and passage, with the model's fingerprint and the tokens of its
requests in the metadata."""

_MODEL, _USAGE = b"limrank.teacher", b"limrank.teacher.usage"
_COUNTS = ("requests", "prompt", "cached_prompt", "generated")

_KEPT_AT_ONCE = 4096
"""Queries that are graded before their grades are written: a model is loaded once for each block."""


@dataclass
class _Kept:
    """The contents of the file: scores by pair, and what their requests took."""

    scores: dict[str, float] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class KeptGrades(Teacher):
    """A teacher whose grades are kept in a run directory; those of another model there are dropped.

    Args:
        model: names all that the grades depend on.
        whole_lists: the teacher compares the passages of a query. Their grades count for this set of passages only,
            and a query with another set is asked anew.
        at_once: number of queries that are graded before their grades are written.
    """

    teacher: Teacher
    storage: Storage
    model: str
    whole_lists: bool = False
    at_once: int = _KEPT_AT_ONCE

    @property
    def warnings(self) -> list[str]:
        return self.teacher.warnings

    def grade(self, queries: Sequence[Query], passages: Sequence[Sequence[Document]]) -> list[list[Grade | None]]:
        """Grades are kept as they come. What the teacher has no grade for is asked again the next time.

        Raises:
            EndpointError: every request failed, and no grade is known.
        """
        kept = _read(self.storage, self.model)
        keys = [self._keys(query, found) for query, found in zip(queries, passages, strict=True)]
        missing = [index for index, each in enumerate(keys) if not kept.scores.keys() >= set(each)]
        for start in range(0, len(missing), self.at_once):
            self._ask(missing[start : start + self.at_once], queries, passages, keys, kept)
            if not kept.scores and (refusal := self.teacher.refusal):
                raise EndpointError(f"synthesis.teacher: {refusal}")
        return [[Grade(kept.scores[key]) if key in kept.scores else None for key in each] for each in keys]

    def _ask(
        self,
        asked: Sequence[int],
        queries: Sequence[Query],
        passages: Sequence[Sequence[Document]],
        keys: Sequence[Sequence[str]],
        kept: _Kept,
    ) -> None:
        """Add the grades of some queries to ``kept``, and write them."""
        wanted = [
            [number for number, key in enumerate(keys[index]) if self.whole_lists or key not in kept.scores]
            for index in asked
        ]
        with meter() as usage:
            graded = self.teacher.grade(
                [queries[index] for index in asked],
                [[passages[index][each] for each in numbers] for index, numbers in zip(asked, wanted, strict=True)],
            )
        kept.usage.add(usage)
        for index, numbers, grades in zip(asked, wanted, graded, strict=True):
            for number, grade in zip(numbers, grades, strict=True):
                if grade is not None:
                    kept.scores[keys[index][number]] = grade.score
        _write(self.storage, self.model, kept)

    def _keys(self, query: Query, passages: Sequence[Document]) -> list[str]:
        """The name of each of a query's grades."""
        pairs = [_digest(f"{prompt_query(query)}\0{passage.contents}") for passage in passages]
        if not self.whole_lists:
            return pairs
        compared = "\0".join(sorted(pairs))
        return [_digest(f"{pair}\0{compared}") for pair in pairs]


def kept_usage(storage: Storage, model: str) -> Usage:
    """What the requests for a run directory's grades took; zeros if the grades there are another model's."""
    return _read(storage, model).usage


def _read(storage: Storage, model: str) -> _Kept:
    table = read_if_whole(storage, KEPT)
    metadata = {} if table is None else table.schema.metadata or {}
    if table is None or metadata.get(_MODEL) != model.encode():
        return _Kept()
    scores = dict(zip(table["pair"].to_pylist(), table["score"].to_pylist(), strict=True))
    return _Kept(scores, _usage_of(metadata.get(_USAGE)))


def _usage_of(written: Any) -> Usage:
    """The counts in the metadata; zeros in a file from before they were there."""
    return Usage(**{name: int(count) for name, count in json.loads(written).items()}) if written else Usage()


def _write(storage: Storage, model: str, kept: _Kept) -> None:
    import pyarrow as pa

    pairs, scores = pa.array(list(kept.scores), pa.string()), pa.array(list(kept.scores.values()), pa.float64())
    table = pa.table({"pair": pairs, "score": scores})
    counts = json.dumps({name: getattr(kept.usage, name) for name in _COUNTS})
    storage.write_table(KEPT, table.replace_schema_metadata({_MODEL: model.encode(), _USAGE: counts.encode()}))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
