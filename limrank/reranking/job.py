"""The rerank job: queries with candidates → scored pairs → ``run.trec`` and ``run.json``.

Rows hold the true scores, and ``rank`` by them. Fusion with the first stage is a matter of the run files alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limrank import cluster, models, prompts
from limrank.batch.chunks import Engines, Outcome, Rows
from limrank.batch.fanout import chunk_cost, fanout, finish, run_without_engines, unfinished
from limrank.batch.plan import Plan, Unit, read_plan, write_plan
from limrank.batch.rundir import open_run
from limrank.config import DEFAULT_SEED, RerankJob, ScoringConfig, config_hash, dump_config
from limrank.config.recipe import input_paths
from limrank.data import benchmarks
from limrank.engines import EngineSource, EngineSpec, check_engine, check_scorer, load_tokenizer
from limrank.errors import UnavailableError, UserError
from limrank.progress import Event, Progress
from limrank.records import (
    Candidate,
    Failure,
    Judgment,
    Query,
    ScoreStatus,
    rerank_row_schema,
    rerank_unit_schema,
)
from limrank.reranking.fusion import open_fusion
from limrank.reranking.runs import reaching, write_runs
from limrank.reranking.source import Source, open_source, units
from limrank.result import JobResult
from limrank.scoring import check_labels, pair_text, prompt_template, rank_judgments, score_query, with_prompt_text
from limrank.scoring.calibration import Calibration, calibrated, fingerprint, read_calibration
from limrank.serving.client import ServedReranker
from limrank.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class RerankTask:
    """Scores a query's candidates. The engine's role is ``scorer``.

    ``tokens_a_pair`` is the average number of tokens that a cascade may generate for a pair of a query;
    None: any number. ``seed`` is the run's.
    """

    scoring: ScoringConfig
    tokens_a_pair: float | None = None
    seed: int = DEFAULT_SEED
    calibration: Calibration | None = None
    step: str = "score"
    unit_column: str = "query_id"
    row_key: tuple[str, ...] = ("query_id", "doc_id")
    retry_key: tuple[str, ...] = ("query_id", "doc_id")

    @property
    def row_schema(self) -> pa.Schema:
        return rerank_row_schema(calibrated=self.calibration is not None)

    async def run(self, unit: Unit, engines: Engines) -> Outcome:
        return await self.retry(unit, [], engines)

    async def retry(self, unit: Unit, rows: Rows, engines: Engines) -> Outcome:
        query, candidates = unit_query(unit), unit_candidates(unit)
        allowance = None if self.tokens_a_pair is None else int(self.tokens_a_pair * len(candidates))
        known = {row["doc_id"]: row_judgment(row) for row in rows}
        judgments = await score_query(
            query, candidates, engines["scorer"], self.scoring, allowance=allowance, known=known, seed=self.seed
        )
        judgments = calibrated(judgments, self.calibration)
        failures = [
            Failure.of(f"{query.query_id}\t{judgment.doc_id}", self.step, judgment.error)
            for judgment in judgments
            if judgment.error is not None
        ]
        return Outcome(ranked_rows(query, candidates, judgments), failures)

    def failed_rows(self, unit: Unit) -> Rows:
        return _unscored(unit, ScoreStatus.FAILED)


@dataclass(frozen=True)
class FirstStageTask:
    """``scoring.mode: none``: the first stage's order, without an engine."""

    step: str = "first_stage"
    unit_column: str = "query_id"
    row_key: tuple[str, ...] = ("query_id", "doc_id")
    retry_key: tuple[str, ...] = ("query_id", "doc_id")

    @property
    def row_schema(self) -> pa.Schema:
        return rerank_row_schema()

    async def run(self, unit: Unit, engines: Engines) -> Outcome:
        return Outcome(_unscored(unit, ScoreStatus.SKIPPED))

    async def retry(self, unit: Unit, rows: Rows, engines: Engines) -> Outcome:
        return await self.run(unit, engines)

    def failed_rows(self, unit: Unit) -> list[dict[str, Any]]:
        return _unscored(unit, ScoreStatus.FAILED)


def run(
    config: RerankJob,
    *,
    address: str,
    progress: Progress,
    overwrite: bool = False,
    engines: Mapping[str, EngineSource] | None = None,
    stage: str = "rerank",
) -> JobResult:
    """Rerank a benchmark, or given pairs, into ``config.run_dir``. A second call of the same config resumes.

    Args:
        address: of the Ray cluster, see ``cluster.connect``.
        engines: a running engine as role ``scorer``; None: every worker opens one.
        stage: the name in progress reports.

    Raises:
        UserError: the recipe or its files cannot work.
        EngineError: an engine did not start.
    """
    source = open_source(config)
    source.check()
    prompt_template(config.scoring)
    fusion = open_fusion(config, source)
    calibration = read_calibration(config.scoring.calibration)
    if config.scoring.mode != "none" and engines is None:
        engines = {"scorer": _scorer(config)}
    with open_run(
        config.run_dir,
        job="rerank",
        config_yaml=dump_config(config),
        config_hash=rows_hash(config, source),
        overwrite=overwrite,
        inputs=input_paths(config),
    ) as run_dir:
        source.keep_selection(run_dir.storage)
        if known := source.provenance():
            run_dir.note(data=known)
        if fusion:
            run_dir.note(fusion=fusion.facts())
        planned = read_plan(run_dir.storage)
        if config.scoring.mode == "none":
            planned = planned or _plan(run_dir.storage, config, source)
            summary = run_without_engines(run_dir, planned, FirstStageTask(), "pairs")
        elif planned is not None and not unfinished(run_dir, planned):
            # Only the run files may change, with the weight of fusion. They need no cluster.
            summary = finish(run_dir, planned, RerankTask(config.scoring), "pairs")
            progress.update(Event(stage, planned.size, planned.size, "pairs", finished=True))
        else:
            with cluster.connect(address, paths=[config.run_dir]):
                if config.engine.kind == "serve" and not config.engine.base_url:
                    engines["scorer"].check()
                planned = planned or _plan(run_dir.storage, config, source)
                summary = fanout(
                    run_dir,
                    planned,
                    RerankTask(
                        with_prompt_text(config.scoring),
                        _tokens_a_pair(config.scoring, planned),
                        config.seed,
                        calibration,
                    ),
                    engines,
                    config.workers,
                    progress=progress,
                    stage=stage,
                    progress_unit="pairs",
                )
        without_scores = write_runs(
            run_dir.storage, fusion.weight if fusion else None, min_score=config.scoring.min_score
        )
        run_dir.finish("done")
    cost = ""
    if config.scoring.mode != "none" and summary.rate:
        cost = f", {summary.rate:.1f} pairs/s, {summary.tokens / max(summary.rows, 1):.0f} tokens per pair"
    done = f"{summary.units} queries, {summary.rows} pairs, {summary.failed} failed{cost}"
    warnings, messages = [*source.warnings], [done, f"run: {run_dir.storage.display_path('run.trec')}"]
    if fusion:
        warnings += fusion.warnings
        messages.append(fusion.sentence())
    if without_scores:
        warnings.append(
            f"scoring.fuse: the first stage of {without_scores} queries has ranks alone: -rank is their score"
        )
    if (least := config.scoring.min_score) is not None:
        pairs, queries = reaching(run_dir.storage, least)
        messages.insert(1, f"scoring.min_score {least:g}: {pairs} pairs of {queries} queries reach it")
    return JobResult(summary.failed, warnings, messages)


def plan(config: RerankJob) -> dict[str, Any]:
    """What a run would do, for ``--dry-run``. Nothing is started or written. Where the hub does not give
    the benchmark, the plan has the form of its prompts only."""
    try:
        source = open_source(config)
    except UnavailableError as error:
        return {"not known on this machine": str(error), "first_prompt": _form_of_prompt(config)}
    source.check()
    fusion = open_fusion(config, source)
    read_calibration(config.scoring.calibration)
    queries = pairs = cost = 0
    longest: Unit = {"candidates": []}
    for unit, size in units(source, config.scoring):
        queries, pairs, cost = queries + 1, pairs + size, cost + unit["cost"]
        longest = max(longest, unit, key=lambda each: len(each["candidates"]))
    prompt = None
    if longest["candidates"] and config.scoring.mode != "none":
        prompt = pair_text(prompt_template(config.scoring), unit_query(longest), longest["candidates"][0]["text"])
    return {
        "units": f"{queries} queries, {pairs} pairs",
        "tokens": f"about {cost} to read and write",
        "workers": config.workers.model_dump(exclude_none=True),
        **({"fusion": fusion.sentence()} if fusion else {}),
        "first_prompt": prompt,
        "warnings": source.warnings + (fusion.warnings if fusion else []),
    }


def _form_of_prompt(config: RerankJob) -> str | None:
    """The prompt of a pair, with its placeholders."""
    if config.scoring.mode == "none":
        return None
    query = Query("", "{{ query }}", template=benchmarks.query_template(config.data))
    return pair_text(prompt_template(config.scoring), query, "{{ passage }}")


def rows_hash(config: RerankJob, source: Source) -> str:
    """The hash of all that a rerank job's rows depend on."""
    unused = config.scoring.mode == "none"
    # A resumed run may have a higher budget. The prompt is hashed by its text.
    unused_keys = {"prompt", "token_budget"} | (set() if config.scoring.mode == "cascade" else {"cutoff", "band"})
    unused_keys |= set() if config.scoring.think_tokens else {"min_think_tokens", "compatibility"}
    calibration = None if unused else fingerprint(read_calibration(config.scoring.calibration))
    return config_hash(
        {
            **({"calibration": calibration} if calibration else {}),
            "job": "rerank",
            **source.hash_parts(),
            "model": None if unused else [config.model.model_dump(), models.fingerprint(config.model.id)],
            "engine": None if unused else [config.engine.kind, config.engine.fault.fail_rate],
            "scoring": config.scoring.hashed(unused_keys | {"calibration"}),
            "prompt": prompts.load(config.scoring.prompt_name),
            "seed": config.seed,
        }
    )


def ranked_rows(query: Query, candidates: list[Candidate], judgments: list[Judgment]) -> Rows:
    """Rows of rerank_row_schema(), best first."""
    return [
        {
            "query_id": query.query_id,
            "doc_id": candidates[index].doc_id,
            "rank": rank,
            "first_stage_rank": candidates[index].rank,
            "first_stage_score": candidates[index].score,
            "score": judgments[index].score,
            "status": str(judgments[index].status),
            "reasoning": judgments[index].reasoning,
            "prompt_tokens": judgments[index].prompt_tokens,
            "generated_tokens": judgments[index].generated_tokens,
            "truncated": judgments[index].truncated,
            "direct_score": judgments[index].direct_score,
            "think_score": judgments[index].think_score,
            **({} if judgments[index].raw_score is None else {"raw_score": judgments[index].raw_score}),
        }
        for rank, index in enumerate(rank_judgments(candidates, judgments), start=1)
    ]


def row_judgment(row: Mapping[str, Any]) -> Judgment:
    """The judgment in a row of rerank_row_schema(), before calibration."""
    named = ("doc_id", "reasoning", "prompt_tokens", "generated_tokens", "truncated")
    raw = row.get("raw_score")
    return Judgment(
        score=row["score"] if raw is None else raw,
        status=ScoreStatus(row["status"]),
        direct_score=row["direct_score"],
        think_score=row["think_score"],
        **{name: row[name] for name in named},
    )


def unit_query(unit: Unit) -> Query:
    return Query(unit["unit_id"], unit["query"], unit["instruction"] or "")


def unit_candidates(unit: Unit) -> list[Candidate]:
    return [Candidate(**candidate) for candidate in unit["candidates"]]


def _scorer(config: RerankJob) -> EngineSource:
    """The source of the engine or the server that scores, checked. A server on the cluster can only be
    checked when Ray is connected."""
    if config.engine.kind == "serve":
        server = ServedReranker(config.model, config.engine, config.scoring, config.seed)
        if config.engine.base_url:
            server.check()
        return server
    check_engine(config.model, config.engine)
    check_scorer(config.model, config.engine, config.scoring.labels)
    check_labels(load_tokenizer(config.model, config.engine), config.scoring.labels)
    return EngineSpec(config.model, config.engine, config.workers.tensor_parallel)


def _plan(storage: Storage, config: RerankJob, source: Source) -> Plan:
    return write_plan(
        storage,
        units(source, config.scoring),
        rerank_unit_schema(),
        chunk_cost=chunk_cost(config.engine.kind),
        engines=None if config.scoring.mode == "none" else config.workers.max_replicas,
    )


def _tokens_a_pair(scoring: ScoringConfig, planned: Plan) -> float | None:
    """A run's token budget, divided evenly over its pairs. A query's allowance then does not depend on
    the other queries, and a resumed run keeps the same budget."""
    if scoring.token_budget is None or not planned.size:
        return None
    if scoring.token_budget < planned.size:
        raise UserError(
            f"scoring.token_budget {scoring.token_budget}: the direct scores of {planned.size} pairs already take more"
        )
    return scoring.token_budget / planned.size


def _unscored(unit: Unit, status: ScoreStatus) -> Rows:
    candidates = unit_candidates(unit)
    return ranked_rows(unit_query(unit), candidates, [Judgment(each.doc_id, None, status) for each in candidates])
