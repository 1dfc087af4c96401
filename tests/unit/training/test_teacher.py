"""Which passages are learned from a teacher, and in which unit."""

import math

import pytest

from helpers.training import settings
from limrank.errors import UserError
from limrank.training.sources import Example
from limrank.training.teacher import mean_spread, taught


def scored(**queries):
    """An example for each score of each query."""
    pairs = [(query, score) for query, scores in queries.items() for score in scores]
    return [
        Example(line, f"{query} {line}", "", None, (query,), None if score is None else float(score))
        for line, (query, score) in enumerate(pairs, 1)
    ]


def learn(found, seed=1, **changes):
    training = settings(train_file="t.jsonl", target="direct", objective="listnet", **changes)
    return taught(found, training, seed)


def test_scores_are_divided_by_their_mean_spread():
    # The standard deviations are 1 and 3.
    found = scored(a=[0, 2], b=[10, 16])
    assert mean_spread(found) == 2
    learned = learn(found)
    assert (learned.temperature, learned.warnings) == (2, [])
    assert [one.score for one in learned.examples] == [0, 1, 0, 3]  # from the lowest of its query
    assert [one.score for one in learn(found, teacher_temperature=0.5).examples] == [0, 4, 0, 12]
    # The spread is the file's, whatever is drawn of it.
    assert learn(found, max_examples=2).temperature == 2


def test_what_cannot_be_compared_is_left_out_with_a_warning():
    found = scored(a=[1, 2, None], b=[3], c=[4, 4], d=[5, None])
    repeated = found[0].__class__(9, found[0].prompt, "", None, ("a",), 1.0)
    learned = learn([*found, repeated])
    assert [one.line for one in learned.examples] == [1, 2]
    assert learned.warnings == [
        "t.jsonl: 7 of 9 passages are left out: 2 have no score, 1 repeat another, "
        "4 are of a query without two different scores"
    ]


def test_a_passage_with_two_scores_is_refused():
    found = scored(a=[1, 2])
    again = Example(7, found[1].prompt, "", None, ("a",), 3.0)
    with pytest.raises(UserError, match=r"^t.jsonl:7: a passage has the score 3, .* 2 in t.jsonl:2: remove one$"):
        learn([*found, again])
    assert learn([*found, Example(7, found[1].prompt, "", None, ("b",), 3.0)])  # of another query


def test_a_file_without_lists_is_refused():
    with pytest.raises(UserError, match=r"^t.jsonl: no example has a teacher's score.*give query, passage and score"):
        learn(scored(a=[None, None]))
    with pytest.raises(UserError, match=r"^t.jsonl: no query has two passages with different scores"):
        learn(scored(a=[1], b=[2, 2]))
    with pytest.raises(UserError, match=r"^training.max_examples=2: every query of t.jsonl .* set training.list_size"):
        learn(scored(a=[1, 2, 3]), max_examples=2)
    assert len(learn(scored(a=[1, 2, 3]), max_examples=2, list_size=2).examples) == 2


@pytest.mark.parametrize(
    "found", [scored(a=[0, 1e9], **{f"q{n}": [0, 1e-9] for n in range(30_000)}), scored(a=[0, 5e-324])]
)
def test_scores_of_another_order_are_refused(found):
    """One list outweighs all others; or nothing does."""
    with pytest.raises(UserError, match=r"^t.jsonl:1: the scores of this query differ by .*: check them, or set"):
        learn(found)


def test_scores_of_any_size_are_scaled():
    for scores in ([0, 1e-9], [-1e9, 1e9], [1e9, 1e9 - 1]):
        learned = learn(scored(a=scores))
        assert sorted(one.score for one in learned.examples) == pytest.approx([0, 2])
    with pytest.raises(UserError, match="the temperature 1e-300"):
        learn(scored(a=[0, 1]), teacher_temperature=1e-300)


def test_a_list_is_shortened_to_its_best_and_some_others():
    found = scored(a=range(10), b=[7, 7, 7, 1], c=[1, 2])
    drawn = set()
    for seed in range(20):
        lists = learn(found, seed, list_size=3).examples
        lines = [one.line for one in lists]
        assert lines == sorted(lines) and len(lines) == 3 + 3 + 2
        assert {10, 14} < set(lines)  # the best of a, and what is below the best of b
        drawn |= set(lines)
        assert lists == learn(found, seed, list_size=3).examples
    assert drawn == set(range(1, 17))
    assert len(learn(found, list_size=99).examples) == 16


def test_the_scale_does_not_depend_on_the_order_of_queries():
    found = scored(a=[0, 2, 5], b=[1, 6], c=[math.pi, 3])
    assert mean_spread(found) == mean_spread(found[::-1])
