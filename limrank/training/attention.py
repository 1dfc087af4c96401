"""Attention over packed rows: several sequences lie in one row, one after another, and each attends
only to itself, or also to a beginning that it shares with its neighbours. Causal attention runs once for each
sequence, through transformers' interface for attention functions: without padding and without wasted work.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from limrank.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

_TOLERANCE = 1e-3
"""The largest difference that counts as rounding, as a share of the largest logit. In float32 rounding
makes less than 1e-5; the smallest difference of an unsupported model was a third."""

_UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""Arguments of transformers' attention functions that change the result, and that this one ignores."""

Segment = tuple[int, ...]
"""The length of a sequence; or that of the beginning that several sequences share, which lies in the row once, and
then of what follows it in each of them."""

PACKED = "limrank_packed"
"""The name of :func:`packed_attention` in a model's ``attn_implementation``."""


def register() -> None:
    """Register :data:`PACKED` with transformers. It has no mask function, so no mask is made."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Sequence[Segment] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence of one row.

    A sliding window is assumed to be longer than any sequence: see :func:`check_length`.

    Args:
        query: (1, heads, tokens, head size); ``key`` and ``value`` may have fewer heads.
        segments: of the row, in order; their lengths add up to ``tokens``. None: the row is one sequence.

    Returns:
        (1, tokens, heads, head size), and None for the weights, which are not kept.

    Raises:
        UserError: the model's attention has soft caps, sinks or a position bias.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if has := [name for name in _UNSUPPORTED if other.get(name) is not None]:
        kind = module.config.model_type
        raise UserError(f"model {kind}: its attention has {', '.join(has)}: limrank cannot train models of this kind")
    segments = segments or ((query.shape[2],),)
    options = {"scale": scaling, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}
    lengths = [length for segment in segments for length in segment]
    pieces = list(zip(*(each.split(lengths, dim=2) for each in (query, key, value)), strict=True))
    firsts = [0, *accumulate(map(len, segments))]
    outputs = []
    for segment, first in zip(segments, firsts, strict=False):
        shared_query, shared_key, shared_value = pieces[first]
        outputs.append(scaled_dot_product_attention(shared_query, shared_key, shared_value, is_causal=True, **options))
        for own_query, own_key, own_value in pieces[first + 1 : first + len(segment)]:
            length = own_query.shape[2]
            before = torch.ones(length, segment[0], dtype=torch.bool, device=query.device)
            causal = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
            outputs.append(
                scaled_dot_product_attention(
                    own_query,
                    torch.cat((shared_key, own_key), dim=2),
                    torch.cat((shared_value, own_value), dim=2),
                    attn_mask=torch.cat((before, causal), dim=1),
                    **options,
                )
            )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def check_length(shape: PretrainedConfig, longest: int) -> None:
    """Check that a model of this text config takes sequences of ``longest`` tokens.

    Raises:
        UserError: they are longer than its context, or than its attention window.
    """
    for name, what in (("max_position_embeddings", "context"), ("sliding_window", "attention window")):
        limit = getattr(shape, name, None)
        if limit is not None and longest > limit:
            raise UserError(
                f"an example of {longest} tokens is longer than the model's {what} of {limit}: "
                f"set training.cutoff_tokens={limit}"
            )


def check_packing(model: PreTrainedModel) -> None:
    """Check that a model's logits for packed sequences, two of which share their beginning, are those of separate
    ones with its own attention.

    They differ if layers carry a state from token to token, if the attention has sinks or caps, or if
    the model does not pass on the segments. This depends only on the architecture, so the check takes
    one layer of each kind, with random weights, in float32: in bfloat16 rounding alone moves a logit
    by several percent, depending on the processor.

    Raises:
        UserError: they differ.
    """
    import torch

    segments = ((7,), (5, 4, 6))
    few = _few_layers(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in few.parameters():
            if weight.dim() > 1:  # untrained weights may be too small to make a difference visible
                weight.normal_(std=weight[0].numel() ** -0.5, generator=generator)
    first, shared, *ends = torch.randint(few.config.get_text_config().vocab_size, (22,), generator=generator).split(
        [length for segment in segments for length in segment]
    )
    row = torch.cat((first, shared, *ends))[None]
    positions = torch.cat([torch.arange(7), torch.arange(5), torch.arange(5, 9), torch.arange(5, 11)])[None]
    sequences = [first, *(torch.cat((shared, end)) for end in ends)]
    # A caller's autocast would round in bfloat16.
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        packed = few(input_ids=row, position_ids=positions, segments=segments, use_cache=False).logits[0]
        few.set_attn_implementation("eager")
        alone = [few(input_ids=each[None], use_cache=False).logits[0] for each in sequences]
    separate = torch.cat((alone[0], alone[1], alone[2][5:]))
    difference = (packed - separate).abs().max().item()
    if not difference <= _TOLERANCE * separate.abs().max().item():
        raise UserError(
            f"model {model.config.model_type}: its logits in a packed row differ from those of separate rows by {difference:.3g}: "
            "limrank cannot train models of this kind"
        )


def _few_layers(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in float32 on the CPU with the first layer of each kind, at least two layers: the second
    sees what the first one mixes. The model itself is unchanged afterwards."""
    from torch.nn import ModuleList

    shape = model.config.get_text_config()
    count = shape.num_hidden_layers
    owner, name, layers = next(
        (owner, name, child)
        for owner in model.modules()
        for name, child in owner.named_children()
        if isinstance(child, ModuleList) and len(child) == count
    )
    kept = _one_of_each_kind(layers, getattr(shape, "layer_types", None) or [""] * count)
    # Only these layers are copied, so that a large model is not in memory twice.
    setattr(owner, name, ModuleList(layers[index] for index in kept))
    try:
        few = copy.deepcopy(model)
    finally:
        setattr(owner, name, layers)
    shape = few.config.get_text_config()
    for key, value in vars(shape).items():
        if isinstance(value, (list, tuple)) and len(value) == count:
            setattr(shape, key, [value[index] for index in kept])
    shape.num_hidden_layers = len(kept)
    return few.cpu().float().eval()


def _one_of_each_kind(layers: Sequence[nn.Module], types: Sequence[str]) -> list[int]:
    """The indices of the layers to check, in their order."""
    kinds: dict[tuple[str, ...], int] = {}
    for index, (layer, name) in enumerate(zip(layers, types, strict=True)):
        kinds.setdefault((name, *(type(module).__name__ for module in layer.modules())), index)
    return sorted({*kinds.values(), *range(min(2, len(layers)))})
