"""A large request in parts, one for each of several replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

Result = TypeVar("Result")


def parts(pairs: int, most: int | None, replicas: int | None) -> list[slice]:
    """Slices of a request's candidates, in their order, whose lengths differ by one at most.

    A part has at most ``most`` pairs, unless that would need more parts than there are replicas.

    Args:
        most: a request of more pairs is divided; None: none is.
        replicas: those that are up; None: nobody knows.
    """
    wanted = 1 if most is None else -(-pairs // most)
    count = max(1, min(wanted, replicas or 1))
    ends = [pairs * number // count for number in range(count + 1)]
    return [slice(start, end) for start, end in zip(ends, ends[1:], strict=False)]


async def together(calls: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results of calls that run at the same time. The first one that fails ends the others, and its error is
    raised. Cancelling it cancels all."""
    tasks: list[asyncio.Task[Result]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(call) for call in calls]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]
