"""Requests to the server, as other people's clients send them.

Sources of the shapes: Jina's ``POST /v1/rerank``, Cohere's ``POST /v1/rerank`` and ``POST /v2/rerank``, vLLM's
``POST /v1/score``. Their fields that mean nothing here (``truncation``, ``truncate_prompt_tokens``, ``user`` …) are
accepted and have no effect. limrank's own fields are ``instruction``, ``mode``, ``max_think_tokens``,
``deadline_ms``, ``return_reasoning``, ``min_score`` and ``stream``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from limrank.parsing import is_unicode
from limrank.records import Query
from limrank.serving.options import ScoreOptions
from limrank.serving.protocol import MAX_DOCUMENTS

LONGEST_DEADLINE_MS = 86_400_000
"""A day."""

_DEEPEST = 20
"""Levels of lists and objects in a document's own fields."""


def _encodable(text: str) -> str:
    if not is_unicode(text):
        # JSON can encode half a surrogate pair, which a tokenizer refuses.
        raise PydanticCustomError("invalid_unicode", "is not valid Unicode text")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("empty_query", "must not be empty")
    return text


def _check_count(documents: Any) -> Any:
    if isinstance(documents, list):
        if not documents:
            raise PydanticCustomError("empty_documents", "must not be empty")
        if len(documents) > MAX_DOCUMENTS:
            given = {"given": len(documents), "most": MAX_DOCUMENTS}
            message = "at most {most} are taken in one request, got {given}"
            raise PydanticCustomError("too_many_documents", message, given)
    return documents


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether an answer can give a JSON value back: Python reads NaN, half characters and any depth."""
    if isinstance(value, str):
        return is_unicode(value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list | dict):
        inside = [*value, *value.values()] if isinstance(value, dict) else value
        return depth < _DEEPEST and all(_is_plain(each, depth + 1) for each in inside)
    return True


Text = Annotated[str, AfterValidator(_encodable)]
QueryText = Annotated[Text, AfterValidator(_not_blank), Field(json_schema_extra={"minLength": 1, "pattern": r"\S"})]


class InputDocument(BaseModel):
    """A document with fields. Other fields are allowed, and come back with the document."""

    model_config = ConfigDict(extra="allow")

    text: Text | None = Field(None, description="the passage; needed without rank_fields")
    title: Text | None = Field(None, description="read before the text, as part of the passage")
    id: Any = Field(None, description="the client's own id; it has no effect")

    @model_validator(mode="after")
    def _can_come_back(self) -> InputDocument:
        if not _is_plain([self.id, self.model_extra or {}]):
            message = (
                "has a field that no JSON can hold: a number that is not finite, half a character, or {deepest} levels"
            )
            raise PydanticCustomError("invalid_field", message, {"deepest": _DEEPEST})
        return self

    def parts(self, rank_fields: Sequence[str]) -> dict[str, Any]:
        """The fields that are the passage, in their order, without missing ones and null."""
        own = {"text": self.text, "title": self.title, "id": self.id, **(self.model_extra or {})}
        values = {name: own.get(name) for name in rank_fields}
        return {name: value for name, value in values.items() if value is not None}

    def passage(self, rank_fields: Sequence[str] | None) -> str:
        """The text that is judged: its parts, joined as a title and a text are."""
        return " ".join(filter(None, self.parts(rank_fields or ("title", "text")).values()))


AnyDocument = Annotated[
    Annotated[Text, Tag("<string>")] | Annotated[InputDocument, Tag("<object>")],
    Discriminator(lambda value: "<string>" if isinstance(value, str) else "<object>"),
]


class _Scored(BaseModel):
    """What requests of all routes can ask for."""

    model: str | None = Field(None, max_length=1024, description="if given, a name of the served model")
    instruction: Text = Field("", description="narrows relevance; appended to the query")
    mode: Literal["direct", "think", "budget", "cascade"] | None = Field(
        None, description="how pairs are scored, one of the model card's modes; null: as the server's scoring.mode"
    )
    max_think_tokens: PositiveInt | None = Field(
        None, description="longest chain in tokens, at most the mode's on the model's card; null: that one"
    )
    max_tokens_per_doc: PositiveInt | None = Field(
        None, description="each document is cut to so many tokens of the model's tokenizer; null: as fit its context"
    )
    deadline_ms: Annotated[int, Field(ge=1, le=LONGEST_DEADLINE_MS)] | None = Field(
        None, description="milliseconds after which the best order so far is the answer; null: no deadline"
    )

    def options(self) -> ScoreOptions:
        return ScoreOptions(
            mode=self.mode,
            max_think_tokens=self.max_think_tokens,
            max_tokens_per_doc=self.max_tokens_per_doc,
            deadline_s=self.deadline_ms / 1000 if self.deadline_ms else None,
        )


class RerankRequest(_Scored):
    """A query and the documents to rank."""

    query: QueryText
    rank_fields: Annotated[list[Text], Field(max_length=100)] | None = Field(
        None, description="the fields of an object that are its passage, in this order; null: title and text"
    )
    documents: Annotated[list[AnyDocument], BeforeValidator(_check_count)] = Field(
        description="strings, or objects with their text",
        json_schema_extra={"minItems": 1, "maxItems": MAX_DOCUMENTS},
    )
    top_n: PositiveInt | None = Field(None, description="results to return; null: all")
    return_documents: bool | None = Field(
        None,
        description="whether results have their documents; null: as the route's own API, Jina's true, Cohere's v2 false",
    )
    return_reasoning: bool = Field(False, description="give the model's chain of thought back with each result")
    min_score: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="results with a lower score are left out; null: as the server's scoring.min_score"
    )
    stream: bool = Field(
        False,
        description="answer with server-sent events: the ranking so far, what changes, and the ranking at the end",
    )

    @field_validator("documents")
    @classmethod
    def _have_passages(cls, documents: list[str | InputDocument], info: ValidationInfo) -> list[str | InputDocument]:
        fields = info.data.get("rank_fields")
        for number, document in enumerate(documents):
            if isinstance(document, str):
                continue
            if not fields and document.text is None:
                raise PydanticCustomError("missing", "is needed", {"at": [number, "text"]})
            if fields:
                parts = document.parts(fields)
                if not parts:
                    raise PydanticCustomError("missing_rank_fields", "has none of the rank_fields", {"at": [number]})
                if wrong := [name for name, part in parts.items() if not isinstance(part, str)]:
                    message = "is one of the rank_fields, and should be text"
                    raise PydanticCustomError("string_type", message, {"at": [number, wrong[0]]})
        return documents

    def to_query(self) -> Query:
        return Query("", self.query, self.instruction)

    def texts(self) -> list[str]:
        """The passages, in the documents' order."""
        return [
            document if isinstance(document, str) else document.passage(self.rank_fields) for document in self.documents
        ]


class ScoreRequest(_Scored):
    """vLLM's score API: one query, ``text_1``, against one or several texts, ``text_2``."""

    text_1: QueryText = Field(description="the query")
    text_2: Annotated[
        list[Text],
        BeforeValidator(lambda texts: [texts] if isinstance(texts, str) else _check_count(texts)),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_DOCUMENTS},
                ],
            }
        ),
    ] = Field(description="a document, or several")

    def to_query(self) -> Query:
        return Query("", self.text_1, self.instruction)
