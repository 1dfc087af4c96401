"""Engines behind one protocol: vLLM in this process, an endpoint, or a fake for tests.

A served reranker is a ``Judge`` instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from limrank import loops, models
from limrank.config import EngineConfig, ModelConfig
from limrank.engines.base import Engine, Generation, Judge, Limits, Prompt, ResourceRequest, Tokenizer, Usage, meter
from limrank.errors import UserError
from limrank.optional import extras_explained

__all__ = [
    "Engine",
    "EngineSource",
    "EngineSpec",
    "Generation",
    "Judge",
    "Limits",
    "Prompt",
    "Usage",
    "check_engine",
    "check_scorer",
    "load_tokenizer",
    "meter",
    "open_engine",
]


class EngineSource(ResourceRequest, Protocol):
    """Can be sent to another process and opened there as an engine."""

    @property
    def startup_timeout_s(self) -> float:
        """How long opening it may take."""

    def open(self) -> Engine | Judge: ...


@dataclass(frozen=True)
class EngineSpec:
    """An engine that is not open yet."""

    model: ModelConfig
    engine: EngineConfig = EngineConfig()
    tensor_parallel: int = 1

    @property
    def holds_model(self) -> bool:
        return self.engine.kind in ("vllm", "fake")

    @property
    def memory_bytes(self) -> int:
        if self.engine.kind != "vllm":
            return 0
        weights = models.parameters(self.model.id) * (2 if self.model.dtype in ("bfloat16", "float16") else 4)
        return weights + self.engine.kv_cache_gib * 2**30

    @property
    def startup_timeout_s(self) -> float:
        return self.engine.startup_timeout_s

    def open(self) -> Engine:
        return open_engine(self.model, self.engine, tensor_parallel=self.tensor_parallel)


def check_engine(model: ModelConfig, engine: EngineConfig) -> None:
    """Check within seconds what would make every worker fail, before any worker starts.

    Raises:
        UserError: the model cannot be loaded, or the endpoint does not serve it.
    """
    if engine.kind == "vllm":
        models.resolve(model.id, weights=False)
    elif engine.kind == "openai":
        from limrank.engines.openai import OpenAIEngine

        async def ask() -> None:
            endpoint = OpenAIEngine(model, engine)
            await endpoint.check()
            await endpoint.aclose()

        loops.run(ask())


def check_scorer(model: ModelConfig, engine: EngineConfig, labels: Sequence[str] | None = None) -> None:
    """Raises UserError if the model was trained to write queries, or to answer other labels than these (None: true and
    false). An endpoint or a server does not say."""
    if engine.kind in ("vllm", "fake"):
        models.check_scores(model.id, labels)


def load_tokenizer(model: ModelConfig, engine: EngineConfig) -> Tokenizer:
    """The tokenizer that the engine would use. No engine is opened.

    Raises:
        UserError: as :func:`limrank.models.tokenizer`.
    """
    if engine.kind == "fake":
        from limrank.engines.fake import ByteTokenizer

        return ByteTokenizer()
    return models.tokenizer(model.id)


@extras_explained()
def open_engine(model: ModelConfig | str, engine: EngineConfig | None = None, *, tensor_parallel: int = 1) -> Engine:
    """Start an engine. vLLM takes about a minute. Close the engine with ``await engine.aclose()``.

    Raises:
        UserError: the model is unknown, the settings cannot work for it, the engine is not installed,
            or ``engine.kind`` is serve, which is not an engine.
        EngineError: the engine did not start.
    """
    model = ModelConfig(id=model) if isinstance(model, str) else model
    engine = engine or EngineConfig()
    if engine.kind == "vllm":
        from limrank.engines.vllm import VllmEngine

        return VllmEngine(model, engine, tensor_parallel=tensor_parallel)
    if engine.kind == "openai":
        from limrank.engines.openai import OpenAIEngine

        return OpenAIEngine(model, engine)
    if engine.kind == "serve":
        raise UserError("engine.kind serve: only a rerank job and Reranker send their work to a served reranker")
    if engine.kind == "fake":
        from limrank.engines.fake import FakeEngine

        return FakeEngine(model, engine)
    raise NotImplementedError(f"engine.kind {engine.kind}")
