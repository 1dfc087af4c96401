"""The rerank job: benchmark → first stage → scored pairs → ``run.trec`` and ``run.json``."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limrank import cluster, models, prompts, retrieval
from limrank.chunks import ChunkRunner, Engines, Outcome, Rows, Worker
from limrank.config import RerankJob, ScoringConfig, config_hash, dump_config
from limrank.data import benchmarks
from limrank.data.trec import run_line, run_separator
from limrank.engines import EngineSource, EngineSpec, check_engine, load_tokenizer
from limrank.engines.serve_client import ServedReranker
from limrank.errors import UserError
from limrank.fanout import chunk_cost, fanout, finish, unfinished
from limrank.plan import CHARACTERS_A_TOKEN, GENERATED_TOKEN_COST, Plan, Unit, read_plan, write_plan
from limrank.progress import Progress
from limrank.receipts import Summary
from limrank.records import (
    Benchmark,
    Candidate,
    Failure,
    Judgment,
    Query,
    ScoreStatus,
    rerank_row_schema,
    rerank_unit_schema,
)
from limrank.result import JobResult
from limrank.rundir import RunDir, open_run
from limrank.scoring import check_labels, pair_text, prompt_template, rank_judgments, score_query
from limrank.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class RerankTask:
    """Scores a query with its candidates; the engine's role is ``scorer``.

    ``tokens_a_pair`` is what a cascade may generate for each, on average over a query; None: any number.
    """

    scoring: ScoringConfig
    tokens_a_pair: float | None = None
    step: str = "score"
    unit_column: str = "query_id"
    row_key: tuple[str, ...] = ("query_id", "doc_id")

    @property
    def row_schema(self) -> pa.Schema:
        return rerank_row_schema()

    async def run(self, unit: Unit, engines: Engines) -> Outcome:
        return await self.again(unit, [], engines)

    async def again(self, unit: Unit, rows: Rows, engines: Engines) -> Outcome:
        query, candidates = unit_query(unit), unit_candidates(unit)
        allowance = None if self.tokens_a_pair is None else int(self.tokens_a_pair * len(candidates))
        known = {row["doc_id"]: row_judgment(row) for row in rows}
        judgments = await score_query(
            query, candidates, engines["scorer"], self.scoring, allowance=allowance, known=known
        )
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
    """``scoring.mode: none``: the first stage's order as it is, without an engine."""

    step: str = "first_stage"
    unit_column: str = "query_id"
    row_key: tuple[str, ...] = ("query_id", "doc_id")

    @property
    def row_schema(self) -> pa.Schema:
        return rerank_row_schema()

    async def run(self, unit: Unit, engines: Engines) -> Outcome:
        return Outcome(_unscored(unit, ScoreStatus.SKIPPED))

    async def again(self, unit: Unit, rows: Rows, engines: Engines) -> Outcome:
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
    """Rerank a benchmark into ``config.run_dir``; the same call again resumes.

    Args:
        address: of the Ray cluster, see ``cluster.connect``.
        engines: an engine that is up already, as role ``scorer``; else one is opened in
            every worker.
        stage: what progress calls it.

    Raises:
        UserError: anything of the recipe or its files that cannot work.
        EngineError: an engine did not come up.
    """
    benchmark = benchmarks.load(config.data)
    prompt_template(config.scoring)
    if config.scoring.mode != "none" and engines is None:
        engines = {"scorer": _scorer(config)}
    with open_run(
        config.run_dir,
        job="rerank",
        config_yaml=dump_config(config),
        config_hash=rows_hash(config, benchmark),
        overwrite=overwrite,
    ) as run_dir:
        _keep_selection(run_dir.storage, benchmark)
        if config.scoring.mode == "none":
            summary = _without_engine(run_dir, _plan(run_dir.storage, config, benchmark))
        else:
            with cluster.connect(address, paths=[config.run_dir]):
                if config.engine.kind == "serve" and not config.engine.base_url:
                    engines["scorer"].check()
                planned = _plan(run_dir.storage, config, benchmark)
                summary = fanout(
                    run_dir,
                    planned,
                    RerankTask(config.scoring, _tokens_a_pair(config.scoring, planned)),
                    engines,
                    config.workers,
                    progress=progress,
                    stage=stage,
                    weighed_in="pairs",
                )
        write_runs(run_dir.storage)
        run_dir.finish("done")
    cost = ""
    if config.scoring.mode != "none" and summary.rate:
        cost = f", {summary.rate:.1f} pairs/s, {summary.tokens / max(summary.rows, 1):.0f} tokens a pair"
    done = f"{summary.units} queries, {summary.rows} pairs, {summary.failed} failed{cost}"
    return JobResult(summary.failed, benchmark.warnings, [done, f"run: {config.run_dir}/run.trec"])


def plan(config: RerankJob) -> dict[str, Any]:
    """What a run would do, for ``--dry-run``: nothing is started or written."""
    benchmark = benchmarks.load(config.data)
    units = [unit for unit, _ in _units(config, benchmark)]
    first = max(units, key=lambda unit: len(unit["candidates"]), default=None)
    prompt = None
    if first and first["candidates"] and config.scoring.mode != "none":
        prompt = pair_text(prompt_template(config.scoring), unit_query(first), first["candidates"][0]["text"])
    return {
        "units": f"{len(units)} queries, {sum(len(unit['candidates']) for unit in units)} pairs",
        "tokens": f"about {sum(unit['cost'] for unit in units)} to read and write",
        "workers": config.workers.model_dump(exclude_none=True),
        "first_prompt": prompt,
        "warnings": benchmark.warnings,
    }


def rows_hash(config: RerankJob, benchmark: Benchmark) -> str:
    """The hash of all that a rerank job's rows depend on."""
    unused = config.scoring.mode == "none"
    return config_hash(
        {
            "job": "rerank",
            "data": benchmarks.fingerprint(config.data),
            # Judgements select queries: others make another run, whatever their grades.
            "queries": [query.query_id for query in benchmark.queries],
            "first_stage": config.first_stage.model_dump(exclude={"path"}),
            "first_stage_run": benchmarks.file_fingerprint(config.first_stage.path)
            if config.first_stage.path
            else None,
            "model": None if unused else [config.model.model_dump(), models.fingerprint(config.model.id)],
            "engine": None if unused else [config.engine.kind, config.engine.fail_rate],
            "scoring": config.scoring.model_dump(exclude={"prompt", "token_budget"}),
            "prompt": prompts.load(config.scoring.prompt),
            "seed": config.seed,
        }
    )


def ranked_rows(query: Query, candidates: list[Candidate], judgments: list[Judgment]) -> Rows:
    """Rows of rerank_row_schema(), best first."""
    return [
        {
            "query_id": query.query_id,
            "doc_id": candidates[place].doc_id,
            "rank": rank,
            "first_stage_rank": candidates[place].rank,
            "first_stage_score": candidates[place].score,
            "score": judgments[place].score,
            "status": str(judgments[place].status),
            "reasoning": judgments[place].reasoning,
            "prompt_tokens": judgments[place].prompt_tokens,
            "generated_tokens": judgments[place].generated_tokens,
            "truncated": judgments[place].truncated,
            "direct_score": judgments[place].direct_score,
            "think_score": judgments[place].think_score,
        }
        for rank, place in enumerate(rank_judgments(candidates, judgments), start=1)
    ]


def row_judgment(row: Mapping[str, Any]) -> Judgment:
    """The judgment that a row of rerank_row_schema() was made of."""
    named = ("doc_id", "score", "reasoning", "prompt_tokens", "generated_tokens", "truncated")
    return Judgment(
        status=ScoreStatus(row["status"]),
        direct_score=row["direct_score"],
        think_score=row["think_score"],
        **{name: row[name] for name in named},
    )


def unit_query(unit: Unit) -> Query:
    return Query(unit["unit_id"], unit["query"], unit["instruction"] or "")


def unit_candidates(unit: Unit) -> list[Candidate]:
    return [Candidate(**candidate) for candidate in unit["candidates"]]


def write_runs(storage: Storage) -> None:
    """``run.trec`` and ``run.json`` from the committed rows, one chunk in memory at a time.

    The score in both is ``-rank``, so that every tool reads the same order, ties included.
    """
    gap = run_separator(
        each for query_id, ranked in _rankings(storage) for each in (query_id, *(doc for _, doc in ranked))
    )
    with storage.open_output("run.trec") as trec, storage.open_output("run.json") as whole:
        separator = "{"
        for query_id, ranked in _rankings(storage):
            for rank, doc_id in ranked:
                trec.write(run_line(query_id, doc_id, rank, -rank, gap).encode() + b"\n")
            entry = json.dumps({doc_id: float(-rank) for rank, doc_id in ranked}, ensure_ascii=False)
            whole.write(f"{separator}\n{json.dumps(query_id, ensure_ascii=False)}: {entry}".encode())
            separator = ","
        whole.write(b"{}\n" if separator == "{" else b"\n}\n")


def _rankings(storage: Storage) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    for name in storage.names("rows"):
        table = storage.read_table(f"rows/{name}").select(["query_id", "doc_id", "rank"])
        ranked: dict[str, list[tuple[int, str]]] = {}
        for row in table.to_pylist():
            ranked.setdefault(row["query_id"], []).append((row["rank"], row["doc_id"]))
        for query_id, places in ranked.items():
            yield query_id, sorted(places)


def _scorer(config: RerankJob) -> EngineSource:
    """What judges, as far as it can be checked before Ray is there: a server on the cluster
    cannot."""
    if config.engine.kind == "serve":
        server = ServedReranker(config.model, config.engine, config.scoring)
        if config.engine.base_url:
            server.check()
        return server
    check_engine(config.model, config.engine)
    check_labels(load_tokenizer(config.model, config.engine))
    return EngineSpec(config.model, config.engine, config.workers.tensor_parallel)


def _plan(storage: Storage, config: RerankJob, benchmark: Benchmark) -> Plan:
    known = read_plan(storage)
    if known is not None:
        return known
    return write_plan(
        storage, _units(config, benchmark), rerank_unit_schema(), chunk_cost=chunk_cost(config.engine.kind)
    )


def _tokens_a_pair(scoring: ScoringConfig, planned: Plan) -> float | None:
    """A run's token budget, shared out evenly: what a query may take then hangs on nothing
    that runs beside it, and a resumed run keeps the same budget."""
    if scoring.token_budget is None:
        return None
    if scoring.token_budget < planned.weight:
        raise UserError(
            f"scoring.token_budget {scoring.token_budget}: the direct scores of {planned.weight} pairs alone take more"
        )
    return scoring.token_budget / planned.weight


def _units(config: RerankJob, benchmark: Benchmark) -> Iterator[tuple[Unit, int]]:
    chain = config.scoring.think_tokens * GENERATED_TOKEN_COST
    for query, found in retrieval.candidates(benchmark, config.first_stage):
        length = len(query.text) + len(query.instruction)
        cost = sum((length + len(candidate.text)) // CHARACTERS_A_TOKEN + chain for candidate in found)
        unit = {
            "unit_id": query.query_id,
            "cost": cost,
            "query": query.text,
            "instruction": query.instruction,
            "candidates": [
                {"doc_id": each.doc_id, "text": each.text, "rank": each.rank, "score": each.score} for each in found
            ],
        }
        yield unit, len(found)


def _unscored(unit: Unit, status: ScoreStatus) -> Rows:
    candidates = unit_candidates(unit)
    return ranked_rows(unit_query(unit), candidates, [Judgment(each.doc_id, None, status) for each in candidates])


def _without_engine(run_dir: RunDir, planned: Plan) -> Summary:
    task = FirstStageTask()
    runner = ChunkRunner(run_dir.storage, task, {}, Worker(uuid.uuid4().hex))

    async def run_all() -> None:
        for chunk in unfinished(run_dir, planned):
            await runner.run(await runner.open(chunk.number), alone=False)

    asyncio.run(run_all())
    return finish(run_dir, planned, task, "pairs")


def _keep_selection(storage: Storage, benchmark: Benchmark) -> None:
    """``queries.jsonl`` and ``qrels.tsv`` of the selected queries: what evaluation covers."""
    import tempfile
    from pathlib import Path

    from limrank.data import beir, trec

    with tempfile.TemporaryDirectory() as folder:
        queries, qrels = Path(folder) / "queries.jsonl", Path(folder) / "qrels.tsv"
        beir.write_queries(queries, benchmark.queries)
        trec.write_qrels(qrels, benchmark.qrels)
        storage.write_bytes("queries.jsonl", queries.read_bytes())
        storage.write_bytes("qrels.tsv", qrels.read_bytes())
