"""The model on packed rows: the training loss, the held-out loss, and log-odds for the dev set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from limrank.config import Objective
from limrank.training.batches import LossGroup, PackedRow, micro_batches, pack, query_units, single_units
from limrank.training.objectives import compares, is_taught, summed_loss, weight
from limrank.training.processes import process, summed

if TYPE_CHECKING:
    import torch
    from torch import nn

    from limrank.training.examples import EncodedExample
    from limrank.training.sources import Example


def training_units(examples: Sequence[Example | EncodedExample], objective: Objective) -> list[LossGroup]:
    """The units of the loss: single examples, or queries with examples of both labels, or of two scores."""
    if not compares(objective):
        return single_units(examples)
    return query_units(examples, "score" if is_taught(objective) else "label")


def row_loss(
    model: nn.Module, objective: Objective, labels: tuple[int, int] | None, mixed_precision: bool = False
) -> nn.Module:
    """A module that maps a :class:`~limrank.training.batches.PackedRow` to its summed loss.

    The model computes logits only for the completions' tokens: with a vocabulary of 49,152 or more, the
    prompts' logits would take more memory than the rest of the model.
    """
    import torch

    class RowLoss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, row: PackedRow) -> torch.Tensor:
            logits = packed_logits(self.model, row, mixed_precision)
            return summed_loss(objective, logits, row, labels)

    return RowLoss()


def packed_logits(model: nn.Module, row: PackedRow, mixed_precision: bool = False) -> torch.Tensor:
    """(completion tokens, vocabulary): the logits at ``row.kept``."""
    import torch

    with torch.autocast(row.input_ids.device.type, dtype=torch.bfloat16, enabled=mixed_precision):
        return model(
            input_ids=row.input_ids,
            position_ids=row.position_ids,
            segments=row.segments,
            logits_to_keep=row.kept,
            use_cache=False,
        ).logits[0]


def mean_loss(
    loss: nn.Module,
    examples: Sequence[EncodedExample],
    objective: Objective,
    batch_size: int,
    device: torch.device | str,
) -> float:
    """The mean loss of a completion token (or a unit, see ``objectives``) over all processes, without gradients."""
    import torch

    units = training_units(examples, objective)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for batch, row in _shared_rows(loss, examples, units, batch_size, device):
        total += loss(row) * (1 if batch else 0)
    return summed(total) / weight(objective, of_units(examples, units))


def direct_log_odds(
    model: nn.Module,
    pairs: Sequence[EncodedExample],
    labels: tuple[int, int],
    batch_size: int,
    device: torch.device | str,
    mixed_precision: bool = False,
) -> list[float]:
    """logit(true) − logit(false) of each pair, computed by all processes together, without gradients."""
    import torch

    odds = torch.zeros(len(pairs), dtype=torch.float64, device=device)
    for batch, row in _shared_rows(model, pairs, single_units(pairs), batch_size, device):
        logits = packed_logits(model, row, mixed_precision).double()
        if batch:
            odds[[index for (index,) in batch]] = logits[:, labels[0]] - logits[:, labels[1]]
    if process()[1] > 1:
        torch.distributed.all_reduce(odds)
    return odds.tolist()


def _shared_rows(
    module: nn.Module,
    examples: Sequence[EncodedExample],
    units: Sequence[LossGroup],
    batch_size: int,
    device: torch.device | str,
) -> Iterator[tuple[list[LossGroup], PackedRow]]:
    """This process's share of the units, with the row of each batch, without gradients and in the
    module's evaluation mode. An empty batch has a row, too, which does not count: with sharded weights
    every process has to run the same number of forward passes."""
    import torch

    rank, workers = process()
    batches = micro_batches(units, [len(example.ids) for example in examples], batch_size, rank, workers)
    module.eval()
    with torch.no_grad():
        for batch in batches:
            yield batch, pack(of_units(examples, batch or units[:1]), device)
    module.train()


def of_units(examples: Sequence[EncodedExample], units: Sequence[LossGroup]) -> list[list[EncodedExample]]:
    return [[examples[index] for index in unit] for unit in units]
