"""A query's judgments by a deadline: the best order of what is scored by then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from limrank.config import ScoringConfig
from limrank.errors import RowError
from limrank.records import Candidate, Judgment, ScoreStatus

Judge = Callable[[ScoringConfig, Candidate], Awaitable[Judgment]]
"""Scores one candidate in one mode."""


async def by_deadline(
    seconds: float, score: Callable[[Judge], Awaitable[list[Judgment]]], judge: Judge
) -> list[Judgment]:
    """``score(judge)``; after so many seconds, its result from the pairs that are scored by then.

    The pairs that still run are cancelled, which aborts their requests in the engine. The scored ones are replayed
    through ``score``, so a cascade keeps its direct scores and uses the chains that have ended. A pair without any
    score is ``skipped``.

    Args:
        score: scores a query's candidates, whose ids differ, with the function that it is given.
        judge: scores one candidate.
    """
    done: dict[tuple[str, str], Judgment] = {}

    async def record(scoring: ScoringConfig, candidate: Candidate) -> Judgment:
        judgment = done[scoring.mode, candidate.doc_id] = await judge(scoring, candidate)
        return judgment

    async def replay(scoring: ScoringConfig, candidate: Candidate) -> Judgment:
        error = RowError("the deadline passed before the scoring of this pair ended")
        missing = Judgment(candidate.doc_id, None, ScoreStatus.SKIPPED, error=error)
        return done.get((scoring.mode, candidate.doc_id), missing)

    try:
        async with asyncio.timeout(seconds) as timer:
            return await score(record)
    except TimeoutError:
        if not timer.expired():
            raise
    return await score(replay)
