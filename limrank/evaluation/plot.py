"""Quality against generated tokens, drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from limrank.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Where a label may stand: beside the mean, or over an end of the bar; offsets in points of a
# 72nd of an inch. The first free place is taken, the last one in any case.
_PLACES = [
    ("mean", 8, 8, "left", "center"),
    ("mean", -8, 8, "right", "center"),
    ("mean", 8, -8, "left", "center"),
    ("mean", -8, -8, "right", "center"),
    ("high", 0, 5, "center", "bottom"),
    ("low", 0, -5, "center", "top"),
    *(("mean", side * 8, y, {1: "left", -1: "right"}[side], "center") for y in (20, -20, 32, -32) for side in (1, -1)),
]


_LONGEST_NAME = 60


class Point(NamedTuple):
    """``tokens`` generated a query, and the mean of a measure with its interval."""

    name: str
    tokens: float
    mean: float
    low: float
    high: float
    on_frontier: bool


def draw_quality(points: Sequence[Point], measure: str) -> bytes:
    """Labelled points with interval bars, and a line of steps along those on the frontier,
    as a PNG. The axis of tokens is logarithmic and holds 0."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    frontier = sorted((point for point in points if point.on_frontier), key=lambda point: point.tokens)
    rightmost = max(point.tokens for point in points)
    xs = [point.tokens for point in frontier] + [rightmost]
    ys = [point.mean for point in frontier] + [frontier[-1].mean]
    axes.step(xs, ys, where="post", color="tab:gray", linewidth=1, linestyle="--", label="best for its tokens")
    for point in points:
        # Where all queries score the same, the ends may miss the mean by a rounding error.
        bars = [[max(0.0, point.mean - point.low)], [max(0.0, point.high - point.mean)]]
        color = "tab:blue" if point.on_frontier else "tab:gray"
        axes.errorbar([point.tokens], [point.mean], yerr=bars, fmt="o", color=color, capsize=3, linewidth=1.5)
    axes.margins(y=0.12)  # room for names
    _scale_tokens(axes, [point.tokens for point in points])
    axes.set_xlabel("generated tokens a query")
    axes.set_ylabel(f"{measure} (mean and 95 % interval)", parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    _label(figure, axes, points)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def _scale_tokens(axes: Axes, tokens: Sequence[float]) -> None:
    from matplotlib.ticker import NullLocator, StrMethodFormatter, SymmetricalLogLocator

    positive = [each for each in tokens if each > 0]
    if not positive:
        return
    # Linear from 0 to the decade of the cheapest, logarithmic above.
    threshold = 10.0 ** math.floor(math.log10(min(positive)))
    axes.set_xscale("symlog", linthresh=threshold, linscale=0.7)
    axes.set_xlim(-0.6 * threshold if 0 in tokens else 0.5 * min(positive), 4 * max(positive))
    axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=threshold))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def _label(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Names beside their points, each where it covers no other name and no bar."""
    figure.draw_without_rendering()
    taken = [_bar_box(axes, point) for point in points]
    frame = axes.get_window_extent()
    for point in points:
        for place in _PLACES:
            anchor, x, y, side, height = place
            label = axes.annotate(
                printable(point.name, _LONGEST_NAME),
                (point.tokens, getattr(point, anchor)),
                xytext=(x, y),
                textcoords="offset points",
                ha=side,
                va=height,
                fontsize=9,
                parse_math=False,  # a dollar sign in a name is one
            )
            box = label.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if (inside and not any(box.overlaps(other) for other in taken)) or place is _PLACES[-1]:
                taken.append(box)
                break
            label.remove()


def _bar_box(axes: Axes, point: Point):
    """What a point and its bar cover, in pixels."""
    from matplotlib.transforms import Bbox

    (x, low), (_, high) = axes.transData.transform([(point.tokens, point.low), (point.tokens, point.high)])
    return Bbox([[x - 5, low - 3], [x + 5, high + 3]])
