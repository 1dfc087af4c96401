"""A query's judgments by a deadline: the best order of what is scored by then."""

from __future__ import annotations

from limrank.errors import RowError
from limrank.records import Judgment
from limrank.scoring.snapshots import Judge, Score, Snapshots


def deadline_passed() -> RowError:
    return RowError("the deadline passed before the scoring of this pair ended")


async def by_deadline(seconds: float, score: Score, judge: Judge) -> list[Judgment]:
    """``score(judge)``; after so many seconds, its result from the pairs that are scored by then. A pair without any
    score is ``skipped``. See :class:`~limrank.scoring.snapshots.Snapshots`.
    """
    return await Snapshots(score, judge).by(seconds, deadline_passed())
