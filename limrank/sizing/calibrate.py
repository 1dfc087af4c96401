"""Rates measured here: an engine is started, and runs a sample of the recipe's own work for half a minute."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from limrank import loops
from limrank.batch.chunks import run_unit
from limrank.batch.plan import Unit
from limrank.config import TrainJob
from limrank.engines import Engine, EngineSpec
from limrank.engines.base import Sampling, Usage, meter
from limrank.sizing.counting import step_name
from limrank.sizing.rates import Rates
from limrank.sizing.workload import Counted

MEASURED_S = 10.0
"""Seconds of each of the two measurements."""

_FIRST = 16
"""Prompts of the first, short measurement, which says how many the real one takes."""

_WRITTEN = 48
"""Tokens of each text of the first measurement of writing."""

_LONGEST_UNITS_S = 120.0
"""Units that would take longer are not run: the lengths of their texts stay assumptions."""

_STEPS = 6
"""Steps of a calibrating training."""


@dataclass(frozen=True)
class Calibration:
    """What was measured. ``written`` is for :class:`~limrank.sizing.counting.CountingEngine`; empty where no text was."""

    rates: Rates
    written: dict[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


def calibrated(counted: Counted, before: Rates) -> Calibration:
    """Measure the model that reads the most.

    Args:
        counted: the recipe's task, and a sample of its units that was counted.
        before: rates for what is not measured here.

    Raises:
        EngineError: the engine does not start.
    """
    load = max(counted.workload.loads, key=lambda load: load.computed_prompt)
    role = next(name for name, key in counted.roles.items() if key == (load.model, load.engine))
    return loops.run(_calibrated(counted, before, EngineSpec(load.model, load.engine), role, load.decoded > 0))


async def _calibrated(counted: Counted, before: Rates, spec: EngineSpec, role: str, decodes: bool) -> Calibration:
    began = time.monotonic()
    engine = await asyncio.to_thread(spec.open)
    startup = time.monotonic() - began
    try:
        return await measure(engine, counted, replace(before, startup_s=startup), role, decodes)
    finally:
        await engine.aclose()


async def measure(engine: Engine, counted: Counted, before: Rates, role: str, decodes: bool) -> Calibration:
    """Measure an engine that is open, on what ``role`` of the counted task asks.

    Args:
        decodes: whether the task has the model write; otherwise its rate of writing is not measured.
    """
    prompts = counted.engines[role].prompts
    prefill = await _prefill(engine, prompts)
    rates = replace(before, source="measured now", measured=True, prefill=prefill)
    if not decodes:
        return Calibration(rates)
    asked = [ids for ids in prompts if len(ids) + _WRITTEN < engine.limits.context]
    rates = replace(rates, decode=await _decode(engine, asked, prefill))
    units = _units_for(counted, prefill, rates.decode or 1.0)
    if not units:
        note = "a unit takes too long to be run for a measurement: the lengths of texts are assumptions"
        return Calibration(rates, notes=[note])
    recorder = Recorder(engine)
    used, seconds = await _run(counted, recorder, units)
    decoded, rest = used.generated - used.requests, seconds - (used.prompt - used.cached_prompt) / prefill
    if decoded and rest > seconds / 10:
        rates = replace(rates, decode=decoded / rest)
    return Calibration(rates, recorder.shares())


async def _prefill(engine: Engine, prompts: Sequence[list[int]]) -> float:
    """Prompt tokens a second that are not cached."""

    async def ask(some: Sequence[list[int]]) -> tuple[int, float]:
        began = time.monotonic()
        with meter() as usage:
            await asyncio.gather(*(engine.generate(ids, max_tokens=1) for ids in some))
        return usage.prompt - usage.cached_prompt, time.monotonic() - began

    await ask(_spread(prompts, 4))  # the first requests wait for what the engine makes at its start
    fresh = _shifted(prompts)
    _, seconds = await ask(_spread(fresh, _FIRST))
    wanted = max(_FIRST, round(_FIRST * MEASURED_S / max(seconds, 0.01)))
    tokens, seconds = await ask(_spread(_shifted(prompts, 2), min(wanted, 4096)))
    return tokens / seconds


def _shifted(prompts: Sequence[list[int]], times: int = 1) -> list[list[int]]:
    """The prompts with their first token at the end, so that no cache has any of them. The shared prefixes of a query's
    pairs stay shared."""
    return [[*ids[times:], *ids[:times]] for ids in prompts]


def _spread(prompts: Sequence[Any], count: int) -> list[Any]:
    """So many of them, from the whole range; some of them more than once where there are too few."""
    return [prompts[index * len(prompts) // count % len(prompts)] for index in range(count)]


async def _decode(engine: Engine, prompts: Sequence[list[int]], prefill: float) -> float:
    """Generated tokens a second of 64 requests together."""
    began = time.monotonic()
    with meter() as usage:
        await asyncio.gather(*(engine.generate(ids, max_tokens=_WRITTEN) for ids in _spread(prompts, 64)))
    seconds = time.monotonic() - began - (usage.prompt - usage.cached_prompt) / prefill
    return (usage.generated - usage.requests) / max(seconds, 0.01)


def _units_for(counted: Counted, prefill: float, decode: float) -> list[Unit]:
    """Units of the sample that take about :data:`MEASURED_S` twice; none where even one takes too long."""
    whole = counted.workload
    computed = sum(load.computed_prompt for load in whole.loads) * whole.counted
    decoded = sum(load.decoded for load in whole.loads) * whole.counted
    a_unit = (computed / prefill + decoded / decode) / max(len(counted.sample), 1)
    if a_unit > _LONGEST_UNITS_S:
        return []
    return _spread(counted.sample, max(1, min(len(counted.sample), round(2 * MEASURED_S / a_unit))))


async def _run(counted: Counted, engine: Any, units: Sequence[Unit]) -> tuple[Usage, float]:
    engines = dict.fromkeys(counted.engines, engine)
    began = time.monotonic()
    with meter() as usage:
        await asyncio.gather(*(run_unit(counted.task, unit, engines) for unit in units))
    return usage, time.monotonic() - began


class Recorder:
    """An engine, and how much of its ``max_tokens`` each text took."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._shares: dict[str, list[float]] = defaultdict(list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, prompt: Any, **options: Any) -> Any:
        answer = await self._engine.generate(prompt, **options)
        sampling = Sampling(**options)
        self._shares[step_name(sampling)].append(answer.generated_tokens / sampling.max_tokens)
        return answer

    async def label_logprobs(self, prompt: Any, labels: Sequence[str]) -> dict[str, float]:
        return await self._engine.label_logprobs(prompt, labels)

    def stream(self, prompt: Any, **options: Any) -> Any:
        return self._engine.stream(prompt, **options)

    async def aclose(self) -> None:
        await self._engine.aclose()

    def shares(self) -> dict[str, float]:
        return {name: sum(found) / len(found) for name, found in self._shares.items()}


def calibrated_training(config: TrainJob, before: Rates) -> Rates:
    """The rate of a training of a few steps, on a Ray of its own.

    Raises:
        UserError, EngineError: as the job does.
    """
    from limrank.batch.manifest import read_manifest
    from limrank.progress import Progress
    from limrank.storage import Storage
    from limrank.training.job import plan, train_job

    planned = plan(config)
    examples = max(2, round(planned["examples"] / max(planned["units"], 1) * planned["units_a_step"] * _STEPS))
    training = config.training.model_copy(
        update={
            "max_examples": min(examples, config.training.max_examples or examples),
            "epochs": 1,
            "validation_share": 0.0,
            "patience": None,
        }
    )
    with tempfile.TemporaryDirectory(prefix="limrank-plan-") as folder:
        short = config.model_copy(update={"run_dir": f"{folder}/run", "training": training, "dev": None})
        train_job(short, address="local", progress=Progress(_Quiet()))
        manifest = read_manifest(Storage(short.run_dir))
    if manifest is None:
        return before
    seconds = manifest.seconds
    return replace(
        before,
        source="measured now",
        measured=True,
        train=manifest.rates["tokens_per_second"],
        setup_s=seconds["total"] - seconds["work"],
    )


class _Quiet:
    """Progress that is not shown."""

    def show(self, event: Any) -> None: ...

    def close(self) -> None: ...
