"""The engine replicas as the API calls them: a large request is spread, and a replica's death is a retry.

It does not know Ray: ``app.py`` gives it the function that sends a request to one replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from limrank.engines.base import Usage
from limrank.errors import RowError
from limrank.records import Judgment, Query, ScoreStatus
from limrank.serving.errors import ApiError, deadline_exceeded, engine_unavailable
from limrank.serving.options import ScoreOptions
from limrank.serving.spreading import parts, together

Scored = tuple[list[Judgment], Usage]
Result = TypeVar("Result")

REPLACEMENT_S = 30.0
"""Time that a request waits for a replica where none is up."""

_ATTEMPTS = 4
"""Of a call whose replica is not reached. Only the death of one replica is retried, see :class:`Deaths`."""

_LOOK_AGAIN_S = 0.05


class LostReplicaError(Exception):
    """A replica ended, or could not be reached, while it had a request.

    Attributes:
        replica: which one; None: nobody knows.
    """

    def __init__(self, replica: str | None = None) -> None:
        super().__init__("a replica was lost")
        self.replica = replica


class Deaths:
    """The replicas that were lost to one request. A request that ends each engine which takes it must not end more
    than two, so it is sent again only after the first."""

    def __init__(self) -> None:
        self._lost: set[object] = set()

    def may_retry(self, error: LostReplicaError) -> bool:
        """Counts a lost replica. Two parts of a request may lose the same one."""
        self._lost.add(error.replica or error)
        return len(self._lost) == 1


@dataclass(frozen=True)
class Replicas:
    """How requests reach the replicas.

    Args:
        send: sends a request to one replica. It raises LostReplicaError if that is lost. Cancelling it aborts the
            request.
        up: the number of replicas that take requests; None: not known yet.
        spread_pairs: a request of more pairs is spread; None: none is.
        mode: the scoring mode of a request without one.
        wait_s: how long a request waits for a replica.
    """

    send: Callable[[Query, Sequence[str], ScoreOptions], Awaitable[Scored]]
    up: Callable[[], int | None]
    spread_pairs: int | None = None
    mode: str = "direct"
    wait_s: float = REPLACEMENT_S

    async def score(self, query: Query, texts: Sequence[str], options: ScoreOptions) -> Scored:
        """Judgments in the order of the texts, and their usage.

        Raises:
            ApiError: no replica is up, or two were lost to this request; or the deadline passed first.
        """
        slices = self.parts(len(texts), options)
        deaths = Deaths()
        if len(slices) == 1:
            return await self._score(query, texts, options, deaths)
        scored = await together([self._part(query, texts[each], options, deaths) for each in slices])
        judgments = [judgment for part, _ in scored for judgment in part]
        usage = Usage()
        for _, of_part in scored:
            usage.add(of_part)
        return judgments, usage

    def parts(self, pairs: int, options: ScoreOptions) -> list[slice]:
        """How a request is divided. A cascade compares all candidates, so it is not."""
        mode = options.mode or self.mode
        return parts(pairs, None if mode == "cascade" else self.spread_pairs, self.up())

    async def retried(self, call: Callable[[], Awaitable[Result]], options: ScoreOptions, deaths: Deaths) -> Result:
        """What a call returns. It is made once a replica is up, and again if it raises LostReplicaError. A stream's
        call ends with its first event: after that nothing may be sent again.

        Raises:
            ApiError: see :meth:`score`.
        """
        for left in reversed(range(_ATTEMPTS)):
            await self._until_up(options)
            try:
                return await call()
            except LostReplicaError as error:
                if not deaths.may_retry(error) or not left:
                    raise engine_unavailable() from error
            await asyncio.sleep(_LOOK_AGAIN_S)
        raise AssertionError("the last attempt returns or raises")

    async def _score(self, query: Query, texts: Sequence[str], options: ScoreOptions, deaths: Deaths) -> Scored:
        return await self.retried(lambda: self.send(query, texts, options), options, deaths)

    async def _part(self, query: Query, texts: Sequence[str], options: ScoreOptions, deaths: Deaths) -> Scored:
        """A part of a request. Where the deadline passes before it reaches a replica, the scores of the others
        still count."""
        try:
            return await self._score(query, texts, options, deaths)
        except ApiError as error:
            if error.code != deadline_exceeded().code:
                raise
            late = RowError("the deadline passed before the scoring of this pair began")
            return [Judgment(str(i), None, ScoreStatus.SKIPPED, error=late) for i in range(len(texts))], Usage()

    async def _until_up(self, options: ScoreOptions) -> None:
        clock = asyncio.get_running_loop().time
        given_up = clock() + self.wait_s
        while self.up() == 0:
            if options.seconds_left() == 0:
                raise deadline_exceeded()
            if clock() >= given_up:
                raise engine_unavailable()
            await asyncio.sleep(_LOOK_AGAIN_S)
