"""The requests of each step to the writer, and to a judge that is read by its answer: prompt, schema
of a structured answer, token limit. Every prompt is a file in ``limrank/prompts``, or a person's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from limrank import prompts
from limrank.config import ScoringConfig, SynthesisConfig, SynthesisPrompts
from limrank.records import Difficulty, Persona, Query, QueryBrief, QueryKind, Seed
from limrank.scoring import prompt_query

REGISTERS = ("an encyclopedia", "a textbook", "a forum answer", "a newspaper", "a manual", "a blog post")
WORDS = (60, 100, 160)
_SEED_CHARACTERS = 1500
"""A prompt quotes this much of a passage: enough to know its topic."""

_CHARACTERS_A_TOKEN = 3
_JSON_TOKENS = 60
"""Tokens of an answer's JSON besides its texts. The schema bounds the texts in characters, and
max_tokens allows one token for each, so that an answer is never truncated in the middle of its JSON, in any writing
system."""

_VERDICT_TOKENS = 16

_NEEDED = {
    "query": {"seed_query"},
    "passage_query": {"passage"},
    "chain": {"query"},
    "describe": {"query"},
    "passage": {"description"},
    "judge": {"query", "passage"},
}
"""Placeholders by step that a prompt has to have: without them every answer would be the same."""


@dataclass(frozen=True)
class WrittenQuery:
    text: str
    domain: str
    instruction: str | None = None


def query_prompt(seed: Seed, brief: QueryBrief, settings: SynthesisConfig) -> str:
    """The writer's prompt of the first step."""
    return prompts.render(
        settings.prompts.query,
        seed_query=seed.query,
        seed_passage=seed.passage[:_SEED_CHARACTERS],
        persona=brief.persona.text,
        kind=str(brief.kind),
        difficulty=str(brief.difficulty),
        domain=brief.domain,
        instructed=brief.instructed,
    )


def passage_query_prompt(passage: str, brief: QueryBrief, settings: SynthesisConfig) -> str:
    """The prompt that asks a chat model for a query that ``passage`` answers."""
    return prompts.render(
        settings.prompt_names()["passage_query"],
        passage=passage[:_SEED_CHARACTERS],
        persona=brief.persona.text,
        kind=str(brief.kind),
        difficulty=str(brief.difficulty),
        domain=brief.domain,
        instructed=brief.instructed,
        examples=_shown(brief.examples),
    )


def _shown(examples: Iterable[Seed]) -> str:
    """The examples as a prompt shows them: two lines each, the passage and its query; empty if there are none."""
    return "\n\n".join(f"Passage: {each.passage}\nQuery: {each.query}" for each in examples)


def tuned_prompt(passage: str, settings: SynthesisConfig) -> str:
    """The text that a tuned writer continues with a query: what it was trained on."""
    return prompts.render(settings.prompt_names()["passage_query"], passage=passage[:_SEED_CHARACTERS])


def chain_prompt(query: WrittenQuery, settings: SynthesisConfig) -> str:
    return prompts.render(settings.prompts.chain, query=query.text, instruction=query.instruction)


def describe_prompt(query: WrittenQuery, chain: str | None, settings: SynthesisConfig) -> str:
    """``chain`` None: the writer did not reason; the placeholder of a person's own prompt is then empty."""
    return prompts.render(
        settings.prompt_names()["describe"],
        query=query.text,
        instruction=query.instruction,
        chain=chain or "",
        negatives=settings.negatives,
    )


def passage_prompt(query: WrittenQuery, description: str, register: str, words: int, settings: SynthesisConfig) -> str:
    return prompts.render(
        settings.prompts.passage, query=query.text, description=description, register=register, words=words
    )


def judge_prompt(query: Query, passage: str, settings: SynthesisConfig) -> str:
    return prompts.render(settings.prompts.judge, query=prompt_query(query), passage=passage)


def with_prompt_texts(settings: SynthesisConfig) -> SynthesisConfig:
    """The settings with each prompt's text instead of its name, as workers get them."""
    texts = {step: prompts.load(name) for step, name in settings.prompt_names().items()}
    return settings.model_copy(update={"prompts": SynthesisPrompts(**texts)})


def check_prompts(settings: SynthesisConfig) -> None:
    """Raises UserError for a prompt that cannot be filled, or that lacks a needed placeholder: every
    seed would fail, or get the same answers."""
    seed, persona = Seed("", "a query", "a passage"), Persona("", "a person")
    if settings.writer == "none":
        return
    if settings.source == "passages":
        name = settings.prompt_names()["passage_query"]
        if settings.writer == "tuned":
            tuned_prompt(seed.passage, settings)
        else:
            for brief in _all_briefs(persona):
                for examples in ((), (seed,)):
                    passage_query_prompt(seed.passage, replace(brief, examples=examples), settings)
        prompts.check_placeholders(name, _NEEDED["passage_query"])
        if settings.examples:
            prompts.check_placeholders(name, {"examples"}, "synthesis.examples would not be shown")
        return
    judge_prompt(Query("", "a query"), "a passage", settings)
    for brief in _all_briefs(persona):
        query_prompt(seed, brief, settings)
        query = WrittenQuery("a query", "a field", "an instruction" if brief.instructed else None)
        if settings.chains:
            chain_prompt(query, settings)
        describe_prompt(query, "a chain" if settings.chains else None, settings)
        passage_prompt(query, "a description", REGISTERS[0], WORDS[0], settings)
    for step, name in settings.prompt_names().items():
        prompts.check_placeholders(name, _NEEDED[step])


def _all_briefs(persona: Persona) -> Iterator[QueryBrief]:
    """A brief of each kind, with and without a domain and an instruction."""
    for kind, difficulty, domain, instructed in product(QueryKind, Difficulty, (None, "a field"), (False, True)):
        yield QueryBrief(kind, persona, difficulty, domain, instructed)


def most_written(settings: SynthesisConfig, brief: QueryBrief) -> int:
    """Upper bound of the tokens that the writer writes for one query and its passages."""
    if settings.source == "passages":
        return settings.query_tokens if settings.writer == "tuned" else query_tokens(settings, brief)
    passages = (1 + settings.negatives) * settings.passage_tokens
    chain = settings.chain_tokens if settings.chains else 0
    return query_tokens(settings, brief) + chain + describe_tokens(settings) + passages


def query_tokens(settings: SynthesisConfig, brief: QueryBrief) -> int:
    return _CHARACTERS_A_TOKEN * settings.query_tokens * (1 + brief.instructed) + _JSON_TOKENS


def describe_tokens(settings: SynthesisConfig) -> int:
    return _CHARACTERS_A_TOKEN * settings.chain_tokens + _JSON_TOKENS


def judge_tokens(scoring: ScoringConfig) -> int:
    """max_tokens of a judge that is read by its answer: its chain, and the words around the verdict."""
    return scoring.think_tokens + _VERDICT_TOKENS


def query_schema(settings: SynthesisConfig, brief: QueryBrief) -> dict[str, Any]:
    """The query comes first: a weak model is led astray by what it writes before."""
    sentence = {"type": "string", "minLength": 30, "maxLength": max(60, _CHARACTERS_A_TOKEN * settings.query_tokens)}
    properties: dict[str, Any] = {"query": sentence}
    if brief.domain is None:
        properties["domain"] = {"type": "string", "minLength": 3, "maxLength": 30}
    if brief.instructed:
        properties["instruction"] = sentence
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def descriptions_schema(settings: SynthesisConfig) -> dict[str, Any]:
    negatives = settings.negatives
    max_length = _CHARACTERS_A_TOKEN * settings.chain_tokens // (negatives + 1)
    sentence = {"type": "string", "minLength": 20, "maxLength": max(60, max_length)}
    return {
        "type": "object",
        "properties": {
            "positive": sentence,
            "hard_negatives": {"type": "array", "items": sentence, "minItems": negatives, "maxItems": negatives},
        },
        "required": ["positive", "hard_negatives"],
        "additionalProperties": False,
    }
