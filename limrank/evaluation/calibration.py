"""Fits a calibration to the judged pairs of a rerank job over other queries (``evaluation.calibrate``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from limrank.config import EvaluateJob
from limrank.errors import UserError
from limrank.evaluation.inputs import Inputs, read_finished
from limrank.evaluation.reliability import Reliability, ScoredPairs, judged_pairs, reliability
from limrank.evaluation.report import ReliabilitySection, Series
from limrank.files import path_of
from limrank.scoring.calibration import VERSION, Calibration, Isotonic, Platt
from limrank.scoring.fusion import clipped_log_odds

KEY = "evaluation.calibrate_on"
FILE = "calibration.json"

_BEFORE, _AFTER = "#7a7a7a", "#2f6da8"
"""Colors in the reliability diagram."""

_STEPS = 100
_SMALL = 1e-10


@dataclass(frozen=True)
class Fitted:
    """A calibration, and the facts about the pairs that it was fitted on."""

    calibration: Calibration
    fitted_on: dict[str, Any]

    def values(self) -> dict[str, Any]:
        """The contents of ``calibration.json``."""
        return {"version": VERSION, **self.calibration.values(), "fitted_on": self.fitted_on}


@dataclass(frozen=True)
class RunReliability:
    """The reliability of a run's scores, and what a calibration makes of it.

    Attributes:
        measured: of the scores in the run's rows.
        fitted, after: the calibration that was asked for, and the reliability of the calibrated scores.
    """

    pairs: ScoredPairs
    measured: Reliability
    fitted: Fitted | None = None
    after: Reliability | None = None

    def values(self) -> dict[str, Any]:
        """The entry of ``metrics.json``: counts of pairs, and ``ece``, ``brier`` and ``bins``, once more in
        ``calibrated`` where a calibration was fitted."""
        found = {
            "pairs": len(self.pairs.scores),
            "relevant": sum(self.pairs.relevant),
            "unjudged": self.pairs.unjudged,
            **asdict(self.measured),
        }
        if self.fitted and self.after:
            method = {"method": self.fitted.calibration.values()["method"]}
            found["calibrated"] = method | asdict(self.after) | {"fitted_on": self.fitted.fitted_on}
        return found

    def sentence(self) -> str:
        """The errors before and after, for the console."""
        assert self.fitted and self.after
        method, pairs = self.fitted.calibration.values()["method"], self.fitted.fitted_on["pairs"]
        return (
            f"expected calibration error {self.measured.ece:.4f}, after {method} {self.after.ece:.4f} "
            f"(fitted on {pairs} pairs of other queries); Brier score {self.measured.brier:.4f}, "
            f"after {self.after.brier:.4f}"
        )

    def section(self) -> ReliabilitySection:
        """The section of the report."""
        series = [_series("scores of the run", _BEFORE, self.measured)]
        if self.fitted and self.after:
            series.append(_series(f"after {self.fitted.calibration.values()['method']}", _AFTER, self.after))
        return ReliabilitySection(len(self.pairs.scores), sum(self.pairs.relevant), self.pairs.unjudged, tuple(series))


def run_reliability(config: EvaluateJob, inputs: Inputs) -> RunReliability | None:
    """The reliability of a rerank job's run, with a fitted calibration where the recipe asks for one; None where
    nothing was scored.

    Raises:
        UserError: rows are damaged; or a calibration is asked for and cannot be fitted, as in :func:`fit_run`.
    """
    pairs, asked = judged_pairs(config.run_dir, inputs.qrels), config.evaluation
    if pairs is None:
        if asked.calibrate:
            raise UserError(f"evaluation.calibrate: {config.run_dir} has no scored pair of a judged query")
        return None
    measured = reliability(pairs.scores, pairs.relevant)
    if asked.calibrate is None or asked.calibrate_on is None:
        return RunReliability(pairs, measured)
    fitted = fit_run(asked.calibrate, asked.calibrate_on, inputs)
    after = reliability([fitted.calibration(score) for score in pairs.raw], pairs.relevant)
    return RunReliability(pairs, measured, fitted, after)


def fit_run(method: Literal["platt", "isotonic"], directory: str, tested: Inputs) -> Fitted:
    """Fit a calibration to a rerank job's pairs, for the run that is evaluated.

    Raises:
        UserError: it is no finished rerank run, or one of another model, mode or number of chains; it shares a query
            with the evaluated run; or its pairs do not determine a calibration.
    """
    dev = read_finished(directory, KEY)
    if (path_of(dev.model).name, dev.scoring) != (path_of(tested.model).name, tested.scoring):
        raise UserError(f"{KEY}: {directory} is of {dev.name}, and the evaluated run of {tested.name}")
    own = {query.question for query in tested.queries}
    shared = [query.query_id for query in dev.queries if query.question in own]
    if shared:
        raise UserError(
            f"{KEY}: {directory} shares {len(shared)} queries with the evaluated run, such as {shared[0]!r}: "
            "a calibration is fitted on other queries than it is tested on"
        )
    pairs = judged_pairs(directory, dev.qrels)
    if pairs is None:
        raise UserError(f"{KEY}: {directory} has no scored pair of a judged query")
    calibration = fit(method, pairs.raw, pairs.relevant, f"{KEY}: {directory}")
    facts = {"run": directory, "model": dev.model, "scoring": dev.scoring, "queries": len(dev.qrels)}
    return Fitted(calibration, facts | {"pairs": len(pairs.raw), "relevant": sum(pairs.relevant)})


def fit(
    method: Literal["platt", "isotonic"], scores: Sequence[float], relevant: Sequence[bool], where: str
) -> Calibration:
    """The calibration of a method.

    Raises:
        UserError: the pairs are all relevant or all irrelevant, or relevance does not rise with the scores. The message
            starts with ``where``.
    """
    if len(set(relevant)) < 2:
        raise UserError(
            f"{where}: its {len(relevant)} pairs are {'all' if relevant[0] else 'not'} relevant: no calibration"
        )
    calibration = fit_platt(scores, relevant) if method == "platt" else fit_isotonic(scores, relevant)
    flat = calibration.slope <= 0 if isinstance(calibration, Platt) else len(set(calibration.probabilities)) < 2
    if flat:
        raise UserError(f"{where}: relevance does not rise with its scores: no calibration keeps their order")
    return calibration


def fit_platt(scores: Sequence[float], relevant: Sequence[bool]) -> Platt:
    """Logistic regression on the log-odds of the scores, by Newton's method.

    The targets are Platt's, (n₊ + 1) / (n₊ + 2) and 1 / (n₋ + 2) instead of 1 and 0, so that pairs which a score
    separates have a finite slope (Platt 1999; Lin, Lin and Weng, "A note on Platt's probabilistic outputs for support
    vector machines", 2007).
    """
    import numpy as np

    odds = np.array([clipped_log_odds(score) for score in scores])
    # Newton's steps are well conditioned on odds with mean 0 and standard deviation 1.
    center, spread = float(odds.mean()), float(odds.std()) or 1.0
    odds = (odds - center) / spread
    hits = np.asarray(relevant, dtype=bool)
    positive = int(hits.sum())
    targets = np.where(hits, (positive + 1) / (positive + 2), 1 / (len(hits) - positive + 2))
    columns = np.stack([odds, np.ones_like(odds)])

    def loss(at: np.ndarray) -> float:
        values = at @ columns
        return float((np.logaddexp(0, values) - targets * values).sum())

    at = np.array([0.0, np.log((positive + 1) / (len(hits) - positive + 1))])
    for _ in range(_STEPS):
        shares = 1 / (1 + np.exp(-np.clip(at @ columns, -700, 700)))
        gradient = columns @ (shares - targets)
        if np.abs(gradient).max() < _SMALL * len(odds):
            break
        curvature = (columns * (shares * (1 - shares))) @ columns.T + 1e-12 * np.eye(2)
        step, size = np.linalg.solve(curvature, gradient), 1.0
        # A full step may overshoot where shares are near 0 or 1: halve it until the loss falls.
        while size > _SMALL and loss(at - size * step) > loss(at) - 1e-4 * size * float(gradient @ step):
            size /= 2
        if size <= _SMALL:
            break
        at = at - size * step
    slope = float(at[0]) / spread
    return Platt(slope, float(at[1]) - slope * center)


def fit_isotonic(scores: Sequence[float], relevant: Sequence[bool]) -> Isotonic:
    """The non-decreasing probabilities of least squares, by pooling adjacent violators.

    A block of pooled scores becomes a point at its lowest score and one at its highest.
    """
    counted: dict[float, list[int]] = {}
    for score, hit in zip(scores, relevant, strict=True):
        entry = counted.setdefault(score, [0, 0])
        entry[0] += hit
        entry[1] += 1
    blocks: list[tuple[float, float, int, int]] = []  # lowest, highest, relevant pairs, pairs
    for score in sorted(counted):
        block = (score, score, *counted[score])
        while blocks and blocks[-1][2] * block[3] >= block[2] * blocks[-1][3]:
            lowest, _, hits, pairs = blocks.pop()
            block = (lowest, block[1], hits + block[2], pairs + block[3])
        blocks.append(block)
    points: dict[float, float] = {}
    for lowest, highest, hits, pairs in blocks:
        points[lowest] = points[highest] = hits / pairs
    return Isotonic(tuple(points), tuple(points.values()))


def _series(name: str, color: str, measured: Reliability) -> Series:
    return Series(name, color, measured.ece, measured.brier, measured.bins)
