"""What a recipe asks of its engines, counted over a sample of its own units."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limrank import loops, models
from limrank.batch.chunks import Task, run_unit
from limrank.batch.fanout import chunk_limit
from limrank.batch.plan import Unit, split_into_chunks
from limrank.config import EngineConfig, Job, ModelConfig, RerankJob, ScoringConfig, SynthesizeJob, TrainJob
from limrank.engines import EngineSpec, load_tokenizer
from limrank.engines.base import Tokenizer, Usage, meter
from limrank.errors import UnavailableError, UserError
from limrank.reranking import job as reranking
from limrank.reranking.source import open_source
from limrank.reranking.source import units as rerank_units
from limrank.scoring import with_prompt_text
from limrank.sizing.counting import CHAIN_TOKENS, CountingEngine
from limrank.synthesis import job as synthesis
from limrank.synthesis.plan import read_inputs
from limrank.synthesis.plan import units as synthesis_units
from limrank.synthesis.task import task_of

SAMPLED = 4000
"""Pairs, or seeds, that are counted one by one. A larger run is a multiple of so many."""

CPU_BLOCK, GPU_BLOCK = 32, 16


@dataclass(frozen=True)
class Load:
    """What one model is asked for: requests, and their tokens."""

    model: ModelConfig
    engine: EngineConfig
    usage: Usage

    @property
    def computed_prompt(self) -> int:
        """Prompt tokens that the cache does not have."""
        return self.usage.prompt - self.usage.cached_prompt

    @property
    def decoded(self) -> int:
        """Generated tokens that take a step of decoding. The first of each request comes with its prompt."""
        return self.usage.generated - self.usage.requests


@dataclass(frozen=True)
class Workload:
    """The work of one job.

    Args:
        counts: what there is to do: queries, pairs, seeds, examples, steps.
        chunks: how many chunks the run is split into.
        counted: the share of the cost of all units that was counted.
        trained: tokens that training computes, all epochs.
        notes: assumptions, as sentences.
    """

    job: str
    counts: Mapping[str, int]
    loads: Sequence[Load] = ()
    chunks: int = 0
    counted: float = 1.0
    trained: int = 0
    model: ModelConfig | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Counted:
    """A job's own task, and its engines that count. ``sample`` are the units that were run on them."""

    task: Task
    sample: list[Unit]
    engines: Mapping[str, CountingEngine]
    roles: Mapping[str, tuple[ModelConfig, EngineConfig]]
    workload: Workload


def count(config: Job, *, on_cpu: bool, engines: int, written: Mapping[str, float] | None = None) -> Counted | None:
    """Count what a rerank or a synthesize job asks; None where it asks no engine.

    Args:
        on_cpu: whether its engines run on CPUs.
        engines: how many there are.
        written: see :class:`CountingEngine`.

    Raises:
        UserError: the recipe's files are missing or cannot be read.
    """
    if isinstance(config, RerankJob):
        return _count_rerank(config, on_cpu, engines, written)
    if isinstance(config, SynthesizeJob):
        return _count_synthesis(config, on_cpu, engines, written)
    raise TypeError(config.job)


def count_training(config: TrainJob) -> Workload:
    """Raises UserError as the job does for its file, model and number of workers."""
    from limrank.training import job as training

    plan = training.plan(config)
    notes = (
        [f"{plan['dev_pairs']} dev pairs are ranked beside it: their time is not counted"] if plan["dev_pairs"] else []
    )
    counts = {"examples": plan["examples"], "steps": plan["steps"]}
    return Workload("train", counts, trained=plan["tokens"], model=config.model, notes=notes)


def _count_rerank(config: RerankJob, on_cpu: bool, engines: int, written: Mapping[str, float] | None) -> Counted | None:
    if config.scoring.mode == "none":
        return None
    source = open_source(config)
    source.check()
    sizes = [(unit["cost"], size) for unit, size in rerank_units(source, config.scoring)]
    pairs = sum(size for _, size in sizes)
    tokens_a_pair = config.scoring.token_budget / pairs if config.scoring.token_budget else None
    task: Any = reranking.RerankTask(with_prompt_text(config.scoring), tokens_a_pair, config.seed)
    return _counted(
        "rerank",
        {"queries": len(sizes), "pairs": pairs},
        lambda: (unit for unit, _ in rerank_units(source, config.scoring)),
        sizes,
        task,
        {"scorer": (config.model, config.engine)},
        chunk_limit(config.engine.kind, on_cpu),
        on_cpu=on_cpu,
        engines=engines,
        written=written,
        notes=_assumed(config.scoring, written),
    )


def _count_synthesis(
    config: SynthesizeJob, on_cpu: bool, engines: int, written: Mapping[str, float] | None
) -> Counted | None:
    config = synthesis.with_writer_s_prompt(config)
    if not config.roles():
        return None
    given = read_inputs(config)
    planned = list(synthesis_units(config, given))
    notes = []
    if written is None or set(written) == {CHAIN_TOKENS}:
        notes.append("texts are taken to be as long as they may be, and answers with a schema half as long")
    if config.synthesis.enough is not None or config.synthesis.max_tokens is not None:
        notes.append("the run may end before its last seed (synthesis.size, synthesis.max_tokens)")
    return _counted(
        "synthesize",
        {
            "seeds": len(planned),
            "queries": sum(len(unit["briefs"]) for unit in planned),
        },
        lambda: iter(planned),
        [(unit["cost"], 1) for unit in planned],
        task_of(config),
        {name: (role.model, role.engine) for name, role in config.roles().items()},
        chunk_limit(config.engine.kind, on_cpu, config.synthesis.max_tokens),
        on_cpu=on_cpu,
        engines=engines,
        written=written,
        notes=notes,
    )


def _counted(
    job: str,
    counts: Mapping[str, int],
    units: Callable[[], Iterator[Unit]],
    sizes: Sequence[tuple[int, int]],
    task: Task,
    roles: Mapping[str, tuple[ModelConfig, EngineConfig]],
    most: int,
    *,
    on_cpu: bool,
    engines: int,
    written: Mapping[str, float] | None,
    notes: Sequence[str],
) -> Counted:
    every = max(1, math.ceil(sum(size for _, size in sizes) / SAMPLED))
    sample = [unit for index, unit in enumerate(units()) if index % every == every // 2] or list(units())[:1]
    block = CPU_BLOCK if on_cpu else GPU_BLOCK
    opened: dict[tuple[ModelConfig, EngineConfig], CountingEngine] = {}
    notes = [*notes]
    for model, engine in roles.values():
        if (model, engine) not in opened:
            tokenizer, context = _tokenizer(model, engine, notes)
            opened[model, engine] = CountingEngine(tokenizer, context, block=block, written=written)
    by_role = {name: opened[key] for name, key in roles.items()}
    usages = run_counting(task, sample, by_role, list(opened.values()))
    cost = sum(unit["cost"] for unit in sample)
    share = cost / (sum(cost for cost, _ in sizes) or 1) if sample else 1.0
    loads = [Load(*key, _scaled(usage, 1 / share if share else 1.0)) for key, usage in zip(opened, usages, strict=True)]
    members = (({"unit_id": f"{index:09}", "cost": cost}, size) for index, (cost, size) in enumerate(sizes))
    chunks = sum(1 for _ in split_into_chunks(members, most, engines))
    workload = Workload(job, counts, loads, chunks, share, notes=notes)
    return Counted(task, sample, by_role, roles, workload)


def run_counting(task: Task, units: Iterable[Unit], engines: Mapping[str, Any], separate: Sequence[Any]) -> list[Usage]:
    """Run units on engines, and what each of ``separate`` was asked for. A unit that fails has asked for nothing more.

    Raises:
        UserError: every unit would fail in this way.
        EngineError: an engine crashed.
    """
    total = {id(engine): Usage() for engine in separate}
    metered = {id(engine): _Metered(engine, total[id(engine)]) for engine in separate}

    async def run_all() -> None:
        await asyncio.gather(
            *(run_unit(task, unit, {name: metered[id(engine)] for name, engine in engines.items()}) for unit in units)
        )

    loops.run(run_all())
    return list(total.values())


class _Metered:
    """An engine whose usage is known apart from that of others."""

    def __init__(self, engine: Any, usage: Usage) -> None:
        self._engine = engine
        self._usage = usage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, prompt: Any, **options: Any) -> Any:
        with meter() as usage:
            answer = await self._engine.generate(prompt, **options)
        self._usage.add(usage)
        return answer

    async def label_logprobs(self, prompt: Any, labels: Sequence[str]) -> dict[str, float]:
        with meter() as usage:
            answer = await self._engine.label_logprobs(prompt, labels)
        self._usage.add(usage)
        return answer

    def stream(self, prompt: Any, **options: Any) -> Any:
        return self._engine.stream(prompt, **options)

    async def aclose(self) -> None:
        await self._engine.aclose()


def _tokenizer(model: ModelConfig, engine: EngineConfig, notes: list[str]) -> tuple[Tokenizer, int]:
    """A model's tokenizer, and its context in tokens."""
    if engine.kind == "fake":
        return load_tokenizer(model, engine), model.max_model_len or 32768
    try:
        return load_tokenizer(model, engine), model.max_model_len or models.text_config(
            model.id
        ).max_position_embeddings
    except (UnavailableError, UserError) as error:
        stand_in = ModelConfig()
        notes.append(f"tokens are those of {stand_in.id}'s tokenizer, because that of {model.id} is not here ({error})")
        return models.tokenizer(stand_in.id), model.max_model_len or 32768


def _assumed(scoring: ScoringConfig, written: Mapping[str, float] | None) -> list[str]:
    notes = []
    if scoring.think_tokens and written is None:
        notes.append(f"every chain is taken to be as long as it may be, {scoring.think_tokens} tokens (--rate chain=…)")
    if scoring.mode == "cascade":
        notes.append("how many pairs are in doubt is not known: scores are taken to be spread evenly")
    return notes


def _scaled(usage: Usage, factor: float) -> Usage:
    def times(value: int) -> int:
        return round(value * factor)

    steps = {name: _scaled(each, factor) for name, each in usage.steps.items()}
    return Usage(times(usage.requests), times(usage.prompt), times(usage.cached_prompt), times(usage.generated), steps)


def spec_of(load: Load, tensor_parallel: int = 1) -> EngineSpec:
    return EngineSpec(load.model, load.engine, tensor_parallel)
