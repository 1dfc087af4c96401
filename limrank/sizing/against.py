"""A forecast beside a finished run."""

from __future__ import annotations

from collections.abc import Sequence

from limrank.batch.manifest import read_manifest
from limrank.batch.receipts import read_receipts
from limrank.errors import UserError
from limrank.sizing.forecast import WORK, Forecast
from limrank.storage import Storage

_PARTS = {"startup": "engine_startup", "work": "work", "total": "total"}


def compared(found: Sequence[Forecast], run_dir: str) -> list[tuple[str, float, float]]:
    """(what, forecast, run) for each figure that both have. Of a run that was resumed, ``total`` is its last session's
    and is left out.

    Raises:
        UserError: the directory holds no finished run of one job.
    """
    storage = Storage(run_dir)
    manifest = read_manifest(storage)
    if manifest is None or manifest.status != "done":
        raise UserError(f"--against {run_dir}: holds no finished run")
    if len(found) != 1 or manifest.job != found[0].workload.job:
        raise UserError(f"--against {run_dir}: is a run of {manifest.job or 'no job'}, and the recipe's job is another")
    forecast = found[0]
    work, loads = forecast.workload, forecast.workload.loads
    rows: list[tuple[str, float, float]] = []
    if loads:
        receipts = read_receipts(storage)
        rows.append(("chunks", work.chunks, len(receipts)))
        rows.append(("requests", sum(load.usage.requests for load in loads), sum(each.requests for each in receipts)))
        for name, of_run in (
            ("prompt", manifest.tokens.prompt),
            ("cached_prompt", manifest.tokens.cached_prompt),
            ("generated", manifest.tokens.generated),
        ):
            rows.append((f"{name} tokens", sum(getattr(load.usage, name) for load in loads), of_run or 0))
    if work.trained:
        rows.append(("trained tokens", work.trained, manifest.tokens.model_dump().get("trained") or 0))
    if forecast.seconds is not None:
        parts = forecast.parts
        mine = {
            "startup": parts.get("startup"),
            "work": max(sum(parts.get(name, 0.0) for name in WORK), parts.get("driver", 0.0)),
            "total": None if manifest.resumed else forecast.seconds,
        }
        for name, key in _PARTS.items():
            if mine[name] is not None and key in manifest.seconds:
                rows.append((f"seconds: {name}", mine[name] or 0.0, manifest.seconds[key]))
    return rows


def lines(rows: Sequence[tuple[str, float, float]]) -> list[str]:
    """A table: what, forecast, run, and the forecast as a share of the run."""
    shown = [f"{'':<22}{'forecast':>14}{'run':>14}{'forecast / run':>16}"]
    for what, forecast, run in rows:
        digits = 1 if what.startswith("seconds") else 0
        ratio = f"{forecast / run:.2f}" if run else "–"
        shown.append(f"{what:<22}{forecast:>14,.{digits}f}{run:>14,.{digits}f}{ratio:>16}")
    return shown
