"""Responses of the server, as other people's clients read them.

Sources of the shapes: as of the requests, and OpenAI's ``GET /v1/models``. limrank's own fields are ``status``,
``truncated``, ``reasoning``, ``error``, ``prompt_tokens`` and ``generated_tokens`` in a result, and ``modes`` and
``scoring`` on a model's card.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from limrank.engines import base
from limrank.errors import RowError
from limrank.records import Judgment, ScoreStatus
from limrank.scoring import above, rank_judgments
from limrank.serving import request_ids
from limrank.serving.errors import ApiError, deadline_exceeded
from limrank.serving.options import Modes, to_candidates
from limrank.serving.protocol import Served
from limrank.serving.requests import InputDocument, RerankRequest

_NO_SCORE = Judgment("", None, ScoreStatus.SKIPPED)


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
    """``relevance_score`` is null where ``status`` is ``failed``, or ``skipped`` at a deadline, and ``error`` says
    why. The token counts are those of the pair's prompt, and of its chain and label."""

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
    id: str = Field(description="the request's id, as in X-Request-Id")
    object: Literal["list"] = "list"
    model: str
    results: list[RerankResult]
    usage: Usage


class ScoreData(BaseModel):
    index: int
    object: Literal["score"] = "score"
    score: float | None


class ScoreResponse(BaseModel):
    id: str = Field(description="the request's id, as in X-Request-Id")
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
    root: str = Field(description="the served model's own name; id may be an alias")
    modes: dict[str, int] = Field(
        description="modes that a request may ask for, the default first, each with its longest chain in tokens"
    )
    scoring: dict[str, Any] = Field(description="what scores depend on: the mode, the prompt's hash …")

    @classmethod
    def of(cls, name: str, served: Served, modes: Modes, created: int) -> ModelCard:
        return cls(id=name, created=created, root=served.model, modes=dict(modes), scoring=served.scoring())


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


def rerank_response(
    request: RerankRequest,
    judgments: Sequence[Judgment | None],
    usage: base.Usage,
    *,
    model: str,
    return_documents: bool,
    min_score: float = 0.0,
) -> dict[str, Any]:
    """The body of a rerank answer: the ``top_n`` best, with failed and skipped pairs after all scored ones. It may be
    empty.

    Args:
        judgments: one for each document, in the request's order. A document whose judgment is None is left out: it is
            being scored.
        usage: tokens of the whole request.
        return_documents, min_score: the defaults, where the request has no value.

    Raises:
        ApiError: no pair has a score.
    """
    _check_scored([judgment for judgment in judgments if judgment is not None])
    if request.return_documents is not None:
        return_documents = request.return_documents
    if request.min_score is not None:
        min_score = request.min_score
    known = [judgment or _NO_SCORE for judgment in judgments]
    order = above(min_score, rank_judgments(to_candidates(request.texts()), known), known)
    results = []
    for index in [index for index in order if judgments[index] is not None][: request.top_n]:
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
            document = request.documents[index]
            result.document = InputDocument(text=document) if isinstance(document, str) else document
        if request.return_reasoning:
            result.reasoning = judgment.reasoning
        if judgment.raw_score is not None:
            result.raw_score = judgment.raw_score
        if judgment.error is not None:
            result.error = str(judgment.error)
        results.append(result)
    response = RerankResponse(
        id=request_ids.current() or request_ids.new(),
        object="list",
        model=model,
        results=results,
        usage=Usage.of(usage),
    )
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
        id=request_ids.current() or request_ids.new(),
        created=int(time.time()),
        model=model,
        data=data,
        usage=Usage.of(usage),
    )
    return response.model_dump(mode="json")


def _check_scored(judgments: Sequence[Judgment]) -> None:
    if any(judgment.score is not None for judgment in judgments):
        return
    if any(judgment.status == ScoreStatus.SKIPPED for judgment in judgments):
        raise deadline_exceeded()
    errors = [judgment.error for judgment in judgments]
    # A client retries after a 503 and gives up after a 422.
    retryable = any(isinstance(error, RowError) and error.retryable for error in errors)
    raise ApiError(503 if retryable else 422, "all_pairs_failed", f"no document could be scored: {errors[0]}")
