"""What training takes of a worker's memory, told before it starts.

Five parts: the process itself; the weights; of what is trained the gradient and AdamW's two
moments, float32 each; what the forward pass keeps for the backward one of the largest row; and
that row's logits. Measured on a CPU (SmolLM2-135M, rows of 2,048 tokens) the peak was between
0.7 and 1.0 of the sum in full fine-tuning, and 1.4 of it with LoRA, whose allocations split the heap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limrank import models
from limrank.config import TrainingConfig, TrainJob
from limrank.dtypes import auto_dtype, local_device
from limrank.training.forward import training_units

if TYPE_CHECKING:
    from limrank.training.examples import EncodedExample

_FLOAT = 4
_EMBEDDINGS = ("embed_tokens", "lm_head")
_PROCESS = 3 << 28
"""Python, torch and Ray: three quarters of a GiB."""
_LOGIT_COPIES = 4
"""The logits, as float32, the softmax of them and the gradients of both."""


@dataclass(frozen=True)
class Row:
    """The most that one forward pass can be given: ``tokens``, of which ``kept`` have logits."""

    tokens: int
    kept: int


def largest_row(config: TrainJob, examples: Sequence[EncodedExample]) -> Row:
    """The row of the longest units that fit into a batch."""
    units = training_units(examples, config.training.objective)
    sizes = sorted((sum(len(examples[index].ids) for index in unit), unit) for unit in units)
    chosen = sizes[-config.training.batch_size :]
    kept = sum(examples[index].completion_tokens for _, unit in chosen for index in unit)
    return Row(sum(tokens for tokens, _ in chosen), kept)


def training_bytes(config: TrainJob, row: Row) -> int:
    """Bytes that one worker takes at its peak, roughly; 0 where the model's weights
    are not on this machine. Weights that are to lie in parts (``sharding: full``) are counted
    whole, as they are when they are loaded; what is trained of them the first worker also
    gathers whole for a checkpoint, with the two moments.

    What a layer keeps is counted as a Llama's: of each token the inputs of its two norms and
    seven projections, in the shape of its config.
    """
    training = config.training
    shapes = models.shapes(config.model.id)
    if not shapes:
        return 0
    shape = models.text_config(config.model.id)
    weights = sum(map(math.prod, shapes.values()))
    trained = weights if training.method == "full" else _adapter(shapes, training)
    # Of auto: as on this machine, by which the workers' can only be guessed.
    dtype = auto_dtype(local_device(), training=True) if config.model.dtype == "auto" else config.model.dtype
    held = 2 if training.method == "lora" and dtype == "bfloat16" else _FLOAT
    a_layer = row.tokens * (10 * shape.hidden_size + 4 * shape.intermediate_size)
    if training.gradient_checkpointing:
        # Each layer's input, and one layer's insides at a time.
        kept = shape.num_hidden_layers * row.tokens * shape.hidden_size + a_layer
    else:
        kept = shape.num_hidden_layers * a_layer
    logits = _LOGIT_COPIES * row.kept * shape.vocab_size
    adapter = 0 if training.method == "full" else trained
    return _PROCESS + weights * held + _FLOAT * (adapter + 3 * trained + kept + logits)


def _adapter(shapes: dict[str, tuple[int, ...]], training: TrainingConfig) -> int:
    """Parameters of an adapter on the linear layers that get one, and of the embeddings where they are trained."""
    layers = {name: shape for name, shape in shapes.items() if len(shape) == 2 and ".layers." in name}
    targets = training.lora_targets or {_layer(name) for name in layers}
    ranks = sum(training.lora_rank * sum(shape) for name, shape in layers.items() if _layer(name) in targets)
    embeddings = sum(
        math.prod(shape) for name, shape in shapes.items() if len(shape) == 2 and _layer(name) in _EMBEDDINGS
    )
    return ranks + (embeddings if training.lora_embeddings == "all" else 0)


def _layer(weight: str) -> str:
    """``q_proj`` of ``model.layers.0.self_attn.q_proj.weight``."""
    return weight.split(".")[-2]
