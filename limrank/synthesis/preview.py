"""A few seeds, step by step, for a person who tunes prompts: every prompt and what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from limrank.config import SynthesizeJob
from limrank.engines import EngineSource, Prompt
from limrank.engines.base import Engine, Generation, current_step
from limrank.html import visible
from limrank.records import Seed
from limrank.synthesis.plan import read_brief, read_inputs, synthesis_inputs, units
from limrank.synthesis.steps import SynthesisInputs, synthesize_seed


@dataclass(frozen=True)
class Request:
    """One request of a seed, as an engine had it. ``answer`` is text, or p(label) by label."""

    step: str
    prompt: str
    answer: str


@dataclass
class Traced:
    """An engine that keeps what it is asked and what it answers."""

    engine: Engine
    requests: list[Request] = field(default_factory=list)

    @property
    def tokenizer(self):
        return self.engine.tokenizer

    @property
    def limits(self):
        return self.engine.limits

    @property
    def traffic(self):
        return self.engine.traffic

    async def generate(self, prompt: Prompt, **options: Any) -> Generation:
        generation = await self.engine.generate(prompt, **options)
        thought = "" if generation.reasoning is None else f"<think>{generation.reasoning}</think>"
        self._keep(prompt, thought + generation.text)
        return generation

    def stream(self, prompt: Prompt, **options: Any):
        return self.engine.stream(prompt, **options)

    async def label_logprobs(self, prompt: Prompt, labels: Sequence[str]) -> dict[str, float]:
        import math

        logprobs = await self.engine.label_logprobs(prompt, labels)
        self._keep(prompt, ", ".join(f"p({label.strip()}) {math.exp(value):.3g}" for label, value in logprobs.items()))
        return logprobs

    async def aclose(self) -> None:
        await self.engine.aclose()

    def _keep(self, prompt: Prompt, answer: str) -> None:
        if isinstance(prompt, str):
            text = prompt
        elif prompt and isinstance(prompt[0], dict):
            text = "\n".join(message["content"] for message in prompt)
        else:
            text = self.tokenizer.decode(prompt)
        self.requests.append(Request(current_step() or "", text, answer))


def preview(
    config: SynthesizeJob, count: int, sources: Mapping[str, EngineSource], show: Callable[[str], None]
) -> None:
    """Run the first ``count`` seeds in this process, without Ray and without a run
    directory, and show every step's prompt and answer and what became of each pair."""
    inputs = synthesis_inputs(config)
    asyncio.run(_preview(list(islice(units(config, read_inputs(config)), count)), inputs, sources, show))


async def _preview(
    planned: Sequence[Mapping[str, Any]],
    inputs: SynthesisInputs,
    sources: Mapping[str, EngineSource],
    show: Callable[[str], None],
) -> None:
    opened = {source: source.open() for source in dict.fromkeys(sources.values())}
    try:
        for unit in planned:
            requests: list[Request] = []
            engines = {role: Traced(opened[source], requests) for role, source in sources.items()}
            seed = Seed(unit["unit_id"], unit["query"], unit["passage"])
            show(visible(f"# seed {seed.seed_id}\n\nquery: {seed.query}\npassage: {seed.passage}\n"))
            # One query after the other, so that their requests stand together.
            for brief in map(read_brief, unit["briefs"]):
                outcome = await synthesize_seed(seed, [brief], unit["mined"], engines, inputs)
                for request in requests:
                    show(visible(f"## {request.step}\n\n{request.prompt}\n\n→ {request.answer}\n"))
                requests.clear()
                for failure in outcome.failures:
                    show(f"failed: {failure.unit_id}: {failure.step}: {failure.error}\n")
                for example in outcome.examples:
                    verdict = "kept" if example.kept else f"rejected: {example.reject_reason}"
                    show(f"{example.example_id}: {verdict}")
                show("")
    finally:
        for engine in opened.values():
            await engine.aclose()
