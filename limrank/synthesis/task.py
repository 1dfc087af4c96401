"""The work of a synthesize job on one unit: the queries of a seed, or of a passage."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from limrank.batch.chunks import Engines, Outcome, Rows, Task
from limrank.batch.plan import Unit
from limrank.config import SynthesizeJob
from limrank.records import PassageRole, QueryBrief, Seed, synthesis_row_schema
from limrank.synthesis.passage_queries import given_example, query_name, synthesize_passage
from limrank.synthesis.plan import read_brief, synthesis_inputs, unwritten
from limrank.synthesis.synthesizer import SeedOutcome, SynthesisInputs, contaminated_example, synthesize_seed

if TYPE_CHECKING:
    import pyarrow as pa


def task_of(config: SynthesizeJob) -> Task:
    inputs = synthesis_inputs(config)
    if config.synthesis.writer == "none":
        return GivenQueryTask(inputs)
    return PassageTask(inputs) if config.synthesis.source == "passages" else SynthesisTask(inputs)


@dataclass(frozen=True)
class SynthesisTask:
    """Writes and judges the examples of one seed. The engines' roles are those of ``SynthesizeJob.roles``."""

    inputs: SynthesisInputs
    step: str = "synthesize"
    unit_column: str = "seed_id"
    row_key: tuple[str, ...] = ("example_id",)
    retry_key: tuple[str, ...] = ("seed_id", "query_kind", "persona_id")

    @property
    def row_schema(self) -> pa.Schema:
        return synthesis_row_schema()

    async def run(self, unit: Unit, engines: Engines) -> Outcome:
        return await self.retry(unit, [], engines)

    async def retry(self, unit: Unit, rows: Rows, engines: Engines) -> Outcome:
        """Write the queries of which anything failed a second time: a query's steps depend on one another."""
        seed = Seed(unit["unit_id"], unit["query"], unit["passage"])
        if unit["contaminated"]:
            return _nothing(seed, unit)
        mined = self.inputs.synthesis.mined_negatives
        briefs = unwritten(unit, rows, reranked="reranker" in engines, mined=mined)
        return _outcome(await synthesize_seed(seed, briefs, unit["mined"], engines, self.inputs))

    def failed_rows(self, unit: Unit) -> Rows:
        return []


@dataclass(frozen=True)
class PassageTask(SynthesisTask):
    """Writes the queries of one passage. A retry writes those that are missing."""

    retry_key: tuple[str, ...] = ("example_id",)

    async def retry(self, unit: Unit, rows: Rows, engines: Engines) -> Outcome:
        seed = Seed(unit["unit_id"], "", unit["passage"])
        if unit["contaminated"]:
            return _nothing(seed, unit)
        written = {row["example_id"].removesuffix(f"/{PassageRole.POSITIVE}") for row in rows}
        asked = {
            number: brief
            for number, brief in enumerate(asked_of(unit, self.inputs))
            if query_name(seed, number) not in written
        }
        return _outcome(await synthesize_passage(seed, asked, engines, self.inputs))


@dataclass(frozen=True)
class GivenQueryTask(PassageTask):
    """``writer: none``: a seed's own query, without an engine."""

    async def retry(self, unit: Unit, rows: Rows, engines: Engines) -> Outcome:
        seed = Seed(unit["unit_id"], unit["query"], unit["passage"])
        return _nothing(seed, unit) if unit["contaminated"] else _outcome(SeedOutcome([given_example(seed)], []))


def asked_of(unit: Unit, inputs: SynthesisInputs) -> list[QueryBrief | None]:
    """The briefs of a passage's queries; a tuned writer takes none."""
    tuned = inputs.synthesis.writer == "tuned"
    return [None if tuned else read_brief(brief) for brief in unit["briefs"]]


def _nothing(seed: Seed, unit: Unit) -> Outcome:
    return Outcome([asdict(contaminated_example(seed, unit["contaminated"]))])


def _outcome(found: SeedOutcome) -> Outcome:
    return Outcome([asdict(example) for example in found.examples], found.failures)
