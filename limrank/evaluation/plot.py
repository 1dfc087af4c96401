"""A plot of quality against generated tokens."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from limrank.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LONGEST_NAME = 60
_MARKERS = "osD^vP"
_COLORS = 10
"""Of matplotlib's cycle, C0 to C9."""

_TWO_COLUMNS = 44
"""Characters of a name up to which the legend has two columns."""


class Point(NamedTuple):
    """A system: the tokens it generates per query, and the mean of a measure with its interval."""

    name: str
    tokens: float
    mean: float
    low: float
    high: float
    on_frontier: bool


def draw_quality(points: Sequence[Point], measure: str) -> bytes:
    """Points with interval bars, a dashed step line through those on the frontier, and a legend below, as a PNG.

    The marker of a system that is on the frontier is filled. The axis of tokens is logarithmic and holds 0.
    """
    from matplotlib.figure import Figure

    names = [printable(point.name, _LONGEST_NAME) for point in points]
    columns = 2 if max(map(len, names)) <= _TWO_COLUMNS else 1
    rows = math.ceil((len(points) + 1) / columns)
    figure = Figure(figsize=(8, 5 + 0.2 * max(0, rows - 3)), layout="constrained")
    axes = figure.subplots()
    for index, (point, name) in enumerate(zip(points, names, strict=True)):
        color = f"C{index % _COLORS}"
        # If all queries score the same, the ends may miss the mean by a rounding error.
        bars = [[max(0.0, point.mean - point.low)], [max(0.0, point.high - point.mean)]]
        axes.errorbar(
            [point.tokens],
            [point.mean],
            yerr=bars,
            fmt=_MARKERS[index // _COLORS % len(_MARKERS)],
            color=color,
            markerfacecolor=color if point.on_frontier else "white",
            capsize=3,
            linewidth=1.5,
            label=name,
        )
    frontier = sorted((point for point in points if point.on_frontier), key=lambda point: point.tokens)
    rightmost = max(point.tokens for point in points)
    xs = [point.tokens for point in frontier] + [rightmost]
    ys = [point.mean for point in frontier] + [frontier[-1].mean]
    axes.step(
        xs,
        ys,
        where="post",
        color="tab:gray",
        linewidth=1,
        linestyle="--",
        zorder=0,
        label="best for its tokens (filled)",
    )
    _scale_tokens(axes, [point.tokens for point in points])
    axes.set_xlabel("generated tokens per query")
    axes.set_ylabel(f"{measure} (mean and 95 % interval)", parse_math=False)
    axes.grid(alpha=0.3)
    legend = figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar sign in a name is one
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def _scale_tokens(axes: Axes, tokens: Sequence[float]) -> None:
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    positive = [each for each in tokens if each > 0]
    if not positive:
        return
    # Linear from 0 to the decade of the cheapest, logarithmic above.
    threshold = 10.0 ** math.floor(math.log10(min(positive)))
    left, right = -0.6 * threshold if 0 in tokens else 0.5 * min(positive), 2 * max(positive)
    axes.set_xscale("symlog", linthresh=threshold, linscale=0.7)
    axes.set_xlim(left, right)
    decades = math.ceil(math.log10(right / threshold))
    factors = (1, 2, 5) if decades <= 2 else (1,)
    ticks = [threshold * 10**power * factor for power in range(decades) for factor in factors]
    axes.set_xticks([tick for tick in (0.0, *ticks) if left <= tick <= right])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
