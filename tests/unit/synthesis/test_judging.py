"""The judge's verdicts and chains, and what a reranker mines and scores."""

import hashlib
import math
import re
from dataclasses import asdict, replace

import pytest

from helpers.synthesis import DAILY, INPUTS, MINED, WRITTEN, Reranker, Writer, synthesize
from helpers.units import fake_engine
from limrank.config import ScoringConfig
from limrank.engines.base import Generation, Limits
from limrank.engines.fake import ByteTokenizer
from limrank.errors import RowError
from limrank.synthesis.select import surprise

NEIGHBOURS = ["one <-2>", "two <3>", "three <1>", "four <3>"]


def test_the_judge_sees_what_was_not_rejected_and_its_chain_is_kept():
    outcome = synthesize(writer=Writer())
    # All three passages of a query are the same text: the second and third need no judge.
    assert [each.reject_reason == "same_passages" for each in outcome.examples] == [False, True, True] * 2
    for example in outcome.examples:
        asked = example.reject_reason != "same_passages"
        assert (example.judge_score is not None) == asked
        assert bool(example.reasoning) == asked


def test_a_chain_before_label_tokens_does_not_say_its_verdict_too():
    """The verdict follows it in training: "</think> true"."""
    chains = iter(["It says where to begin. So the answer is: true", "**Final Answer**\n\\boxed{true}"])

    class Judge:
        tokenizer, limits = ByteTokenizer(), Limits(32768, 256)

        async def generate(self, prompt, **options):
            return Generation(next(chains), "stop", 10, 0, 5)

        async def label_logprobs(self, prompt, labels):
            return {" true": -0.1, " false": -3.0}

    only_positive = replace(INPUTS, synthesis=INPUTS.synthesis.model_copy(update={"negatives": 0}))
    writer = Writer(describe='{"positive": "one that helps", "hard_negatives": []}')
    message = [
        (example.reasoning, example.kept, example.reject_reason)
        for _ in range(2)
        for example in synthesize(briefs=[DAILY], writer=writer, judge=Judge(), inputs=only_positive).examples
    ]
    assert message == [("It says where to begin.", True, None), ("", False, "bad_chain")]


def test_a_pair_that_the_judge_cannot_score_is_a_row_and_a_failure():
    outcome = synthesize(judge=fake_engine(fail_rate=1.0))
    assert {each.reject_reason for each in outcome.examples} == {"judge_failed"}
    assert {each.judge_score for each in outcome.examples} == {None}
    assert {each.unit_id for each in outcome.failures} == {each.example_id for each in outcome.examples}
    assert {each.step for each in outcome.failures} == {"judge"}


def test_a_judge_is_read_by_what_it_writes_where_there_are_no_label_tokens():
    """As the paper's is: a chat model that gives its chain apart, and no probabilities."""
    passages = {
        "one that helps": "Whoever plans a month of shifts begins with the nights, then fills the days that are left.",
        "one": "The union's handbook tells since when nurses have had a right to eleven hours between two shifts.",
        "two": "Paper charts on the wall were replaced by spreadsheets in most wards during the last decade.",
    }
    answers = {
        "one that helps": ("true", "It tells where to begin."),
        "one": ("maybe", None),
        "two": ("It is much too short.\n\nFALSE", None),
    }

    class Judge(Writer):
        async def generate(self, prompt, *, max_tokens, **sampling):
            (message,) = prompt
            self.prompts.append(message["content"])
            assert sampling == {} and max_tokens == 32
            (asked,) = (name for name, text in passages.items() if f"Passage: {text}\n" in message["content"])
            text, reasoning = answers[asked]
            return Generation(text, "stop", 10, 0, 5, reasoning)

    def passage(prompt):
        described = re.search(r"The passage: (.*)", prompt)
        return passages[described[1]] if described else "A thought."

    inputs = replace(INPUTS, synthesis=INPUTS.synthesis.model_copy(update={"judge_by": "answer"}))
    judge = Judge()
    outcome = synthesize(briefs=[DAILY], writer=Writer(text=passage), judge=judge, inputs=inputs)
    assert outcome.failures == [] and len(judge.prompts) == 3
    assert all(
        "Query: how do I keep my rota in order\n" in prompt and "<think>" not in prompt for prompt in judge.prompts
    )
    message = [(each.reject_reason, each.verdict, each.judge_score, each.reasoning) for each in outcome.examples]
    assert message == [
        (None, True, None, "It tells where to begin."),
        ("unparsable", None, None, "maybe"),
        (None, False, None, "It is much too short."),
    ]


def test_by_ranking_nobody_is_asked_about_what_has_nothing_to_be_compared_with():
    asked = []

    class Judge(Writer):
        async def label_logprobs(self, prompt, labels):
            asked.append(prompt)
            return dict.fromkeys(labels, math.log(0.5))

    # All passages are one text: only the positive is left.
    settings = INPUTS.synthesis.model_copy(update={"agreement": "ranking"})
    inputs = replace(INPUTS, synthesis=settings, judging=INPUTS.judging.model_copy(update={"mode": "direct"}))
    outcome = synthesize(briefs=[DAILY], writer=Writer(), judge=Judge(), inputs=inputs)
    assert [each.reject_reason for each in outcome.examples] == ["unpaired", "same_passages", "same_passages"]
    # And here the positive is gone, and two negatives are left.
    outcome = synthesize(
        briefs=[DAILY], writer=Writer(text="Too short."), judge=Judge(), mined=("a text", "another"), inputs=inputs
    )
    assert [each.reject_reason for each in outcome.examples] == ["length"] * 3 + ["unpaired"] * 2
    assert asked == []


def test_a_failed_request_to_a_judge_is_a_row_and_a_failure():
    class Judge(Writer):
        async def generate(self, prompt, *, max_tokens, **sampling):
            raise RowError("refused")

    inputs = replace(INPUTS, synthesis=INPUTS.synthesis.model_copy(update={"judge_by": "answer", "negatives": 0}))
    outcome = synthesize(briefs=[DAILY], writer=Writer(), judge=Judge(), inputs=inputs)
    assert [(each.reject_reason, each.verdict) for each in outcome.examples] == [("judge_failed", None)]
    assert [(each.unit_id, each.step, each.error) for each in outcome.failures] == [
        ("s1/daily/p1/0-positive", "judge", "refused")
    ]


@pytest.mark.parametrize(("mode", "reason"), [("direct", None), ("budget", "bad_chain")])
def test_a_chain_is_checked_where_one_is_asked_for(mode, reason):
    class Silent(Writer):
        """Writes nothing, and answers true."""

        async def generate(self, prompt, *, max_tokens, **sampling):
            return Generation("", "stop", 10, 0, 0)

        async def label_logprobs(self, prompt, labels):
            return dict(zip(labels, (math.log(0.9), math.log(0.1)), strict=True))

    settings = INPUTS.synthesis.model_copy(update={"negatives": 0})
    inputs = replace(INPUTS, synthesis=settings, judging=INPUTS.judging.model_copy(update={"mode": mode}))
    outcome = synthesize(briefs=[DAILY], writer=Writer(), judge=Silent(), inputs=inputs)
    assert [each.reject_reason for each in outcome.examples] == [reason]


@pytest.mark.parametrize(("context", "cut"), [(300, False), (230, True)])
def test_a_judge_with_too_little_context_keeps_nothing(context, cut):
    settings = INPUTS.synthesis.model_copy(update={"negatives": 0})
    inputs = replace(INPUTS, synthesis=settings, judging=ScoringConfig(mode="direct"))
    (judged_one,) = synthesize(
        briefs=[DAILY], writer=Writer(), judge=fake_engine(context=context), inputs=inputs
    ).examples
    assert judged_one.judge_score is not None
    assert (judged_one.reject_reason == "length") == cut


def test_a_reranker_picks_what_misleads_it_most():
    settings = INPUTS.synthesis.model_copy(update={"mined_negatives": 3})
    outcome = synthesize(
        mined=NEIGHBOURS,
        reranker=Reranker(),
        inputs=replace(INPUTS, synthesis=settings),
        writer=Writer(text="up <2> " * 9),
    )
    mined = [each for each in outcome.examples if each.passage_role is MINED]
    assert [each.passage for each in mined] == ["two <3>", "four <3>", "three <1>"] * 2
    assert all(each.judge_score is not None and not each.label for each in mined)


def test_a_reranker_says_how_hard_the_kept_examples_are():
    loose = INPUTS.synthesis.model_copy(update={"agreement": "ranking", "mined_negatives": 4})
    outcome = synthesize(
        mined=NEIGHBOURS,
        reranker=Reranker(),
        inputs=replace(INPUTS, synthesis=loose),
        writer=Writer(text=lambda prompt: f"{WRITTEN} {hashlib.sha256(prompt.encode()).digest().hex(' ')} <2>"),
    )
    kept = [each for each in outcome.examples if each.kept]
    assert kept and len(kept) < len(outcome.examples)
    for each in outcome.examples:
        mark = re.search(r"<(-?\d)>", each.passage)
        assert each.base_score == (pytest.approx(1 / (1 + math.exp(-int(mark[1])))) if each.kept else None)
    # Sure and right is easy; sure and wrong is hard.
    assert surprise(asdict(replace(kept[0], label=True, base_score=0.9))) == pytest.approx(0.1)
    assert surprise(asdict(replace(kept[0], label=False, base_score=0.9, judge_score=0.0))) == pytest.approx(0.9)


def test_what_the_reranker_cannot_score_is_not_mined_and_a_failure():
    settings = INPUTS.synthesis.model_copy(update={"mined_negatives": 2})
    outcome = synthesize(
        mined=["one", "two <1>", "three"],
        briefs=[DAILY],
        reranker=Reranker(),
        inputs=replace(INPUTS, synthesis=settings),
        writer=Writer(text="up <2> " * 9),
    )
    assert [each.passage for each in outcome.examples if each.passage_role is MINED] == ["two <1>"]
    assert [(each.unit_id, each.step, each.error) for each in outcome.failures] == [
        ("s1/daily/p1", "mine", "no mark")
    ] * 2
