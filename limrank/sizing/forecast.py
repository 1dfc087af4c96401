"""From a workload and rates to time, cost and what the time goes into. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from limrank.sizing.rates import Rates, as_values
from limrank.sizing.workload import Load, Workload

WORK = ("prefill", "decode", "train")
FIXED = ("setup", "startup")


@dataclass(frozen=True)
class Forecast:
    """What a job will take.

    Args:
        engines: how many engines, or training workers, share the work.
        rates: of each of them.
        parts: seconds by what they go into: ``setup``, ``startup``, ``prefill``, ``decode``, ``train``, ``driver``.
            The driver works beside the engines.
        seconds: wall time; None where a rate is not known.
        cost: in the currency of the price; None without a price.
    """

    workload: Workload
    engines: int
    rates: Rates
    parts: dict[str, float]
    seconds: float | None
    cost: float | None = None

    @property
    def bottleneck(self) -> str | None:
        """What takes the most of the time. The driver does where the engines wait for it."""
        if self.seconds is None:
            return None
        waits = self.parts.get("driver", 0.0) > sum(self.parts.get(name, 0.0) for name in WORK)
        counted = {name: seconds for name, seconds in self.parts.items() if (name in WORK) != waits or name in FIXED}
        return max(counted, key=counted.__getitem__)

    def values(self) -> dict[str, Any]:
        """As JSON has it."""
        work = self.workload
        return {
            "job": work.job,
            "counts": dict(work.counts),
            "chunks": work.chunks,
            "counted_share": round(work.counted, 4),
            "tokens": {
                "prompt": sum(load.usage.prompt for load in work.loads),
                "cached_prompt": sum(load.usage.cached_prompt for load in work.loads),
                "generated": sum(load.usage.generated for load in work.loads),
                "trained": work.trained,
            },
            "requests": sum(load.usage.requests for load in work.loads),
            "models": [_load(load) for load in work.loads],
            "engines": self.engines,
            "rates": as_values(self.rates),
            "seconds": {name: round(value, 3) for name, value in self.parts.items()}
            | ({"total": round(self.seconds, 3)} if self.seconds is not None else {}),
            "bottleneck": self.bottleneck,
            "cost": None if self.cost is None else round(self.cost, 4),
            "notes": list(work.notes),
        }


def forecast(
    workload: Workload, rates: Rates, engines: int, *, price: float | None = None, devices: int = 1
) -> Forecast:
    """The time of a job whose engines, or training workers, have these rates each.

    Args:
        price: of a device for an hour.
        devices: how many are paid for.
    """
    parts: dict[str, float] = {"setup": rates.setup_s}
    known = True
    if workload.trained:
        known = rates.train is not None
        parts["train"] = workload.trained / (rates.train * engines) if rates.train else 0.0
    if workload.loads:
        parts["startup"] = rates.startup_s
        prefill, decode = (sum(_seconds(load, rates)[index] for load in workload.loads) for index in (0, 1))
        known = known and not math.isnan(prefill + decode)
        parts |= {"prefill": prefill / engines, "decode": decode / engines, "driver": workload.chunks * rates.chunk_s}
    if not known:
        return Forecast(workload, engines, rates, {}, None)
    work = sum(parts.get(name, 0.0) for name in WORK)
    seconds = parts["setup"] + parts.get("startup", 0.0) + max(work, parts.get("driver", 0.0))
    cost = None if price is None else seconds / 3600 * price * devices
    return Forecast(workload, engines, rates, parts, seconds, cost)


def _seconds(load: Load, rates: Rates) -> tuple[float, float]:
    """Seconds of one engine for prompts and for generated tokens; NaN where a rate is not known."""
    if load.engine.kind == "fake":
        in_flight = load.engine.max_in_flight or 256
        return load.usage.requests * load.engine.fault.latency_ms / 1000 / in_flight, 0.0
    prefill = load.computed_prompt / rates.prefill if rates.prefill else math.nan
    if not load.decoded:
        return prefill, 0.0
    return prefill, load.decoded / rates.decode if rates.decode else math.nan


def in_words(seconds: float) -> str:
    """``3 h 12 min``, ``4 min 10 s``, ``8 s``."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def lines(found: Sequence[Forecast], price: float | None) -> list[str]:
    """The forecasts as a person reads them."""
    shown = []
    for each in found:
        work, values = each.workload, each.values()
        shown.append(f"{work.job}: {', '.join(f'{count:,} {what}' for what, count in work.counts.items())}")
        if work.loads:
            tokens = values["tokens"]
            shown.append(
                f"  asks: {values['requests']:,} requests, {tokens['prompt']:,} prompt tokens "
                f"({tokens['cached_prompt']:,} of them cached), {tokens['generated']:,} generated; {work.chunks} chunks"
                + (f"; counted on {work.counted:.0%} of it" if work.counted < 1 else "")
            )
        if work.trained:
            shown.append(f"  trains: {work.trained:,} tokens")
        if work.loads or work.trained:
            shown.append(f"  on: {each.engines} × {each.rates.device} ({each.rates.source})")
        shown += [f"  note: {note}" for note in work.notes]
        if each.seconds is None:
            shown.append("  time: not known: give --rate prefill=… and --rate decode=… (tokens a second of one engine)")
            continue
        parts = ", ".join(
            f"{name} {in_words(seconds)}" for name, seconds in each.parts.items() if name != "driver" and seconds >= 0.5
        )
        shown.append(f"  time: {in_words(each.seconds)} ({parts}); bottleneck: {each.bottleneck}")
        if each.cost is not None:
            shown.append(f"  cost: {each.cost:,.2f}")
    if len(found) > 1 and all(each.seconds is not None for each in found):
        shown.append(f"in all: {in_words(sum(each.seconds or 0.0 for each in found))}")
        if price is not None:
            shown.append(f"  cost: {sum(each.cost or 0.0 for each in found):,.2f}")
    return shown


def _load(load: Load) -> dict[str, Any]:
    return {"model": load.model.id, **{k: v for k, v in asdict(load.usage).items() if k != "steps"}}
