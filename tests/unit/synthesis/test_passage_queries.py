"""Queries for passages: which passages are drawn, what a prompted and a tuned writer are asked, and the rows."""

import asyncio
import json
from collections import Counter

import pytest

from helpers.synthesis import DAILY, EXPERT, Writer
from limrank.config import ScoringConfig, SynthesisConfig
from limrank.engines.base import Generation
from limrank.errors import RowError
from limrank.records import Document, Seed
from limrank.synthesis.passage_queries import draw_passages, synthesize_passage
from limrank.synthesis.synthesizer import SynthesisInputs

PASSAGE = Seed(
    "a/doc", "", "Whoever plans a month of shifts begins with the nights, then fills the days that are left."
)


def inputs(**values):
    return SynthesisInputs(SynthesisConfig(source="passages", **values), ScoringConfig(mode="direct"), seed=7)


def written(engine, briefs, **values):
    return asyncio.run(synthesize_passage(PASSAGE, dict(enumerate(briefs)), {"writer": engine}, inputs(**values)))


class Tuned:
    """A writer that continues a text; ``answers`` are given in turn."""

    def __init__(self, *answers):
        self.answers = iter(answers)
        self.asked = []

    async def generate(self, prompt, **options):
        self.asked.append((prompt, options))
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return Generation(answer, "stop", 10, 0, 5)


def test_a_prompted_writer_s_query_has_the_passage_as_its_positive():
    outcome = written(Writer(), [DAILY, EXPERT])
    assert not outcome.failures
    assert [example.example_id for example in outcome.examples] == ["a%2Fdoc/0/positive", "a%2Fdoc/1/positive"]
    first = outcome.examples[0]
    assert (first.query, first.passage, first.label, first.kept) == (
        "how do I keep my rota in order",
        PASSAGE.passage,
        True,
        True,
    )
    assert (first.query_kind, first.persona_id, first.domain) == ("daily", "p1", "health")


def test_a_query_that_repeats_its_passage_or_cannot_be_read_is_rejected():
    copied = json.dumps({"domain": "x", "query": "whoever plans a month of shifts begins with the nights then"})
    (example,) = written(Writer(query=copied), [DAILY]).examples
    assert (example.kept, example.reject_reason) == (False, "leaks")
    (example,) = written(Writer(query="no JSON"), [DAILY]).examples
    assert (example.kept, example.reject_reason, example.query, example.passage) == (False, "unparsable", None, None)


def test_a_tuned_writer_continues_the_text_it_was_trained_on():
    writer = Tuned("  how are night   shifts planned", "rota", "", "who plans\n")
    outcome = written(writer, [None] * 4, writer="tuned", prompts={"passage_query": "P: {{ passage }}\nQ:"})
    assert [(each.query, each.kept, each.reject_reason) for each in outcome.examples] == [
        ("how are night shifts planned", True, None),
        ("rota", False, "length"),
        (None, False, "unparsable"),
        ("who plans", True, None),
    ]
    assert all(each.query_kind is None and each.persona_id is None for each in outcome.examples)
    prompt, options = writer.asked[0]
    assert prompt == f"P: {PASSAGE.passage}\nQ:" and options["stop"] == ["\n"] and "schema" not in options
    assert len({options["seed"] for _, options in writer.asked}) == 4


def test_a_failed_request_is_a_failure_of_its_query_only():
    outcome = written(
        Tuned("how are night shifts planned", RowError("too long")),
        [None] * 2,
        writer="tuned",
        prompts={"passage_query": "{{ passage }}"},
    )
    assert [each.example_id for each in outcome.examples] == ["a%2Fdoc/0/positive"]
    assert [(each.unit_id, each.step) for each in outcome.failures] == [("a%2Fdoc/1", "write")]


# ---- which passages ------------------------------------------------------------------


def corpus():
    """900 documents about sailing, and 100 about each of bread and law: short, medium and long ones."""
    topics = {"sail": 900, "bread": 100, "law": 100}
    documents = []
    for topic, count in topics.items():
        for number in range(count):
            text = " ".join(f"{topic}{(number * 7 + step) % 23}" for step in range(15 + 30 * (number % 3)))
            documents.append(Document(f"{topic}-{number}", text))
    return [*documents, Document("short", "only five words are here")]


def test_a_draw_takes_from_every_topic_and_length_alike():
    documents = corpus()
    drawn = draw_passages(documents, 90, seed=3)
    assert len(drawn) == len({each.doc_id for each in drawn}) == 90 and documents[-1] not in drawn
    topics = Counter(each.doc_id.partition("-")[0] for each in drawn)
    # By chance eight of 90 would be about bread.
    assert topics["bread"] >= 12 and topics["law"] >= 12
    lengths = Counter(len(each.text.split()) for each in drawn)
    assert min(lengths.values()) >= 25
    assert drawn == draw_passages(documents, 90, seed=3) != draw_passages(documents, 90, seed=4)
    order = [documents.index(each) for each in drawn]
    assert order == sorted(order)


@pytest.mark.parametrize("size", [None, 1100, 5000])
def test_all_passages_that_are_long_enough_are_taken(size):
    assert len(draw_passages(corpus(), size, seed=1)) == 1100


def test_a_corpus_of_few_and_equal_passages_can_be_drawn_from():
    same = [Document(str(number), "one text of twelve words that is the same for each of them") for number in range(9)]
    assert len(draw_passages(same, 4, seed=1)) == 4
    assert draw_passages([], 4, seed=1) == []
