"""The records of the project, and the Arrow schemas of the files that it writes.

Records are plain frozen dataclasses without behaviour. They are sent between processes, so they do not depend on
Ray, engines or files.
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
    """A search query.

    Attributes:
        instruction: narrows relevance (FollowIR); a model reads it after the text.
        excluded: ids of documents that are dropped before ranking (BRIGHT).
        template: the sentence around the query in a reranker's prompt (BRIGHT's tasks), with the placeholder
            ``{{ query }}``; empty: none. The first stage does not read it.
        retrieval_text: a rewritten query that BM25 searches for instead of text and instruction; empty: none.
    """

    query_id: str
    text: str
    instruction: str = ""
    excluded: frozenset[str] = frozenset()
    template: str = ""
    retrieval_text: str = ""

    @property
    def question(self) -> str:
        """What is asked, without regard to case and spacing: two queries with the same are one query to a test."""
        return " ".join(f"{self.text} {self.instruction}".split()).casefold()


@dataclass(frozen=True, slots=True)
class Document:
    doc_id: str
    text: str
    title: str = ""

    @property
    def contents(self) -> str:
        """Title and text joined by a space: the text that is indexed and judged."""
        return f"{self.title} {self.text}" if self.title and self.text else self.title or self.text


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document of the first stage's ranking; ``rank`` is 1-based, and ``score`` is None if there are only ranks."""

    doc_id: str
    text: str
    rank: int
    score: float | None


@dataclass(frozen=True)
class Benchmark:
    """Documents, queries and judgements of a test collection.

    Attributes:
        warnings: sentences for the user, such as about judgements that were left out.
        published: loads the candidates that the collection publishes for its queries; None if it has none.
        unselected: ids of its other queries, which are not judged or which ``data.max_queries`` left out.
    """

    name: str
    documents: list[Document]
    queries: list[Query]
    qrels: Qrels
    warnings: list[str] = field(default_factory=list)
    published: Callable[[], Run] | None = field(default=None, compare=False)
    unselected: frozenset[str] = frozenset()


class ScoreStatus(StrEnum):
    """How a pair was scored. A ``failed`` pair has no score, and neither has a ``skipped`` one, for which no model was
    asked or a deadline came first."""

    DIRECT = "direct"
    COMPLETE = "complete"
    FORCED = "forced"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Judgment:
    """A scored (query, passage) pair.

    Attributes:
        score: p(true) / (p(true) + p(false)) or the expected grade, in [0, 1]; None if ``status`` is ``failed`` or ``skipped``.
        reasoning: the chain after which the label was read.
        error: why the pair failed, or was skipped, or has no chain in a cascade.
        direct_score, think_score: a cascade's scores without and after a chain, which ``score`` is fused from.
        raw_score: the score before calibration, by which pairs are ranked; None without a calibration.
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
    raw_score: float | None = None


@dataclass(frozen=True, slots=True)
class Seed:
    """The start of synthetic examples: a simple real query and the passage that answers it."""

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
    """How a passage answers its query: outright, by inference, or only together with other facts."""

    DIRECT = "direct"
    INDIRECT = "indirect"
    MULTI_HOP = "multi_hop"


@dataclass(frozen=True, slots=True)
class QueryBrief:
    """The specification of a query for the writer model.

    Attributes:
        domain: None: the writer chooses it.
        instructed: whether to write an instruction that narrows what is relevant.
        examples: queries with their passages that the writer is shown, as they stand in the prompt.
    """

    kind: QueryKind
    persona: Persona
    difficulty: Difficulty
    domain: str | None = None
    instructed: bool = False
    examples: tuple[Seed, ...] = ()


class PassageRole(StrEnum):
    POSITIVE = "positive"
    HARD_NEGATIVE = "hard_negative"
    MINED_NEGATIVE = "mined_negative"


@dataclass(frozen=True, slots=True)
class SynthesisExample:
    """One synthetic (query, passage) pair with its intended label and the judge's chain.

    If the writer did not produce a field, it is None, ``kept`` is False and ``reject_reason`` says why.

    Attributes:
        verdict: the judge's label.
        judge_score: the judge's p(true); None if the label was read from its written answer.
        base_score: p(true) of the reranker to be improved, without a chain; None if the recipe names none.
        reject_detail: the benchmark text, or the other query, that is repeated.
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
    """A failed request: a row of ``failures/``."""

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
# Schemas are functions, so that `import limrank` does not import pyarrow, which is slow.


def _schema(name: str, version: int, fields: list[tuple[str, object]]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(fields, metadata={"limrank.schema": name, "limrank.schema_version": str(version)})


def rerank_unit_schema() -> pa.Schema:
    """A unit of reranking: a query with its candidates."""
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


def rerank_row_schema(*, calibrated: bool = False) -> pa.Schema:
    """A scored pair; ``rank`` is the reranker's, from 1. ``direct_score`` and ``think_score`` are null except in a
    cascade. ``raw_score``, the score before calibration, is there only if scores are calibrated."""
    import pyarrow as pa

    return _schema(
        "rerank_row",
        3 if calibrated else 2,
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
            *([("raw_score", pa.float64())] if calibrated else []),
        ],
    )


def synthesis_unit_schema() -> pa.Schema:
    """A unit of synthesis: a seed and the queries to write from it, each a :class:`QueryBrief`.

    ``contaminated`` names the benchmark text that the seed repeats; null: none.
    """
    import pyarrow as pa

    example = pa.struct([("seed_id", pa.string()), ("query", pa.string()), ("passage", pa.string())])
    brief = pa.struct(
        [
            ("kind", pa.string()),
            ("persona_id", pa.string()),
            ("persona", pa.string()),
            ("difficulty", pa.string()),
            ("domain", pa.string()),
            ("instructed", pa.bool_()),
            ("examples", pa.list_(example)),
        ]
    )
    return _schema(
        "synthesis_unit",
        3,
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
    """A synthetic example: the fields of :class:`SynthesisExample`, in order."""
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
    """A row after selection over the whole pool; the ``selected`` rows are for training.

    ``source`` is seeds or passages; ``teacher_score`` is in the unit of the ``teacher``, null without one.
    """
    import pyarrow as pa

    fields = [(field.name, field.type) for field in synthesis_row_schema()]
    added = [
        ("selected", pa.bool_()),
        ("source", pa.string()),
        ("teacher_score", pa.float64()),
        ("teacher", pa.string()),
    ]
    return _schema("synthesis_example", 4, [*fields, *added])


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
