"""A teacher's scores in training files: what is read, and what is refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limrank.errors import UserError
from limrank.training.sources import read_examples

PAIR = {"query": "q", "passage": "p"}
SCORED = PAIR | {"score": 0.5}
LABELLED = PAIR | {"label": True, "teacher_score": 0.5}
LIST = {"query": "q", "instruction": "No dogs.", "passages": ["a", "b"], "scores": [0.25, 2]}


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(path, *records):
    return [(one.line, one.label, one.score) for one in read_examples(write(path, *records), scored=True)]


def refusal(path, *records, scored=True):
    with pytest.raises(UserError) as error:
        read_examples(write(path, *records), scored=scored)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(str(path))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "train.jsonl"


def test_scores_are_read_in_every_shape(file):
    assert read(file, SCORED, PAIR | {"score": 3}) == [(1, None, 0.5), (2, None, 3.0)]
    assert read(file, PAIR | {"teacher_score": -1}) == [(1, None, -1.0)]
    assert read(file, LABELLED, LABELLED | {"label": False, "teacher_score": None}) == [
        (1, " true", 0.5),
        (2, " false", None),
    ]
    assert read(file, {"prompt": "p", "completion": "</think> true", "score": 1}) == [(1, " true", 1.0)]
    assert read(file, {"instruction": "p", "output": "</think> false", "score": 1}) == [(1, " false", 1.0)]
    assert read(file, LIST) == [(1, None, 0.25), (1, None, 2.0)]


def test_a_list_s_passages_are_pairs_with_its_query(file):
    first, second = read_examples(write(file, LIST), scored=True)
    pairs = [{"query": "q", "instruction": "No dogs.", "passage": text, "score": 1} for text in "ab"]
    assert [one.prompt for one in read_examples(write(file, *pairs), scored=True)] == [first.prompt, second.prompt]
    assert first.query is second.query and first.query == ("q", "No dogs.")


def test_a_label_may_be_missing_where_there_is_a_score(file):
    records = [LABELLED, LABELLED | {"label": None}, PAIR | {"teacher_score": 2}]
    assert [label for _, label, _ in read(file, *records)] == [" true", None, None]
    # A record with neither says nothing.
    assert ":2: label is None" in refusal(file, LABELLED, LABELLED | {"label": None, "teacher_score": None})


def test_the_same_from_parquet(tmp_path):
    for name, records in (("pairs", [SCORED, SCORED | {"score": 1.5}]), ("lists", [LIST])):
        pq.write_table(pa.Table.from_pylist(records), tmp_path / f"{name}.parquet")
        lines = write(tmp_path / f"{name}.jsonl", *records)
        assert read_examples(tmp_path / f"{name}.parquet", scored=True) == read_examples(lines, scored=True)


def test_what_was_not_selected_needs_no_score(file):
    kept = SCORED | {"selected": True}
    assert len(read(file, kept, {"query": None, "passage": None, "score": "none", "selected": False})) == 1


def test_the_first_key_of_a_score_is_that_of_the_file(file):
    both = PAIR | {"score": 9, "teacher_score": 0.5}
    assert read(file, both, both)[1] == (2, None, 0.5)
    assert refusal(file, both, SCORED) == ":2: has score, and records before it have teacher_score: give one of them"


def test_scores_are_any_other_key_for_an_objective_that_learns_labels(file):
    (one,) = read_examples(write(file, LABELLED | {"teacher_score": "high"}))
    assert (one.label, one.score) == (" true", None)
    for records in ([SCORED], [PAIR | {"teacher_score": 1}], [LIST]):
        message = refusal(file, *records, scored=False)
        assert "a teacher's scores without labels: take training.objective=margin_mse or listnet" in message


@pytest.mark.parametrize("value", ["high", "0.5", True, False, [0.5], {"a": 1}, 1e300, -2e9])
def test_a_score_that_is_no_number_is_named(file, value):
    assert refusal(file, SCORED, PAIR | {"score": value}).startswith(":2: score is ")
    assert refusal(file, LABELLED, LABELLED | {"teacher_score": value}).startswith(":2: teacher_score is ")
    lists = [LIST, LIST | {"scores": [1, value]}]
    assert refusal(file, *lists).startswith(":2: element 2 of scores is ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400])
def test_a_score_of_json_that_is_not_finite_is_named(file, value):
    assert refusal(file, SCORED, PAIR | {"score": value}).startswith(":2: ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_score_of_parquet_that_is_not_finite_is_named(tmp_path, value):
    table = tmp_path / "t.parquet"
    for record, name in ((PAIR | {"score": value}, "score"), (LIST | {"scores": [1.0, value]}, "element 2 of scores")):
        pq.write_table(pa.Table.from_pylist([record]), table)
        with pytest.raises(UserError, match=rf"t\.parquet: row 1: {name} is (nan|-?inf): it should be a number"):
            read_examples(table, scored=True)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (PAIR, "score is missing or null, and there is no label"),
        (PAIR | {"score": None}, "score is missing or null, and there is no label"),
        (SCORED | {"label": "perhaps"}, "label is 'perhaps': it should be true or false"),
        (SCORED | {"passage": " "}, "passage is empty"),
    ],
)
def test_a_bad_scored_pair_is_named(file, record, message):
    assert refusal(file, SCORED, record).startswith(f":2: {message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"passages": []}, "passages is empty: it should be a list"),
        ({"scores": None}, "scores is null: it should be a list"),
        ({"scores": 1}, "scores is of type int: it should be a list"),
        ({"passages": "ab"}, "passages is of type str: it should be a list"),
        ({"scores": [1]}, "passages has 2 elements, and scores has 1: give one each"),
        ({"passages": ["a", " "]}, "element 2 of passages is empty"),
        ({"passages": ["a", None]}, "element 2 of passages is null"),
        ({"scores": [None, 1]}, "element 1 of scores is null: it should be a number"),
        ({"query": ""}, "query is empty"),
    ],
)
def test_a_bad_list_is_named(file, change, message):
    assert refusal(file, LIST, LIST | change).startswith(f":2: {message}")
    missing = {key: value for key, value in LIST.items() if key not in change}
    assert refusal(file, LIST, missing).startswith(f":2: {next(iter(change))} is missing")


def test_unknown_keys_are_named_with_those_of_scores(file):
    assert "or a teacher's scores: query, passage and score, or query, passages and scores" in refusal(file, PAIR)
