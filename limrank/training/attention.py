"""Attention over packed sequences: several examples lie in one row, one after another, and
each sees itself and nothing of its neighbours. No mask, no padding, no work that is thrown
away: a causal attention a sequence, through transformers' interface for attention functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from limrank.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

_ALIKE = 0.05
"""Of the largest logit, what rounding may make of it, in bfloat16 too. Of models that do not
fit the smallest difference seen was a third of it."""

PACKED = "limrank_packed"
"""The name of :func:`packed_attention` in a model's ``attn_implementation``."""


def register() -> None:
    """Make :data:`PACKED` known to transformers. It has no mask function, so no mask is made."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Sequence[int] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each segment of one row.

    Args:
        query: (1, heads, tokens, head size); ``key`` and ``value`` may have fewer heads.
        segments: the length of each sequence of the row, in order; they add up to ``tokens``.
            None: the row is one sequence.

    Returns:
        (1, tokens, heads, head size), and None for weights, which are not kept.

    A window, that some models look through, is taken to be longer than any sequence:
    :func:`check_length`.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    segments = segments or (query.shape[2],)
    grouped = query.shape[1] != key.shape[1]
    parts = zip(*(each.split(list(segments), dim=2) for each in (query, key, value)), strict=True)
    outputs = [
        scaled_dot_product_attention(*part, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=grouped)
        for part in parts
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def check_length(shape: PretrainedConfig, longest: int) -> None:
    """Look whether a model of this text config was made for sequences of so many tokens.

    Raises:
        UserError: they are longer than its context, or than a window that its attention looks through.
    """
    for name, what in (("max_position_embeddings", "context"), ("sliding_window", "attention window")):
        limit = getattr(shape, name, None)
        if limit is not None and longest > limit:
            raise UserError(
                f"an example of {longest} tokens is longer than the model's {what} of {limit}: "
                f"set training.cutoff_tokens={limit}"
            )


def check_packing(model: PreTrainedModel, mixed_precision: bool = False) -> None:
    """Look whether a model computes the same in a packed row as by itself, in its own attention.

    Many do; one whose layers carry a state from token to token, whose attention has sinks or
    caps, or which does not hand on what says where a sequence ends, does not.

    Args:
        mixed_precision: as it is trained: compute in bfloat16 where autocast deems it safe.

    Raises:
        UserError: it does not.
    """
    import torch

    lengths = (7, 5, 9)
    ids = torch.randint(
        model.config.get_text_config().vocab_size, (1, sum(lengths)), generator=torch.Generator().manual_seed(0)
    )
    ids = ids.to(model.device)
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(model.device)
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=mixed_precision):
        packed = model(input_ids=ids, position_ids=positions, segments=lengths, use_cache=False).logits[0].float()
        model.set_attn_implementation("eager")
        alone = [model(input_ids=part, use_cache=False).logits[0].float() for part in ids.split(lengths, dim=1)]
        model.set_attn_implementation(PACKED)
    model.train(was_training)
    own = torch.cat(alone)
    difference = (packed - own).abs().max().item()
    if not difference <= _ALIKE * own.abs().max().item():
        raise UserError(
            f"model {model.config.model_type}: its logits in a packed row differ from those by itself by {difference:.3g}: "
            "limrank cannot train models of this kind"
        )
