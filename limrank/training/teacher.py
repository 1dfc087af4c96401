"""A teacher's scores: which passages can be learned from, and in which unit, or as which graded label.

Teachers score in any unit: cosines lie within 1 of each other, logits do not. For the objectives that learn scores,
they are divided by a *temperature*, so that they compare with log-odds.

For graded labels (``training.labels``), a score becomes the label that is nearest to it on a scale whose ends are the
lowest and the highest score of the file, and whose labels lie at equal distances. The served score of a graded model
is the expected value of its labels at these distances, so a model that learned its examples serves the teacher's score,
shifted and scaled to 0 … 1, within half the distance of two labels. Value functions are trained as classifiers in a
similar way: equal bins, a cross-entropy, and the expected value as what is read (Farebrother et al., "Stop Regressing",
ICML 2024, arXiv 2403.03950). Quantiles would give each label as many examples. But a label would then say which rank a
passage has in the file: where few passages are relevant, the highest label would go to passages that answer nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from limrank.config import TrainingConfig
from limrank.errors import UserError
from limrank.training.sampling import by_query, select_queries, shorten_lists
from limrank.training.sources import Example

WIDEST = 1e4
"""A query's scores, divided by the temperature, differ by at most this: log-odds differ by tens."""


@dataclass(frozen=True)
class Taught:
    """The examples of whole queries, and warnings about the others.

    An example's score is its difference to the lowest of its query, divided by ``temperature``: the objectives
    learn differences, and float32 holds them.
    """

    examples: list[Example]
    temperature: float
    warnings: list[str]


def taught(found: Sequence[Example], training: TrainingConfig, seed: int) -> Taught:
    """The examples for an objective that learns a teacher's scores: queries with two different ones.

    Raises:
        UserError: there are no such queries; every one has more passages than are to be drawn; a passage has
            two scores; or the scores differ by too much for the temperature.
    """
    file = training.train_file
    scored = [one for one in found if one.score is not None]
    if not scored:
        raise UserError(
            f"{file}: no example has a teacher's score, which training.objective={training.objective} learns: give "
            "query, passage and score (or teacher_score), or query, passages and scores"
        )
    distinct = _distinct(scored, str(file))
    usable = select_queries(distinct, None, seed, by="score")
    if not usable:
        raise UserError(
            f"{file}: no query has two passages with different scores, which training.objective={training.objective} "
            "compares: give more passages a query"
        )
    temperature = training.teacher_temperature or mean_spread(usable)
    _check_spread(usable, temperature, str(file))
    lists = shorten_lists(usable, training.list_size, seed) if training.list_size else usable
    examples = select_queries(lists, training.max_examples, seed, by="score")
    if not examples:
        raise UserError(
            f"training.max_examples={training.max_examples}: every query of {file} that "
            f"training.objective={training.objective} can compare has more passages: raise it, or set training.list_size"
        )
    reasons = {
        "have no score": len(found) - len(scored),
        "repeat another": len(scored) - len(distinct),
        "are of a query without two different scores": len(distinct) - len(usable),
    }
    left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    warnings = [f"{file}: {len(found) - len(usable)} of {len(found)} passages are left out: {left_out}"]
    return Taught(_scaled(examples, temperature), temperature, warnings if left_out else [])


@dataclass(frozen=True)
class Graded:
    """Examples with graded labels, and warnings about those that are left out.

    ``ends`` are the scores of the least and the most relevant label; None if the file has labels.
    """

    examples: list[Example]
    ends: tuple[float, float] | None
    warnings: list[str]


def graded(found: Sequence[Example], training: TrainingConfig) -> Graded:
    """The examples for ``training.labels``: as they are if the file has labels, else with the labels of their scores.

    Raises:
        UserError: no passage has a score, all have the same one, or a passage has two scores.
    """
    file, labels = training.train_file, training.labels
    if any(one.label is not None for one in found):
        return Graded(list(found), None, [])
    scored = [one for one in found if one.score is not None]
    if not scored:
        raise UserError(f"{file}: no example has a teacher's score, of which training.labels would make a label")
    distinct = _distinct(scored, str(file))
    scores = _scores(distinct)
    low, high = min(scores), max(scores)
    if low == high:
        raise UserError(
            f"{file}: all scores are {low:g}, and training.labels divides the range from the lowest to the highest: "
            "give passages with different scores, or labels"
        )
    examples = [replace(one, label=_nearest(labels, (one.score - low) / (high - low))) for one in distinct]
    reasons = {"have no score": len(found) - len(scored), "repeat another": len(scored) - len(distinct)}
    left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    warnings = [f"{file}: {len(found) - len(distinct)} of {len(found)} passages are left out: {left_out}"]
    return Graded(examples, (low, high), warnings if left_out else [])


def _nearest(labels: Sequence[str], place: float) -> str:
    """The label nearest to a place from 0 to 1 on their scale; the higher one of two."""
    return labels[math.floor(place * (len(labels) - 1) + 0.5)]


def mean_spread(examples: Sequence[Example]) -> float:
    """The standard deviation of a query's scores (over its passages, not of a sample), averaged over the
    queries."""
    return math.fsum(_spread(_scores(group)) for group in by_query(examples).values()) / len(by_query(examples))


def _spread(scores: Sequence[float]) -> float:
    mean = math.fsum(scores) / len(scores)
    return math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))


def _scaled(examples: Sequence[Example], temperature: float) -> list[Example]:
    lowest = {query: min(_scores(group)) for query, group in by_query(examples).items()}
    return [replace(one, score=(one.score - lowest[one.query]) / temperature) for one in examples]


def _distinct(examples: Sequence[Example], file: str) -> list[Example]:
    """The examples without those that repeat a query and passage. Raises UserError if the two scores differ."""
    first: dict[tuple[tuple[str, ...], str], Example] = {}
    for one in examples:
        before = first.setdefault((one.query, one.prompt), one)
        if before.score != one.score:
            raise UserError(
                f"{file}:{one.line}: a passage has the score {one.score:g}, and for the same query {before.score:g} in "
                f"{file}:{before.line}: remove one"
            )
    return list(first.values())


def _check_spread(examples: Sequence[Example], temperature: float, file: str) -> None:
    for group in by_query(examples).values():
        scores = _scores(group)
        if max(scores) - min(scores) > WIDEST * temperature:
            raise UserError(
                f"{file}:{group[0].line}: the scores of this query differ by {max(scores) - min(scores):g}, more than "
                f"{WIDEST:g} times the temperature {temperature:g}: check them, or set training.teacher_temperature"
            )


def _scores(group: Sequence[Example]) -> list[float]:
    return [one.score for one in group if one.score is not None]
