"""The group of processes that train together: rank, sums, gathers and turns. It may be a single process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from limrank.errors import LimrankError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def process() -> tuple[int, int]:
    """(rank, number of processes) in this process's group; (0, 1) without a group."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def summed(value: torch.Tensor) -> float:
    """The sum of a scalar over all processes."""
    from torch import distributed

    if process()[1] > 1:
        distributed.all_reduce(value)
    return value.item()


def gathered(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks."""
    from torch import distributed

    values = [value] * process()[1]
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values


def in_turn(work: Callable[[], T], turn: int, turns: int) -> T:
    """The result of ``work``, which the processes of a node run one after another.

    All processes of the group call this. They synchronize before the first turn and after each one, so
    no turn may take longer than the group's timeout (half an hour by default).

    Args:
        turn: this process's turn among the ``turns`` of its node, from 0. With 0 of 1 everywhere all run
            at once.

    Raises:
        LimrankError: ``work`` raised one in any process (a node may lack what another has); all
            processes raise the first one.
    """
    result, error = None, None
    for current in range(max(gathered(turns))):
        if current == turn:
            try:
                result = work()
            except LimrankError as raised:
                error = raised
        errors = [each for each in gathered(error) if each]
        if errors:
            raise errors[0]
    return result
