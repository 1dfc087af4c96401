"""Requests and responses of the server, as other people's clients send and read them.

Sources of the shapes: Jina's ``POST /v1/rerank``, Cohere's ``POST /v1/rerank`` and
``POST /v2/rerank``, vLLM's ``POST /v1/score``, OpenAI's ``GET /v1/models``. Their fields that
mean nothing here (``max_tokens_per_doc``, ``truncation``, ``user`` …) are accepted and have no
effect. limrank's own fields are ``instruction``, ``return_reasoning`` and ``min_score`` in a request, ``status``,
``truncated``, ``reasoning``, ``error``, ``prompt_tokens`` and ``generated_tokens`` in a result, and
``scoring`` on a model's card.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, PositiveInt, field_validator
from pydantic_core import PydanticCustomError

from limrank.engines import base
from limrank.errors import RowError
from limrank.records import Candidate, Document, Judgment, Query, ScoreStatus
from limrank.scoring import above, rank_judgments
from limrank.serving.errors import ApiError
from limrank.serving.protocol import MAX_DOCUMENTS, Served


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        # JSON can encode half a surrogate pair, which a tokenizer refuses.
        raise PydanticCustomError("invalid_unicode", "is not valid Unicode text") from None
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("empty_query", "must not be empty")
    return text


Text = Annotated[str, AfterValidator(_encodable)]
QueryText = Annotated[Text, AfterValidator(_not_blank)]


class InputDocument(BaseModel):
    """A document to judge: a string, or ``{"text": …, "title": …}``. The title is part of the passage."""

    text: Text
    title: Text = ""

    @property
    def contents(self) -> str:
        return Document("", self.text, self.title).contents if self.title else self.text


class RerankRequest(BaseModel):
    """A missing ``return_documents`` has the default of the route's own API: Jina's ``/v1/rerank``
    returns documents, Cohere's ``/v2/rerank`` does not."""

    model: str | None = Field(None, description="if given, the served model's name")
    query: QueryText
    documents: list[InputDocument] = Field(description=f"1 to {MAX_DOCUMENTS} strings or {{text, title}} objects")
    top_n: PositiveInt | None = Field(None, description="results to return; null: all")
    return_documents: bool | None = None
    return_reasoning: bool = Field(False, description="give the model's chain of thought back with each result")
    instruction: Text = Field("", description="narrows relevance; appended to the query")
    min_score: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="results with a lower score are left out; null: as the server's scoring.min_score"
    )

    @field_validator("documents", mode="before")
    @classmethod
    def _documents_counted(cls, documents: Any) -> Any:
        if not isinstance(documents, list):
            return documents
        _check_count(documents)
        return [{"text": document} if isinstance(document, str) else document for document in documents]

    def to_query(self) -> Query:
        return Query("", self.query, self.instruction)

    def texts(self) -> list[str]:
        return [document.contents for document in self.documents]


class ScoreRequest(BaseModel):
    """vLLM's score API: one query, ``text_1``, against one or several texts, ``text_2``."""

    model: str | None = Field(None, description="if given, the served model's name")
    text_1: QueryText = Field(description="the query")
    text_2: list[Text] = Field(description=f"a document, or 1 to {MAX_DOCUMENTS} of them")
    instruction: Text = Field("", description="narrows relevance; appended to the query")

    @field_validator("text_2", mode="before")
    @classmethod
    def _texts_counted(cls, texts: Any) -> Any:
        if isinstance(texts, list):
            _check_count(texts)
        return [texts] if isinstance(texts, str) else texts

    def to_query(self) -> Query:
        return Query("", self.text_1, self.instruction)


class PromptTokensDetails(BaseModel):
    cached_tokens: int = Field(description="prompt tokens that the prefix cache answered")


class Usage(BaseModel):
    """Tokens of the whole request, by OpenAI's names. The prompt of a pair with a chain counts
    twice, the second time nearly all of it as cached."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, usage: base.Usage) -> Usage:
        return cls(
            prompt_tokens=usage.prompt,
            completion_tokens=usage.generated,
            total_tokens=usage.prompt + usage.generated,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_prompt),
        )


class RerankResult(BaseModel):
    """``relevance_score`` is null where ``status`` is ``failed``, and ``error`` says why. The token
    counts are those of the pair's prompt, and of its chain and label."""

    index: int = Field(description="index of the document in the request, from 0")
    relevance_score: float | None
    status: ScoreStatus
    truncated: bool
    prompt_tokens: int
    generated_tokens: int
    document: InputDocument | None = None
    reasoning: str | None = None
    error: str | None = None
    raw_score: float | None = Field(None, description="the score before calibration, if the server calibrates")


class RerankResponse(BaseModel):
    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[RerankResult]
    usage: Usage


class ScoreData(BaseModel):
    index: int
    object: Literal["score"] = "score"
    score: float | None


class ScoreResponse(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreData]
    usage: Usage


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "limrank"
    scoring: dict[str, Any] = Field(description="what scores depend on: the mode, the prompt's hash …")

    @classmethod
    def of(cls, served: Served, created: int) -> ModelCard:
        return cls(id=served.model, created=created, scoring=served.scoring())


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


def to_candidates(texts: Sequence[str]) -> list[Candidate]:
    """Documents as candidates. Their order breaks ties, as a first stage's rank does."""
    return [Candidate(str(index), text, index + 1, 0.0) for index, text in enumerate(texts)]


def rerank_response(
    request: RerankRequest,
    judgments: Sequence[Judgment],
    usage: base.Usage,
    *,
    model: str,
    return_documents: bool,
    min_score: float = 0.0,
) -> dict[str, Any]:
    """The body of a rerank answer: the ``top_n`` best, with failed pairs after all scored ones. It may be empty.

    Args:
        judgments: one for each document, in the request's order.
        usage: tokens of the whole request.
        return_documents, min_score: the defaults, where the request has no value.

    Raises:
        ApiError: no pair has a score.
    """
    _check_scored(judgments)
    if request.return_documents is not None:
        return_documents = request.return_documents
    if request.min_score is not None:
        min_score = request.min_score
    order = above(min_score, rank_judgments(to_candidates(request.texts()), judgments), judgments)[: request.top_n]
    results = []
    for index in order:
        judgment = judgments[index]
        result = RerankResult(
            index=index,
            relevance_score=judgment.score,
            status=judgment.status,
            truncated=judgment.truncated,
            prompt_tokens=judgment.prompt_tokens,
            generated_tokens=judgment.generated_tokens,
        )
        if return_documents:
            result.document = request.documents[index]
        if request.return_reasoning:
            result.reasoning = judgment.reasoning
        if judgment.raw_score is not None:
            result.raw_score = judgment.raw_score
        if judgment.error is not None:
            result.error = str(judgment.error)
        results.append(result)
    response = RerankResponse(id=uuid.uuid4().hex, object="list", model=model, results=results, usage=Usage.of(usage))
    # Fields that were not requested are left out; a missing score is null.
    return response.model_dump(mode="json", exclude_unset=True)


def score_response(judgments: Sequence[Judgment], usage: base.Usage, *, model: str) -> dict[str, Any]:
    """The body of a score answer, in the order of ``text_2``. A failed pair's score is null.

    Raises:
        ApiError: no pair has a score.
    """
    _check_scored(judgments)
    data = [ScoreData(index=index, score=judgment.score) for index, judgment in enumerate(judgments)]
    response = ScoreResponse(
        id=uuid.uuid4().hex, created=int(time.time()), model=model, data=data, usage=Usage.of(usage)
    )
    return response.model_dump(mode="json")


def _check_scored(judgments: Sequence[Judgment]) -> None:
    if any(judgment.score is not None for judgment in judgments):
        return
    errors = [judgment.error for judgment in judgments]
    # A client retries after a 503 and gives up after a 422.
    retryable = any(isinstance(error, RowError) and error.retryable for error in errors)
    raise ApiError(503 if retryable else 422, "all_pairs_failed", f"no document could be scored: {errors[0]}")


def _check_count(documents: list[Any]) -> None:
    if not documents:
        raise PydanticCustomError("empty_documents", "must not be empty")
    if len(documents) > MAX_DOCUMENTS:
        given = {"given": len(documents), "most": MAX_DOCUMENTS}
        raise PydanticCustomError("too_many_documents", "at most {most} are taken in one request, got {given}", given)
