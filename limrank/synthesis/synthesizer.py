"""LimRank-Synthesizer's steps (arXiv 2510.23544 §3): a seed and a persona → judged examples.

Pure async functions of records and engines. The paper's own code and prompts were not published.
The roles are ``writer``, ``judge`` and, optionally, ``reranker``; one engine may have all of them.
Every prompt is a file in ``limrank/prompts``.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from limrank import prompts
from limrank.config import ScoringConfig, SynthesisConfig
from limrank.engines.base import Engine, Generation, spent_on
from limrank.errors import RowError, UserError
from limrank.parsing import parse_json
from limrank.records import (
    Failure,
    PassageRole,
    Query,
    QueryBrief,
    Seed,
    SynthesisExample,
)
from limrank.scoring import truncate_at_sentence
from limrank.synthesis.answers import split_reasoning
from limrank.synthesis.filters import query_fault, rejected_before_judging
from limrank.synthesis.judging import add_base_scores, judge_examples, mine
from limrank.synthesis.prompting import (
    REGISTERS,
    WORDS,
    WrittenQuery,
    chain_prompt,
    describe_prompt,
    describe_tokens,
    descriptions_schema,
    passage_prompt,
    query_prompt,
    query_schema,
    query_tokens,
)


@dataclass(frozen=True)
class SynthesisInputs:
    """What the steps need besides a seed: the recipe's section, the judge's scoring, and the run's
    seed, from which the seed of every request is derived."""

    synthesis: SynthesisConfig
    judging: ScoringConfig
    seed: int

    @property
    def direct(self) -> ScoringConfig:
        """The reranker's scoring: the judge's prompt, without a chain."""
        return self.judging.model_copy(update={"mode": "direct"})


@dataclass(frozen=True)
class SeedOutcome:
    examples: list[SynthesisExample]
    failures: list[Failure]


async def synthesize_seed(
    seed: Seed,
    briefs: Sequence[QueryBrief],
    mined: Sequence[str],
    engines: Mapping[str, Engine],
    inputs: SynthesisInputs,
) -> SeedOutcome:
    """All examples of one seed: one query for each brief, with its positive and negatives.

    A failed request is a failure of its query; the other queries continue.

    Args:
        mined: corpus passages that are close to the seed's, without it. A reranker among the engines
            chooses ``mined_negatives`` of them for each query.
    """
    return await all_queries(
        [(_name(seed, brief), _one_query(seed, brief, mined, engines, inputs)) for brief in briefs]
    )


async def all_queries(queries: Sequence[tuple[str, Awaitable[SeedOutcome]]]) -> SeedOutcome:
    """The outcomes of named queries as one. A RowError of a query becomes a failure of that name."""
    outcomes = await asyncio.gather(*(query for _, query in queries), return_exceptions=True)
    examples: list[SynthesisExample] = []
    failures: list[Failure] = []
    for (name, _), outcome in zip(queries, outcomes, strict=True):
        if isinstance(outcome, RowError):
            failures.append(Failure.of(name, "write", outcome))
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            examples += outcome.examples
            failures += outcome.failures
    return SeedOutcome(examples, failures)


def query_id(seed_id: str, kind: str, persona_id: str) -> str:
    """The id of one query of a seed, with which its examples' ids begin. It is unique whatever
    characters the three ids have."""
    return "/".join(map(escaped, (seed_id, kind, persona_id)))


def contaminated_example(seed: Seed, repeated: str) -> SynthesisExample:
    """The only row of a seed that repeats a benchmark: nothing is written for it."""
    return SynthesisExample(
        escaped(seed.seed_id), seed.seed_id, query=seed.query, reject_reason="contaminated", reject_detail=repeated
    )


def escaped(an_id: str) -> str:
    """An id as a part of a longer one, whose parts a ``/`` separates."""
    return an_id.replace("%", "%25").replace("/", "%2F")


def _name(seed: Seed, brief: QueryBrief) -> str:
    return query_id(seed.seed_id, brief.kind, brief.persona.persona_id)


async def _one_query(
    seed: Seed,
    brief: QueryBrief,
    mined: Sequence[str],
    engines: Mapping[str, Engine],
    inputs: SynthesisInputs,
) -> SeedOutcome:
    name = _name(seed, brief)
    writer = Writer(engines["writer"], inputs, name)
    blank = SynthesisExample(
        name, seed.seed_id, brief.persona.persona_id, brief.kind, brief.domain, str(brief.difficulty)
    )
    written = await write_query(writer, query_prompt(seed, brief, inputs.synthesis), brief)
    if written is None:
        return SeedOutcome([replace(blank, reject_reason="unparsable")], [])
    blank = replace(blank, domain=written.domain, query=written.text, instruction=written.instruction)
    templates = inputs.synthesis.prompts
    if fault := query_fault(written.text, written.instruction, seed, prompts.load(templates.query), brief.persona.text):
        return SeedOutcome([replace(blank, reject_reason=fault)], [])
    chain = await write_chain(writer, written) if inputs.synthesis.chains else None
    descriptions = await describe_passages(writer, written, chain)
    if descriptions is None:
        return SeedOutcome([replace(blank, reject_reason="unparsable")], [])
    passages = await _all(
        write_passage(writer, written, description, f"{role}-{number}")
        for number, (role, description) in enumerate(descriptions)
    )
    pairs = [(role, passage) for (role, _), passage in zip(descriptions, passages, strict=True)]
    failures: list[Failure] = []
    reranker = engines.get("reranker")
    if reranker and mined:
        query = Query(name, written.text, written.instruction or "")
        mined, failures = await mine(query, mined, inputs.synthesis.mined_negatives, reranker, inputs.direct)
    pairs += [(PassageRole.MINED_NEGATIVE, passage) for passage in mined]
    examples = [
        replace(
            blank,
            example_id=f"{blank.example_id}/{number}-{role}",
            passage=passage,
            passage_role=role,
            label=role is PassageRole.POSITIVE,
        )
        for number, (role, passage) in enumerate(pairs)
    ]
    examples, unjudged = await judge_examples(
        rejected_before_judging(examples, seed, prompts.load(templates.passage)),
        seed,
        engines["judge"],
        inputs.judging,
        inputs.synthesis,
    )
    failures += unjudged
    if reranker:
        examples, unscored = await add_base_scores(examples, reranker, inputs.direct)
        failures += unscored
    return SeedOutcome(examples, failures)


async def _all(requests: Iterable[Awaitable[str]]) -> list[str]:
    """The answers, or the first error, raised once all requests have ended."""
    answers = await asyncio.gather(*requests, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers


async def write_query(writer: Writer, prompt: str, brief: QueryBrief) -> WrittenQuery | None:
    """The query that a prompt asks for by a brief, or None if the writer's JSON cannot be read."""
    schema = query_schema(writer.settings, brief)
    answer = _parsed(await writer.write("query", prompt, query_tokens(writer.settings, brief), schema=schema))
    if answer is None:
        return None
    texts = {name: _text(answer.get(name)) for name in schema["properties"]}
    if None in texts.values():
        return None
    return WrittenQuery(texts["query"], brief.domain or texts["domain"], texts.get("instruction"))


async def write_chain(writer: Writer, query: WrittenQuery) -> str:
    """Reasoning about what relevant and misleading passages would contain."""
    prompt = chain_prompt(query, writer.settings)
    return (await writer.write("chain", prompt, writer.settings.chain_tokens)).text.strip()


async def describe_passages(
    writer: Writer, query: WrittenQuery, chain: str | None
) -> list[tuple[PassageRole, str]] | None:
    """Descriptions of the positive and the hard negatives, from the chain if there is one; None if
    they cannot be read."""
    wanted, schema = writer.settings.negatives, descriptions_schema(writer.settings)
    prompt = describe_prompt(query, chain, writer.settings)
    answer = _parsed(await writer.write("describe", prompt, describe_tokens(writer.settings), schema=schema))
    if answer is None:
        return None
    positive, negatives = _text(answer.get("positive")), answer.get("hard_negatives")
    negatives = [_text(each) for each in negatives[:wanted]] if isinstance(negatives, list) else []
    if positive is None or len(negatives) < wanted or None in negatives:
        return None
    return [(PassageRole.POSITIVE, positive)] + [(PassageRole.HARD_NEGATIVE, text) for text in negatives]


async def write_passage(writer: Writer, query: WrittenQuery, description: str, name: str) -> str:
    """A passage from its description; its length and register are drawn."""
    draw = random.Random(writer.request_seed(f"style/{name}"))
    register, words = draw.choice(REGISTERS), draw.choice(WORDS)
    prompt = passage_prompt(query, description, register, words, writer.settings)
    generation = await writer.write(f"passage/{name}", prompt, writer.settings.passage_tokens)
    whole = generation.finish_reason == "stop"
    return " ".join((generation.text if whole else truncate_at_sentence(generation.text)).split())


@dataclass(frozen=True)
class Writer:
    """The writer's engine with the recipe's sampling. ``query_name`` and the step derive the random
    seed of a request, so that it does not depend on when or where the request runs."""

    engine: Engine
    inputs: SynthesisInputs
    query_name: str

    @property
    def settings(self) -> SynthesisConfig:
        return self.inputs.synthesis

    def request_seed(self, step: str) -> int:
        digest = hashlib.sha256(f"{self.inputs.seed}/{self.query_name}/{step}".encode()).digest()
        return int.from_bytes(digest[:4]) >> 1

    async def write(self, step: str, prompt: str, max_tokens: int, schema: dict[str, Any] | None = None) -> Generation:
        """The writer's answer, without its thought."""
        with spent_on(step.partition("/")[0]):
            generation = await self.engine.generate(
                [{"role": "user", "content": prompt}],
                max_tokens=max_tokens,
                temperature=self.settings.temperature,
                top_p=self.settings.top_p,
                seed=self.request_seed(step),
                schema=schema if self.settings.constrained else None,
            )
        return replace(generation, text=split_reasoning(generation)[1])


def _text(value: Any) -> str | None:
    """A text of a JSON answer with white space collapsed; None if it is no text or empty."""
    return (" ".join(value.split()) or None) if isinstance(value, str) else None


def _parsed(generation: Generation) -> dict[str, Any] | None:
    # A writer without a schema puts its JSON into a code block, or adds sentences around it.
    text = generation.text
    try:
        return parse_json(text[text.find("{") : text.rfind("}") + 1], "the answer", expect=dict)
    except UserError:
        return None
