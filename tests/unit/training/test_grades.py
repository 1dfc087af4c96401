"""Graded labels in training files: what is read, what is refused, and that training asks what scoring asks."""

import asyncio
import json
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limrank import models, prompts
from limrank.config import ScoringConfig
from limrank.engines.base import Limits
from limrank.errors import UserError
from limrank.records import Candidate, Query
from limrank.scoring import pair_text, prompt_template, score_pair
from limrank.scoring.encoding import encode_example
from limrank.scoring.labels import label_answers
from limrank.training.examples import encode_examples, set_target
from limrank.training.grades import grade_of
from limrank.training.shapes import before_passage, pair_prompt
from limrank.training.sources import read_examples

LABELS = ("0", "1", "2", "3")
TO_TEN = tuple(map(str, range(11)))
PAIR = {"query": "q", "passage": "p"}
LABELLED = PAIR | {"label": 2}
SCORED = PAIR | {"score": 0.5}
LIST = {"query": "q", "instruction": "No dogs.", "passages": ["a", "b"], "labels": [0, "3"]}
SCORED_LIST = {"query": "q", "instruction": "No dogs.", "passages": ["a", "b"], "scores": [0.25, 2]}


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(path, *records, labels=LABELS):
    return [(one.line, one.label, one.score) for one in read_examples(write(path, *records), labels=labels)]


def refusal(path, *records, labels=LABELS):
    with pytest.raises(UserError) as error:
        read_examples(write(path, *records), labels=labels)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(str(path))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "train.jsonl"


# ---- what is read --------------------------------------------------------------------


def test_labels_and_scores_are_read_in_every_shape(file):
    assert read(file, LABELLED, PAIR | {"label": "3"}) == [(1, "2", None), (2, "3", None)]
    assert read(file, LIST) == [(1, "0", None), (1, "3", None)]
    assert read(file, SCORED, PAIR | {"score": None}, PAIR) == [(1, None, 0.5), (2, None, None), (3, None, None)]
    assert read(file, PAIR | {"teacher_score": -1, "score": 9}) == [(1, None, -1.0)]
    assert read(file, SCORED_LIST) == [(1, None, 0.25), (1, None, 2.0)]


def test_a_file_with_labels_is_read_by_them(file):
    """Whatever stands beside them."""
    chain = {"reasoning": "It fits.", "verdict": True, "score": "high"}
    assert read(file, LABELLED | chain) == [(1, "2", None)]
    (one,) = read_examples(file, labels=LABELS)
    assert (one.chain, one.query) == ("", ("q", ""))


def test_the_same_from_parquet(tmp_path):
    lists = LIST | {"labels": [0, 3]}
    for number, records in enumerate(([LABELLED], [lists], [SCORED], [PAIR | {"teacher_score": 1.5}], [SCORED_LIST])):
        pq.write_table(pa.Table.from_pylist(records), tmp_path / f"{number}.parquet")
        lines = write(tmp_path / f"{number}.jsonl", *records)
        assert read_examples(tmp_path / f"{number}.parquet", labels=LABELS) == read_examples(lines, labels=LABELS)


def test_what_was_not_selected_needs_no_label(file):
    kept = LABELLED | {"selected": True}
    assert len(read(file, kept, {"query": None, "passage": None, "label": "none", "selected": False})) == 1


@pytest.mark.parametrize(
    ("value", "label"), [(2, "2"), (2.0, "2"), ("2", "2"), (" 2\n", "2"), (0, "0"), (-0.0, "0")], ids=repr
)
def test_a_label_is_text_or_a_number(value, label):
    assert grade_of(value, "label", "f:1", LABELS) == label


def test_labels_may_be_words_fractions_or_negative():
    assert grade_of("partly", "label", "f:1", ("no", "partly", "yes")) == "partly"
    assert grade_of(True, "label", "f:1", ("false", "true")) == "true"
    assert [grade_of(each, "label", "f:1", ("-1", "0.5")) for each in (-1, 0.5)] == ["-1", "0.5"]


# ---- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (4, "4"),
        (-1, "-1"),
        (1.5, "1.5"),
        (True, "'true'"),
        ("", "''"),
        ("2.0", "'2.0'"),
        ("two", "'two'"),
        ([2], "[2]"),
        ({"a": 1}, "{'a': 1}"),
        (None, "null"),
        (1 << 300, "a number of very many digits"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_label_that_is_not_in_the_list_is_named_with_the_list(file, value, named):
    expected = f"is {named}: it should be one of training.labels: 0, 1, 2, 3"
    assert refusal(file, LABELLED, PAIR | {"label": value}) == f":2: label {expected}"
    assert refusal(file, LIST, LIST | {"labels": [1, value]}) == f":2: element 2 of labels {expected}"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_label_of_parquet_that_is_not_finite_is_named(tmp_path, value):
    pq.write_table(pa.Table.from_pylist([PAIR | {"label": value}]), tmp_path / "t.parquet")
    for labels in (LABELS, ("0", "nan", "inf", "-inf")):
        with pytest.raises(UserError, match=r"t\.parquet: row 1: label is (nan|-?inf): it should be one of"):
            read_examples(tmp_path / "t.parquet", labels=labels)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([LABELLED, PAIR], ":2: label is missing"),
        ([LABELLED, LABELLED | {"passage": " "}], ":2: passage is empty"),
        ([LABELLED, LABELLED | {"query": None}], ":2: query is null"),
        ([LIST, LIST | {"labels": [1]}], ":2: passages has 2 elements, and labels has 1: give one each"),
        ([LIST, LIST | {"labels": []}], ":2: labels is empty"),
        ([LIST, LIST | {"labels": 1}], ":2: labels is of type int"),
        ([LIST, LIST | {"passages": ["a", None]}], ":2: element 2 of passages is null"),
        ([SCORED, PAIR | {"score": "high"}], ":2: score is 'high': it should be a number"),
        ([SCORED_LIST, SCORED_LIST | {"scores": [1, None]}], ":2: element 2 of scores is null"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_record_is_named(file, records, message):
    assert refusal(file, *records).startswith(message)


@pytest.mark.parametrize(
    "record", [{"prompt": "p", "completion": "</think> true"}, {"instruction": "p", "output": "</think> true"}, PAIR]
)
def test_a_file_of_another_shape_is_refused(file, record):
    keys = ", ".join(record)
    assert refusal(file, record).startswith(
        f":1: keys {keys}: training.labels learns from query, passage and label (or score, or teacher_score), or from"
    )


# ---- what the model is asked ---------------------------------------------------------


def test_the_prompt_of_a_pair_is_that_of_scoring(file):
    assert pair_prompt() == prompts.load("relevance")  # a part of the hash of every training
    assert pair_prompt(LABELS) == prompt_template(ScoringConfig(labels=LABELS))
    (one, _) = read_examples(write(file, LIST), labels=LABELS)
    assert one.prompt == pair_text(prompt_template(ScoringConfig(labels=LABELS)), Query("", "q", "No dogs."), "a")
    assert before_passage(one.prompt).endswith("0, 1, 2, 3.\nQuery: q No dogs.")


class Recording:
    """Keeps what it is asked, and gives all tokens the same log-probability."""

    def __init__(self, tokenizer):
        self.tokenizer, self.limits, self.asked = tokenizer, Limits(4096, 8), []

    async def label_logprobs(self, prompt, labels):
        self.asked.append(prompt)
        return dict.fromkeys(labels, -1.0)


@pytest.fixture(scope="module")
def smol_tokenizer():
    if not models.is_cached("smollm2-135m-instruct"):
        pytest.skip("smollm2-135m-instruct is not fetched yet (limrank models fetch smollm2-135m-instruct)")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.resolve("smollm2-135m-instruct"))
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
    return tokenizer


@pytest.mark.parametrize("vocabulary", ["qwen", "smol"])
@pytest.mark.parametrize("labels", [LABELS, TO_TEN, ("no", "partly", "yes")], ids=" ".join)
def test_an_example_is_learned_where_scoring_reads_it(file, qwen_tokenizers, smol_tokenizer, vocabulary, labels):
    tokenizer = smol_tokenizer if vocabulary == "smol" else qwen_tokenizers["marked"]
    records = [LIST | {"passages": ["Yeast makes gas."] * len(labels), "labels": list(labels)}]
    encoded = encode_examples(
        set_target(read_examples(write(file, *records), labels=labels), "direct"),
        partial(encode_example, tokenizer),
        tokenizer.eos_token_id,
        1000,
        "train.jsonl",
        answers=label_answers(tokenizer, labels, tokenizer.eos_token_id),
    )
    engine = Recording(tokenizer)
    asyncio.run(
        score_pair(
            Query("", "q", "No dogs."), Candidate("d", "Yeast makes gas.", 1, 0.0), engine, ScoringConfig(labels=labels)
        )
    )
    first, *later = engine.asked
    for label, one in zip(labels, encoded, strict=True):
        assert one.ids[: one.prompt_tokens].tolist() == first, label
        own = one.ids[one.prompt_tokens :].tolist()
        text = tokenizer.decode([each for each in own if each != tokenizer.eos_token_id]).strip()
        assert text == label and one.label is None
    if labels == TO_TEN:
        # 1 is followed by the end, 10 by the token that scoring asks for behind 1.
        one, ten = (encoded[index].ids[encoded[index].prompt_tokens :].tolist() for index in (1, 10))
        assert (one[1:], ten[0]) == ([tokenizer.eos_token_id], one[0])
        assert later == [[*first, one[0]]]
    else:
        assert not later and all(each.completion_tokens == 1 for each in encoded)


def test_a_passage_that_is_too_long_loses_its_end_and_never_its_label(file, smol_tokenizer):
    answers = label_answers(smol_tokenizer, TO_TEN, smol_tokenizer.eos_token_id)
    record = {"query": "q", "passage": "word " * 500, "label": 1}
    (one,) = encode_examples(
        set_target(read_examples(write(file, record), labels=TO_TEN), "direct"),
        partial(encode_example, smol_tokenizer),
        smol_tokenizer.eos_token_id,
        120,
        "train.jsonl",
        answers=answers,
    )
    assert len(one.ids) == 120 and one.truncated and one.completion_tokens == 2
    assert smol_tokenizer.decode(one.ids).endswith("<think>\n</think> 1<|im_end|>")
