"""``Reranker``: rerank a list of documents from a script or a notebook. No Ray."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

from limrank.config import EngineConfig, ModelConfig, ScoringConfig
from limrank.engines import Engine, open_engine
from limrank.errors import UserError
from limrank.records import Candidate, Document, Query, ScoreStatus
from limrank.scoring import check_labels, rank_judgments, score_query


@dataclass(frozen=True)
class RankedDocument:
    """A document in its place. ``index`` is its 0-based place in what was given;
    ``score`` is in [0, 1], or None where ``status`` is failed and ``error`` says why."""

    index: int
    document: str | Document
    score: float | None
    status: ScoreStatus
    reasoning: str | None = None
    error: str | None = None


class Reranker:
    """A pointwise reasoning reranker on one engine in this process.

    ::

        with Reranker("smollm2-135m-instruct") as reranker:
            for hit in reranker.rank("merge sorted streams", ["heapq.merge …", "sorted …"]):
                print(hit.score, hit.document)

    Args:
        model: a packaged model, a directory, or a hub id.
        mode: direct, think, budget or cascade (see ``limrank.scoring``).
        max_think_tokens: longest chain, for think and budget.
        engine: settings, or an open engine, which the caller then closes.

    Raises:
        UserError: the model or the mode is unknown, or the model lacks the label tokens.
        EngineError: the engine did not come up.
    """

    def __init__(
        self,
        model: str | ModelConfig = "smollm2-135m-instruct",
        *,
        mode: str = "direct",
        max_think_tokens: int | None = None,
        engine: EngineConfig | Engine | None = None,
    ) -> None:
        if mode not in ("direct", "think", "budget", "cascade"):
            raise UserError(f"mode {mode!r}: is none of direct, think, budget, cascade")
        self._scoring = ScoringConfig(mode=mode, max_think_tokens=max_think_tokens)
        self._loop = asyncio.new_event_loop()
        # The engine keeps one loop, whichever thread or loop calls rank().
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="reranker")
        self._thread.start()
        self._owned = engine is None or isinstance(engine, EngineConfig)
        self._engine: Engine | None = None if self._owned else engine
        try:
            if self._owned:
                self._engine = self._call(_open(model, engine))
            check_labels(self._engine.tokenizer)
        except BaseException:
            self.close()
            raise

    def rank(
        self, query: str, documents: Sequence[str | Document], *, instruction: str = "", top_n: int | None = None
    ) -> list[RankedDocument]:
        """Documents by relevance, best first; ties keep the order they were given in.

        A document that could not be scored comes last, with no score.
        """
        candidates = [
            Candidate(str(index), document.contents if isinstance(document, Document) else document, index + 1, 0.0)
            for index, document in enumerate(documents)
        ]
        asked = Query("query", query, instruction)
        judgments = self._call(score_query(asked, candidates, self._engine, self._scoring))
        ranked = [
            RankedDocument(
                place,
                documents[place],
                judgments[place].score,
                judgments[place].status,
                judgments[place].reasoning,
                str(judgments[place].error) if judgments[place].error else None,
            )
            for place in rank_judgments(candidates, judgments)
        ]
        return ranked[:top_n]

    def close(self) -> None:
        """End the engine, if it was opened here; a second call does nothing."""
        if self._loop.is_closed():
            return
        if self._owned and self._engine is not None:
            self._call(self._engine.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Reranker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _call(self, coroutine: Awaitable[Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


async def _open(model: str | ModelConfig, engine: EngineConfig | None) -> Engine:
    return open_engine(model, engine)
