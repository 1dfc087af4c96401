import random
from collections import Counter
from itertools import product

import pytest

from limrank.config import SynthesisConfig
from limrank.records import Difficulty, Persona
from limrank.synthesis.quotas import briefs, planned_cells

PERSONAS = [Persona(str(number), f"persona {number}") for number in range(20)]


def drawn_shares(draw, most):
    return {f"v{number}": draw.choice([0.0, 0.3, 1.0, 2.5]) for number in range(draw.randint(1, most))} | {"one": 1.0}


@pytest.mark.parametrize("seed", range(40))
def test_each_value_s_count_is_within_one_of_its_quota(seed):
    draw = random.Random(seed)
    shares = [drawn_shares(draw, 2), drawn_shares(draw, 3), drawn_shares(draw, 12)]
    total = draw.choice([0, 1, 7, 100, 12_345])
    counts = Counter(planned_cells(total, shares, draw))
    assert sum(counts.values()) == total
    assert set(counts) <= set(product(*shares))
    for at, weights in enumerate(shares):
        for value, weight in weights.items():
            quota = total * weight / sum(weights.values())
            assert abs(sum(count for cell, count in counts.items() if cell[at] == value) - quota) < 1
    for cell in product(*shares):
        quota = total
        for weights, value in zip(shares, cell, strict=True):
            quota *= weights[value] / sum(weights.values())
        assert abs(counts[cell] - quota) < 2


def test_briefs_keep_the_shares_of_the_recipe():
    config = SynthesisConfig(
        domains={"law": 3, "medicine": 1}, difficulties={"direct": 1, "multi_hop": 4}, instruction_rate=0.25
    )
    planned = [brief for asked in briefs(config, 50, PERSONAS, seed=1) for brief in asked]
    assert Counter(brief.kind for brief in planned) == {"daily": 50, "expert": 50}
    assert Counter(brief.domain for brief in planned) == {"law": 75, "medicine": 25}
    assert Counter(brief.difficulty for brief in planned) == {Difficulty.DIRECT: 20, Difficulty.MULTI_HOP: 80}
    assert sum(brief.instructed for brief in planned) == 25
    # Evenly too where one is taken with another: half a query of each 25 on the average.
    by_kind = Counter(brief.kind for brief in planned if brief.instructed)
    assert {abs(count - 12.5) for count in by_kind.values()} == {0.5}
    # Not one after the other: what is stopped half-way is mixed as well.
    assert len({brief.domain for brief in planned[:20]}) == 2


def test_each_persona_of_a_seed_asks_a_query_of_each_kind():
    config = SynthesisConfig(personas_per_seed=3)
    for asked in briefs(config, 5, PERSONAS, seed=1):
        assert [brief.kind for brief in asked] == ["daily", "expert"] * 3
        assert [one.persona == other.persona for one, other in zip(asked[::2], asked[1::2], strict=True)] == [True] * 3
        assert len({brief.persona.persona_id for brief in asked}) == 3
        assert {brief.domain for brief in asked} == {None}
    few = briefs(config, 5, PERSONAS[:2], seed=1)
    assert [len(asked) for asked in few] == [4] * 5


def test_the_same_seed_plans_the_same():
    config = SynthesisConfig(domains={"law": 3, "medicine": 1}, instruction_rate=0.5)
    assert briefs(config, 9, PERSONAS, seed=1) == briefs(config, 9, PERSONAS, seed=1)
    assert briefs(config, 9, PERSONAS, seed=1) != briefs(config, 9, PERSONAS, seed=2)
