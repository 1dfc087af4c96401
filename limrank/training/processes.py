"""The processes that train together, one where there is no group."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from limrank.errors import LimrankError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def process() -> tuple[int, int]:
    """(rank, processes) of the group that this process is in; (0, 1) where it is alone."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def summed(value: torch.Tensor) -> float:
    """A number summed over all processes."""
    from torch import distributed

    if process()[1] > 1:
        distributed.all_reduce(value)
    return value.item()


def gathered(value: T) -> list[T]:
    """What each process has, in the order of their ranks."""
    from torch import distributed

    values = [value] * process()[1]
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values


def in_turn(work: Callable[[], T], place: int, places: int) -> T:
    """What ``work`` returns, done by one process of a node after another. All processes of the
    group call this; they meet before the first turn and after each, so that none may take longer
    than the group waits (half an hour, unless it was made otherwise).

    Args:
        place: of this process among the ``places`` of its node, from 0; with 0 of 1 in all of them,
            they do it at once.

    Raises:
        LimrankError: any of them had one (a node may lack what another has); all raise the first.
    """
    result, error = None, None
    for turn in range(max(gathered(places))):
        if turn == place:
            try:
                result = work()
            except LimrankError as raised:
                error = raised
        errors = [each for each in gathered(error) if each]
        if errors:
            raise errors[0]
    return result
