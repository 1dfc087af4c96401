"""Prompts of a person's own, and the texts that workers get."""

import pytest

from helpers.synthesis import DAILY, Writer, synthesize
from limrank.config import SynthesisConfig, SynthesisPrompts
from limrank.errors import UserError
from limrank.synthesis import job
from limrank.synthesis.plan import (
    synthesis_inputs,
)
from limrank.synthesis.prompting import WrittenQuery, check_prompts, describe_prompt, with_prompt_texts


def test_a_person_s_own_description_prompt_does_without_chains():
    own = "{{ query }}:{% if chain %} from {{ chain }}{% endif %} {{ negatives }} of them"
    settings = SynthesisConfig(chains=False, prompts=SynthesisPrompts(describe=own))
    check_prompts(settings)
    asked = describe_prompt(WrittenQuery("a query", "a field"), None, with_prompt_texts(settings))
    assert asked == "a query: 1 of them"
    # One that nobody is asked with needs no place.
    check_prompts(SynthesisConfig(chains=False, prompts=SynthesisPrompts(chain="{{ nothing }}")))
    with pytest.raises(UserError):
        check_prompts(SynthesisConfig(prompts=SynthesisPrompts(chain="{{ nothing }}")))


@pytest.mark.parametrize(
    ("step", "text", "message"),
    [
        ("chain", "{{ question }}", "'question' is undefined; its placeholders are query, instruction"),
        ("describe", "{% if instruction %}{{ query }}", "Unexpected end of template"),
        ("query", "{% if instructed %}{{ instructions }}{% endif %}", "'instructions' is undefined"),
        ("passage", "{{ description }} {{ 1/0 }}", "division by zero"),
        ("passage", "Write a passage.", "has no {{ description }}"),
        ("judge", "Is {{ passage }} relevant?", "has no {{ query }}"),
    ],
)
def test_a_prompt_that_cannot_be_filled_is_refused_before_anything_is_asked(config, tmp_path, step, text, message):
    own = tmp_path / "own.txt"
    own.write_text(text)
    settings = config.synthesis.model_copy(update={"prompts": SynthesisPrompts(**{step: str(own)})})
    with pytest.raises(UserError) as caught:
        job.plan(config.model_copy(update={"synthesis": settings}))
    assert str(caught.value).startswith(f"prompt {own}: ") and message in str(caught.value)


def test_a_prompt_that_is_no_text_is_refused(config, tmp_path):
    own = tmp_path / "own.txt"
    own.write_bytes("Qu'est-ce qui répondrait à {{ query }}".encode("latin-1"))
    settings = config.synthesis.model_copy(update={"prompts": SynthesisPrompts(chain=str(own))})
    with pytest.raises(UserError, match=f"prompt {own}: cannot be read: 'utf-8' codec"):
        job.plan(config.model_copy(update={"synthesis": settings}))


def test_workers_are_given_the_texts_of_prompts(config, tmp_path):
    """A file may lie on another node, or be another one by the time an actor starts again."""
    own = tmp_path / "own.txt"
    own.write_text("What would answer {{ query }}?\n")
    prompts = SynthesisPrompts(chain=str(own), describe="Describe what answers {{ query }}.")
    inputs = synthesis_inputs(
        config.model_copy(update={"synthesis": config.synthesis.model_copy(update={"prompts": prompts})})
    )
    own.unlink()
    writer = Writer()
    synthesize(briefs=[DAILY], writer=writer, inputs=inputs)
    asked = "how do I keep my rota in order"
    assert writer.prompts[1:3] == [f"What would answer {asked}?", f"Describe what answers {asked}."]
