"""The plan of the queries: kinds, difficulties and domains in the recipe's shares, and an
instruction at its rate.

A *cell* is one combination of the four. The counts of the kinds, difficulties, domains and
instructions add up to the number of queries and are each within one of their share (largest
remainders). Combinations are spread evenly, without a bound of their own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from limrank.config import SynthesisConfig
from limrank.records import Difficulty, Persona, QueryBrief, QueryKind

Cell = tuple[str, ...]

_INSTRUCTED = "instructed"


def briefs(config: SynthesisConfig, seeds: int, personas: Sequence[Persona], seed: int) -> list[list[QueryBrief]]:
    """The briefs of each of ``seeds`` seeds: each of its personas asks one query of each kind. A passage has
    ``queries_per_passage`` of them, each with a persona.

    ``seed``, the run's, draws the personas and which seed gets which cell.
    """
    draw = random.Random(f"{seed}/briefs")
    askers = min(config.personas_per_seed, len(personas))
    shares = [
        dict.fromkeys(config.kinds, 1.0),
        {str(each): config.difficulties.get(each, 0.0) for each in Difficulty},
        config.domains or {"": 1.0},
        {"": 1 - config.instruction_rate, _INSTRUCTED: config.instruction_rate},
    ]
    if config.source == "passages":
        cells = planned_cells(seeds * config.queries_per_passage, shares, draw)
        draw.shuffle(cells)
        return [
            [_brief(cells.pop(), draw.choice(personas)) for _ in range(config.queries_per_passage)]
            for _ in range(seeds)
        ]
    by_kind: dict[str, list[Cell]] = {kind: [] for kind in config.kinds}
    for cell in planned_cells(seeds * askers * len(config.kinds), shares, draw):
        by_kind[cell[0]].append(cell)
    for cells in by_kind.values():
        draw.shuffle(cells)
    return [
        [_brief(by_kind[kind].pop(), persona) for persona in draw.sample(personas, askers) for kind in config.kinds]
        for _ in range(seeds)
    ]


def planned_cells(total: int, shares: Sequence[Mapping[str, float]], draw: random.Random) -> list[Cell]:
    """``total`` cells, sorted: each has one value of each of ``shares`` (value → weight).

    The values of one criterion are dealt evenly over the cells of the criteria before it.
    ``draw`` breaks ties and shifts each value's sequence, so that the criteria are independent.
    """
    cells: list[Cell] = [()] * total
    for weights in shares:
        positions: list[tuple[float, str]] = []
        for value, count in _largest_remainders(total, weights, draw).items():
            start = draw.random()
            positions += [((start + number) / count, value) for number in range(count)]
        cells = sorted((*cell, value) for cell, (_, value) in zip(cells, sorted(positions), strict=True))
    return cells


def _largest_remainders(total: int, weights: Mapping[str, float], draw: random.Random) -> dict[str, int]:
    """Hamilton's method: each value gets its quota rounded down, and one more goes to those
    with the largest remainders until all of ``total`` is given out."""
    whole = math.fsum(weights.values())
    quotas = {value: total * weight / whole for value, weight in weights.items()}
    counts = {value: math.floor(quota) for value, quota in quotas.items()}
    order = sorted(weights, key=lambda value: (counts[value] - quotas[value], draw.random()))
    for value in order[: total - sum(counts.values())]:
        counts[value] += 1
    return counts


def _brief(cell: Cell, persona: Persona) -> QueryBrief:
    kind, difficulty, domain, instructed = cell
    return QueryBrief(QueryKind(kind), persona, Difficulty(difficulty), domain or None, instructed == _INSTRUCTED)
