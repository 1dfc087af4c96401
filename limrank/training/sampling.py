"""The examples of a file to train on and to hold out, drawn by the run's seed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, zip_longest
from typing import Literal, Protocol, TypeVar

from limrank.scoring import LABELS
from limrank.training.sources import Example


class _Asked(Protocol):
    @property
    def query(self) -> tuple[str, ...]: ...


Q = TypeVar("Q", bound=_Asked)


def select(examples: list[Example], count: int | None, seed: int, labels: Sequence[str] = LABELS) -> list[Example]:
    """At most ``count`` examples, as many of each label where there are enough.

    The sample depends only on ``seed``, and keeps the order of the file.
    """
    if count is None or count >= len(examples):
        return examples
    chance = random.Random(seed)
    groups = [[example for example in examples if example.label == label] for label in labels]
    for group in groups:
        chance.shuffle(group)
    # One of each label in turn: a label with too few examples leaves the rest to the others.
    in_turn = (one for turn in zip_longest(*groups) for one in turn if one is not None)
    chosen = set(map(id, islice(in_turn, count)))
    return [one for one in examples if id(one) in chosen]


def select_queries(
    examples: list[Example], count: int | None, seed: int, by: Literal["label", "score"] = "label"
) -> list[Example]:
    """At most ``count`` examples in whole queries with both labels, or two different scores, for an objective
    that compares their passages. The sample depends only on ``seed``, and keeps the order of the file."""
    groups = [group for group in _shuffled(examples, seed) if len({getattr(one, by) for one in group}) > 1]
    chosen = list(chain.from_iterable(_while_they_fit(groups, len(examples) if count is None else count)))
    return sorted(chosen, key=lambda example: example.line)


def shorten_lists(examples: list[Example], size: int, seed: int) -> list[Example]:
    """At most ``size`` passages of each query, in the order of the file: the highest-scored one, one with a lower
    score, and others, drawn by ``seed``."""
    kept: list[Example] = []
    for query, group in by_query(examples).items():
        best = max(group, key=lambda one: one.score)
        others = [one for one in group if one is not best]
        random.Random(f"{seed}/list/{query}").shuffle(others)
        lower = next(index for index, one in enumerate(others) if one.score < best.score)
        kept += [best, others.pop(lower), *others[: size - 2]]
    chosen = set(map(id, kept))
    return [one for one in examples if id(one) in chosen]


def split(examples: list[Q], share: float, seed: int) -> tuple[list[Q], list[Q]]:
    """(training, validation): at most ``share`` of the examples is held out, by whole queries. A model
    that was trained on a query's other passages would be evaluated on what it knows."""
    held_out = {
        one.query for group in _while_they_fit(_shuffled(examples, seed), int(len(examples) * share)) for one in group
    }
    return (
        [example for example in examples if example.query not in held_out],
        [example for example in examples if example.query in held_out],
    )


def _shuffled(examples: Iterable[Q], seed: int) -> list[list[Q]]:
    """The examples of each query, the queries in an order that ``seed`` draws."""
    order = list(by_query(examples).values())
    random.Random(seed).shuffle(order)
    return order


def by_query(examples: Iterable[Q]) -> dict[tuple[str, ...], list[Q]]:
    """The examples of each query, in the order of the file."""
    groups: dict[tuple[str, ...], list[Q]] = {}
    for example in examples:
        groups.setdefault(example.query, []).append(example)
    return groups


def _while_they_fit(groups: Iterable[list[Q]], count: int) -> Iterator[list[Q]]:
    for group in groups:
        if len(group) <= count:
            count -= len(group)
            yield group
