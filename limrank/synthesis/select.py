"""Selects the kept examples that a model is trained on.

A query is selected with one positive and one negative, those that are hardest for the base model;
queries without both are left out. There are two ways to select queries:

- ``coverage`` takes a query from each cell (query kind × difficulty × domain) in turn, so that cells
  are filled evenly and an empty one leaves its share to the others. Within a cell it proceeds
  farthest-first over the queries' embeddings: greedy k-center (Gonzalez, 1985; for training sets
  Sener and Savarese, ICLR 2018, arXiv 1708.00489). Distances are weighted by how unsure or wrong the
  base model is (uncertainty sampling, Lewis and Gale, SIGIR 1994).
- ``random`` draws as many pairs at random: the ablation.

A smaller selection is the beginning of a larger one. The order of the rows does not matter.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from limrank.synthesis.embeddings import lexical_embeddings

if TYPE_CHECKING:
    import numpy as np

Row = Mapping[str, Any]
"""The fields of a ``SynthesisExample``, as read from ``rows/``."""

T = TypeVar("T")

OTHER = "other"
"""The domain of queries whose own is rare or not named."""

_RARE = 2
_LEADERS = 2048


@dataclass(frozen=True)
class Selection:
    """The examples that were selected from a pool.

    ``example_ids`` are in the order of selection, a query's positive before its negative. ``size``
    is the number that was asked for, ``queries`` the number of queries with a kept positive and a
    kept negative.
    """

    example_ids: list[str]
    size: int
    queries: int

    @property
    def shortfall(self) -> str | None:
        """Why there are fewer examples than were asked for; None if there are enough."""
        count = len(self.example_ids)
        if count == self.size:
            return None
        if self.size // 2 > self.queries:
            other = "other " if count else ""
            return f"{count} examples and not {self.size}: no {other}query has a kept positive and a kept negative"
        return f"{count} examples and not {self.size}: they come in pairs"


def surprise(row: Row) -> float:
    """|p(true) − label|: 0 if the base model is sure and right, one half if it is unsure, 1 if it is
    sure and wrong. p(true) is ``base_score`` if the row has one, else the judge's score; a pair
    without a score counts as unsure."""
    score = row.get("base_score")
    if score is None:
        score = row["judge_score"]
    return 0.5 if score is None else abs(score - bool(row["label"]))


def select(
    rows: Iterable[Row],
    size: int,
    by: Literal["coverage", "random"] = "coverage",
    *,
    seed: int,
    embed: Callable[[Sequence[str]], np.ndarray] = lexical_embeddings,
    hardness: Callable[[Row], float] = surprise,
) -> Selection:
    """At most ``size`` examples, half of them positive; of each query both labels.

    Args:
        rows: the pool, read once and not held; rows that are not kept are skipped.
        seed: draws the queries of ``random``, and breaks ties in ``coverage``.
        embed: texts of the queries → vectors, (n, d) floats, compared by cosine.
        hardness: how hard an example is for the base model, in [0, 1].
    """
    groups = _groups(rows, seed, hardness if by == "coverage" else None)
    order = _by_coverage(groups, embed) if by == "coverage" else iter(groups)
    chosen = [pick.example_id for group in islice(order, size // 2) for pick in (group.picks[True], group.picks[False])]
    return Selection(chosen, size, len(groups))


def domain_name(domain: str | None) -> str:
    """A domain's name in lower case with single spaces, :data:`OTHER` if it has none."""
    return " ".join((domain or "").lower().split()) or OTHER


class _Pick(NamedTuple):
    """An example of a query. The smallest is the hardest, or the first drawn of equals."""

    ease: float
    draw: bytes
    example_id: str
    domain: str
    difficulty: str


@dataclass(slots=True)
class _Group:
    """A query, and the example of each label that would be taken for it."""

    kind: str
    query: str
    draw: bytes
    picks: dict[bool, _Pick] = field(default_factory=dict)

    @property
    def hardness(self) -> float:
        return -sum(pick.ease for pick in self.picks.values()) / len(self.picks)


def _groups(rows: Iterable[Row], seed: int, hardness: Callable[[Row], float] | None) -> list[_Group]:
    """The queries that have both labels, in the order in which the seed draws them.

    The order is that of hashes, not of a generator, so that a query's position does not depend on
    the other queries.
    """

    def draw(*names: str) -> bytes:
        return hashlib.blake2b("\0".join((str(seed), *names)).encode(), digest_size=8).digest()

    groups: dict[tuple[str, ...], _Group] = {}
    for row in rows:
        if not row["kept"]:
            continue
        query = f"{row['query']} {row['instruction'] or ''}".strip()
        key = (row["seed_id"], row["query_kind"] or "", query)
        group = groups.get(key)
        if group is None:
            group = groups[key] = _Group(row["query_kind"] or "", query, draw(*key))
        pick = _Pick(
            -hardness(row) if hardness else 0.0,
            draw(row["example_id"]),
            row["example_id"],
            domain_name(row["domain"]),
            row["difficulty"],
        )
        label = bool(row["label"])
        group.picks[label] = min(pick, group.picks.get(label, pick))
    return sorted((group for group in groups.values() if len(group.picks) == 2), key=lambda group: group.draw)


def _by_coverage(groups: Sequence[_Group], embed: Callable[[Sequence[str]], np.ndarray]) -> Iterator[_Group]:
    """All groups: one of each cell in turn, farthest-first within a cell."""
    import numpy as np

    if not groups:
        return
    vectors = np.asarray(embed([group.query for group in groups]), dtype=np.float32)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    weights = np.array([1 + group.hardness for group in groups], dtype=np.float32)
    cells = [np.array(cell) for cell in _cells(groups)]
    for index in in_turn([map(cell.item, farthest_first(vectors[cell], weights[cell])) for cell in cells]):
        yield groups[index]


def _cells(groups: Sequence[_Group]) -> Iterator[list[int]]:
    """The groups' indices by query kind, difficulty and domain. Kinds and difficulties alternate, so
    that they stay even if not every cell gets a query."""
    domains = Counter(group.picks[True].domain for group in groups)
    strata: dict[tuple[str, str], dict[str, list[int]]] = {}
    for index, group in enumerate(groups):
        domain, difficulty = group.picks[True].domain, group.picks[True].difficulty
        stratum = strata.setdefault((group.kind, difficulty), {})
        stratum.setdefault(domain if domains[domain] > _RARE else OTHER, []).append(index)
    return in_turn([stratum.values() for stratum in strata.values()])


def farthest_first(vectors: np.ndarray, weights: np.ndarray) -> Iterator[int]:
    """All indices; each next one has the largest weighted distance to the nearest one before it. The
    heaviest comes first.

    Distances only shrink. Therefore only the leading candidates are updated at every step, until the
    best of them falls behind the best of the others as of the last update of all.

    Args:
        vectors: (n, d), of length one; the distance is 1 − cosine.
        weights: (n,), above 0.
    """
    import numpy as np

    distance = np.ones(len(vectors), dtype=np.float32)
    left = len(vectors)
    while left:
        scores = distance * weights
        order = np.argpartition(-scores, min(_LEADERS, len(scores) - 1))
        leaders, others = np.sort(order[:_LEADERS]), order[_LEADERS:]
        bound = scores[others].max(initial=-np.inf)
        leading, near, stretch = vectors[leaders], distance[leaders], weights[leaders]
        chosen = []
        while len(chosen) < left:
            best = int(np.argmax(near * stretch))
            if near[best] * stretch[best] < bound:
                break
            yield int(leaders[best])
            chosen.append(leaders[best])
            np.minimum(near, np.maximum(1 - leading @ leading[best], 0), out=near)
            near[best] = -np.inf
        for start in range(0, len(vectors), _LEADERS):
            block = slice(start, start + _LEADERS)
            nearest = (vectors[block] @ vectors[chosen].T).max(axis=1)
            np.minimum(distance[block], np.maximum(1 - nearest, 0), out=distance[block])
        distance[chosen] = -np.inf
        left -= len(chosen)


def in_turn(streams: Iterable[Iterable[T]]) -> Iterator[T]:
    """One item of each stream in turn, until all are empty."""
    end = object()
    for taken in zip_longest(*streams, fillvalue=end):
        yield from (each for each in taken if each is not end)
