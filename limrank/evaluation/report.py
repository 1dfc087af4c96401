"""The report of an evaluation: a self-contained HTML page.

It has no scripts and loads no other files, so it can be mailed, printed and archived.
"""

from __future__ import annotations

import base64
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from limrank import html
from limrank.evaluation.metrics import Scores
from limrank.evaluation.reliability import Bin
from limrank.evaluation.significance import bootstrap_interval, paired_bootstrap
from limrank.storage import Storage
from limrank.version import __version__

REPORT = "report.html"

QUERIES_SHOWN = 20
"""Rows of the per-query table; the rest are in ``per_query.parquet``."""

_QUERY_CHARACTERS = 280
_PLOT_PERCENT = 94.0
"""Width of the chart's scale, in percent; the rest is for its last label."""


@dataclass(frozen=True)
class System:
    """A ranking under comparison.

    ``tokens_per_pair`` counts prompt and generated tokens. A value that was not measured is None and is displayed
    as a dash. The report has a column for ``generated_per_query`` if a system has it.
    """

    name: str
    scores: Scores
    pairs_per_second: float | None = None
    tokens_per_pair: float | None = None
    generated_per_query: float | None = None


@dataclass(frozen=True)
class Plot:
    """A plot for the report: PNG bytes and a caption."""

    png: bytes
    caption: str

    @property
    def source(self) -> str:
        """The PNG as a ``data:`` URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Series:
    """The reliability of one kind of scores, and its color in the diagram."""

    name: str
    color: str
    ece: float
    brier: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class ReliabilitySection:
    """What the report says about scores as probabilities: the counts of pairs, and one or two kinds of scores."""

    pairs: int
    relevant: int
    unjudged: int
    series: tuple[Series, ...]


def provenance(measures: Sequence[str]) -> dict[str, str]:
    """The facts at the end of every report: the measures, and the versions of the packages that computed them."""
    tools = ", ".join(f"{name} {version(name)}" for name in ("ir_measures", "pytrec-eval-terrier"))
    return {
        "measures": ", ".join(measures),
        "evaluated with": f"limrank {__version__}, {tools}, Python {platform.python_version()}",
    }


def write_report(
    storage: Storage,
    title: str,
    systems: list[System],
    queries: dict[str, str],
    facts: dict[str, str],
    *,
    samples: int = 2000,
    seed: int = 12345,
    conclusion: Sequence[str] = (),
    plot: Plot | None = None,
    reliability: ReliabilitySection | None = None,
) -> None:
    """Write the page of :func:`render` to ``report.html``."""
    page = render(
        title,
        systems,
        queries,
        facts,
        samples=samples,
        seed=seed,
        conclusion=conclusion,
        plot=plot,
        reliability=reliability,
    )
    storage.write_text(REPORT, page)


def render(
    title: str,
    systems: list[System],
    queries: dict[str, str],
    facts: dict[str, str],
    *,
    samples: int = 2000,
    seed: int = 12345,
    conclusion: Sequence[str] = (),
    plot: Plot | None = None,
    reliability: ReliabilitySection | None = None,
) -> str:
    """The page as a string.

    Args:
        title: the page's heading.
        systems: at least one; all with the same measures over the same queries. The others are compared with
            the first. The first measure is the main one.
        queries: ``{query_id: text}``; a query without a text is displayed by its id.
        facts: name → value: versions, configuration, machine.
        samples, seed: of the bootstrap, see ``significance``.
        conclusion: sentences at the top of the page.
        plot: displayed below them.
        reliability: whether scores are probabilities.
    """
    measures = list(systems[0].scores.mean)
    rows = [_system_row(system, systems[0], samples, seed) for system in systems]
    return html.render(
        "evaluation/report.html.j2",
        filters={"number": _number, "signed": signed},
        title=title,
        measures=measures,
        rows=rows,
        chart=_chart([(row["name"], row["cells"][0]) for row in rows]),
        hardest=_notable_queries(systems, measures[0], queries),
        queries=len(systems[0].scores.queries),
        facts=facts,
        samples=samples,
        seed=seed,
        conclusion=conclusion,
        plot=plot,
        reliability=reliability,
        generated=any(system.generated_per_query is not None for system in systems),
    )


def _system_row(system: System, first: System, samples: int, seed: int) -> dict[str, Any]:
    """Means with their intervals, and paired differences from the first system."""
    cells, differences = [], []
    for measure, mean in system.scores.mean.items():
        values = list(system.scores.per_query[measure].values())
        low, high = bootstrap_interval(values, samples, seed=seed)
        cells.append({"mean": mean, "low": low, "high": high})
        if system is not first:
            reference = [first.scores.per_query[measure][query_id] for query_id in system.scores.per_query[measure]]
            differences.append(paired_bootstrap(values, reference, samples, seed=seed))
    return {
        "name": system.name,
        "cells": cells,
        "differences": differences,
        "missing": len(system.scores.missing),
        "pairs_per_second": system.pairs_per_second,
        "tokens_per_pair": system.tokens_per_pair,
        "generated_per_query": system.generated_per_query,
    }


def _notable_queries(systems: list[System], measure: str, queries: dict[str, str]) -> list[dict[str, Any]]:
    """The queries on which the systems differ most; the worst queries if there is only one system."""
    rows = []
    for query_id in systems[0].scores.queries:
        values = [system.scores.per_query[measure][query_id] for system in systems]
        text = " ".join(queries.get(query_id, "").split())
        rows.append(
            {
                "query_id": query_id,
                "text": html.clip(text, _QUERY_CHARACTERS),
                "values": values,
                "spread": max(values) - min(values),
            }
        )
    if len(systems) == 1:
        return sorted(rows, key=lambda row: row["values"][0])[:QUERIES_SHOWN]
    return sorted((row for row in rows if row["spread"] > 0), key=lambda row: -row["spread"])[:QUERIES_SHOWN]


def _chart(bars: list[tuple[str, dict[str, float]]]) -> dict[str, Any]:
    """Horizontal bars with interval whiskers.

    Positions are in percent of the width, so that text keeps its size on a narrow screen.
    """
    top, step = _axis(max(cell["high"] for _, cell in bars))

    def position(value: float) -> float:
        return round(_PLOT_PERCENT * value / top, 2)

    ticks = [round(step * index, 10) for index in range(round(top / step) + 1)]
    return {
        "bars": [
            {
                "name": name,
                "mean": cell["mean"],
                "width": position(cell["mean"]),
                "low": position(cell["low"]),
                "high": position(cell["high"]),
            }
            for name, cell in bars
        ],
        "ticks": [{"at": position(tick), "label": f"{tick:g}"} for tick in ticks],
    }


def _axis(highest: float) -> tuple[float, float]:
    """``(end, step)`` of an axis from 0 to at least ``highest``, in at most six steps of 1, 2 or 5 times a power of
    ten."""
    if highest <= 0:
        return 1.0, 0.2
    power = 10.0 ** math.floor(math.log10(highest / 6))
    step = next(power * factor for factor in (1, 2, 5, 10) if math.ceil(highest / (power * factor)) <= 6)
    return round(step * math.ceil(highest / step), 10), step


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def signed(value: float) -> str:
    """``+0.0123`` or ``−0.0123``, with a minus sign instead of a hyphen; a value that rounds to 0 has no sign."""
    if round(value, 4) == 0:
        return "0.0000"
    return f"{'+' if value > 0 else '−'}{abs(value):.4f}"
