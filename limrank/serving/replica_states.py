"""How many engine replicas there are in each state, as of a few seconds ago."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

_ASK_AGAIN_S = 5.0
_WAIT_S = 0.5
"""Time that :meth:`ReplicaStates.refreshed` waits for an answer."""

_FORGET_S = 60.0


class ReplicaStates:
    """Asks at most once in five seconds, one question at a time, in a thread.

    Args:
        ask: state → number of replicas; it may block, and may raise.
    """

    def __init__(self, ask: Callable[[], Mapping[str, int]]) -> None:
        self._ask = ask
        self._states: Mapping[str, int] = {}
        self._asked = self._answered = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def refreshed(self) -> Mapping[str, int]:
        """The newest answer. It is empty if there was none for a minute. It waits at most half a second."""
        if self._asking is None and time.monotonic() - self._asked > _ASK_AGAIN_S:
            self._asked = time.monotonic()
            self._asking = asyncio.create_task(self._question())
        if self._asking is not None:
            await asyncio.wait({self._asking}, timeout=_WAIT_S)
        return self._states if time.monotonic() - self._answered < _FORGET_S else {}

    async def _question(self) -> None:
        try:
            self._states = await asyncio.to_thread(self._ask)
            self._answered = time.monotonic()
        except Exception:
            return  # the answer's age says that nobody answers
        finally:
            self._asking = None
