"""Seeds, briefs, and fakes of a writer and a reranker for the tests of the synthesis steps."""

import asyncio
import json
import re

from helpers.beir import write_beir
from helpers.units import fake_engine
from limrank.config import ScoringConfig, SynthesisConfig
from limrank.engines.base import Generation, Limits, RequestLimiter
from limrank.engines.fake import ByteTokenizer
from limrank.errors import RowError
from limrank.records import (
    Difficulty,
    PassageRole,
    Persona,
    QueryBrief,
    QueryKind,
    Seed,
    SynthesisExample,
)
from limrank.synthesis.synthesizer import SynthesisInputs, synthesize_seed

SEEDS = [
    Seed("s1", "merge sorted lists", "heapq.merge merges several sorted inputs into one sorted stream"),
    Seed("s2", "count words", "collections.Counter counts hashable objects"),
]
NURSE, GEOLOGIST = Persona("p1", "a nurse on night shift"), Persona("p2", "a geologist")
DAILY = QueryBrief(QueryKind.DAILY, NURSE, Difficulty.DIRECT)
EXPERT = QueryBrief(QueryKind.EXPERT, GEOLOGIST, Difficulty.MULTI_HOP)
BRIEFS = (DAILY, EXPERT)
INPUTS = SynthesisInputs(SynthesisConfig(negatives=2), ScoringConfig(mode="budget", max_think_tokens=16), seed=7)
WRITTEN = "Whoever plans a month of shifts begins with the nights, then fills the days that are left."
POSITIVE, HARD, MINED = PassageRole.POSITIVE, PassageRole.HARD_NEGATIVE, PassageRole.MINED_NEGATIVE
LONG = "twelve words are the least that a text must have to be kept"


def synthesize(seed=SEEDS[0], *, briefs=BRIEFS, mined=(), inputs=INPUTS, **engines):
    engine = fake_engine()
    roles = {"writer": engine, "judge": engine} | engines
    return asyncio.run(synthesize_seed(seed, briefs, mined, roles, inputs))


class Writer:
    """An engine with a given answer for each step; the judge in these tests is a fake engine of its own.
    A step is recognized by its JSON schema."""

    tokenizer = ByteTokenizer()
    limits = Limits(32768, 256)

    def __init__(self, query=None, describe=None, text=None):
        self.limiter = RequestLimiter(256)
        good_query = {"domain": "health", "query": "how do I keep my rota in order"}
        good_passages = {"positive": "one that helps", "hard_negatives": ["one", "two"]}
        self.query = json.dumps(good_query) if query is None else query
        self.describe = json.dumps(good_passages) if describe is None else describe
        self.text = text or WRITTEN
        self.prompts = []

    async def generate(self, prompt, *, max_tokens, schema=None, **sampling):
        self.prompts.append(prompt[0]["content"])
        if schema is None:
            answer = self.text(prompt[0]["content"]) if callable(self.text) else self.text
        else:
            answer = self.query if "query" in schema["properties"] else self.describe
        if isinstance(answer, Exception):
            raise answer
        return Generation(answer, "stop", 10, 0, 5)


class Reranker:
    """Scores a passage by the mark in it: ``<3>`` means log-odds of 3. A passage without a mark cannot
    be scored."""

    tokenizer = ByteTokenizer()
    limits = Limits(32768, 256)

    async def label_logprobs(self, prompt, labels):
        mark = re.search(r"<(-?\d)>", self.tokenizer.decode(prompt))
        if mark is None:
            raise RowError("no mark")
        return dict(zip(labels, (float(mark[1]), 0.0), strict=True))


def example(name, query="a query of five words", passage=LONG, role=HARD):
    return SynthesisExample(
        name, "s1", "p1", QueryKind.DAILY, query=query, passage=passage, passage_role=role, label=role is POSITIVE
    )


def with_settings(config, **changed):
    """The config with other values in its synthesis section."""
    return config.model_copy(update={"synthesis": config.synthesis.model_copy(update=changed)})


def with_fault(config, **changed):
    fault = config.engine.fault.model_copy(update=changed)
    return config.model_copy(update={"engine": config.engine.model_copy(update={"fault": fault})})


def write_benchmark(folder, query, document="unlike anything"):
    """A BEIR folder of query 7 and document d, which is relevant to it."""
    write_beir(folder, corpus={"d": document}, queries={"7": query}, qrels={"7": {"d": 1}})
    return str(folder)
