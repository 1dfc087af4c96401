"""When a request to an endpoint is retried: one policy for every engine that calls one."""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenacity import AsyncRetrying

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 20.0

LONGEST_REQUESTED_S = 86400.0
"""A header that asks to wait for more than a day is ignored, like one that is not a number."""

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_EPOCH_S, _EPOCH_MS = 1e9, 1e12


def retrying(attempts: Callable[[BaseException], int]) -> AsyncRetrying:
    """Tenacity's loop of attempts, with random waits that double between them. The error of the
    last attempt is raised unchanged.

    Args:
        attempts: gives the number of attempts in all for a request that ends with this error; 1: no retry.
    """
    from tenacity import AsyncRetrying, wait_random_exponential

    return AsyncRetrying(
        stop=lambda state: state.attempt_number >= attempts(state.outcome.exception()),
        wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        reraise=True,
    )


def backoff_s(attempt: int) -> float:
    """A random wait after this many attempts, like those of :func:`retrying`."""
    return random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(attempt - 1, 30)))


class Pace:
    """When the next request to an endpoint may be sent. All requests of an engine share one, so a
    wait that one answer asks for holds for all."""

    def __init__(self) -> None:
        self._until = 0.0
        self.answered = time.monotonic()
        """The time of the endpoint's last answer."""

    def hold(self, seconds: float) -> None:
        """Send no request for so many seconds."""
        self._until = max(self._until, time.monotonic() + seconds)

    async def free(self) -> None:
        """Wait until a request may be sent."""
        while (rest := self._until - time.monotonic()) > 0:
            await asyncio.sleep(rest)


def requested_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that the headers of an answer ask to wait; None where they do not.

    Headers are read in this order: ``retry-after-ms``; ``Retry-After`` in seconds or as a date
    (RFC 9110); ``x-ratelimit-reset-requests`` and ``-tokens`` (OpenAI's ``6m0s``) of a limit that
    is used up; ``x-ratelimit-reset`` and ``ratelimit-reset``, in seconds or as a time. A value is
    ignored if it cannot be read, is not above zero, or is above :data:`LONGEST_REQUESTED_S`.
    """
    given = {str(name).lower(): str(value).strip() for name, value in headers.items()}
    waits = [_scaled(given.get("retry-after-ms"), 0.001), _seconds(given.get("retry-after"))]
    if any(waits):
        return next(wait for wait in waits if wait)
    resets = [
        _seconds(given.get(f"x-ratelimit-reset-{kind}"))
        for kind in ("requests", "tokens")
        if given.get(f"x-ratelimit-remaining-{kind}", "0") == "0"
    ]
    resets += [_seconds(given.get("x-ratelimit-reset")), _seconds(given.get("ratelimit-reset"))]
    return max((wait for wait in resets if wait), default=None)


def _seconds(text: str | None) -> float | None:
    """Seconds from a number, a duration (``1m30.5s``), a date, or a time in seconds or milliseconds since 1970."""
    if not text or len(text) > 100:
        return None
    if _DURATION.fullmatch(text):
        amounts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
        return _sensible(sum(float(number) * _UNITS_S[name] for number, name in amounts))
    number = _number(text)
    if number is None:
        return _sensible(_until_date(text))
    if number > _EPOCH_S:
        number = number / (1000 if number > _EPOCH_MS else 1) - time.time()
    return _sensible(number)


def _scaled(text: str | None, factor: float) -> float | None:
    number = _number(text) if text and len(text) <= 100 else None
    return _sensible(number * factor) if number is not None else None


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?", text, re.ASCII) else None


def _until_date(text: str) -> float:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        try:
            date = datetime.fromisoformat(text)
        except ValueError:
            return math.nan
    try:
        return date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time()
    except (ValueError, OverflowError):
        return math.nan


def _sensible(seconds: float) -> float | None:
    return seconds if 0 < seconds <= LONGEST_REQUESTED_S else None
