"""Queries for the passages of a corpus: a second way to examples, without seeds.

A small writer's passages teach a reranker nothing, but a small writer can ask what a real passage answers (InPars, arXiv
2202.05144; Promptagator, arXiv 2209.11755; GPL, arXiv 2112.07577). The functions here write: what is kept is
decided over all queries in :mod:`limrank.synthesis.mining`.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from limrank import prompts
from limrank.config import SynthesisConfig
from limrank.engines.base import Engine, spent_on
from limrank.records import Document, PassageRole, QueryBrief, Seed, SynthesisExample
from limrank.synthesis.filters import MIN_PASSAGE_WORDS, query_fault
from limrank.synthesis.prompting import WrittenQuery, passage_query_prompt, tuned_prompt
from limrank.synthesis.select import in_turn
from limrank.synthesis.synthesizer import SeedOutcome, SynthesisInputs, Writer, all_queries, escaped, write_query
from limrank.text.words import count, words

T = TypeVar("T")

_TOPICS = 32
_SAMPLE = 5000
"""Passages from which the topics are found."""

_TUNED_WORDS = 2
"""A tuned writer may ask in so few words: 96 of 1,743 MS MARCO queries have fewer than four."""


def draw_passages(documents: Sequence[Document], size: int | None, seed: int) -> list[Document]:
    """``size`` documents in the corpus's order, as many of each length and topic as there are; None: all.

    Documents of fewer than twelve words are left out. Lengths are quartiles of words; topics are k-means
    clusters of the lexical embeddings of at most 5,000 documents.
    """
    lengths = [count(words(document.contents)) for document in documents]
    usable = [index for index, length in enumerate(lengths) if length >= MIN_PASSAGE_WORDS]
    if size is None or size >= len(usable):
        return [documents[index] for index in usable]
    draw = random.Random(f"{seed}/passages")
    strata: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    topics = _topics([documents[index].contents for index in usable], draw)
    for index, quartile, topic in zip(usable, _quartiles([lengths[index] for index in usable]), topics, strict=True):
        strata[quartile][topic].append(index)
    of_length = [
        in_turn([_shuffled(each, draw) for each in _shuffled(by_topic.values(), draw)]) for by_topic in strata.values()
    ]
    return [documents[index] for index in sorted(islice(in_turn(of_length), size))]


def _shuffled(items: Iterable[T], draw: random.Random) -> list[T]:
    items = list(items)
    draw.shuffle(items)
    return items


def _quartiles(lengths: Sequence[int]) -> list[int]:
    import numpy as np

    return np.searchsorted(np.quantile(lengths, (0.25, 0.5, 0.75)), lengths).tolist()


def _topics(texts: Sequence[str], draw: random.Random) -> list[int]:
    """The cluster of each text."""
    import numpy as np
    from scipy.cluster.vq import kmeans2, vq

    from limrank.synthesis.embeddings import lexical_embeddings

    vectors = lexical_embeddings(texts)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    sample = vectors[draw.sample(range(len(texts)), min(_SAMPLE, len(texts)))]
    topics = max(1, min(_TOPICS, len(sample) // 8))
    centroids, _ = kmeans2(sample, topics, minit="++", rng=np.random.default_rng(draw.getrandbits(32)))
    return vq(vectors, centroids)[0].tolist()


async def synthesize_passage(
    seed: Seed, briefs: Mapping[int, QueryBrief | None], engines: Mapping[str, Engine], inputs: SynthesisInputs
) -> SeedOutcome:
    """One row for each query that is written for a passage; the passage is its positive.

    A row is ``kept`` if its query has no fault of its own. A failed request is a failure of its query.

    Args:
        seed: the passage, without a query.
        briefs: one for each query, by its number; None for a tuned writer, which takes no instructions.
    """
    return await all_queries(
        [
            (query_name(seed, number), _one_query(seed, number, brief, engines["writer"], inputs))
            for number, brief in briefs.items()
        ]
    )


def given_example(seed: Seed) -> SynthesisExample:
    """The row of a seed whose own query is taken."""
    return SynthesisExample(
        f"{query_name(seed, 0)}/{PassageRole.POSITIVE}",
        seed.seed_id,
        query=seed.query,
        passage=seed.passage,
        passage_role=PassageRole.POSITIVE,
        label=True,
        kept=True,
    )


def query_name(seed: Seed, number: int) -> str:
    """The id of a passage's query, with which the ids of its examples begin."""
    return f"{escaped(seed.seed_id)}/{number}"


async def _one_query(
    seed: Seed, number: int, brief: QueryBrief | None, engine: Engine, inputs: SynthesisInputs
) -> SeedOutcome:
    name = query_name(seed, number)
    writer, settings = Writer(engine, inputs, name), inputs.synthesis
    blank = SynthesisExample(name, seed.seed_id)
    if brief is None:
        written = await _continued(writer, seed.passage)
    else:
        blank = replace(
            blank,
            persona_id=brief.persona.persona_id,
            query_kind=brief.kind,
            domain=brief.domain,
            difficulty=str(brief.difficulty),
        )
        written = await write_query(writer, passage_query_prompt(seed.passage, brief, settings), brief)
    if written is None:
        return SeedOutcome([replace(blank, reject_reason="unparsable")], [])
    example = replace(
        blank,
        example_id=f"{name}/{PassageRole.POSITIVE}",
        domain=written.domain or None,
        query=written.text,
        instruction=written.instruction,
        passage=seed.passage,
        passage_role=PassageRole.POSITIVE,
        label=True,
    )
    fault = _fault(written, seed, brief, settings)
    return SeedOutcome([replace(example, kept=fault is None, reject_reason=fault)], [])


def _fault(written: WrittenQuery, seed: Seed, brief: QueryBrief | None, settings: SynthesisConfig) -> str | None:
    prompt = prompts.load(settings.prompt_names()["passage_query"])
    persona = brief.persona.text if brief else ""
    shortest = {} if brief else {"shortest": _TUNED_WORDS}
    examples = brief.examples if brief else ()
    return query_fault(written.text, written.instruction, seed, prompt, persona, examples=examples, **shortest)


async def _continued(writer: Writer, passage: str) -> WrittenQuery | None:
    """What a tuned writer asks: the first line that it writes after the passage. None if that is empty or cut off."""
    prompt = tuned_prompt(passage, writer.settings)
    with spent_on("query"):
        generation = await writer.engine.generate(
            prompt,
            max_tokens=writer.settings.query_tokens,
            temperature=writer.settings.temperature,
            top_p=writer.settings.top_p,
            seed=writer.request_seed("query"),
            stop=["\n"],
        )
    text = " ".join(generation.text.split())
    return WrittenQuery(text, "") if text and generation.finish_reason == "stop" else None
