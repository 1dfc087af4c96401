"""``Reranker``: rerank a list of documents from a script or a notebook. No Ray."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeVar, get_args

from limrank.config import DEFAULT_SEED, RERANKER, EngineConfig, ModelConfig, ScoringConfig, as_reranker
from limrank.engines import Engine, Judge, check_scorer, open_engine
from limrank.errors import UserError
from limrank.parsing import brief
from limrank.records import Candidate, Document, Judgment, Query, ScoreStatus
from limrank.scoring import above, check_labels, rank_judgments, score_query
from limrank.scoring.calibration import calibrated, read_calibration
from limrank.scoring.fusion import fused_order, fused_scores

Value = TypeVar("Value")

Scores = TypeVar("Scores", Sequence[float], Sequence[Sequence[float]])

Mode = Literal["direct", "think", "budget", "cascade"]


@dataclass(frozen=True)
class RankedDocument:
    """A document at its rank.

    ``index`` is its 0-based position in the given documents. ``doc_id`` is the given id, else a ``Document``'s
    own, else None. ``score`` is in [0, 1], or None where ``status`` is failed and ``error`` says why.
    ``fused_score`` orders the documents of one query by fusion, and means nothing outside it; None without fusion.
    """

    index: int
    document: str | Document
    score: float | None
    status: ScoreStatus
    reasoning: str | None = None
    error: str | None = None
    doc_id: str | None = None
    fused_score: float | None = None


class Reranker:
    """A pointwise reasoning reranker on one engine in this process.

    ::

        with Reranker() as reranker:
            for hit in reranker.rank("merge sorted streams", ["heapq.merge …", "sorted …"]):
                print(hit.score, hit.document)

    Args:
        model: a packaged model, a directory, or a hub id. A ``ModelConfig`` without an ``id`` is the default model.
        mode: direct, think, budget or cascade (see ``limrank.scoring``).
        max_think_tokens: longest chain, for think, budget and cascade.
        fuse: weight of the first stage's scores, from 0 to 1: documents are then ordered by fusion (see
            ``limrank.scoring.fusion``), and each call takes ``first_stage_scores``. None: by ``score``.
        scoring: all scoring keys, instead of these three. ``fuse.first_stage`` must be a weight.
        engine: settings, or an open engine, which the caller then closes. With ``kind="openai"`` an
            endpoint runs the model. With ``kind="serve"`` a running ``limrank serve`` scores; its model and
            mode must be the same.
        seed: of sampled chains (``scoring.samples``).

    Raises:
        UserError: the model or the mode is unknown, ``fuse`` is no weight, ``scoring`` comes with one of the three,
            the model lacks the label tokens, or the server cannot be reached or its scoring differs.
        EngineError: the engine did not start.
    """

    def __init__(
        self,
        model: str | ModelConfig = RERANKER,
        *,
        mode: Mode = "direct",
        max_think_tokens: int | None = None,
        fuse: float | None = None,
        scoring: ScoringConfig | None = None,
        engine: EngineConfig | Engine | Judge | None = None,
        seed: int = DEFAULT_SEED,
    ) -> None:
        if mode not in get_args(Mode):
            raise UserError(f"mode {mode!r}: is none of {', '.join(get_args(Mode))}")
        if scoring is not None and (mode != "direct" or max_think_tokens is not None or fuse is not None):
            raise UserError("scoring has the mode, max_think_tokens and fuse: give only scoring")
        if scoring is not None and scoring.mode == "none":
            raise UserError("scoring: mode none gives no scores")
        self._scoring = scoring or ScoringConfig(mode=mode, max_think_tokens=max_think_tokens)
        self._weight = _weight(fuse if self._scoring.fuse is None else self._scoring.fuse.first_stage)
        self._calibration = read_calibration(self._scoring.calibration)
        self._seed = seed
        self._loop = asyncio.new_event_loop()
        # The engine stays on one loop, whichever thread or loop calls rank().
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="reranker")
        self._thread.start()
        self._opened: Engine | Judge | None = None
        try:
            if engine is None or isinstance(engine, EngineConfig):
                engine = self._opened = self._call(_open(model, engine, self._scoring, seed))
            if not isinstance(engine, Judge):
                check_labels(engine.tokenizer, self._scoring.labels)
        except BaseException:
            self.close()
            raise
        self._engine = engine

    def rank(
        self,
        query: str,
        documents: Sequence[str | Document],
        *,
        doc_ids: Sequence[str] | None = None,
        instruction: str = "",
        top_n: int | None = None,
        first_stage_scores: Sequence[float] | None = None,
        min_score: float | None = None,
    ) -> list[RankedDocument]:
        """Documents by relevance, best first. Ties keep the given order.

        A document that could not be scored comes last, without a score.

        Args:
            doc_ids: one id for each document.
            instruction: narrows what is relevant; it is appended to the query.
            top_n: how many to return; None: all.
            first_stage_scores: the first stage's score of each document, on any scale; needed with ``fuse``, and
                refused without it.
            min_score: documents with a lower score are left out, which may be all. None: ``scoring.min_score``.

        Raises:
            UserError: there are more or fewer ids or scores than documents, a score is not a finite number, or
                ``min_score`` is not in [0, 1].
            EngineError: the engine crashed.
        """
        task = _Task(query, documents, doc_ids, instruction, self._checked(first_stage_scores))
        return self._call(self._rank(task, top_n, self._least(min_score)))

    def rank_many(
        self,
        queries: Sequence[str],
        documents: Sequence[Sequence[str | Document]],
        *,
        doc_ids: Sequence[Sequence[str]] | None = None,
        instruction: str = "",
        top_n: int | None = None,
        first_stage_scores: Sequence[Sequence[float]] | None = None,
        min_score: float | None = None,
    ) -> list[list[RankedDocument]]:
        """Rank each query's own documents. The rankings are in the order of the queries.

        All pairs are in flight together, so the engine's batches stay full. That is many times faster than
        a loop over :meth:`rank` where queries have few documents.

        Args:
            documents: one list for each query.
            doc_ids: one list for each query, with one id for each document.
            instruction, top_n, min_score: as in :meth:`rank`, of every query.
            first_stage_scores: one list for each query, as in :meth:`rank`.

        Raises:
            UserError: there are more or fewer lists than queries, or ids or scores than documents, or ``min_score``
                is not in [0, 1].
            EngineError: the engine crashed.
        """
        if isinstance(queries, str):
            raise UserError("queries: should be a list of texts, not one text")
        _check_length("documents", documents, "queries", queries)
        if doc_ids is not None:
            _check_length("doc_ids", doc_ids, "queries", queries)
        self._checked(first_stage_scores)
        if first_stage_scores is not None:
            _check_length("first_stage_scores", first_stage_scores, "queries", queries)
        tasks = [
            _Task(
                query,
                documents[number],
                None if doc_ids is None else doc_ids[number],
                instruction,
                None if first_stage_scores is None else first_stage_scores[number],
            )
            for number, query in enumerate(queries)
        ]

        least = self._least(min_score)

        async def rank_all() -> list[list[RankedDocument]]:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(self._rank(task, top_n, least)) for task in tasks]
            return [each.result() for each in running]

        try:
            return self._call(rank_all())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def arank(
        self,
        query: str,
        documents: Sequence[str | Document],
        *,
        doc_ids: Sequence[str] | None = None,
        instruction: str = "",
        top_n: int | None = None,
        first_stage_scores: Sequence[float] | None = None,
        min_score: float | None = None,
    ) -> list[RankedDocument]:
        """:meth:`rank` as a coroutine, on any event loop.

        Cancelling it cancels the requests.
        """
        task = _Task(query, documents, doc_ids, instruction, self._checked(first_stage_scores))
        ranking = self._rank(task, top_n, self._least(min_score))
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(ranking, self._loop))

    def close(self) -> None:
        """End the engine if it was opened here. A second call does nothing."""
        if self._loop.is_closed():
            return
        if self._opened is not None:
            self._call(self._opened.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Reranker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _call(self, coroutine: Coroutine[Any, Any, Value]) -> Value:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C: nobody waits for the answer
            raise

    def _least(self, min_score: float | None) -> float:
        """The score below which documents are left out."""
        if min_score is None:
            return self._scoring.min_score or 0.0
        if not 0 <= (least := _number(min_score)) <= 1:
            raise UserError(f"min_score: should be a number from 0 to 1 (got {brief(min_score)})")
        return least

    async def _rank(self, task: _Task, top_n: int | None, min_score: float) -> list[RankedDocument]:
        candidates = task.candidates()
        asked = Query("query", task.query, task.instruction)
        judgments = await score_query(asked, candidates, self._engine, self._scoring, seed=self._seed)
        judgments = calibrated(judgments, self._calibration)
        if self._weight is None:
            order = above(min_score, rank_judgments(candidates, judgments), judgments)
            return [task.ranked(index, judgments[index]) for index in order[:top_n]]
        # A calibration may make scores equal: the scores before it rank, as they do without fusion.
        scores = [each.score if each.raw_score is None else each.raw_score for each in judgments]
        columns = (scores, task.scores or [], [each.rank for each in candidates])
        fused = fused_scores(*columns, self._weight)
        order = above(min_score, fused_order(*columns, self._weight), judgments)
        return [task.ranked(index, judgments[index], fused[index]) for index in order[:top_n]]

    def _checked(self, first_stage_scores: Scores | None) -> Scores | None:
        """The scores of a call. Raises UserError: they are missing with fusion, or given without it."""
        if (self._weight is None) == (first_stage_scores is None):
            return first_stage_scores
        if self._weight is None:
            raise UserError("first_stage_scores: have no effect without fuse: Reranker(…, fuse=0.3)")
        raise UserError("first_stage_scores: are needed, as fuse is set")


class _Task:
    """A query with its documents."""

    def __init__(
        self,
        query: str,
        documents: Sequence[str | Document],
        doc_ids: Sequence[str] | None,
        instruction: str,
        first_stage_scores: Sequence[float] | None,
    ) -> None:
        if isinstance(documents, str):
            raise UserError("documents: should be a list of texts, not one text")
        if doc_ids is not None:
            _check_length("doc_ids", doc_ids, "documents", documents)
        if first_stage_scores is not None:
            _check_length("first_stage_scores", first_stage_scores, "documents", documents)
        self.query = query
        self.instruction = instruction
        self.scores = None if first_stage_scores is None else [_finite(score) for score in first_stage_scores]
        self._documents = list(documents)
        self._doc_ids = doc_ids

    def candidates(self) -> list[Candidate]:
        return [
            Candidate(str(index), document.contents if isinstance(document, Document) else document, index + 1, 0.0)
            for index, document in enumerate(self._documents)
        ]

    def ranked(self, index: int, judgment: Judgment, fused_score: float | None = None) -> RankedDocument:
        document = self._documents[index]
        return RankedDocument(
            index,
            document,
            judgment.score,
            judgment.status,
            judgment.reasoning,
            str(judgment.error) if judgment.error else None,
            self._doc_id(index, document),
            fused_score,
        )

    def _doc_id(self, index: int, document: str | Document) -> str | None:
        if self._doc_ids is not None:
            return self._doc_ids[index]
        return document.doc_id if isinstance(document, Document) else None


def _weight(fuse: object) -> float | None:
    if fuse is None:
        return None
    if isinstance(fuse, str):
        raise UserError(
            f"fuse: should be a weight from 0 to 1; only a rerank job chooses it by a run (got {brief(fuse)})"
        )
    if not 0 <= (weight := _number(fuse)) <= 1:
        raise UserError(f"fuse: should be a weight from 0 to 1 (got {brief(fuse)})")
    return weight


def _finite(score: object) -> float:
    if not math.isfinite(number := _number(score)):
        raise UserError(f"first_stage_scores: should be finite numbers (got {brief(score)})")
    return number


def _number(value: object) -> float:
    """A number as a float; NaN for anything else, and for a number that no float holds."""
    if isinstance(value, Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    return math.nan


def _check_length(name: str, values: Sequence[Any], of: str, counted: Sequence[Any]) -> None:
    if not hasattr(type(values), "__len__"):
        raise UserError(f"{name}: should be a list with one for each of the {len(counted)} {of} (got {brief(values)})")
    if len(values) != len(counted):
        raise UserError(f"{name}: should have one for each of the {len(counted)} {of} (got {len(values)})")


async def _open(
    model: str | ModelConfig, engine: EngineConfig | None, scoring: ScoringConfig, seed: int
) -> Engine | Judge:
    scorer = ModelConfig(id=model) if isinstance(model, str) else as_reranker(model)
    if engine is None or engine.kind != "serve":
        check_scorer(scorer, engine or EngineConfig(), scoring.labels)
        return open_engine(scorer, engine)
    from limrank.serving.client import ServedReranker

    if not engine.base_url:
        raise UserError("engine.base_url is needed: the URL of a running `limrank serve`")
    source = ServedReranker(scorer, engine, scoring, seed)
    await asyncio.to_thread(source.check)
    return source.open()
