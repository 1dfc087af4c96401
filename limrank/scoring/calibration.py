"""Calibration: a monotone map from raw scores to probabilities of relevance, fitted on judged pairs.

``limrank evaluate`` fits it and writes ``calibration.json``; ``scoring.calibration`` applies it after the labels are
read, after chains are averaged, and after a cascade. The order of a ranking is that of the raw scores, so two scores
that the map makes equal keep their order.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from limrank.errors import UserError
from limrank.files import opened
from limrank.parsing import brief, parse_json
from limrank.records import Judgment
from limrank.scoring.fusion import clipped_log_odds

VERSION = 1
_LARGEST_FILE = 1 << 26


@dataclass(frozen=True)
class Platt:
    """p = 1 / (1 + exp(-(slope · log-odds of the score + intercept))), with a slope above 0."""

    slope: float
    intercept: float

    def __call__(self, score: float) -> float:
        return _sigmoid(self.slope * clipped_log_odds(score) + self.intercept)

    def values(self) -> dict[str, Any]:
        return {"method": "platt", "slope": self.slope, "intercept": self.intercept}


@dataclass(frozen=True)
class Isotonic:
    """Linear between points (score, probability), constant outside them.

    ``scores`` rise, and ``probabilities`` do not fall.
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __call__(self, score: float) -> float:
        right = bisect_right(self.scores, score)
        if right == 0:
            return self.probabilities[0]
        if right == len(self.scores):
            return self.probabilities[-1]
        (left_score, right_score), (low, high) = (
            each[right - 1 : right + 1] for each in (self.scores, self.probabilities)
        )
        return low + (high - low) * (score - left_score) / (right_score - left_score)

    def values(self) -> dict[str, Any]:
        return {"method": "isotonic", "scores": list(self.scores), "probabilities": list(self.probabilities)}


Calibration = Platt | Isotonic


def calibrated(judgments: Sequence[Judgment], calibration: Calibration | None) -> list[Judgment]:
    """The judgments with calibrated scores; ``raw_score`` is then the score before. Judgments that have a
    ``raw_score`` are calibrated already, by a server."""
    if calibration is None:
        return list(judgments)
    return [
        each
        if each.score is None or each.raw_score is not None
        else replace(each, score=calibration(each.score), raw_score=each.score)
        for each in judgments
    ]


def read_calibration(path: str | None) -> Calibration | None:
    """The calibration of a ``calibration.json``; None for no path.

    Raises:
        UserError: it cannot be read, or is none; the message names the file and the key.
    """
    if path is None:
        return None
    with opened(path) as file:
        data = file.read(_LARGEST_FILE + 1)
    if len(data) > _LARGEST_FILE:
        raise UserError(f"{path}: longer than {_LARGEST_FILE >> 20} MiB, which is no calibration")
    values = parse_json(data, path, expect=dict)
    if type(values.get("version")) is not int or values["version"] != VERSION:
        raise UserError(f"{path}: version: should be {VERSION} (got {brief(values.get('version'))})")
    if values.get("method") == "platt":
        slope, intercept = (_number(values.get(key), f"{path}: {key}") for key in ("slope", "intercept"))
        if slope <= 0:
            raise UserError(f"{path}: slope: should be above 0, or the order would be reversed (got {brief(slope)})")
        return Platt(slope, intercept)
    if values.get("method") == "isotonic":
        scores, probabilities = (_fractions(values.get(key), f"{path}: {key}") for key in ("scores", "probabilities"))
        if len(scores) != len(probabilities):
            raise UserError(f"{path}: {len(scores)} scores and {len(probabilities)} probabilities")
        if any(left >= right for left, right in pairwise(scores)):
            raise UserError(f"{path}: scores: should rise from each to the next")
        if any(left > right for left, right in pairwise(probabilities)):
            raise UserError(f"{path}: probabilities: should not fall from one to the next")
        return Isotonic(scores, probabilities)
    raise UserError(f"{path}: method: should be platt or isotonic (got {brief(values.get('method'))})")


def fingerprint(calibration: Calibration | None) -> str | None:
    """A short hash of what a calibration does to scores."""
    return None if calibration is None else hashlib.sha256(repr(calibration).encode()).hexdigest()[:16]


def _sigmoid(value: float) -> float:
    if value >= 0:
        return 1 / (1 + math.exp(-min(value, 700.0)))
    power = math.exp(max(value, -700.0))
    return power / (1 + power)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: should be a number (got {brief(value)})")
    if not abs(value) <= 1e300:
        raise UserError(f"{where}: is too large a number")
    return float(value)


def _fractions(values: Any, where: str) -> tuple[float, ...]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: should be a list of numbers from 0 to 1 (got {brief(values)})")
    numbers = tuple(_number(value, where) for value in values)
    if outside := [number for number in numbers if not 0 <= number <= 1]:
        raise UserError(f"{where}: should be numbers from 0 to 1 (got {brief(outside[0])})")
    return numbers
