"""Examples in the writer's prompt: real queries with their passages, as in InPars (arXiv 2202.05144) and
Promptagator (arXiv 2209.11755)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from limrank.data import seeds as seed_data
from limrank.errors import UserError
from limrank.records import Seed
from limrank.synthesis.contamination import Benchmarks
from limrank.synthesis.filters import same_text
from limrank.text.words import words

MOST = 1000
"""Examples to draw from; of a larger source so many are drawn."""

CHARACTERS = 600
"""A prompt quotes this much of an example's passage, and of its query."""

_LONGEST_WORD = 100
"""A cut is moved back to the end of a word if that is so near. In a script without spaces it may not be."""


@dataclass(frozen=True)
class Examples:
    """The examples of a run. ``repeated`` more repeat a benchmark, and are not shown."""

    seeds: tuple[Seed, ...]
    repeated: int
    seed: int

    def __len__(self) -> int:
        return len(self.seeds)

    @classmethod
    def of(cls, source: str, seed: int, benchmarks: Benchmarks | None) -> Examples:
        """The examples of a source of seeds; ``seed`` is the run's.

        Raises:
            UserError: see :func:`limrank.data.seeds.load_seeds`; or all of them repeat a benchmark.
        """
        found = seed_data.load_seeds(source, MOST, seed=seed, key="synthesis.examples")
        distinct: dict[tuple[str, str], Seed] = {}
        for each in found:
            distinct.setdefault((each.query, each.passage), each)
        clean = [
            each
            for each in distinct.values()
            if not (benchmarks and benchmarks.example_overlap(each.query, None, each.passage))
        ]
        if not clean:
            raise UserError(
                f"synthesis.examples {source}: all {len(distinct)} repeat a benchmark of synthesis.decontaminate"
            )
        return cls(tuple(clean), len(distinct) - len(clean), seed)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the examples: their ids, texts and order."""
        return seed_data.fingerprint(self.seeds, ())

    def drawn(self, query_name: str, passage: str, count: int) -> tuple[Seed, ...]:
        """At most ``count`` examples for one query, cut as a prompt shows them.

        The draw depends on the run's seed and the query's name only. An example is left out if its passage is
        nearly ``passage``, or one of the two nearly contains the other: its query would be the answer.
        """
        asked = words(passage)
        draw = random.Random(f"{self.seed}/examples/{query_name}")
        drawn: list[Seed] = []
        for index in _in_random_order(len(self.seeds), draw):
            each = self.seeds[index]
            if not same_text(words(each.passage), asked):
                drawn.append(replace(each, query=cut(each.query), passage=cut(each.passage)))
                if len(drawn) == count:
                    break
        return tuple(drawn)


def cut(text: str) -> str:
    """A text in one line, of at most ``CHARACTERS`` characters and an ellipsis, cut at the end of a word."""
    text = " ".join(text.split())
    if len(text) <= CHARACTERS:
        return text
    end = text.rfind(" ", CHARACTERS - _LONGEST_WORD, CHARACTERS + 1)
    return f"{text[: end if end > 0 else CHARACTERS]} …"


def _in_random_order(count: int, draw: random.Random) -> Iterator[int]:
    """0 … count - 1 shuffled. Those that nobody takes cost nothing."""
    moved: dict[int, int] = {}
    for first in range(count):
        other = draw.randrange(first, count)
        yield moved.get(other, other)
        moved[other] = moved.get(first, first)
