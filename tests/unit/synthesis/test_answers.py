import time

import pytest

from limrank.engines.base import Generation
from limrank.synthesis.answers import read_verdict, split_reasoning, without_formula


def wrote(text, reasoning=None, end="stop"):
    return Generation(text, end, 1, 0, 1, reasoning)


@pytest.mark.parametrize(
    ("generation", "thought", "answer"),
    [
        (wrote(" An answer. "), None, "An answer."),
        (wrote("<think>\nIt fits.\n</think>\n\nAn answer."), "It fits.", "An answer."),
        # The chat template wrote the opening mark.
        (wrote("It fits.\n</think>\nAn answer."), "It fits.", "An answer."),
        (wrote("<think>It speaks of </think> and goes on.</think>An answer."), "It speaks of </think> and goes on.", "An answer."),
        # Cut off while it thought: what there is is no answer.
        (wrote("<think>\nIt may fit, or"), "It may fit, or", ""),
        (wrote("An answer.", reasoning="It fits.\n"), "It fits.", "An answer."),
    ],
)  # fmt: skip
def test_a_thought_is_distinguished(generation, thought, answer):
    assert split_reasoning(generation) == (thought, answer)


@pytest.mark.parametrize(
    ("generation", "verdict", "chain"),
    [
        (wrote("It names the dose.\n\ntrue"), True, "It names the dose."),
        (wrote("It is about cats, not dogs.\n\n**Answer: False.**"), False, "It is about cats, not dogs."),
        (wrote("Nothing fits. So my final answer is: `false`"), False, "Nothing fits."),
        # What a chain says before its end is not the verdict.
        (wrote("It would be true of dogs.\nfalse"), False, "It would be true of dogs."),
        (wrote("TRUE"), True, None),
        (wrote("Answer:\nIt names the dose.\n\ntrue"), True, "Answer:\nIt names the dose."),
        (wrote("true", reasoning="It names the dose."), True, "It names the dose."),
        (wrote("<think>\nIt names the dose.\n</think>\n true"), True, "It names the dose."),
        (wrote("It may or may not fit"), None, "It may or may not fit"),
        (wrote("<think>\nIt is true"), None, "It is true"),
        (wrote("untrue"), None, "untrue"),
        (wrote(""), None, None),
    ],
)
def test_a_verdict_is_what_an_answer_ends_in(generation, verdict, chain):
    assert read_verdict(generation) == (verdict, chain)


THOUGHT = """\
Okay, so the query asks how a nurse should plan a month of shifts so that nobody works two nights in a row.

The passage tells where to begin: with the nights. It would be false to say that it is about wages.

Therefore, the passage meets the need."""


@pytest.mark.parametrize(
    "formula",
    [
        "",
        "\n\ntrue",
        " So the answer is: true",
        " So, the answer should be true.",
        "\n\nSo the answer must be **true**.",
        "\n\n**Final Answer**\n\\boxed{true}",
        "\n\n**Final Answer**\n\n$\\boxed{\\text{True}}$",
        "\n\n### Final Verdict:\n\\[\n\\boxed{\\text{true}}\n\\]",
        "\n\n**Final Answer**\nIt tells where to begin.\n\\boxed{true}",
        "\n\n---\n\n**Answer:** True",
        "\n\n<answer> true </answer>",
        " So the answer is true.\n\n**Final Answer**\n\\boxed{true}\n\ntrue",
        "\n\nThus, true.",
        "\n\n**Relevance: true**",
    ],
)
@pytest.mark.parametrize("given", ["marked", "opened by the template", "apart", "as its answer"])
def test_a_chain_ends_before_the_formula_that_says_the_verdict(formula, given):
    """As R1 and what was distilled from it end: it is the chain alone that is trained on."""
    said = THOUGHT + formula
    generation = {
        "marked": wrote(f"<think>\n{said}\n</think>\n\n**Final Answer**\n\\boxed{{true}}"),
        "opened by the template": wrote(f"{said}\n</think>\n\nIt says where to begin.\n\n**Answer:** true"),
        "apart": wrote("\n\n\\boxed{\\text{true}}", reasoning=said),
        "as its answer": wrote(said if formula else said + "\ntrue"),
    }[given]
    assert read_verdict(generation) == (True, THOUGHT)


@pytest.mark.parametrize(
    "chain",
    [
        "The passage says that the claim is false.",
        "I have to say whether it is true or false",
        "It does not answer the question, so it is not true",
        "What would be the answer?",
        "The answer is in its second sentence.",
        'It has the word "dose"',
        "",
    ],
)
def test_what_is_no_formula_stays_in_the_chain(chain):
    assert without_formula(chain) == chain


@pytest.mark.parametrize(
    "generation",
    [
        # The template opened the thought, and the tokens ran out in it: nothing says so but how it ended.
        wrote("Okay, the query asks for a dose. The passage says that this is true", end="length"),
        wrote("<think>\nOkay. So the answer is true", end="length"),
        wrote("", reasoning="Okay. So the answer is true", end="length"),
        # It ran out in the answer: what would have come next may have been "of dogs".
        wrote("Okay.\n</think>\n\nThe answer is true", end="length"),
        # It named both, or denied one.
        wrote("Okay.\n</think>\n\nI would say true or false"),
        wrote("Okay.\n</think>\n\nThe statement is not true."),
        wrote("Okay.\n</think>\n\nAnswer: true/false"),
        wrote("Okay.\n</think>\n\ntrue, because it names the dose"),
        wrote("Okay.\n</think>\n\n"),
    ],
)
def test_no_verdict_is_made_up(generation):
    assert read_verdict(generation)[0] is None


def test_a_chain_that_repeats_its_verdict_for_ever_is_read_at_once():
    began = time.monotonic()
    assert read_verdict(wrote("Okay.\n" + "true\n" * 20_000)) == (True, "Okay.")
    assert without_formula("**Final Answer**\n" * 20_000 + "x") != ""
    assert time.monotonic() - began < 10  # it takes half a second
