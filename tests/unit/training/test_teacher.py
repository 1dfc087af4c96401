"""Which passages are learned from a teacher, and in which unit."""

import math

import pytest

from helpers.training import settings
from limrank.errors import UserError
from limrank.training.sources import Example
from limrank.training.teacher import graded, mean_spread, taught


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


def grade(found, labels="0123"):
    grades = graded(found, settings(train_file="t.jsonl", target="direct", labels=tuple(labels)))
    return [one.label for one in grades.examples], grades


def test_a_score_becomes_the_nearest_label_between_the_ends_of_the_file():
    # The scale is 10, 20, 30, 40; halfway between two labels is the higher one.
    labels, grades = grade(scored(a=[10, 14.9, 15, 24.9], b=[25, 34, 36, 40]))
    assert labels == list("00112233") and grades.ends == (10, 40) and not grades.warnings
    assert grade(scored(a=[-1, 1]), "01")[0] == ["0", "1"]


def test_scores_that_are_the_labels_become_themselves():
    labels = [str(number) for number in range(11)]
    assert grade(scored(a=range(11)), labels)[0] == labels
    assert grade(scored(a=[3, 0, 2, 1]))[0] == list("3021")


def test_scores_of_any_size_become_labels():
    for scores in ([0, 5e-324], [-1e9, 1e9], [1e9 - 1, 1e9]):
        assert grade(scored(a=scores))[0] == ["0", "3"]


def test_passages_without_a_score_or_repeated_become_no_label():
    found = scored(a=[1, 2, None], b=[2])
    repeated = Example(9, found[0].prompt, "", None, ("a",), 1.0)
    labels, grades = grade([*found, repeated])
    assert labels == list("033")
    assert grades.warnings == ["t.jsonl: 2 of 5 passages are left out: 1 have no score, 1 repeat another"]
    with pytest.raises(UserError, match=r"^t.jsonl:9: a passage has the score 3, .* 1 in t.jsonl:1: remove one$"):
        grade([*found, Example(9, found[0].prompt, "", None, ("a",), 3.0)])


def test_scores_without_a_range_are_refused():
    with pytest.raises(UserError, match=r"^t.jsonl: no example has a teacher's score, of which training.labels"):
        grade(scored(a=[None, None]))
    for same in ([0.5], [0.5, 0.5]):
        with pytest.raises(UserError, match=r"^t.jsonl: all scores are 0.5, and training.labels divides the range"):
            grade(scored(a=same))


def test_labels_of_a_file_stay_as_they_are():
    found = [Example(line, f"p{line}", "", label, ("q",)) for line, label in enumerate("3113", 1)]
    labels, grades = grade(found)
    assert (labels, grades.ends, grades.warnings) == (list("3113"), None, [])
