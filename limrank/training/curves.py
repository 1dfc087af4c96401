"""A run's metrics as a picture, and as events for TensorBoard."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any


class Board:
    """Writes the metrics as TensorBoard's events. A resumed run replaces the events of the steps that
    it repeats."""

    def __init__(self, directory: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=step + 1, flush_secs=10)

    def add(self, metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            if name != "step":
                self._writer.add_scalar(name, value, metrics["step"])
        self._writer.flush()


def draw_curves(metrics: list[dict[str, Any]]) -> bytes:
    """A PNG of the loss (training, and held out if measured), the held-out nDCG@10 if measured, and the
    learning rate by step."""
    from matplotlib.figure import Figure

    steps = [line["step"] for line in metrics]
    ranked = [line for line in metrics if "ndcg" in line]
    figure = Figure(figsize=(8, 7.5 if ranked else 6), layout="constrained")
    panels = figure.subplots(3 if ranked else 2, 1, sharex=True, height_ratios=(3, 2, 1) if ranked else (3, 1))
    loss, rate = panels[0], panels[-1]
    # A single point needs a marker.
    marker = "o" if len(steps) < 50 else ""
    loss.plot(steps, [line["loss"] for line in metrics], marker=marker, markersize=3, label="training")
    if validated := [line for line in metrics if "validation_loss" in line]:
        xs, ys = [line["step"] for line in validated], [line["validation_loss"] for line in validated]
        loss.plot(xs, ys, marker="s", label="held out")
        loss.legend()
    loss.set_ylabel("loss (nats)")
    if ranked:
        panels[1].plot(
            [line["step"] for line in ranked], [line["ndcg"] for line in ranked], marker="s", color="tab:green"
        )
        panels[1].set_ylabel("held-out nDCG@10")
    rate.plot(steps, [line["learning_rate"] for line in metrics], marker=marker, markersize=3, color="tab:gray")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("optimizer step")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rate.xaxis.get_major_locator().set_params(integer=True)
    for axes in panels:
        axes.grid(alpha=0.3)
    picture = BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    return picture.getvalue()
