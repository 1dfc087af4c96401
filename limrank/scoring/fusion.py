"""Fusion of a reranker's scores with those of the first stage.

A candidate's fused score in one query is ``(1 - W) * z(log-odds) + W * z(first-stage score)``. z is the score with
mean 0 and standard deviation 1 over the query's scored candidates (Montague and Aslam, "Relevance score normalization
for metasearch", CIKM 2001). A fused score orders the candidates of one query, and means nothing outside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from limrank.scoring.cascade import log_odds

WEIGHTS = tuple(step / 20 for step in range(21))
"""The weights to choose from: 0, 0.05, …, 1."""

LARGEST_LOG_ODDS = log_odds(1.0)
"""36.7, those of the largest double below 1. No score in [0, 1] can say more on the side of 1."""


def clipped_log_odds(score: float) -> float:
    """The log-odds of a score in [0, 1], clipped to ±:data:`LARGEST_LOG_ODDS` on both sides.

    Without the clip a score of 0 has log-odds of -690, and all other candidates of its query look the same.

    Raises:
        ValueError: the score is not in [0, 1].
    """
    if not 0 <= score <= 1:
        raise ValueError(f"the score {score} is not in [0, 1]")
    return max(log_odds(score), -LARGEST_LOG_ODDS)


def z_scores(values: Sequence[float]) -> list[float]:
    """The values with mean 0 and population standard deviation 1; all 0 where they are equal.

    Raises:
        ValueError: a value is not finite.
    """
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"the score {value} is not a finite number")
    # Sums and squares of huge values would overflow. A power of two rounds nothing.
    exponent = math.frexp(max(map(abs, values), default=0.0))[1]
    scaled = [math.ldexp(value, -exponent) for value in values]
    if not scaled or min(scaled) == max(scaled):
        return [0.0] * len(values)
    mean = math.fsum(scaled) / len(scaled)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in scaled) / len(scaled))
    return [(value - mean) / deviation for value in scaled]


def fuse(log_odds: Sequence[float], first_stage: Sequence[float], weight: float) -> list[float]:
    """The fused scores of a query's scored candidates.

    Args:
        log_odds: the reranker's, one for each candidate.
        first_stage: the first stage's scores of the same candidates, on any scale.
        weight: of the first stage, in [0, 1].

    Raises:
        ValueError: the lengths differ, the weight is not in [0, 1], or a score is not finite.
    """
    if len(log_odds) != len(first_stage):
        raise ValueError(f"{len(log_odds)} log-odds and {len(first_stage)} first-stage scores")
    if not 0 <= weight <= 1:
        raise ValueError(f"the weight {weight} is not in [0, 1]")
    ours, theirs = z_scores(log_odds), z_scores(first_stage)
    return [(1 - weight) * our + weight * their for our, their in zip(ours, theirs, strict=True)]


def fused_scores(
    scores: Sequence[float | None], first_stage: Sequence[float | None], ranks: Sequence[int], weight: float
) -> list[float | None]:
    """:func:`fuse` over a query's candidates, some of which may have failed. A candidate without a score has None, and
    counts in no mean.

    Args:
        scores: the reranker's, in [0, 1].
        first_stage: the first stage's scores. If one is None, ``-rank`` is taken for all: lists that have ranks
            alone, and runs whose scores are ``-rank``, then give the same.
        ranks: in the first stage, from 1.
        weight: of the first stage, in [0, 1].

    Raises:
        ValueError: as :func:`fuse`; or a score is not in [0, 1].
    """
    theirs: Sequence[float] = [-float(rank) for rank in ranks] if None in first_stage else first_stage  # type: ignore[assignment]
    scored = [index for index, score in enumerate(scores) if score is not None]
    fused = fuse([clipped_log_odds(scores[index]) for index in scored], [theirs[index] for index in scored], weight)
    found: list[float | None] = [None] * len(scores)
    for index, value in zip(scored, fused, strict=True):
        found[index] = value
    return found


def fused_order(
    scores: Sequence[float | None], first_stage: Sequence[float | None], ranks: Sequence[int], weight: float
) -> list[int]:
    """The order of a query's candidates by their fused scores, as indices, best first.

    Ties are in the first stage's order. Candidates without a score follow all others, in the first stage's order. At
    weight 0 this is the order by score, also where two scores round to the same fused one.

    Args, Raises: see :func:`fused_scores`.
    """
    fused = fused_scores(scores, first_stage, ranks, weight)
    by = fused if weight else scores
    return sorted(range(len(scores)), key=lambda index: (by[index] is None, -(by[index] or 0.0), ranks[index]))


def choose_weight(quality: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """The weight of :data:`WEIGHTS` with the highest quality, and the quality of each.

    Among equals, the weight nearest to 0.5 is chosen: nothing shows that one of the two rankings deserves less than
    the other. Of two as near, it is the smaller one, which leaves more to the reranker.

    Args:
        quality: of the fused order at a weight: a mean over queries, higher is better.
    """
    found = {weight: quality(weight) for weight in WEIGHTS}
    return min(WEIGHTS, key=lambda weight: (-found[weight], abs(weight - 0.5), weight)), found
