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
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each segment of one row.

    Args:
        query: (1, heads, tokens, head size); ``key`` and ``value`` may have fewer heads.
        segments: the length of each sequence of the row, in order; they add up to ``tokens``.
            None: the row is one sequence.

    Returns:
        (1, tokens, heads, head size), and None for weights, which are not kept.

    Raises:
        UserError: the model looks at a window only, and a sequence is longer than it.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    segments = segments or (query.shape[2],)
    if sliding_window is not None and max(segments) > sliding_window:
        raise UserError(
            f"an example of {max(segments)} tokens is longer than the model's attention window of {sliding_window}: "
            "set training.cutoff_tokens to that"
        )
    grouped = query.shape[1] != key.shape[1]
    parts = zip(*(each.split(list(segments), dim=2) for each in (query, key, value)), strict=True)
    outputs = [
        scaled_dot_product_attention(*part, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=grouped)
        for part in parts
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None
