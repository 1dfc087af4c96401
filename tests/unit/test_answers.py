import pytest

from limrank.engines.base import Generation
from limrank.synthesis.answers import apart, read_verdict


def wrote(text, reasoning=None):
    return Generation(text, "stop", 1, 0, 1, reasoning)


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
def test_a_thought_is_told_apart(generation, thought, answer):
    assert apart(generation) == (thought, answer)


@pytest.mark.parametrize(
    ("generation", "verdict", "chain"),
    [
        (wrote("It names the dose.\n\ntrue"), True, "It names the dose."),
        (wrote("It is about cats, not dogs.\n\n**Answer: False.**"), False, "It is about cats, not dogs."),
        (wrote("Nothing fits. So my final answer is: `false`"), False, "Nothing fits."),
        # What a chain says before its end is not the verdict.
        (wrote("It would be true of dogs.\nfalse"), False, "It would be true of dogs."),
        (wrote("TRUE"), True, None),
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
