"""The examples of each step, their distribution over the workers, and their packing into one row.

The *unit* of a step is an example or, for objectives that compare the passages of a query, a query with
all its examples. Everything is derived from (seed, epoch) and the number of workers: each worker
computes it without the others, and a resumed run continues exactly where the first one stopped.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from limrank.training.attention import Segment
    from limrank.training.examples import EncodedExample
    from limrank.training.sources import Example

LossGroup = tuple[int, ...]
"""Indices of the examples that contribute one term to the loss."""


def single_units(examples: Sequence[Example | EncodedExample]) -> list[LossGroup]:
    """One unit for each example."""
    return [(index,) for index in range(len(examples))]


def query_units(
    examples: Sequence[Example | EncodedExample], by: Literal["label", "score"] = "label"
) -> list[LossGroup]:
    """The examples of each query that has both labels, or two different scores, in the order of the file."""
    by_query: dict[tuple[str, ...], list[int]] = {}
    for index, example in enumerate(examples):
        by_query.setdefault(example.query, []).append(index)
    return [tuple(each) for each in by_query.values() if len({getattr(examples[index], by) for index in each}) > 1]


def steps_per_epoch(units: int, per_step: int) -> int:
    """Optimizer steps in an epoch; the last one may have fewer than ``per_step`` units."""
    return ceil(units / per_step)


def epoch_steps(units: Sequence[LossGroup], per_step: int, seed: int, epoch: int) -> list[list[LossGroup]]:
    """The units of each optimizer step of an epoch, over all workers."""
    order = list(units)
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return [order[start : start + per_step] for start in range(0, len(order), per_step)]


def micro_batches(
    step: Sequence[LossGroup], lengths: Sequence[int], batch_size: int, rank: int, workers: int
) -> list[list[LossGroup]]:
    """The forward passes of one worker in one step: lists of at most ``batch_size`` units.

    A step's gradient is a sum, so the order of its units is free. Batches are ordered by length, longest
    first, and dealt to the workers in turn, which balances their work. Every worker gets the same number of
    lists, because all synchronize in the last backward pass; at the end of an epoch some lists are empty.

    Args:
        lengths: number of tokens of each example.
    """

    def tokens(unit: LossGroup) -> int:
        return sum(lengths[index] for index in unit)

    ordered = sorted(step, key=lambda unit: (tokens(unit), unit), reverse=True)
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    mine = batches[rank::workers]
    return mine + [[]] * (ceil(len(batches) / workers) - len(mine))


@dataclass(frozen=True)
class PackedRow:
    """Several examples in one row without padding. The passages of a query follow the beginning that their prompts
    share, template and query, which is there once.

    ================  ====================  ======================================================
    ``input_ids``     (1, tokens)           token ids
    ``position_ids``  (1, tokens)           a token's place in its example
    ``segments``      (units,)              lengths: of an example, or of the beginning that a unit's
                                            examples share, and of the rest of each
    ``kept``          (completion tokens,)  positions whose logits predict the completions' tokens
    ``targets``       (completion tokens,)  the completions' tokens
    ``weights``       (completion tokens,)  how often each counts in the loss
    ``units``         (units,)              number of examples of each unit
    ``positive``      (examples,)           whether the passage is labelled relevant
    ``scores``        (examples,)           the teacher's scores by its temperature; NaN without one
    ================  ====================  ======================================================
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segments: tuple[Segment, ...]
    kept: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    units: tuple[int, ...]
    positive: torch.Tensor
    scores: torch.Tensor


def pack(units: Sequence[Sequence[EncodedExample]], device: torch.device | str = "cpu") -> PackedRow:
    """Packs units of examples into one row."""
    import numpy as np
    import torch

    examples = [example for unit in units for example in unit]
    pieces, positions, kept, segments = [], [], [], []
    end = 0
    for unit in units:
        shared = _shared_tokens(unit)
        if shared:
            pieces.append(unit[0].ids[:shared])
            positions.append(np.arange(shared))
            end += shared
        own = [example.ids[shared:] for example in unit]
        lengths = [len(ids) for ids in own]
        segments += [(shared, *lengths)] if shared else [(length,) for length in lengths]
        for example, ids in zip(unit, own, strict=True):
            pieces.append(ids)
            positions.append(np.arange(shared, shared + len(ids)))
            # The logits at one position predict the token at the next.
            first = end - shared
            kept.append(np.arange(first + example.prompt_tokens - 1, first + len(example.ids) - 1))
            end += len(ids)
    targets = [example.ids[example.prompt_tokens :] for example in examples]

    def tensor(array) -> torch.Tensor:
        return torch.from_numpy(np.asarray(array)).long().to(device)

    return PackedRow(
        input_ids=tensor(np.concatenate(pieces))[None],
        position_ids=tensor(np.concatenate(positions))[None],
        segments=tuple(segments),
        kept=tensor(np.concatenate(kept)),
        targets=tensor(np.concatenate(targets)),
        weights=torch.tensor(
            [example.token_weight for example in examples for _ in range(example.completion_tokens)], device=device
        ),
        units=tuple(len(unit) for unit in units),
        positive=torch.tensor([example.label is True for example in examples], device=device),
        scores=torch.tensor(
            [math.nan if example.score is None else example.score for example in examples], device=device
        ),
    )


def packed_tokens(unit: Sequence[EncodedExample]) -> int:
    """The tokens of a unit in a packed row."""
    return sum(len(example.ids) for example in unit) - (len(unit) - 1) * _shared_tokens(unit)


def _shared_tokens(unit: Sequence[EncodedExample]) -> int:
    """The number of tokens with which every example of a unit begins, short of what its loss is computed from; 0 for
    a single example."""
    if len(unit) == 1:
        return 0
    longest = min(example.prompt_tokens - 1 for example in unit)
    first = unit[0].ids[:longest]
    for example in unit[1:]:
        differs = (first != example.ids[: len(first)]).nonzero()[0]
        first = first[: differs[0]] if len(differs) else first
    return len(first)
