"""Attention over packed sequences: several examples lie in one row, one after another, and
each sees itself and nothing of its neighbours. No mask, no padding, no work that is thrown
away: a causal attention a sequence, through transformers' interface for attention functions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from limrank.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

_ALIKE = 1e-3
"""Of the largest logit, what rounding may make of it. In float32 it makes less than 1e-5 of it,
of models that do not fit the smallest difference seen was a third."""

_CANNOT = ("softcap", "s_aux", "position_bias")
"""What transformers hands to an attention function that changes its result, and ours leaves out."""

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
    **other: Any,
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

    Raises:
        UserError: the model's attention has caps or sinks, which this one has not.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if has := [name for name in _CANNOT if other.get(name) is not None]:
        kind = module.config.model_type
        raise UserError(f"model {kind}: its attention has {', '.join(has)}: limrank cannot train models of this kind")
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


def check_packing(model: PreTrainedModel) -> None:
    """Look whether a model computes the same in a packed row as by itself, in its own attention.

    Many do; one whose layers carry a state from token to token, whose attention has sinks or
    caps, or which does not hand on what says where a sequence ends, does not. It is a matter of
    the architecture, so a few layers are looked at, of each kind one, with drawn weights, in float32: in bfloat16
    rounding alone moves a logit by several percent, on one processor more than on another.

    Raises:
        UserError: it does not.
    """
    import torch

    lengths = (7, 5, 9)
    few = _few_layers(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in few.parameters():
            if weight.dim() > 1:  # so that no part's share is too small to be seen, as of weights before training
                weight.normal_(std=weight[0].numel() ** -0.5, generator=generator)
    ids = torch.randint(few.config.get_text_config().vocab_size, (1, sum(lengths)), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    # A caller's autocast would round it all the same.
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        packed = few(input_ids=ids, position_ids=positions, segments=lengths, use_cache=False).logits[0]
        few.set_attn_implementation("eager")
        own = torch.cat([few(input_ids=part, use_cache=False).logits[0] for part in ids.split(lengths, dim=1)])
    difference = (packed - own).abs().max().item()
    if not difference <= _ALIKE * own.abs().max().item():
        raise UserError(
            f"model {model.config.model_type}: its logits in a packed row differ from those by itself by {difference:.3g}: "
            "limrank cannot train models of this kind"
        )


def _few_layers(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in float32, on the CPU, with the first layer of each kind, and two layers at least:
    what one layer mixes, the next one sees. The model is as it was afterwards."""
    from torch.nn import ModuleList

    shape = model.config.get_text_config()
    count = shape.num_hidden_layers
    owner, name, layers = next(
        (owner, name, part)
        for owner in model.modules()
        for name, part in owner.named_children()
        if isinstance(part, ModuleList) and len(part) == count
    )
    kept = _one_of_each_kind(layers, getattr(shape, "layer_types", None) or [""] * count)
    # The other layers are no part of the copy: a large model need not be in memory twice.
    setattr(owner, name, ModuleList(layers[place] for place in kept))
    try:
        few = copy.deepcopy(model)
    finally:
        setattr(owner, name, layers)
    shape = few.config.get_text_config()
    for key, value in vars(shape).items():
        if isinstance(value, (list, tuple)) and len(value) == count:
            setattr(shape, key, [value[place] for place in kept])
    shape.num_hidden_layers = len(kept)
    return few.cpu().float().eval()


def _one_of_each_kind(layers: Sequence[nn.Module], types: Sequence[str]) -> list[int]:
    """The places of the layers to look at, in their order."""
    kinds: dict[tuple[str, ...], int] = {}
    for place, (layer, name) in enumerate(zip(layers, types, strict=True)):
        kinds.setdefault((name, *(type(part).__name__ for part in layer.modules())), place)
    return sorted({*kinds.values(), *range(min(2, len(layers)))})
