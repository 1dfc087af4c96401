"""Totals over the committed chunks: counts, tokens, time and rates, as a run's manifest has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from limrank.batch.receipts import Receipt, Work
from limrank.engines.base import Usage


@dataclass(frozen=True)
class Summary:
    """Totals over all committed chunks, whichever session they come from.

    Args:
        seconds: the time in which at least one chunk was in work, without the engines' start.
        startup_seconds: the slowest engine's start.
        busy_seconds, idle_seconds: summed over engines, each from its start to the end of its last chunk.
            An idle engine has no request.
        rate: progress units (pairs, seeds) a second; None where no time was spent.
        steps: tokens of the task's named steps.
        dtypes: role → the dtypes that its model computed with. ``auto`` may differ between machines.
        kept: rows that the task keeps; None where it keeps all of them.
    """

    units: int
    rows: int
    failed: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    seconds: float
    startup_seconds: float
    busy_seconds: float
    idle_seconds: float
    rate: float | None
    steps: Mapping[str, Usage] = field(default_factory=dict)
    dtypes: Mapping[str, list[str]] = field(default_factory=dict)
    kept: int | None = None

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.generated_tokens


def summarize(receipts: Sequence[Receipt], size: int) -> Summary:
    """Sum receipts up; a pure function. ``size`` is that of the committed chunks, in progress units."""
    work = [each for receipt in receipts for each in receipt.work]
    seconds = _covered([(each.began, each.ended) for each in work])
    last: dict[str, Work] = {}
    for each in work:
        if each.worker not in last or each.ended > last[each.worker].ended:
            last[each.worker] = each
    busy = sum(each.busy_seconds for each in last.values())
    up = sum((each.ended - each.ready) * each.engines for each in last.values())

    def total(name: str) -> int:
        return sum(getattr(receipt, name) for receipt in receipts)

    usage = Usage()
    for receipt in receipts:
        usage.add(receipt.usage)
    kept = [receipt.kept for receipt in receipts if receipt.kept is not None]
    return Summary(
        units=total("units"),
        rows=total("rows"),
        failed=total("failed"),
        prompt_tokens=usage.prompt,
        cached_prompt_tokens=usage.cached_prompt,
        generated_tokens=usage.generated,
        seconds=seconds,
        startup_seconds=max((each.startup_seconds for each in work), default=0.0),
        busy_seconds=busy,
        idle_seconds=max(0.0, up - busy),
        rate=size / seconds if seconds else None,
        steps=usage.steps,
        dtypes={
            role: sorted({each.dtypes[role] for each in work if role in each.dtypes})
            for role in sorted({role for each in work for role in each.dtypes})
        },
        kept=sum(kept) if kept else None,
    )


def manifest_sections(summary: Summary, progress_unit: str) -> dict[str, dict[str, Any]]:
    """The totals as sections of a run's manifest."""
    counts = {"units": summary.units, "rows": summary.rows, "failed": summary.failed}
    if summary.kept is not None:
        counts["kept"] = summary.kept
    tokens: dict[str, Any] = {
        "prompt": summary.prompt_tokens,
        "cached_prompt": summary.cached_prompt_tokens,
        "generated": summary.generated_tokens,
    }
    if summary.steps:
        tokens["by_step"] = {name: step_tokens(usage) for name, usage in summary.steps.items()}
    rates = {}
    if summary.rate:
        rates = {
            f"{progress_unit}_per_second": round(summary.rate, 3),
            "tokens_per_second": round(summary.tokens / summary.seconds, 1),
        }
    return {
        "counts": counts,
        "seconds": {
            "engine_startup": round(summary.startup_seconds, 3),
            "work": round(summary.seconds, 3),
            "engine_busy": round(summary.busy_seconds, 3),
            "engine_idle": round(summary.idle_seconds, 3),
        },
        "tokens": tokens,
        "rates": rates,
        "dtype": {role: ", ".join(names) for role, names in summary.dtypes.items()},
    }


def step_tokens(usage: Usage) -> dict[str, int]:
    """The tokens of one named step."""
    return {"prompt": usage.prompt, "cached_prompt": usage.cached_prompt, "generated": usage.generated}


def _covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of time spans."""
    covered, end = 0.0, float("-inf")
    for began, ended in sorted(spans):
        covered += max(0.0, ended - max(began, end))
        end = max(end, ended)
    return covered
