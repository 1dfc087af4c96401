"""Which examples make a step, who takes them, and how they become padded tensors.

Everything follows from (seed, epoch) and the number of workers, so every worker finds
the same answer alone, and a resumed run goes on exactly where the first one stopped.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from limrank.training.examples import EncodedExample

NO_LOSS = -100
"""The label that cross-entropy passes over."""


def steps_per_epoch(examples: int, per_step: int) -> int:
    """Optimizer steps in an epoch; the last one may have fewer than ``per_step`` examples."""
    return ceil(examples / per_step)


def epoch_steps(examples: int, per_step: int, seed: int, epoch: int) -> list[list[int]]:
    """The examples (by index) of each optimizer step of an epoch, over all workers."""
    order = list(range(examples))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return [order[start : start + per_step] for start in range(0, examples, per_step)]


def micro_batches(
    step: Sequence[int], lengths: Sequence[int], batch_size: int, rank: int, workers: int
) -> list[list[int]]:
    """The forward passes of one worker in one step: lists of at most ``batch_size`` indices.

    A step's gradient is a sum, so its examples may be ordered freely: by length, which
    makes padding rare, and dealt like cards, which gives every worker as much work.
    Every worker gets equally many lists, since all must meet in the last backward pass;
    at the end of an epoch some are empty.
    """
    ordered = sorted(step, key=lambda index: (lengths[index], index), reverse=True)
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    mine = batches[rank::workers]
    return mine + [[]] * (ceil(len(batches) / workers) - len(mine))


def collate(examples: Sequence[EncodedExample], pad_id: int, device: torch.device | str) -> dict[str, torch.Tensor]:
    """Examples → tensors, padded on the left to the longest.

    Padding on the left puts all completions at the end, so that logits are needed for
    the last few positions only.

    Returns:
        ``input_ids``, ``attention_mask``, ``position_ids`` of shape (examples, longest),
        and ``labels`` of shape (examples, longest completion): the targets of the last
        positions, :data:`NO_LOSS` where an example's completion is shorter.
    """
    import torch

    length = max(len(example.ids) for example in examples)
    completion = max(example.completion_tokens for example in examples)
    input_ids = torch.full((len(examples), length), pad_id)
    attention_mask = torch.zeros((len(examples), length), dtype=torch.long)
    labels = torch.full((len(examples), completion), NO_LOSS)
    for row, example in enumerate(examples):
        ids = torch.from_numpy(example.ids.astype("int64"))
        input_ids[row, length - len(ids) :] = ids
        attention_mask[row, length - len(ids) :] = 1
        labels[row, completion - example.completion_tokens :] = ids[example.prompt_tokens :]
    tensors = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0),
        "labels": labels,
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}
