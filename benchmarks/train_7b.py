"""LoRA training of a 7B shape on one device: tokens/s, the share of what its matrix products
reach, and peak memory.

    python benchmarks/train_7b.py [--tokens 2500] [--batch 4] [--accumulation 2] [--steps 6]
                                  [--layers 28] [--hidden 3584] [--embeddings all] [--no-checkpointing]

The shape is Qwen2.5-7B's with random weights, in bfloat16; loop, adapter, embeddings, examples of
a forward pass, their length and gradient checkpointing (without it the layers would keep some 60
GB, by count) are those of jobs/recipes/paper-train.yaml, with fewer forward passes a step. Of
every example's ``tokens`` a quarter are the completion. The first two steps are not counted.

A frozen weight costs two products a token (forward, and backward for what lies before it), so
the arithmetic that training needs is four operations a weight and token, six where the weight is
trained itself (the output embeddings, of completions), and causal attention's. What
checkpointing computes again is not counted as useful, nor the adapter's own (2 %). The
device's rate is that of square bfloat16 products, measured here. On a CPU, give a small shape:
that shows that the script runs, no more.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import time
from importlib import metadata

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from limrank.config import TrainingConfig
from limrank.training import attention
from limrank.training.examples import EncodedExample
from limrank.training.loop import train, units_per_step
from limrank.training.model import make_trainable
from limrank.training.state import TrainState

VOCABULARY = 152_064
LEARNED = 151_665
"""Ids from here on are padding of the matrix; the two added tokens take the first."""
NOT_COUNTED = 2


def shape(layers: int, hidden: int) -> Qwen2Config:
    """Qwen2.5-7B's, or one of the same proportions."""
    heads = hidden // 128
    return Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 37 // 7,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 7),
        max_position_embeddings=32_768,
        tie_word_embeddings=False,
    )


def examples(count: int, tokens: int) -> list[EncodedExample]:
    draw = np.random.default_rng(1)
    completion = tokens // 4
    return [
        EncodedExample(
            line=place,
            ids=draw.integers(0, LEARNED, tokens, dtype=np.int32),
            prompt_tokens=tokens - completion,
            label=place % 2 == 0,
            query=(str(place),),
            truncated=False,
        )
        for place in range(count)
    ]


def needed_per_token(config: Qwen2Config, tokens: int, completion_share: float, trains_head: bool) -> float:
    """Floating-point operations that one token's forward and backward passes need."""
    size = config.hidden_size
    kv = config.num_key_value_heads * size // config.num_attention_heads
    layer = 2 * size * size + 2 * size * kv + 3 * size * config.intermediate_size
    head = (6 if trains_head else 4) * completion_share * size * config.vocab_size
    # Two products of (tokens / 2) × size a token and layer; backward takes twice the forward.
    attended = config.num_hidden_layers * 3 * 2 * 2 * (tokens / 2) * size
    return 4 * config.num_hidden_layers * layer + head + attended


def random_model(config: Qwen2Config, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """A model of this shape with limrank's packed attention, made on the device."""
    attention.register()
    torch.manual_seed(1)
    with device:
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention.PACKED, trust_remote_code=False
        )


def step_rates(
    model: PreTrainedModel, training: TrainingConfig, data: list[EncodedExample], device: torch.device
) -> list[float]:
    """Tokens a second of each step of an epoch over ``data``, printed as they come."""
    rates: list[float] = []

    def on_step(metrics: dict, over: bool) -> None:
        rates.append(metrics["tokens_per_second"])
        print(f"step {metrics['step']}: loss {metrics['loss']:.4f}, {rates[-1]:.1f} tokens/s", flush=True)

    train(
        TrainState(model, training, len(data) // units_per_step(training, 1)),
        data,
        training,
        seed=1,
        labels=(0, 1),
        device=device,
        mixed_precision=True,
        on_step=on_step,
    )
    return rates


def product_rate(device: torch.device, size: int) -> float:
    """Operations a second of bfloat16 products of square matrices; the median of ten."""
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    rates = []
    for _ in range(12):
        wait(device)
        began = time.perf_counter()
        one @ other
        wait(device)
        rates.append(2 * size**3 / (time.perf_counter() - began))
    return statistics.median(rates[2:])


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 2500), ("batch", 4), ("accumulation", 2), ("steps", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=3584)
    parser.add_argument("--embeddings", choices=("added", "all"), default="all")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    if given.steps <= NOT_COUNTED:
        parser.error(f"--steps: the first {NOT_COUNTED} are not counted")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "peft"))
    rate = product_rate(device, 8192 if device.type == "cuda" else 1024)
    print(f"{card}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}")
    print(f"square bfloat16 products: {rate / 1e12:.3g} TFLOP/s", flush=True)

    training = TrainingConfig(
        target="think",
        epochs=1,
        batch_size=given.batch,
        gradient_accumulation=given.accumulation,
        gradient_checkpointing=given.checkpointing,
        lora_embeddings=given.embeddings,
    )
    config = shape(given.layers, given.hidden)
    model = random_model(config, device)
    total = sum(each.numel() for each in model.parameters())
    model = make_trainable(model, training, added=[LEARNED, LEARNED + 1]).to(device)
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    print(
        f"{config.num_hidden_layers} layers of {config.hidden_size}: {total / 1e9:.2f} G parameters, {trained / 1e6:.1f} M "
        f"trained (LoRA {training.lora_rank}, {given.embeddings} embeddings); {given.steps} steps of "
        f"{given.accumulation} × {given.batch} examples of {given.tokens} tokens"
        f"{', gradient checkpointing' if given.checkpointing else ''}",
        flush=True,
    )
    rates = step_rates(model, training, examples(given.steps * units_per_step(training, 1), given.tokens), device)
    median = statistics.median(rates[NOT_COUNTED:])
    needed = needed_per_token(config, given.tokens, completion_share=0.25, trains_head=given.embeddings == "all")
    share = median * needed / rate
    print(f"{median:.1f} tokens/s, {share:.0%} of the measured rate, peak {peak_gib(device):.1f} GiB")


if __name__ == "__main__":
    main()
