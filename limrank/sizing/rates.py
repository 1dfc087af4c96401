"""How fast a device is: measured, given, or estimated from its published peak."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from limrank import models
from limrank.config import ModelConfig
from limrank.dtypes import auto_dtype
from limrank.errors import UserError


@dataclass(frozen=True)
class Rates:
    """What one engine, or one training worker, does in a second.

    Args:
        device: what it runs on, in words.
        source: where the figures are from; where they are an estimate, of what.
        measured: whether they were measured on this device with a model of this size.
        prefill: prompt tokens that are not cached.
        decode: generated tokens of all requests together, without the first of each.
        train: tokens of training, forward and backward.
        startup_s: from an engine's start to its first request.
        setup_s: what a job takes besides: Ray's start, planning, its outputs.
        chunk_s: of the driver for a chunk, while the engines work.
        chain: tokens of a chain; None: as many as it may have.
    """

    device: str
    source: str
    measured: bool
    prefill: float | None = None
    decode: float | None = None
    train: float | None = None
    startup_s: float = 0.0
    setup_s: float = 0.0
    chunk_s: float = 0.0075  # benchmarks/scale_sim.txt
    chain: float | None = None


KEYS = tuple(field.name for field in fields(Rates) if field.name not in ("device", "source", "measured"))


@dataclass(frozen=True)
class Device:
    """An accelerator by its maker's data sheet: dense bfloat16 operations a second, bytes of memory a second."""

    flops: float
    bandwidth: float


# float16 for the T4, which has no bfloat16.
DEVICES = {
    "B200": Device(2250e12, 8.0e12),
    "H200": Device(989e12, 4.8e12),
    "H100": Device(989e12, 3.35e12),
    "A100": Device(312e12, 2.0e12),
    "L40S": Device(362e12, 0.864e12),
    "A10G": Device(70e12, 0.6e12),
    "L4": Device(121e12, 0.3e12),
    "T4": Device(65e12, 0.32e12),
}

SHARE_OF_PEAK = {"prefill": 0.4, "decode": 0.6, "train": 0.3}
"""What is taken of a peak that nobody measured. Decoding is bound by the bandwidth, the others by the operations."""

_BATCH = 128
"""Requests that decode at a time."""

_GPU_START_S = 120.0
_GPU_SETUP_S = 30.0


def parse_gpus(text: str) -> tuple[str, int]:
    """``H100:8`` → the device and how many. Raises UserError for an unknown one."""
    name, _, number = text.partition(":")
    if name.upper() not in DEVICES:
        raise UserError(f"--gpus {text}: is none of {', '.join(DEVICES)}, as in H100:8")
    if number and not (number.isdecimal() and int(number) > 0):
        raise UserError(f"--gpus {text}: {number!r} is no number of GPUs, as in H100:8")
    return name.upper(), int(number or 1)


def parse_rates(given: Sequence[str]) -> dict[str, float]:
    """``KEY=VALUE`` → numbers. Raises UserError for an unknown key or a value that is no number above 0; a time may be 0."""
    found = {}
    for text in given:
        key, _, value = text.partition("=")
        if key not in (*KEYS, "parameters"):
            raise UserError(f"--rate {text}: {key} is none of {', '.join(KEYS)}, parameters")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        is_time = key.endswith("_s")
        if not (math.isfinite(number) and (number >= 0 if is_time else number > 0)):
            raise UserError(f"--rate {text}: should be {key}= and a number {'of seconds' if is_time else 'above 0'}")
        found[key] = number
    return found


def with_given(rates: Rates, given: Mapping[str, float]) -> Rates:
    """The rates with those that a person gave."""
    known: dict[str, Any] = {key: value for key, value in given.items() if key in KEYS}
    if not known:
        return rates
    return replace(rates, **known, source=f"{rates.source}; given: {', '.join(sorted(known))}")


def shared(rates: Rates, engines: int) -> Rates:
    """The rates of each of so many engines, where all of them together have these."""
    whole = {key: getattr(rates, key) for key in ("prefill", "decode", "train")}
    return replace(rates, **{key: rate / engines for key, rate in whole.items() if rate is not None})


def this_processor() -> tuple[str, int]:
    """The processor's name and the cores that this process may use."""
    name = platform.processor() or platform.machine()
    if (described := Path("/proc/cpuinfo")).exists():
        lines = described.read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return name, cores


@cache
def measured() -> list[dict[str, Any]]:
    """The measured rates that limrank comes with."""
    return json.loads(files("limrank.sizing").joinpath("rates.json").read_text(encoding="utf-8"))


def local_rates(model: ModelConfig, given: Mapping[str, float] | None = None) -> Rates:
    """This machine's rates without a GPU: measured on such a processor, or scaled to its cores and the model's size.

    Raises:
        UserError: the model's size is not known.
    """
    name, cores = this_processor()
    dtype = auto_dtype("cpu") if model.dtype == "auto" else model.dtype
    entries = [each for each in measured() if each["dtype"] == dtype] or measured()
    entry = next((each for each in entries if (each["processor"], each["cores"]) == (name, cores)), entries[0])
    size = parameters(model, given)
    same_size = abs(size / entry["parameters"] - 1) < 0.1
    same = (entry["processor"], entry["cores"], entry["dtype"]) == (name, cores, dtype)
    factor = cores / entry["cores"] * (1.0 if same_size else entry["parameters"] / size)
    scaled = {key: entry[key] * factor for key in ("prefill", "decode", "train") if entry.get(key)}
    times = {key: entry[key] for key in ("startup_s", "setup_s", "chunk_s") if key in entry}
    source = entry["source"] if same and same_size else f"not measured: scaled from {entry['device']}, {entry['dtype']}"
    return Rates(f"{name}, {cores} cores", source, same and same_size, **scaled, **times)


def device_rates(name: str, model: ModelConfig, tensor_parallel: int, lora: bool, given: Mapping[str, float]) -> Rates:
    """An accelerator's rates, estimated from its peak, for an engine over ``tensor_parallel`` of them.

    A token takes 2 operations a parameter to read, and in training 6, or 4 where the weights are frozen (LoRA).
    A step of decoding reads all weights once for all requests.

    Raises:
        UserError: the model's size is not known.
    """
    device, size = DEVICES[name], parameters(model, given)
    flops, bandwidth = device.flops * tensor_parallel, device.bandwidth * tensor_parallel
    prefill = SHARE_OF_PEAK["prefill"] * flops / (2 * size)
    step_s = max(2 * size / (SHARE_OF_PEAK["decode"] * bandwidth), _BATCH / prefill)
    shares = ", ".join(f"{share:.0%} ({what})" for what, share in SHARE_OF_PEAK.items())
    return Rates(
        f"{name}",
        f"not measured: an estimate from {device.flops / 1e12:.0f} TFLOP/s and {device.bandwidth / 1e12:g} TB/s of the "
        f"data sheet, of which {shares} are taken",
        False,
        prefill=prefill,
        decode=_BATCH / step_s,
        train=SHARE_OF_PEAK["train"] * device.flops / ((4 if lora else 6) * size),
        startup_s=_GPU_START_S,
        setup_s=_GPU_SETUP_S,
    )


def parameters(model: ModelConfig, given: Mapping[str, float] | None = None) -> float:
    """The number of a model's parameters.

    Raises:
        UserError: it is neither given nor known here.
    """
    if given and "parameters" in given:
        return given["parameters"]
    try:
        if known := models.parameters(model.id):
            return known
        shape = models.text_config(model.id)
    except UserError as error:
        raise UserError(f"model {model.id}: its size is not known ({error}): give --rate parameters=7.6e9") from error
    attention = 2 * shape.hidden_size * (shape.hidden_size + _key_values(shape))
    layer = attention + 3 * shape.hidden_size * shape.intermediate_size
    return shape.num_hidden_layers * layer + 2 * shape.vocab_size * shape.hidden_size


def _key_values(shape: Any) -> int:
    """The width of keys and of values."""
    heads = shape.num_attention_heads
    return shape.hidden_size // heads * (getattr(shape, "num_key_value_heads", None) or heads)


def as_values(rates: Rates) -> dict[str, Any]:
    return {key: value for key, value in asdict(rates).items() if value is not None}
