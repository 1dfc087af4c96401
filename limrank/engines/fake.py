"""A deterministic engine without a model, for tests of faults and scale.

Its answers mean nothing, and no figure from it is a model's. Each answer depends only on the
request (and on its seed where the temperature is above 0), so two runs can be compared exactly.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import random
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Unpack

from limrank.config import EngineConfig, ModelConfig
from limrank.engines.base import (
    DEFAULT_IN_FLIGHT,
    Generation,
    Limits,
    Prompt,
    RequestLimiter,
    Sampling,
    SamplingOptions,
    label_token_ids,
    record_usage,
)
from limrank.errors import EngineError, RowError

_WORDS = [
    "the",
    "need",
    "is",
    "met",
    "when",
    "a",
    "section",
    "says",
    "how",
    "it",
    "works",
    "and",
    "why",
    "it",
    "holds",
    "for",
    "this",
    "case",
]


class ByteTokenizer:
    """UTF-8 bytes as tokens, and one token each for the labels and the marks of a chain."""

    extra = (" true", " false", "<think>", "</think>")
    _pieces = (*(bytes([byte]) for byte in range(256)), *(text.encode() for text in extra))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        if text in self.extra:
            return [256 + self.extra.index(text)]
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self._pieces.__getitem__, ids)).decode(errors="replace")

    def get_added_vocab(self) -> dict[str, int]:
        return {text: 256 + i for i, text in enumerate(self.extra[2:], start=2)}


class FakeEngine:
    def __init__(self, model: ModelConfig, engine: EngineConfig) -> None:
        self.tokenizer = ByteTokenizer()
        self.limits = Limits(model.max_model_len or 32768, engine.max_in_flight or DEFAULT_IN_FLIGHT)
        self._fault = engine.fault
        self.limiter = RequestLimiter(self.limits.in_flight)
        self._process = _EngineProcess() if engine.fault.own_process else None
        time.sleep(engine.fault.start_s)
        if engine.fault.fail_start:
            raise EngineError("the fake engine did not start (engine.fault.fail_start)")

    async def generate(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> Generation:
        sampling = Sampling(**options)
        text, length = await self._answer(prompt, sampling.max_tokens)
        rng = random.Random(_digest(f"{text}\0{sampling.seed}" if sampling.temperature else text))
        if sampling.schema is not None:
            answer, finish = json.dumps(_instance(sampling.schema, rng)), "stop"
        else:
            words = [rng.choice(_WORDS) for _ in range(min(sampling.max_tokens, 24))]
            answer, finish = " ".join(words) + ".", "stop" if sampling.max_tokens > 24 else "length"
        ends = [(end, text) for text in sampling.stop if (end := answer.find(text)) >= 0]
        stopped_by = None
        if ends:
            end, stopped_by = min(ends)
            answer, finish = answer[:end], "stop"
        elif sampling.stop and finish == "stop":
            stopped_by = sampling.stop[0]  # the fake model would write it next
        generated = len(answer.split())
        record_usage(length, 0, generated)
        ids = self.tokenizer.encode(answer) + (self.tokenizer.encode(stopped_by) if stopped_by else [])
        return Generation(answer, finish, length, 0, generated, stop=stopped_by, ids=tuple(ids))

    async def stream(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> AsyncIterator[str]:
        answer = await self.generate(prompt, **options)
        for piece in re.findall(r" *[^ ]+| +", answer.text):
            yield piece
            await asyncio.sleep(0)

    async def label_logprobs(self, prompt: Prompt, labels: Sequence[str]) -> dict[str, float]:
        label_token_ids(self.tokenizer, labels)
        text, length = await self._answer(prompt, 1)
        shares = [int.from_bytes(_digest(f"{text}\0{label}")[:4]) + 1 for label in labels]
        record_usage(length, 0, 1)
        # The rest of the vocabulary has a tenth of the mass, as in a real model.
        return {label: math.log(0.9 * share / sum(shares)) for label, share in zip(labels, shares, strict=True)}

    async def aclose(self) -> None:
        if self._process is not None:
            self._process.close()

    async def _answer(self, prompt: Prompt, max_tokens: int) -> tuple[str, int]:
        text = _text(prompt, self.tokenizer)
        length = len(prompt) if prompt and isinstance(prompt[0], int) else len(text.encode())
        if length + max_tokens > self.limits.context:
            raise RowError(f"{length} prompt tokens and {max_tokens} more exceed the context of {self.limits.context}")
        async with self.limiter:
            if self._process is not None:
                await self._process.work(self._fault.latency_ms / 1000)
            elif self._fault.latency_ms:
                await asyncio.sleep(self._fault.latency_ms / 1000)
        if self._fault.poison and self._fault.poison in text:
            raise EngineError("the fake engine was poisoned")
        if self._fault.fail_rate:
            share = int.from_bytes(_digest(text)[:4]) / 2**32
            if share < self._fault.fail_rate:
                raise RowError("the fake engine failed this request (engine.fault.fail_rate)")
        return text, length


class _EngineProcess:
    """A second process, like vLLM's core: it ends when ours does, and the engine ends when it does.

    Each process holds one end of two pipes. The ends of a process close when it ends, whatever
    ends it, so each process notices when the other one is gone.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", "import sys; sys.stdin.read()", "limrank-fake-engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._crashed = asyncio.Event()

    async def work(self, seconds: float) -> None:
        """Take ``seconds``. Raises EngineError as soon as the process has ended."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._process.stdout, self._on_crash)
        if self._process.poll() is None:
            try:
                await asyncio.wait_for(self._crashed.wait(), seconds)
            except TimeoutError:
                return
        raise EngineError(f"the fake engine's process {self._process.pid} crashed")

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._process.stdout)
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _on_crash(self) -> None:
        self._loop.remove_reader(self._process.stdout)
        self._crashed.set()


def _text(prompt: Prompt, tokenizer: ByteTokenizer) -> str:
    if isinstance(prompt, str):
        return prompt
    if prompt and isinstance(prompt[0], dict):
        return "\n".join(message["content"] for message in prompt)
    return tokenizer.decode(prompt)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _instance(schema: dict[str, Any], rng: random.Random) -> Any:
    """A value of a JSON schema. Only the keywords of limrank's own schemas are known."""
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        return {name: _instance(below, rng) for name, below in schema["properties"].items()}
    if kind == "array":
        return [_instance(schema["items"], rng) for _ in range(schema.get("minItems", 1))]
    if kind == "boolean":
        return rng.random() < 0.5
    if kind in ("integer", "number"):
        return rng.randint(schema.get("minimum", 0), schema.get("maximum", 10))
    return " ".join(rng.choice(_WORDS) for _ in range(12))[: schema.get("maxLength")].rstrip()
