import random
from collections import Counter

import numpy as np
import pytest

from limrank.synthesis import select as module
from limrank.synthesis.select import Selection, domain_name, farthest_first, select, surprise

DOMAINS = ["health", "Health ", "law", "tax  law", "Tax law", "cooking", None]
WORDS = ["heat", "light", "sound", "water", "iron", "salt"]
POOLS = pytest.mark.parametrize("number", range(20))
BOTH = pytest.mark.parametrize("by", ["coverage", "random"])


def row(query, number, label, score=None, **fields):
    """A kept example; ``query`` names its seed and is its text."""
    return {
        "example_id": f"{query}/{number}",
        "seed_id": query,
        "query_kind": "daily",
        "domain": "health",
        "difficulty": "direct",
        "query": query,
        "instruction": None,
        "label": label,
        "judge_score": score,
        "verdict": None if score is None else score > 0.5,
        "kept": True,
    } | fields


def pair(query, score=None, **fields):
    """A positive and a negative that are equally hard."""
    low = None if score is None else 1 - score
    return [row(query, 0, True, score, **fields), row(query, 1, False, low, **fields)]


def random_pool(number, queries=60):
    """Queries of several cells, some of which lack a label once the rejected are gone."""
    chance = random.Random(number)
    rows = []
    for place in range(queries):
        fields = {
            "seed_id": f"s{place // 2}",
            "query_kind": ("daily", "expert")[place % 2],
            "domain": chance.choice(DOMAINS),
            "difficulty": chance.choice(["direct", "direct", "indirect", "multi_hop"]),
        }
        text = f"query {place} " + " ".join(chance.choices(WORDS, k=6))
        for each in range(chance.randint(2, 5)):
            kept = chance.random() < 0.8
            rows.append(
                row(text, each, each == 0, chance.random(), **fields)
                | {"example_id": f"s{place // 2}/{fields['query_kind']}/{each}", "kept": kept}
            )
    return rows


def usable(rows):
    """{query: {label: ids}} of the queries with both labels, as a person would count them."""
    found = {}
    for each in rows:
        if each["kept"]:
            found.setdefault(each["query"], {}).setdefault(each["label"], []).append(each["example_id"])
    return {query: labels for query, labels in found.items() if len(labels) == 2}


def chosen_rows(rows, selection):
    by_id = {each["example_id"]: each for each in rows}
    return [by_id[name] for name in selection.example_ids]


def cell(row):
    return row["query_kind"], row["difficulty"], domain_name(row["domain"])


# ---- what every choice keeps ---------------------------------------------------------


@BOTH
@POOLS
def test_every_query_has_both_labels_and_nothing_is_there_twice(number, by):
    rows = random_pool(number)
    groups = usable(rows)
    for size in (0, 2, 20, 2 * len(groups), 1000):
        selection = select(rows, size, by, seed=number)
        chosen = chosen_rows(rows, selection)
        assert len(chosen) == len(set(selection.example_ids)) == min(size, 2 * len(groups))
        assert all(each["kept"] for each in chosen)
        labels = Counter((each["query"], each["label"]) for each in chosen)
        assert set(labels.values()) <= {1}
        assert {query for query, _ in labels} <= set(groups)
        assert sum(each["label"] for each in chosen) * 2 == len(chosen)
        # Side by side, the positive first.
        assert [each["label"] for each in chosen] == [True, False] * (len(chosen) // 2)
        assert selection.queries == len(groups)


@BOTH
@POOLS
def test_the_order_of_the_rows_does_not_matter_and_the_seed_does(number, by):
    rows = random_pool(number)
    first = select(rows, 20, by, seed=number)
    assert select(iter(rows), 20, by, seed=number) == first
    shuffled = random.Random(number).sample(rows, len(rows))
    assert select(shuffled, 20, by, seed=number) == first
    assert select(rows + rows[:30], 20, by, seed=number) == first
    assert select(rows, 20, by, seed=number + 1) != first


@BOTH
@POOLS
def test_a_smaller_choice_is_the_beginning_of_a_larger_one(number, by):
    rows = random_pool(number)
    whole = select(rows, 60, by, seed=number).example_ids
    assert select(rows, 24, by, seed=number).example_ids == whole[:24]


def test_fewer_than_asked_for_is_said():
    rows = pair("one query") + pair("another query") + [row("a query without a negative", 0, True)]
    assert select(rows, 4, seed=1).shortfall is None
    assert select(rows, 3, seed=1).shortfall == "2 examples and not 3: they come in pairs"
    assert select(rows, 10, seed=1).shortfall == (
        "4 examples and not 10: no other query has a kept positive and a kept negative"
    )
    assert select([], 2, seed=1) == Selection([], 2, 0)
    assert select(rows[:1], 2, seed=1).shortfall == (
        "0 examples and not 2: no query has a kept positive and a kept negative"
    )


def test_a_query_under_two_instructions_is_two():
    rows = [row("a query", 0, True, instruction="no blogs"), row("a query", 1, False, instruction="only blogs")]
    assert select(rows, 2, seed=1).queries == 0
    rows.append(row("a query", 2, False, instruction="no blogs"))
    assert set(select(rows, 2, seed=1).example_ids) == {"a query/0", "a query/2"}


# ---- cells ---------------------------------------------------------------------------


@POOLS
def test_cells_are_filled_as_evenly_as_the_pool_allows(number):
    rows = random_pool(number, queries=200)
    groups = usable(rows)
    of_query = {each["query"]: cell(each) for each in rows}
    domains = Counter(of_query[query][2] for query in groups)
    assert min(domains.values()) > 2
    there = Counter(of_query[query] for query in groups)
    for size in (30, 60, 120):
        chosen = chosen_rows(rows, select(rows, size, seed=number))
        taken = Counter(cell(each) for each in chosen if each["label"])
        most = max(taken[each] for each in there)
        assert all(taken[each] >= min(most - 1, count) for each, count in there.items())


@POOLS
def test_kinds_and_difficulties_are_even_before_every_cell_has_one(number):
    rows = [
        each
        for place in range(180)
        for each in pair(
            f"query {place}",
            query_kind=("daily", "expert")[place % 2],
            difficulty=("direct", "indirect", "multi_hop")[place % 3],
            domain=f"domain {place // 6 % 10}",
        )
    ]
    chosen = chosen_rows(rows, select(rows, 24, seed=number))
    taken = Counter((each["query_kind"], each["difficulty"]) for each in chosen if each["label"])
    assert set(taken.values()) == {2} and len(taken) == 6


def test_domains_that_are_hardly_there_share_a_cell():
    rows = [each for place in range(30) for each in pair(f"common {place}", domain="Health")]
    rows += [each for place in range(20) for each in pair(f"rare {place}", domain=f"domain {place // 2}")]
    rows += [each for place in range(3) for each in pair(f"named thrice {place}", domain="law")]
    chosen = chosen_rows(rows, select(rows, 18, seed=1))
    assert Counter(each["query"].split()[0] for each in chosen) == {"common": 6, "rare": 6, "named": 6}


def test_domains_by_name():
    assert domain_name("  Tax\u00a0 LAW\n") == "tax law"
    assert domain_name(None) == domain_name(" ") == "other"


# ---- diversity and hardness ----------------------------------------------------------


def nearest_distance(vectors):
    """Mean distance of each to its nearest neighbour."""
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -1)
    return float((1 - similar.max(axis=1)).mean())


def clustered(number, queries=400, clusters=30):
    """One cluster holds most of the queries: ({text: unit vector}, {text: cluster})."""
    draw = np.random.default_rng(number)
    centers = draw.normal(size=(clusters, 16))
    members = np.where(draw.random(queries) < 0.7, 0, draw.integers(clusters, size=queries))
    vectors = centers[members] + 0.1 * draw.normal(size=(queries, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = [f"query {place}" for place in range(queries)]
    return dict(zip(texts, vectors, strict=True)), dict(zip(texts, members.tolist(), strict=True))


@POOLS
def test_coverage_is_more_diverse_than_random(number):
    vectors, members = clustered(number)
    rows = [each for text in vectors for each in pair(text)]

    def embed(texts):
        return np.array([vectors[text] for text in texts])

    def chosen(by):
        return [each["query"] for each in chosen_rows(rows, select(rows, 40, by, seed=number, embed=embed))[::2]]

    covering, blind = chosen("coverage"), chosen("random")
    assert nearest_distance(embed(covering)) > 2 * nearest_distance(embed(blind))
    # Twenty queries of twenty clusters, where chance takes most from the large one.
    assert len({members[text] for text in covering}) == 20
    assert len({members[text] for text in blind}) < 15


@POOLS
def test_coverage_is_harder_than_random(number):
    draw = np.random.default_rng(number)
    queries = [f"query {place}" for place in range(300)]
    vectors = dict(zip(queries, draw.normal(size=(300, 16)), strict=True))
    rows = []
    for text, score in zip(queries, draw.random(300).tolist(), strict=True):
        rows += pair(text, score)

    def embed(texts):
        return [vectors[text] for text in texts]

    def mean_hardness(by):
        chosen = chosen_rows(rows, select(rows, 60, by, seed=number, embed=embed))
        return sum(surprise(each) for each in chosen) / 60

    assert mean_hardness("coverage") > mean_hardness("random") + 0.1


def test_the_hardest_of_a_query_is_taken():
    rows = [row("q", number, number == 0, score) for number, score in enumerate([0.9, 0.1, 0.4, 0.2])]
    assert select(rows, 2, seed=1).example_ids == ["q/0", "q/2"]

    # A hardness of one's own: the last ones.
    last = select(rows, 2, seed=1, hardness=lambda each: int(each["example_id"][-1]) / 10)
    assert last.example_ids == ["q/0", "q/3"]


def test_surprise():
    assert surprise(row("q", 0, True, 0.9)) == pytest.approx(0.1)
    assert surprise(row("q", 0, False, 0.9)) == pytest.approx(0.9)
    assert surprise(row("q", 0, True)) == 0.5
    assert surprise(row("q", 0, True, 0.9, base_score=0.2)) == pytest.approx(0.8)
    assert surprise(row("q", 0, True, 0.9, base_score=None)) == pytest.approx(0.1)


def test_random_is_even_over_queries():
    rows = [each for place in range(20) for each in pair(f"query {place}")]
    rows += [row("query 0", number, False) for number in range(2, 9)]
    taken = Counter(name for seed in range(400) for name in select(rows, 10, "random", seed=seed).example_ids)
    of_query = Counter()
    for name, count in taken.items():
        of_query[name.split("/")[0]] += count
    # A quarter of 400 choices each, two examples a time; and no negative of query 0 is preferred.
    assert len(of_query) == 20
    assert all(150 <= count <= 250 for count in of_query.values())
    assert all(taken[f"query 0/{number}"] > 0 for number in range(1, 9))


@pytest.mark.parametrize("leaders", [8, 64, 10_000])
@pytest.mark.parametrize("number", range(5))
def test_each_place_is_the_farthest_that_is_left(number, leaders, monkeypatch):
    monkeypatch.setattr(module, "_LEADERS", leaders)
    vectors = np.array(list(clustered(number)[0].values()))
    weights = 1 + np.random.default_rng(number).random(len(vectors))
    order = list(farthest_first(vectors.astype(np.float32), weights.astype(np.float32)))
    assert sorted(order) == list(range(len(vectors)))
    distance = np.ones(len(vectors))
    for place in order:
        assert distance[place] * weights[place] >= (distance * weights).max() - 1e-5
        distance = np.minimum(distance, np.maximum(1 - vectors @ vectors[place], 0))
        distance[place] = -1


def test_equal_vectors_are_all_taken():
    same = np.ones((50, 4), dtype=np.float32) / 2
    assert sorted(farthest_first(same, np.ones(50, dtype=np.float32))) == list(range(50))
