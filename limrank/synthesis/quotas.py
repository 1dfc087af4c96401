"""Which queries are to be written: kinds, difficulties and domains in the recipe's shares, and
with an instruction at its rate.

A *cell* is one combination of the four. The number of queries of each kind, of each
difficulty, of each domain and with an instruction is within one of its quota; each cell's is
too, where a table of whole numbers has that as well.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from itertools import product

from limrank.config import SynthesisConfig
from limrank.records import Difficulty, Persona, QueryBrief, QueryKind

Cell = tuple[str, ...]

_INSTRUCTED = "instructed"

_ROUNDING = 1e-9
"""Of a share times a count, before it is taken for a whole number."""


def briefs(config: SynthesisConfig, seeds: int, personas: Sequence[Persona], seed: int) -> list[list[QueryBrief]]:
    """What is asked for each of so many seeds: a query a kind from each of its personas.

    Personas, and which seed gets which cell, are drawn by ``seed``, the run's.
    """
    draw = random.Random(f"{seed}/briefs")
    askers = min(config.personas_per_seed, len(personas))
    shares = [
        dict.fromkeys(config.kinds, 1.0),
        {str(each): config.difficulties.get(each, 0.0) for each in Difficulty},
        config.domains or {"": 1.0},
        {"": 1 - config.instruction_rate, _INSTRUCTED: config.instruction_rate},
    ]
    total = seeds * askers * len(config.kinds)
    dealt: dict[str, list[Cell]] = {kind: [] for kind in config.kinds}
    for cell, count in cell_counts(total, shares, draw).items():
        dealt[cell[0]] += [cell] * count
    for cells in dealt.values():
        draw.shuffle(cells)
    return [
        [_brief(dealt[kind].pop(), persona) for persona in draw.sample(personas, askers) for kind in config.kinds]
        for _ in range(seeds)
    ]


def cell_counts(total: int, shares: Sequence[Mapping[str, float]], draw: random.Random) -> dict[Cell, int]:
    """How many of ``total`` each combination gets of one value from each of ``shares``
    (value → weight). Where rounding leaves a choice, ``draw`` makes it."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    shares = [{value: weight / sum(each.values()) for value, weight in each.items()} for each in shares]
    cells = list(product(*shares))
    quotas = np.array([total * math.prod(map(dict.__getitem__, shares, cell)) for cell in cells])
    # One row a value: its cells add up to its quota, rounded either way. The first is all cells.
    rows, wanted = [np.ones(len(cells))], [float(total)]
    for at, each in enumerate(shares):
        for value, share in each.items():
            rows.append(np.array([float(cell[at] == value) for cell in cells]))
            wanted.append(total * share)
    sums = LinearConstraint(
        np.array(rows), np.floor(np.add(wanted, _ROUNDING)), np.ceil(np.subtract(wanted, _ROUNDING))
    )
    costs = np.array([draw.random() for _ in cells])
    for slack in (0, 1, total):
        low, high = np.floor(quotas + _ROUNDING) - slack, np.ceil(quotas - _ROUNDING) + slack * (quotas > 0)
        found = milp(costs, integrality=np.ones(len(cells)), bounds=Bounds(np.maximum(low, 0), high), constraints=sums)
        if found.success:
            break
    return {cell: round(count) for cell, count in zip(cells, found.x, strict=True)}


def _brief(cell: Cell, persona: Persona) -> QueryBrief:
    kind, difficulty, domain, instructed = cell
    return QueryBrief(QueryKind(kind), persona, Difficulty(difficulty), domain or None, instructed == _INSTRUCTED)
