"""Shows a few seeds step by step, every prompt and its answer, to a person who tunes prompts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Unpack

from limrank.batch.plan import Unit
from limrank.config import SynthesizeJob
from limrank.engines import EngineSource, Prompt
from limrank.engines.base import Engine, Generation, SamplingOptions, current_step
from limrank.errors import LimrankError
from limrank.html import visible
from limrank.records import Seed, SynthesisExample
from limrank.synthesis.contamination import Benchmarks
from limrank.synthesis.passage_queries import synthesize_passage
from limrank.synthesis.plan import read_brief, read_inputs, synthesis_inputs, units
from limrank.synthesis.synthesizer import SynthesisInputs, synthesize_seed
from limrank.synthesis.task import asked_of


@dataclass(frozen=True)
class Request:
    """One request of a seed to an engine. ``outcome`` is the answer's text, the labels'
    probabilities, or the error of a request that ``failed``."""

    step: str
    prompt: str
    outcome: str
    failed: bool = False


@dataclass
class Traced:
    """An engine that records its requests and their outcomes."""

    engine: Engine
    requests: list[Request] = field(default_factory=list)

    @property
    def tokenizer(self):
        return self.engine.tokenizer

    @property
    def limits(self):
        return self.engine.limits

    @property
    def limiter(self):
        return self.engine.limiter

    async def generate(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> Generation:
        with self._recorded_if_it_fails(prompt):
            generation = await self.engine.generate(prompt, **options)
        thought = "" if generation.reasoning is None else f"<think>{generation.reasoning}</think>"
        self._record(prompt, thought + generation.text)
        return generation

    def stream(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> AsyncIterator[str]:
        return self.engine.stream(prompt, **options)

    async def label_logprobs(self, prompt: Prompt, labels: Sequence[str]) -> dict[str, float]:
        import math

        with self._recorded_if_it_fails(prompt):
            logprobs = await self.engine.label_logprobs(prompt, labels)
        self._record(
            prompt, ", ".join(f"p({label.strip()}) {math.exp(value):.3g}" for label, value in logprobs.items())
        )
        return logprobs

    async def aclose(self) -> None:
        await self.engine.aclose()

    @contextmanager
    def _recorded_if_it_fails(self, prompt: Prompt) -> Iterator[None]:
        # Whoever looks for the reason needs the prompt.
        try:
            yield
        except LimrankError as error:
            self._record(prompt, f"{type(error).__name__}: {error}", failed=True)
            raise

    def _record(self, prompt: Prompt, outcome: str, *, failed: bool = False) -> None:
        if isinstance(prompt, str):
            text = prompt
        elif prompt and isinstance(prompt[0], dict):
            text = "\n".join(message["content"] for message in prompt)
        else:
            text = self.tokenizer.decode(prompt)
        self.requests.append(Request(current_step() or "", text, outcome, failed))


def preview(config: SynthesizeJob, count: int, sources: Mapping[str, EngineSource], show: Callable[[str], None]) -> int:
    """Run the first ``count`` seeds in this process, without Ray and without a run directory, and
    show every step's prompt and answer and what became of each pair.

    A seed that repeats a benchmark is reported and not counted: nothing is written for it.

    Returns:
        The number of failed requests.
    """
    given = read_inputs(config)
    inputs = synthesis_inputs(config)

    def say(text: str) -> None:
        # The text is not ours, even in ids and errors, and goes to a terminal.
        show(visible(text))

    failed = asyncio.run(_preview(_written(units(config, given), count), given.benchmarks, inputs, sources, say))
    for warning in given.benchmarks.warnings if given.benchmarks else ():
        say(f"warning: {warning}")
    say("Duplicate queries are found, and rejected, only in a whole run.")
    if config.synthesis.source == "passages":
        say("Only a whole run finds a query's passage again, and its negatives.")
    return failed


def _written(planned: Iterable[Unit], count: int) -> Iterator[Unit]:
    """The first units, up to the ``count``-th for which anything is written."""
    for unit in planned:
        yield unit
        count -= not unit["contaminated"]
        if not count:
            return


async def _preview(
    planned: Iterable[Unit],
    benchmarks: Benchmarks | None,
    inputs: SynthesisInputs,
    sources: Mapping[str, EngineSource],
    say: Callable[[str], None],
) -> int:
    failed = 0
    opened = {source: source.open() for source in dict.fromkeys(sources.values())}
    try:
        for unit in planned:
            requests: list[Request] = []
            engines = {role: Traced(opened[source], requests) for role, source in sources.items()}
            seed = Seed(unit["unit_id"], unit["query"], unit["passage"])
            passages = inputs.synthesis.source == "passages"
            heading = f"# passage {seed.seed_id}\n" if passages else f"# seed {seed.seed_id}\n\nquery: {seed.query}"
            say(f"{heading}\npassage: {seed.passage}\n")
            if unit["contaminated"]:
                say(f"contaminated: {unit['contaminated']}\n")
            # One query after the other, so that the requests of each stay together.
            for number, brief in enumerate(asked_of(unit, inputs) if passages else map(read_brief, unit["briefs"])):
                try:
                    if passages:
                        outcome = await synthesize_passage(seed, {number: brief}, engines, inputs)
                    else:
                        outcome = await synthesize_seed(seed, [brief], unit["mined"], engines, inputs)
                finally:  # shows the request that crashed an engine, too
                    for request in requests:
                        say(_described(request))
                    requests.clear()
                failed += len(outcome.failures)
                for failure in outcome.failures:
                    say(f"failed: {failure.unit_id}: {failure.step}: {failure.error}\n")
                for example in outcome.examples:
                    say(f"{example.example_id}: {_verdict(example, benchmarks)}")
                say("")
    finally:
        for engine in opened.values():
            await engine.aclose()
    return failed


def _described(request: Request) -> str:
    outcome = f"failed: {request.outcome}" if request.failed else f"→ {request.outcome}"
    return f"## {request.step}\n\n{request.prompt}\n\n{outcome}\n"


def _verdict(example: SynthesisExample, benchmarks: Benchmarks | None) -> str:
    """What becomes of an example before the whole pool is known."""
    if not example.kept:
        return f"rejected: {example.reject_reason}"
    if benchmarks and (overlap := benchmarks.example_overlap(example.query, example.instruction, example.passage)):
        return f"rejected: contaminated ({overlap})"
    return "kept"
