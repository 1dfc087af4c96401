"""A query's judgments while its pairs are still being scored: the best order so far, at any time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from limrank.config import ScoringConfig
from limrank.records import Candidate, Judgment, ScoreStatus

Judge = Callable[[ScoringConfig, Candidate], Awaitable[Judgment]]
"""Scores one candidate in one mode."""

Score = Callable[[Judge], Awaitable[list[Judgment]]]
"""Scores a query's candidates, whose ids differ, with the function that it is given."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A query's judgments at one time.

    Attributes:
        judgments: in the candidates' order; a pair without a score so far is ``skipped``.
        chains_finished, chains_wanted: pairs whose chains have ended, and all that get one as far as is known.
    """

    judgments: list[Judgment]
    chains_finished: int = 0
    chains_wanted: int = 0


class Snapshots:
    """Records the judgments of a query's pairs as they end, and replays them through the query's scoring.

    A replay runs the same code as the scoring itself. A cascade thus keeps its direct scores and uses the chains that
    have ended.

    Args:
        score: scores the query's candidates.
        judge: scores one candidate.
        on_judgment: is called after each judgment.
    """

    def __init__(self, score: Score, judge: Judge, on_judgment: Callable[[], None] = lambda: None) -> None:
        self._score = score
        self._judge = judge
        self._on_judgment = on_judgment
        self._done: dict[tuple[str, str], Judgment] = {}

    async def run(self) -> list[Judgment]:
        """Score all candidates. The judgments are in their order."""

        async def record(scoring: ScoringConfig, candidate: Candidate) -> Judgment:
            judgment = self._done[scoring.mode, candidate.doc_id] = await self._judge(scoring, candidate)
            self._on_judgment()
            return judgment

        return await self._score(record)

    async def by(self, seconds: float | None, error: Exception) -> list[Judgment]:
        """:meth:`run`; after so many seconds, the judgments that are there. The pairs that still run are cancelled,
        which aborts their requests in the engine.

        Args:
            seconds: None: no limit.
            error: of the pairs that have no score, or no chain, by then.
        """
        try:
            async with asyncio.timeout(seconds) as timer:
                return await self.run()
        except TimeoutError:
            if not timer.expired():
                raise
        return (await self.so_far(error)).judgments

    async def so_far(self, error: Exception | None = None) -> Snapshot:
        """The judgments of the pairs that have one.

        Args:
            error: as in :meth:`by`; None where the scoring goes on.
        """
        wanted: list[tuple[str, str]] = []

        async def replay(scoring: ScoringConfig, candidate: Candidate) -> Judgment:
            key = scoring.mode, candidate.doc_id
            if scoring.think_tokens:
                wanted.append(key)
            return self._done.get(key) or Judgment(candidate.doc_id, None, ScoreStatus.SKIPPED, error=error)

        judgments = await self._score(replay)
        return Snapshot(judgments, sum(key in self._done for key in wanted), len(wanted))
