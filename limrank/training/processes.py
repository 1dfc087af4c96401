"""The processes that train together, one where there is no group."""

from __future__ import annotations

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


def agree(error: LimrankError | None) -> None:
    """All processes meet here. Where any of them has an error all raise the first one: nobody
    waits for one that is gone.

    Raises:
        LimrankError: that error.
    """
    for found in gathered(error):
        if found is not None:
            raise found
