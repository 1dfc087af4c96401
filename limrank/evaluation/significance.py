"""Confidence intervals of means over queries, by the percentile bootstrap.

Each sample draws as many queries as there are, with replacement. The interval holds the middle ``confidence``
share of the samples' means (Efron and Tibshirani, 1993, ch. 13; for retrieval, Sakai, SIGIR 2006). There is no
correction for multiple comparisons: among many systems, expect a few intervals to miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_BLOCK = 1 << 22
"""Draws held in memory at a time (32 MiB)."""


class Difference(NamedTuple):
    """The mean of ``a - b`` over queries and its interval."""

    difference: float
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float], samples: int = 2000, confidence: float = 0.95, *, seed: int
) -> tuple[float, float]:
    """``(low, high)`` of the mean over queries; the same for the same seed.

    Args:
        values: one value per query, at least one.
        samples: resampled sets of queries.
        confidence: the share of resampled means inside the interval, between 0 and 1.
    """
    import numpy as np

    observed = np.asarray(values, dtype=float)
    if not observed.size:
        raise ValueError("an interval needs at least one value")
    draw = np.random.default_rng(seed)
    means = np.empty(samples)
    block = max(1, _BLOCK // observed.size)
    for start in range(0, samples, block):
        size = min(block, samples - start)
        picked = draw.integers(observed.size, size=(size, observed.size))
        means[start : start + size] = observed[picked].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], samples: int = 2000, confidence: float = 0.95, *, seed: int
) -> Difference:
    """The mean difference ``a - b`` of two systems over the same queries, with its interval.

    ``a`` and ``b`` hold one value per query, in the same order. If the interval excludes 0, the choice of
    queries does not explain the difference.
    """
    if len(a) != len(b):
        raise ValueError(f"paired values need the same queries: {len(a)} and {len(b)} given")
    differences = [x - y for x, y in zip(a, b, strict=True)]
    low, high = bootstrap_interval(differences, samples, confidence, seed=seed)
    return Difference(sum(differences) / len(differences), low, high)
