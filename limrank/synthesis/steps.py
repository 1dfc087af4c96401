"""LimRank-Synthesizer's steps: a seed seen by a persona → judged examples.

Pure async functions of records and engines (arXiv 2510.23544 §3; the paper's own code
and prompts were never published). The roles are ``writer`` and ``judge``; one engine
may play both. Every prompt is a file in ``limrank/prompts``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from limrank import prompts
from limrank.config import ScoringConfig, SynthesisConfig
from limrank.engines.base import Engine, Generation
from limrank.errors import RowError
from limrank.records import Candidate, Failure, PassageRole, Persona, Query, QueryKind, Seed, SynthesisExample
from limrank.scoring import cut_at_sentence, score_pair
from limrank.synthesis.filters import judged, query_fault, rejected_before_judging

_REGISTERS = ("an encyclopedia", "a textbook", "a forum answer", "a newspaper", "a manual", "a blog post")
_WORDS = (60, 100, 160)

_DIFFICULTIES = ("direct", "indirect", "multi_hop")
_SEED_CHARACTERS = 1500
"""Of the seed's passage: enough to know what it is about."""

_CHARACTERS_A_TOKEN = 3
_JSON_TOKENS = 60
"""Beside its texts. The schema bounds the texts in characters, and max_tokens leaves a token
for each, so that no answer is cut off in the middle of its JSON, whatever the script."""


@dataclass(frozen=True)
class SynthesisInputs:
    """What the steps need beside a seed: the recipe's section, the judge's way of scoring,
    and the run's seed, from which every request's own is derived."""

    synthesis: SynthesisConfig
    judging: ScoringConfig
    seed: int


@dataclass(frozen=True)
class SeedOutcome:
    examples: list[SynthesisExample]
    failures: list[Failure]


@dataclass(frozen=True)
class WrittenQuery:
    domain: str
    difficulty: str
    text: str


async def synthesize_seed(
    seed: Seed,
    personas: Mapping[QueryKind, Persona],
    mined: Sequence[str],
    engines: Mapping[str, Engine],
    inputs: SynthesisInputs,
) -> SeedOutcome:
    """All examples of one seed: a query a kind, and for each its positive and negatives.

    Args:
        personas: who asks the query of each kind.
        mined: passages of the corpus that are close to the seed's and not it.

    A request that could not run is a failure of its kind; the other kind goes on.
    """
    kinds = list(personas)
    outcomes = await asyncio.gather(
        *(_one_query(seed, kind, personas[kind], mined, engines, inputs) for kind in kinds), return_exceptions=True
    )
    examples: list[SynthesisExample] = []
    failures: list[Failure] = []
    for kind, outcome in zip(kinds, outcomes, strict=True):
        if isinstance(outcome, RowError):
            failures.append(Failure.of(f"{seed.seed_id}/{kind}", "write", outcome))
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            examples += outcome.examples
            failures += outcome.failures
    return SeedOutcome(examples, failures)


async def _one_query(
    seed: Seed,
    kind: QueryKind,
    persona: Persona,
    mined: Sequence[str],
    engines: Mapping[str, Engine],
    inputs: SynthesisInputs,
) -> SeedOutcome:
    writer = _Writer(engines["writer"], inputs, f"{seed.seed_id}/{kind}/{persona.persona_id}")
    blank = SynthesisExample(f"{seed.seed_id}/{kind}", seed.seed_id, persona.persona_id, kind)
    written = await write_query(writer, seed, kind, persona)
    if written is None:
        return SeedOutcome([replace(blank, reject_reason="unparsable")], [])
    blank = replace(blank, domain=written.domain, difficulty=written.difficulty, query=written.text)
    if fault := query_fault(written.text, seed):
        return SeedOutcome([replace(blank, reject_reason=fault)], [])
    chain = await write_chain(writer, written.text)
    descriptions = await describe_passages(writer, written.text, chain)
    if descriptions is None:
        return SeedOutcome([replace(blank, reject_reason="unparsable")], [])
    passages = await asyncio.gather(
        *(
            write_passage(writer, written.text, description, f"{role}-{number}")
            for number, (role, description) in enumerate(descriptions)
        )
    )
    pairs = [(role, passage) for (role, _), passage in zip(descriptions, passages, strict=True)]
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
    return await judge_examples(rejected_before_judging(examples, seed), engines["judge"], inputs)


async def write_query(writer: _Writer, seed: Seed, kind: QueryKind, persona: Persona) -> WrittenQuery | None:
    """One query of a kind, or None where the writer's JSON cannot be read."""
    prompt = prompts.render(
        "synth_query",
        seed_query=seed.query,
        seed_passage=seed.passage[:_SEED_CHARACTERS],
        persona=persona.text,
        kind=str(kind),
    )
    longest = _CHARACTERS_A_TOKEN * writer.settings.query_tokens
    answer = _parsed(await writer.write("query", prompt, longest + _JSON_TOKENS, schema=_query_schema(longest)))
    if answer is None or not str(answer.get("query", "")).strip():
        return None
    domain, difficulty = str(answer.get("domain", "")).strip(), str(answer.get("difficulty", ""))
    if difficulty not in _DIFFICULTIES:
        return None
    return WrittenQuery(domain, difficulty, " ".join(str(answer["query"]).split()))


async def write_chain(writer: _Writer, query: str) -> str:
    """Reasoning about what relevant and misleading passages would contain."""
    prompt = prompts.render("synth_chain", query=query)
    return (await writer.write("chain", prompt, writer.settings.chain_tokens)).text.strip()


async def describe_passages(writer: _Writer, query: str, chain: str) -> list[tuple[PassageRole, str]] | None:
    """Descriptions of the positive and the hard negatives; None where unreadable."""
    wanted = writer.settings.negatives
    prompt = prompts.render("synth_describe", query=query, chain=chain, negatives=wanted)
    longest = _CHARACTERS_A_TOKEN * writer.settings.chain_tokens
    schema = _descriptions_schema(wanted, longest // (wanted + 1))
    answer = _parsed(await writer.write("describe", prompt, longest + _JSON_TOKENS, schema=schema))
    if answer is None:
        return None
    positive, negatives = answer.get("positive"), answer.get("hard_negatives")
    if not positive or not isinstance(negatives, list) or len(negatives) < wanted:
        return None
    return [(PassageRole.POSITIVE, str(positive))] + [
        (PassageRole.HARD_NEGATIVE, str(text)) for text in negatives[:wanted]
    ]


async def write_passage(writer: _Writer, query: str, description: str, name: str) -> str:
    """A passage from its description, of drawn length and register."""
    draw = random.Random(writer.request_seed(f"style/{name}"))
    prompt = prompts.render(
        "synth_passage",
        query=query,
        description=description,
        register=draw.choice(_REGISTERS),
        words=draw.choice(_WORDS),
    )
    generation = await writer.write(f"passage/{name}", prompt, writer.settings.passage_tokens)
    whole = generation.finish_reason == "stop"
    return " ".join((generation.text if whole else cut_at_sentence(generation.text)).split())


async def judge_examples(examples: Sequence[SynthesisExample], judge: Engine, inputs: SynthesisInputs) -> SeedOutcome:
    """The judge's chain and p(true) for each example that is still in, and what it rules."""
    open_ones = [example for example in examples if example.reject_reason is None]
    judgments = await asyncio.gather(
        *(
            score_pair(
                Query(example.example_id, example.query or "", example.instruction or ""),
                Candidate(example.example_id, example.passage or "", 1, 0.0),
                judge,
                inputs.judging,
            )
            for example in open_ones
        )
    )
    verdicts = {example.example_id: judgment for example, judgment in zip(open_ones, judgments, strict=True)}
    failures = [
        Failure.of(example_id, "judge", judgment.error)
        for example_id, judgment in verdicts.items()
        if judgment.error is not None
    ]
    return SeedOutcome(judged(examples, verdicts, inputs.synthesis.agreement), failures)


@dataclass(frozen=True)
class _Writer:
    """The writer's engine with the recipe's sampling. ``place`` names the request, so that
    its random seed does not depend on when or where it runs."""

    engine: Engine
    inputs: SynthesisInputs
    place: str

    @property
    def settings(self) -> SynthesisConfig:
        return self.inputs.synthesis

    def request_seed(self, step: str) -> int:
        digest = hashlib.sha256(f"{self.inputs.seed}/{self.place}/{step}".encode()).digest()
        return int.from_bytes(digest[:4]) >> 1

    async def write(self, step: str, prompt: str, max_tokens: int, schema: dict[str, Any] | None = None) -> Generation:
        return await self.engine.generate(
            [{"role": "user", "content": prompt}],
            max_tokens=max_tokens,
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            seed=self.request_seed(step),
            schema=schema,
        )


def _parsed(generation: Generation) -> dict[str, Any] | None:
    try:
        answer = json.loads(generation.text)
        # Half of an escaped surrogate pair is JSON and no text: no file could hold it.
        json.dumps(answer, ensure_ascii=False).encode()
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _query_schema(longest: int) -> dict[str, Any]:
    """The query comes first: what a weak model writes before it would lead it astray."""
    return {
        "type": "object",
        "properties": {
            "query": {"type": "string", "minLength": 30, "maxLength": max(60, longest)},
            "domain": {"type": "string", "minLength": 3, "maxLength": 30},
            "difficulty": {"enum": list(_DIFFICULTIES)},
        },
        "required": ["query", "domain", "difficulty"],
        "additionalProperties": False,
    }


def _descriptions_schema(negatives: int, longest: int) -> dict[str, Any]:
    sentence = {"type": "string", "minLength": 20, "maxLength": max(60, longest)}
    return {
        "type": "object",
        "properties": {
            "positive": sentence,
            "hard_negatives": {"type": "array", "items": sentence, "minItems": negatives, "maxItems": negatives},
        },
        "required": ["positive", "hard_negatives"],
        "additionalProperties": False,
    }
