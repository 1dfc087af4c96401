"""limrank's engine and scorer with Qwen2.5-7B's shape, directly and with chains: pairs/s, tokens/s, memory."""

from __future__ import annotations

import asyncio
import time
from unittest import mock

import psutil
import torch
from gpu.machine import device_name, versions
from gpu.pairs import DUMMY, load, model_and_engine, rates, work
from gpu.report import arguments, section
from rerank_throughput import Work

from limrank import models
from limrank.config import ScoringConfig
from limrank.engines import EngineSpec, meter, vllm
from limrank.scoring import score_query


async def scored(engine: vllm.VllmEngine, work: Work, scoring: ScoringConfig) -> dict[str, float]:
    """All queries at once, from an empty prefix cache."""
    assert await engine._llm.reset_prefix_cache()
    began = time.perf_counter()
    with meter() as usage:
        every = await asyncio.gather(*(score_query(*found, engine, scoring) for found in work.found))
    seconds = time.perf_counter() - began
    if failed := [each.error for judgments in every for each in judgments if each.score is None]:
        raise RuntimeError(f"{len(failed)} of {work.pairs} pairs failed: {failed[0]}")
    return rates(seconds, work.pairs, usage.prompt, usage.cached_prompt, usage.generated)


def used_gib() -> float:
    """Of the GPU; without one the resident memory of this process and those that it started."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return (total - free) / 2**30
    this = psutil.Process()
    return sum(each.memory_info().rss for each in (this, *this.children(recursive=True))) / 2**30


def memory(spec: EngineSpec, engine: vllm.VllmEngine, before: float) -> dict[str, float]:
    """What the engine takes, beside what limrank reckons with: on a GPU its share of it, else ``EngineSpec``'s."""
    cache = engine._llm.vllm_config.cache_config
    if torch.cuda.is_available():
        estimate = spec.engine.gpu_memory_utilization * torch.cuda.mem_get_info()[1]
    else:
        estimate = spec.memory_bytes
    return {
        "memory_estimated_gib": round(estimate / 2**30, 2),
        "memory_used_gib": round(used_gib() - before, 2),
        "cache_tokens": cache.num_gpu_blocks * cache.block_size,
    }


async def measure(line: dict, given) -> None:
    size = load(given.dry_run)
    name, model, config = model_and_engine(given.out, size, given.dry_run)
    spec, arguments_of = EngineSpec(model, config), vllm.engine_arguments
    began, before = time.perf_counter(), used_gib()
    with mock.patch.object(vllm, "engine_arguments", lambda *given: arguments_of(*given) | DUMMY):
        engine = spec.open()
    line |= {
        "model": name,
        "device": device_name(),
        "dtype": engine.dtype,
        "parameters": models.parameters(model.id),
        "versions": versions(),
        "startup_s": round(time.perf_counter() - began, 1),
        "in_flight": engine.limits.in_flight,
        **memory(spec, engine, before),
    }
    try:
        await scored(engine, work(size, 1), ScoringConfig(mode="direct"))  # the first requests compile kernels
        line["direct"] = await scored(engine, work(size, size.direct_queries), ScoringConfig(mode="direct"))
        think = ScoringConfig(mode="budget", max_think_tokens=size.think_tokens)
        line["think"] = await scored(engine, work(size, size.think_queries), think)
    finally:
        await engine.aclose()


def main() -> None:
    given = arguments()
    with section("engine", given.out) as line:
        asyncio.run(measure(line, given))


if __name__ == "__main__":
    main()
