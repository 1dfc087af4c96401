"""When a request to an endpoint is sent again: one policy for every engine that has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tenacity import AsyncRetrying

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 20.0


def retrying(attempts: Callable[[BaseException], int]) -> AsyncRetrying:
    """Tenacity's loop of attempts, with random waits that double between them; the last
    attempt's error comes out as it is.

    Args:
        attempts: how often a request is sent in all that ends with this error; 1: once.
    """
    from tenacity import AsyncRetrying, wait_random_exponential

    return AsyncRetrying(
        stop=lambda state: state.attempt_number >= attempts(state.outcome.exception()),
        wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        reraise=True,
    )
