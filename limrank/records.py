"""The nouns of the project and the Arrow schemas of what is written to disk.

Plain frozen dataclasses, with no behaviour beyond what their fields imply: they travel
between processes, so they know nothing of Ray, engines or files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from limrank.uris import redacted

if TYPE_CHECKING:
    import pyarrow as pa

Qrels = dict[str, dict[str, int]]
"""Judged relevance: ``{query_id: {doc_id: grade}}``; a grade of 0 is judged irrelevant."""

Run = dict[str, dict[str, float]]
"""A ranking: ``{query_id: {doc_id: score}}``, a higher score is a better rank."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a person wants to find.

    ``instruction`` narrows relevance (FollowIR); it is appended to the text when the
    query is put to a model. ``excluded`` documents are dropped before ranking (BRIGHT).
    ``template`` is the sentence that a reranker finds the query in (BRIGHT's tasks), with the
    place ``{{ query }}``; empty: the query alone. A first stage does not see it.
    ``retrieval_text`` is what BM25 is asked instead of text and instruction: a rewriting of
    the query; empty where there is none.
    """

    query_id: str
    text: str
    instruction: str = ""
    excluded: frozenset[str] = frozenset()
    template: str = ""
    retrieval_text: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    doc_id: str
    text: str
    title: str = ""

    @property
    def contents(self) -> str:
        """Title and text joined with one space: what is indexed and what is judged."""
        return f"{self.title} {self.text}" if self.title and self.text else self.title or self.text


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document as the first stage gave it: ``rank`` is 1-based; ``score`` is None where
    it gave an order alone."""

    doc_id: str
    text: str
    rank: int
    score: float | None


@dataclass(frozen=True)
class Benchmark:
    """Documents, queries and judgements of one test collection.

    ``warnings`` are sentences for a person, about judgements that were left out. ``published``
    loads the candidates that the collection itself gives for its queries; None where it gives none.
    ``unselected`` are the ids of queries that it has beyond these: no judgement names them, or
    ``data.max_queries`` left them out.
    """

    name: str
    documents: list[Document]
    queries: list[Query]
    qrels: Qrels
    warnings: list[str] = field(default_factory=list)
    published: Callable[[], Run] | None = field(default=None, compare=False)
    unselected: frozenset[str] = frozenset()


class ScoreStatus(StrEnum):
    """How a score came about. ``failed`` pairs have no score."""

    DIRECT = "direct"
    COMPLETE = "complete"
    FORCED = "forced"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Judgment:
    """One scored (query, passage) pair.

    ``score`` is p(true) / (p(true) + p(false)) in [0, 1]; None where ``status`` is
    ``failed`` (``error`` then says why) or ``skipped``. ``reasoning`` is the chain as it was judged.
    A cascade keeps what its score is fused of: ``direct_score`` without a chain, and
    ``think_score`` after one.
    """

    doc_id: str
    score: float | None
    status: ScoreStatus
    reasoning: str | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    truncated: bool = False
    error: Exception | None = None
    direct_score: float | None = None
    think_score: float | None = None


@dataclass(frozen=True, slots=True)
class Seed:
    """What an example grows from: a simple real query and the passage that answers it."""

    seed_id: str
    query: str
    passage: str


@dataclass(frozen=True, slots=True)
class Persona:
    persona_id: str
    text: str


class QueryKind(StrEnum):
    DAILY = "daily"
    EXPERT = "expert"


class Difficulty(StrEnum):
    """How far the passage that helps is from saying so: outright, by inference, or only
    together with other facts."""

    DIRECT = "direct"
    INDIRECT = "indirect"
    MULTI_HOP = "multi_hop"


@dataclass(frozen=True, slots=True)
class QueryBrief:
    """What a writer is asked for: one query. ``domain`` None: the writer names it.
    ``instructed``: with an instruction that narrows what is relevant."""

    kind: QueryKind
    persona: Persona
    difficulty: Difficulty
    domain: str | None = None
    instructed: bool = False


class PassageRole(StrEnum):
    POSITIVE = "positive"
    HARD_NEGATIVE = "hard_negative"
    MINED_NEGATIVE = "mined_negative"


@dataclass(frozen=True, slots=True)
class SynthesisExample:
    """One synthetic (query, passage) pair with its intended label and the judge's chain.

    A field that the writer never produced is None; then ``kept`` is False and
    ``reject_reason`` says why. ``verdict`` is the judge's, ``judge_score`` its p(true), None
    where it was judged by its written answer; ``base_score`` is without a chain that of the
    reranker to be bettered, None where the recipe names none. ``reject_detail`` says what of
    a benchmark, or which other query, is repeated.
    """

    example_id: str
    seed_id: str
    persona_id: str | None = None
    query_kind: QueryKind | None = None
    domain: str | None = None
    difficulty: str | None = None
    query: str | None = None
    instruction: str | None = None
    passage: str | None = None
    passage_role: PassageRole | None = None
    label: bool | None = None
    reasoning: str | None = None
    verdict: bool | None = None
    judge_score: float | None = None
    base_score: float | None = None
    kept: bool = False
    reject_reason: str | None = None
    reject_detail: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that could not run: a row of ``failures/``."""

    unit_id: str
    step: str
    error_type: str
    error: str
    attempts: int

    @classmethod
    def of(cls, unit_id: str, step: str, error: BaseException, attempts: int | None = None) -> Failure:
        return cls(
            unit_id, step, type(error).__name__, redacted(str(error)), attempts or int(getattr(error, "attempts", 1))
        )


# ---- Arrow schemas -------------------------------------------------------------------
# pyarrow takes a while to import, and `import limrank` must not: schemas are functions.


def _schema(name: str, version: int, fields: list[tuple[str, object]]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(fields, metadata={"limrank.schema": name, "limrank.schema_version": str(version)})


def rerank_unit_schema() -> pa.Schema:
    """A query with its candidates, the unit of reranking."""
    import pyarrow as pa

    candidate = pa.struct(
        [("doc_id", pa.string()), ("text", pa.string()), ("rank", pa.int32()), ("score", pa.float64())]
    )
    return _schema(
        "rerank_unit",
        1,
        [
            ("unit_id", pa.string()),
            ("cost", pa.int64()),
            ("query", pa.string()),
            ("instruction", pa.string()),
            ("candidates", pa.list_(candidate)),
        ],
    )


def rerank_row_schema() -> pa.Schema:
    """One scored pair; ``rank`` is the 1-based place that the reranker gave it. A cascade's
    ``direct_score`` and ``think_score`` are null in other modes."""
    import pyarrow as pa

    return _schema(
        "rerank_row",
        2,
        [
            ("query_id", pa.string()),
            ("doc_id", pa.string()),
            ("rank", pa.int32()),
            ("first_stage_rank", pa.int32()),
            ("first_stage_score", pa.float64()),
            ("score", pa.float64()),
            ("status", pa.string()),
            ("reasoning", pa.string()),
            ("prompt_tokens", pa.int32()),
            ("generated_tokens", pa.int32()),
            ("truncated", pa.bool_()),
            ("direct_score", pa.float64()),
            ("think_score", pa.float64()),
        ],
    )


def synthesis_unit_schema() -> pa.Schema:
    """A seed and the queries to be written from it, the unit of synthesis: each brief as
    in :class:`QueryBrief`. ``contaminated`` names what of a benchmark the seed repeats;
    null: nothing."""
    import pyarrow as pa

    brief = pa.struct(
        [
            ("kind", pa.string()),
            ("persona_id", pa.string()),
            ("persona", pa.string()),
            ("difficulty", pa.string()),
            ("domain", pa.string()),
            ("instructed", pa.bool_()),
        ]
    )
    return _schema(
        "synthesis_unit",
        2,
        [
            ("unit_id", pa.string()),
            ("cost", pa.int64()),
            ("query", pa.string()),
            ("passage", pa.string()),
            ("briefs", pa.list_(brief)),
            ("mined", pa.list_(pa.string())),
            ("contaminated", pa.string()),
        ],
    )


def synthesis_row_schema() -> pa.Schema:
    """One synthetic example: the fields of :class:`SynthesisExample`, in order."""
    import pyarrow as pa

    strings = "example_id seed_id persona_id query_kind domain difficulty query instruction passage passage_role"
    return _schema(
        "synthesis_row",
        3,
        [(name, pa.string()) for name in strings.split()]
        + [
            ("label", pa.bool_()),
            ("reasoning", pa.string()),
            ("verdict", pa.bool_()),
            ("judge_score", pa.float64()),
            ("base_score", pa.float64()),
            ("kept", pa.bool_()),
            ("reject_reason", pa.string()),
            ("reject_detail", pa.string()),
        ],
    )


def synthesis_example_schema() -> pa.Schema:
    """A row as the whole pool leaves it: ``selected`` ones are what is trained on."""
    import pyarrow as pa

    fields = [(field.name, field.type) for field in synthesis_row_schema()]
    return _schema("synthesis_example", 3, [*fields, ("selected", pa.bool_())])


def failure_schema() -> pa.Schema:
    """The fields of :class:`Failure`, in order."""
    import pyarrow as pa

    return _schema(
        "failure",
        1,
        [
            ("unit_id", pa.string()),
            ("step", pa.string()),
            ("error_type", pa.string()),
            ("error", pa.string()),
            ("attempts", pa.int32()),
        ],
    )
