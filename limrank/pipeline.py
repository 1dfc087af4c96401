"""The whole line in one job: synthesize → train → rerank → evaluate → serve.

Each stage is the job of its room, with a directory of its own below ``run_dir``; started
again, the pipeline resumes each. One base engine serves the writer, the judge and the
base ranking; the tuned model's engine serves its ranking and the served answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limrank import cluster, models
from limrank.batch.manifest import parse_manifest
from limrank.batch.rundir import open_run, versions
from limrank.cluster.resources import reserve
from limrank.config import (
    ModelConfig,
    PipelineJob,
    RerankJob,
    ScoringConfig,
    ServeJob,
    SynthesisConfig,
    SynthesizeJob,
    TrainJob,
    config_hash,
    dump_config,
    is_uri,
)
from limrank.config.recipe import checked, input_paths
from limrank.data import beir, benchmarks, trec
from limrank.engines import EngineSource, EngineSpec, check_engine, load_tokenizer
from limrank.errors import UserError
from limrank.evaluation.report import System, write_report
from limrank.evaluation.system import Evaluation, evaluate_run
from limrank.parsing import parse_json
from limrank.progress import Event, Progress
from limrank.records import Query
from limrank.result import JobResult
from limrank.scoring import check_labels, prompt_query
from limrank.storage import Storage

if TYPE_CHECKING:
    from rich.table import Table

FIRST_STAGE, BASE, TUNED = "first stage", "base model", "tuned model"


def run(config: PipelineJob, *, address: str, progress: Progress, overwrite: bool = False) -> JobResult:
    """Run every stage that is not done yet.

    Raises:
        UserError, EngineError: as the stages' own jobs.
    """
    from limrank.reranking import job as reranking
    from limrank.reranking.source import open_source
    from limrank.synthesis import job as synthesis
    from limrank.training import job as training

    stages = stage_configs(config)
    check_engine(config.model, config.engine)
    check_labels(load_tokenizer(config.model, config.engine))
    synthesis.check_choice(config.synthesis)
    open_source(stages["first_stage"]).check()
    common = {"address": address, "progress": progress}
    with (
        open_run(
            config.run_dir,
            job="pipeline",
            config_yaml=dump_config(config),
            config_hash=_stages_hash(config),
            overwrite=overwrite,
            inputs=input_paths(config),
        ) as run_dir,
        cluster.connect(address, paths=[config.run_dir]),
    ):
        results = [reranking.run(stages["first_stage"], stage=FIRST_STAGE, **common)]
        needed = not (_done(stages["synthesize"].run_dir) and _done(stages["rerank_base"].run_dir))
        with _engine(config, config.model, needed, progress) as engine:
            roles = dict.fromkeys(("writer", "judge", "scorer"), engine) if engine else None
            results.append(synthesis.run(stages["synthesize"], engines=roles, **common))
            if _status(stages["synthesize"].run_dir) == "stopped":  # at its budget: nobody trains on a part
                run_dir.finish("stopped")
                return _result(results, results[-1].messages[1:])
            results.append(reranking.run(stages["rerank_base"], engines=roles, stage=f"rerank, {BASE}", **common))
        results.append(training.run(stages["train"], **common))
        tuned = stages["rerank_tuned"].model
        answer = Path(stages["serve"].run_dir) / "answer.json"
        needed = not (_done(stages["rerank_tuned"].run_dir) and _best(answer))
        with _engine(config, tuned, needed, progress) as engine:
            roles = {"scorer": engine} if engine else None
            results.append(reranking.run(stages["rerank_tuned"], engines=roles, stage=f"rerank, {TUNED}", **common))
            if engine:
                _ask_served(stages["serve"], engine, config, answer, progress)
        evaluations = _evaluate(config, stages)
        report = _report(config, stages, evaluations)
        run_dir.note(counts={"failed": sum(result.failed for result in results)})
        run_dir.finish("done")
    return _result(
        results,
        [
            f"served over HTTP: the best document of the first query is {_best(answer)}",
            comparison_table(evaluations),
            f"report: {report}",
        ],
    )


def _result(stages: Sequence[JobResult], shown: Sequence[Any]) -> JobResult:
    """Of the whole line: what each stage says first, then ``shown``."""
    return JobResult(
        sum(result.failed for result in stages),
        list(dict.fromkeys(warning for result in stages for warning in result.warnings)),
        [*(result.messages[0] for result in stages if result.messages), *shown],
    )


def _stages_hash(config: PipelineJob) -> str:
    """Of all that any stage's rows depend on; each stage's own hash covers its files too."""
    not_of_rows = {"run_dir", "allow_failures", "notes", "workers", "serving", "evaluation"}
    return config_hash(
        config.model_dump(exclude=not_of_rows)
        | {
            "engine": config.engine.hashed({"latency_ms", "base_url", "request_timeout_s", "startup_timeout_s"}),
            "synthesis": config.synthesis.hashed({"max_tokens", "prices", "license"}),
        }
    )


def plan(config: PipelineJob) -> dict[str, Any]:
    """What each stage would do, for ``--dry-run``; training's waits for its examples."""
    from limrank.reranking import job as reranking
    from limrank.synthesis import job as synthesis

    stages = stage_configs(config)
    written, ranked = synthesis.plan(stages["synthesize"]), reranking.plan(stages["rerank_base"])
    return {
        "synthesize": written["units"],
        "train": f"{config.training.max_examples or 'all kept'} examples, {config.training.epochs} epochs",
        "rerank": f"{ranked['units']}, by the base and by the tuned model",
        "workers": ranked["workers"],
        "warnings": written["warnings"] + ranked["warnings"],
        "first_prompt": written["first_prompt"],
    }


def stage_configs(config: PipelineJob) -> dict[str, Any]:
    """The job config of each stage; a run directory each below the pipeline's.

    Raises:
        UserError: a stage's job takes no such values.
    """
    if is_uri(config.run_dir):
        raise UserError(f"run_dir {config.run_dir}: training writes local files, so a pipeline needs a local path")
    root = Path(config.run_dir)
    common = {"seed": config.seed, "allow_failures": config.allow_failures}
    scored = {"data": config.data, "engine": config.engine, "workers": config.workers, **common}
    rerank = checked(
        RerankJob,
        {
            "run_dir": str(root / "rerank-base"),
            "first_stage": config.first_stage,
            "model": config.model,
            "scoring": config.scoring,
            **scored,
        },
    )
    trained = root / "train"
    tuned = config.model.model_copy(update={"id": str(trained / "model")})
    return {
        "synthesize": checked(
            SynthesizeJob,
            {
                "run_dir": str(root / "synthesize"),
                "model": config.model,
                "engine": config.engine,
                "workers": config.workers,
                "scoring": config.judge_scoring,
                "synthesis": _decontaminated(config),
                **common,
            },
        ),
        "train": checked(
            TrainJob,
            {
                "run_dir": str(trained),
                "model": config.model,
                # The engines' parts of a model; training shares it out by training.sharding.
                "workers": config.workers.model_copy(update={"tensor_parallel": 1}),
                "training": config.training.model_copy(update={"train_file": str(root / "synthesize" / "train.jsonl")}),
                **common,
            },
        ),
        "first_stage": rerank.model_copy(
            update={"run_dir": str(root / "first-stage"), "scoring": ScoringConfig(mode="none")}
        ),
        "rerank_base": rerank,
        "rerank_tuned": rerank.model_copy(update={"run_dir": str(root / "rerank-tuned"), "model": tuned}),
        "serve": checked(
            ServeJob,
            {
                "run_dir": str(root / "serve"),
                "model": tuned,
                "engine": config.engine,
                "scoring": config.scoring,
                "workers": config.workers,
                "serving": config.serving,
                **common,
            },
        ),
    }


def _decontaminated(config: PipelineJob) -> SynthesisConfig:
    """A model must not be trained on what it is evaluated with, whatever the recipe lists beside
    it. What the recipe has to say itself is a hub's benchmark that is read from a folder."""
    data = config.data
    own = data.path if data.format == "beir" else None if data.path else f"benchmark://{data.name or data.format}"
    if own and data.revision:
        own += f"?revision={data.revision}"
    listed = config.synthesis.decontaminate
    if own is None or own in listed:
        return config.synthesis
    return config.synthesis.model_copy(update={"decontaminate": (*listed, own)})


def comparison_table(evaluations: list[Evaluation]) -> Table:
    """One row a system: the first measure with its 95 % interval, speed and cost."""
    from rich.table import Table

    measure = next(iter(evaluations[0].intervals))
    table = Table(title="the same candidates in three orders")
    for name in ("system", measure, "95 % interval", "pairs/s", "tokens a pair"):
        table.add_column(name, justify="left" if name == "system" else "right")
    for evaluation in evaluations:
        interval = evaluation.intervals[measure]
        rate, tokens = evaluation.pairs_per_second, evaluation.tokens_per_pair
        table.add_row(
            evaluation.name,
            f"{interval.mean:.4f}",
            f"{interval.low:.4f}–{interval.high:.4f}",
            "–" if rate is None else f"{rate:.1f}",
            "–" if tokens is None else f"{tokens:.0f}",
        )
    return table


@contextmanager
def _engine(config: PipelineJob, model: ModelConfig, needed: bool, progress: Progress) -> Iterator[EngineSource | None]:
    """One engine in an actor of its own for several stages; None where it is not needed:
    they are done, and only look their rows over."""
    from limrank.engines.actor import host_engine

    if not needed:
        yield None
        return
    spec = EngineSpec(model, config.engine, config.workers.tensor_parallel)
    wanted = reserve([spec], config.workers, 1)
    stage = f"engine, {Path(model.id).name}"
    progress.update(Event(stage, 0, 1, "started"))
    with host_engine(spec, wanted) as source:
        progress.update(Event(stage, 1, 1, "started", finished=True))
        yield source


def _done(run_dir: str) -> bool:
    """Whether a stage ended well before and has nothing to try again; its own check of the
    config comes later."""
    return _status(run_dir) == "done" and not _manifest(run_dir).get("counts", {}).get("failed")


def _status(run_dir: str) -> str | None:
    return _manifest(run_dir).get("status")


def _manifest(run_dir: str) -> dict[str, Any]:
    """Empty where there is none; a damaged one is refused by the stage's own job."""
    try:
        return parse_manifest(Storage(run_dir).read_bytes("manifest.json"), "manifest.json")
    except (OSError, UserError):
        return {}


def _best(answer: Path) -> str | None:
    """The first document of the served answer; None where there is none yet, or it is damaged."""
    try:
        return str(parse_json(answer.read_bytes(), "answer.json", expect=dict)["results"][0]["doc_id"])
    except (OSError, UserError, LookupError, TypeError):
        return None


def _ask_served(serve: ServeJob, engine: EngineSource, config: PipelineJob, answer: Path, progress: Progress) -> None:
    """Serve the tuned model, ask it one real query over HTTP, keep the answer, stop serving."""
    import httpx

    from limrank.retrieval import candidates
    from limrank.serving.job import serving

    benchmark = benchmarks.load(config.data)
    query, found = next((query, found) for query, found in candidates(benchmark, config.first_stage) if found)
    request = {"query": prompt_query(query), "documents": [each.text for each in found[:5]], "return_documents": False}
    progress.update(Event("serve", 0, 1, "requests"))
    with serving(serve, engine) as url:
        # A proxy that is set for the outside must not stand before a loopback address.
        response = httpx.post(f"{url}/v1/rerank", json=request, timeout=300, trust_env=False)
        response.raise_for_status()
    progress.update(Event("serve", 1, 1, "requests", finished=True))
    ranked = [result | {"doc_id": found[result["index"]].doc_id} for result in response.json()["results"]]
    Storage(serve.run_dir).write_text(answer.name, json.dumps({"query_id": query.query_id, "results": ranked}) + "\n")


def _evaluate(config: PipelineJob, stages: dict[str, Any]) -> list[Evaluation]:
    names = {FIRST_STAGE: "first_stage", BASE: "rerank_base", TUNED: "rerank_tuned"}
    qrels = trec.read_qrels(Path(stages["rerank_base"].run_dir) / "qrels.tsv")
    settings = config.evaluation
    evaluations = []
    for name, stage in names.items():
        directory = Path(stages[stage].run_dir)
        manifest = parse_manifest((directory / "manifest.json").read_bytes(), str(directory / "manifest.json"))
        spent = sum(manifest["tokens"].get(kind, 0) for kind in ("prompt", "generated"))
        evaluation = evaluate_run(
            trec.read_run(directory / "run.trec"),
            qrels,
            settings.measures,
            settings.bootstrap_samples,
            config.seed,
            name=name,
            # The first stage's rows cost no model anything.
            pairs_per_second=manifest["rates"].get("pairs_per_second") if spent else None,
            tokens_per_pair=spent / manifest["counts"]["rows"] if spent else None,
        )
        evaluations.append(evaluation)
    return evaluations


def _report(config: PipelineJob, stages: dict[str, Any], evaluations: list[Evaluation]) -> Path:
    directory = Path(stages["rerank_base"].run_dir)
    queries: list[Query] = beir.read_queries(directory / "queries.jsonl")
    path = Path(config.run_dir) / "report.html"
    systems = [System(each.name, each.scores, each.pairs_per_second, each.tokens_per_pair) for each in evaluations]
    facts = {
        "benchmark": f"{config.data.format} {config.data.name or config.data.split}, {len(queries)} queries, "
        f"depth {config.first_stage.depth}",
        "model": config.model.id if config.model.id in models.PACKAGED else Path(config.model.id).name,
        "scoring": config.scoring.mode,
        "training": f"{config.training.method}, {config.training.target}, {config.training.epochs} epochs",
        **{f"{name} version": found for name, found in versions().items()},
    }
    write_report(
        path,
        "First stage, base model, tuned model",
        systems,
        {query.query_id: query.text for query in queries},
        facts,
        samples=config.evaluation.bootstrap_samples,
        seed=config.seed,
    )
    return path
