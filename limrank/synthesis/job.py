"""The synthesize job: seeds × personas → judged examples → ``train.jsonl`` and friends."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from limrank import cluster, models, prompts, retrieval
from limrank.chunks import Engines, Outcome, Rows
from limrank.config import ScoringConfig, SynthesizeJob, config_hash, dump_config
from limrank.data import seeds as seed_data
from limrank.engines import EngineSource, EngineSpec, check_engine, load_tokenizer
from limrank.errors import UserError
from limrank.fanout import chunk_cost, fanout
from limrank.plan import GENERATED_TOKEN_COST, Unit, read_plan, write_plan
from limrank.progress import Progress
from limrank.receipts import Summary
from limrank.records import Persona, QueryKind, Seed, synthesis_row_schema, synthesis_unit_schema
from limrank.result import JobResult
from limrank.rundir import open_run
from limrank.scoring import check_labels, prompt_template
from limrank.synthesis.export import Funnel, export
from limrank.synthesis.steps import SynthesisInputs, synthesize_seed

if TYPE_CHECKING:
    import pyarrow as pa

PROMPTS = ("synth_query", "synth_chain", "synth_describe", "synth_passage")


@dataclass(frozen=True)
class SynthesisTask:
    """Writes and judges one seed's examples; the roles are ``writer`` and ``judge``."""

    inputs: SynthesisInputs
    step: str = "synthesize"
    unit_column: str = "seed_id"
    row_key: tuple[str, ...] = ("example_id",)

    @property
    def row_schema(self) -> pa.Schema:
        return synthesis_row_schema()

    async def run(self, unit: Unit, engines: Engines) -> Outcome:
        personas = {QueryKind(each["kind"]): Persona(each["persona_id"], each["text"]) for each in unit["personas"]}
        seed = Seed(unit["unit_id"], unit["query"], unit["passage"])
        outcome = await synthesize_seed(seed, personas, unit["mined"], engines, self.inputs)
        return Outcome([asdict(example) for example in outcome.examples], outcome.failures)

    async def again(self, unit: Unit, rows: Rows, engines: Engines) -> Outcome:
        # The steps hang on one another: a seed is written anew, and comes out the same
        # but for what failed.
        return await self.run(unit, engines)

    def failed_rows(self, unit: Unit) -> Rows:
        return []


def run(
    config: SynthesizeJob,
    *,
    address: str,
    progress: Progress,
    overwrite: bool = False,
    engines: Mapping[str, EngineSource] | None = None,
) -> JobResult:
    """Synthesize into ``config.run_dir``; the same call again resumes.

    Args:
        engines: engines that are up already, as roles ``writer`` and ``judge``.

    Raises:
        UserError: anything of the recipe or its files that cannot work.
        EngineError: an engine did not come up.
    """
    seeds = seed_data.load_seeds(config.synthesis.seeds, config.synthesis.max_seeds)
    personas = seed_data.load_personas(config.synthesis.personas)
    if config.scoring.mode == "none":
        raise UserError("scoring.mode none judges nothing: take direct, think or budget")
    if config.scoring.mode == "cascade":
        raise UserError("scoring.mode cascade compares a query's candidates, and here are pairs: take think or budget")
    prompt_template(config.scoring)
    if engines is None:
        engines = _sources(config)
        for source in engines.values():
            check_engine(source.model, source.engine)
        check_labels(load_tokenizer(engines["judge"].model, engines["judge"].engine))
    with (
        open_run(
            config.run_dir,
            job="synthesize",
            config_yaml=dump_config(config),
            config_hash=rows_hash(config, seeds, personas),
            overwrite=overwrite,
        ) as run_dir,
        cluster.connect(address, paths=[config.run_dir]),
    ):
        planned = read_plan(run_dir.storage) or write_plan(
            run_dir.storage,
            ((unit, 1) for unit in _units(config, seeds, personas)),
            synthesis_unit_schema(),
            chunk_cost=chunk_cost(config.engine.kind),
        )
        task = SynthesisTask(SynthesisInputs(config.synthesis, judging(config), config.seed))
        summary = fanout(
            run_dir, planned, task, engines, config.workers, progress=progress, stage="synthesize", weighed_in="seeds"
        )
        funnel = export(run_dir.storage, config, summary)
        run_dir.finish("done")
    return JobResult(summary.failed, [], _shown(config, summary, funnel))


def plan(config: SynthesizeJob) -> dict[str, Any]:
    """What a run would do, for ``--dry-run``: nothing is started or written."""
    seeds = seed_data.load_seeds(config.synthesis.seeds, config.synthesis.max_seeds)
    personas = seed_data.load_personas(config.synthesis.personas)
    units = list(_units(config, seeds, personas))
    queries = len(units) * len(config.synthesis.kinds)
    pairs = queries * (1 + config.synthesis.negatives + config.synthesis.mined_negatives)
    first = units[0]
    kind, persona = first["personas"][0]["kind"], first["personas"][0]["text"]
    return {
        "units": f"{len(units)} seeds, {queries} queries, {pairs} pairs to judge, {len(personas)} personas to draw from",
        "tokens": f"at most {sum(unit['cost'] for unit in units) // GENERATED_TOKEN_COST} to write",
        "workers": config.workers.model_dump(exclude_none=True),
        "first_prompt": prompts.render(
            "synth_query", seed_query=first["query"], seed_passage=first["passage"], persona=persona, kind=kind
        ),
    }


def rows_hash(config: SynthesizeJob, seeds: Sequence[Seed], personas: Sequence[Persona]) -> str:
    """The hash of all that a synthesize job's rows depend on."""
    judge_engine = config.judge_engine or config.engine
    return config_hash(
        {
            "job": "synthesize",
            "seeds": seed_data.fingerprint(seeds, personas),
            "models": [
                (model.model_dump(), models.fingerprint(model.id))
                for model in (config.model, config.judge or config.model)
            ],
            "engines": [(each.kind, each.fail_rate) for each in (config.engine, judge_engine)],
            "scoring": judging(config).model_dump(exclude={"prompt"}),
            "synthesis": config.synthesis.model_dump(exclude={"seeds", "personas"}),
            "prompts": [prompts.load(name) for name in (*PROMPTS, config.scoring.prompt)],
            "seed": config.seed,
        }
    )


def judging(config: SynthesizeJob) -> ScoringConfig:
    """How the judge scores: as the recipe says, with the synthesis section's chain length."""
    if config.scoring.mode == "direct" or config.scoring.max_think_tokens:
        return config.scoring
    return config.scoring.model_copy(update={"max_think_tokens": config.synthesis.judge_tokens})


def _sources(config: SynthesizeJob) -> dict[str, EngineSpec]:
    tensor_parallel = config.workers.tensor_parallel
    writer = EngineSpec(config.model, config.engine, tensor_parallel)
    judge = EngineSpec(config.judge or config.model, config.judge_engine or config.engine, tensor_parallel)
    return {"writer": writer, "judge": judge}


def _units(config: SynthesizeJob, seeds: Sequence[Seed], personas: Sequence[Persona]) -> Iterator[Unit]:
    """A unit a seed, with a persona drawn for each kind: by the run's seed and the seed's
    id alone, so that a plan does not depend on which other seeds there are."""
    settings = config.synthesis
    mined = _mined(config, seeds)
    pairs = 1 + settings.negatives + settings.mined_negatives
    written = settings.query_tokens + 2 * settings.chain_tokens + (1 + settings.negatives) * settings.passage_tokens
    cost = GENERATED_TOKEN_COST * len(settings.kinds) * (written + pairs * (judging(config).think_tokens + 1))
    for seed in seeds:
        draw = random.Random(f"{config.seed}/{seed.seed_id}")
        drawn = [(kind, draw.choice(personas)) for kind in settings.kinds]
        yield {
            "unit_id": seed.seed_id,
            "cost": cost,
            "query": seed.query,
            "passage": seed.passage,
            "personas": [{"persona_id": who.persona_id, "text": who.text, "kind": kind} for kind, who in drawn],
            "mined": mined.get(seed.seed_id, []),
        }


def _mined(config: SynthesizeJob, seeds: Sequence[Seed]) -> dict[str, list[str]]:
    """For each seed the corpus passages that BM25 puts nearest to its query, its own left out."""
    count = config.synthesis.mined_negatives
    if not count:
        return {}
    from limrank.records import Query

    corpus = seed_data.load_corpus(config.synthesis.seeds)
    contents = {document.doc_id: document.contents for document in corpus}
    run = retrieval.bm25(corpus, [Query(seed.seed_id, seed.query) for seed in seeds], count + 1)
    return {
        seed.seed_id: [contents[each] for each in run[seed.seed_id] if contents[each] != seed.passage][:count]
        for seed in seeds
    }


def _shown(config: SynthesizeJob, summary: Summary, funnel: Funnel) -> list[str]:
    reasons = ", ".join(f"{reason} {count}" for reason, count in funnel.rejected.items()) or "none"
    return [
        f"{summary.units} seeds, {funnel.examples} examples, {funnel.kept} kept "
        f"({funnel.kept_positive} true, {funnel.kept - funnel.kept_positive} false); rejected: {reasons}",
        f"train file: {config.run_dir}/train.jsonl",
    ]
