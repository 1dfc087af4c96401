"""Which examples are trained on and which held out."""

from collections import Counter

import pytest

from limrank.scoring import LABELS
from limrank.training.sampling import select, select_queries, split
from limrank.training.sources import Example


def labelled(true, false):
    return [
        Example(line, "p", "\n", " true" if line <= true else " false", ("p",)) for line in range(1, true + false + 1)
    ]


@pytest.mark.parametrize(
    ("true", "false", "count", "expected"),
    [(10, 10, 6, (3, 3)), (10, 10, 5, (3, 2)), (10, 1, 6, (5, 1)), (1, 10, 6, (1, 5)), (10, 0, 6, (6, 0))],
)
def test_a_sample_is_balanced_where_it_can_be(true, false, count, expected):
    chosen = select(labelled(true, false), count, seed=1)
    assert (sum(one.label == " true" for one in chosen), sum(one.label == " false" for one in chosen)) == expected


def test_a_sample_is_seeded_and_keeps_the_order_of_the_file():
    examples = labelled(20, 20)
    lines = [one.line for one in select(examples, 10, seed=1)]
    assert lines == sorted(lines) == [one.line for one in select(examples, 10, seed=1)]
    assert lines != [one.line for one in select(examples, 10, seed=2)]
    assert select(examples, None, seed=1) == select(examples, 99, seed=1) == examples


def test_a_sample_of_graded_labels_has_as_many_of_each_where_it_can():
    grades = "0" * 90 + "1" * 2 + "2" * 8
    found = [Example(line, "p", "", grade, ("p",)) for line, grade in enumerate(grades, 1)]
    chosen = select(found, 12, seed=1, labels=("0", "1", "2", "3"))
    assert [one.line for one in chosen] == sorted(one.line for one in chosen)
    assert Counter(one.label for one in chosen) == {"0": 5, "1": 2, "2": 5}
    assert (
        chosen == select(found, 12, seed=1, labels=("0", "1", "2", "3")) != select(found, 12, 2, ("0", "1", "2", "3"))
    )


def test_a_sample_of_true_and_false_stays_the_one_it_was():
    """A run directory continues with the same examples."""
    assert [one.line for one in select(labelled(20, 20), 7, seed=12345)] == [4, 9, 17, 19, 27, 30, 33]


def asked(*queries):
    return [Example(line, "", "", LABELS[line % 2], (query,)) for line, query in enumerate(queries, 1)]


def test_whole_queries_are_held_out():
    examples = asked(*"aabbccddeeffgghhiijj")
    training, validation = split(examples, 0.25, seed=1)
    assert (len(training), len(validation)) == (16, 4)
    assert not {one.query for one in training} & {one.query for one in validation}
    assert sorted(training + validation, key=lambda one: one.line) == examples
    assert split(examples, 0.25, seed=1) == (training, validation) != split(examples, 0.25, seed=2)
    assert split(examples, 0.05, seed=1) == (examples, [])  # one of two is no query


def test_whole_queries_with_both_labels_are_selected():
    examples = asked(*"aabbccddd", "e")
    assert {one.query[0] for one in select_queries(examples, None, seed=1)} == set("abcd")
    for seed in range(9):
        chosen = select_queries(examples, 5, seed)
        assert [one.line for one in chosen] == sorted(one.line for one in chosen)
        # Two pairs, or a pair and the three of d.
        assert len(chosen) in (4, 5) and all(
            sum(one.query == other.query for other in examples) == sum(one.query == other.query for other in chosen)
            for one in chosen
        )
    assert select_queries(asked("a"), None, seed=1) == []


def test_whole_queries_with_two_scores_are_selected():
    scores = {"a": (1, 2), "b": (3,), "c": (4, 4), "d": (5, 6, 6)}
    examples = [
        Example(line, "", "", None, (query,), float(score))
        for line, (query, score) in enumerate(((query, score) for query in scores for score in scores[query]), 1)
    ]
    chosen = select_queries(examples, None, seed=1, by="score")
    assert [one.line for one in chosen] == [1, 2, 6, 7, 8]
    assert select_queries(examples, None, seed=1) == []  # no labels
