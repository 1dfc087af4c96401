"""Estimates a training worker's memory before it starts.

The estimate is a sum of five terms: the process itself; the weights; the gradient and AdamW's two
moments of the trained parameters, in float32; the activations of the largest row; the logits of that
row. Measured on a CPU (SmolLM2-135M, rows of 2,048 tokens), the peak was 0.7 to 1.0 of the estimate
in full fine-tuning, and 1.4 of it with LoRA, whose allocations fragment the heap. So do rows whose
lengths vary: 500 steps of two lists of eight passages ended at 1.25 of the estimate. One arena for all threads
does not help, and without a heap (``MALLOC_MMAP_THRESHOLD_``) a step takes 1.4 times as long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limrank import models
from limrank.config import TrainingConfig, TrainJob
from limrank.dtypes import auto_dtype, local_device
from limrank.training.batches import packed_tokens
from limrank.training.forward import training_units

if TYPE_CHECKING:
    from limrank.training.examples import EncodedExample

_FLOAT = 4
_EMBEDDINGS = ("embed_tokens", "lm_head")
_PROCESS = 3 << 28
"""Python, torch and Ray: three quarters of a GiB."""
_LOGIT_COPIES = 4
"""The logits in float32, their softmax, and the gradients of both."""


@dataclass(frozen=True)
class Row:
    """The largest row of a forward pass: ``tokens``, of which ``kept`` have logits."""

    tokens: int
    kept: int


def largest_row(config: TrainJob, examples: Sequence[EncodedExample]) -> Row:
    """The row of a batch of the longest units."""
    units = training_units(examples, config.training.objective)
    sizes = sorted((packed_tokens([examples[index] for index in unit]), unit) for unit in units)
    chosen = sizes[-config.training.batch_size :]
    kept = sum(examples[index].completion_tokens for _, unit in chosen for index in unit)
    return Row(sum(tokens for tokens, _ in chosen), kept)


def training_bytes(config: TrainJob, row: Row) -> int:
    """Estimated peak memory of one worker in bytes; 0 if the model's weights are not on this machine.

    Sharded weights (``sharding: full``) are counted unsharded, as they are when they are loaded; the
    first worker also gathers the trained parameters and their two moments unsharded for a checkpoint.

    The activations of a layer are counted as a Llama's: for each token the inputs of its two norms and
    seven projections, in the shape of the model's config.
    """
    training = config.training
    shapes = models.shapes(config.model.id)
    if not shapes:
        return 0
    shape = models.text_config(config.model.id)
    weights = sum(map(math.prod, shapes.values()))
    trained = weights if training.method == "full" else _adapter(shapes, training)
    # auto: the dtype of this machine is a guess for that of the workers.
    dtype = auto_dtype(local_device(), training=True) if config.model.dtype == "auto" else config.model.dtype
    held = 2 if training.method == "lora" and dtype == "bfloat16" else _FLOAT
    a_layer = row.tokens * (10 * shape.hidden_size + 4 * shape.intermediate_size)
    if training.gradient_checkpointing:
        # The input of each layer, and the activations of one layer at a time.
        kept = shape.num_hidden_layers * row.tokens * shape.hidden_size + a_layer
    else:
        kept = shape.num_hidden_layers * a_layer
    logits = _LOGIT_COPIES * row.kept * shape.vocab_size
    adapter = 0 if training.method == "full" else trained
    return _PROCESS + weights * held + _FLOAT * (adapter + 3 * trained + kept + logits)


def _adapter(shapes: dict[str, tuple[int, ...]], training: TrainingConfig) -> int:
    """Parameters of the adapter, and of the embeddings if they are trained."""
    layers = {name: shape for name, shape in shapes.items() if len(shape) == 2 and ".layers." in name}
    targets = training.lora_targets or {_layer(name) for name in layers}
    ranks = sum(training.lora_rank * sum(shape) for name, shape in layers.items() if _layer(name) in targets)
    embeddings = sum(
        math.prod(shape) for name, shape in shapes.items() if len(shape) == 2 and _layer(name) in _EMBEDDINGS
    )
    return ranks + (embeddings if training.lora_embeddings == "all" else 0)


def _layer(weight: str) -> str:
    """``model.layers.0.self_attn.q_proj.weight`` → ``q_proj``."""
    return weight.split(".")[-2]
