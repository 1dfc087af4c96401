"""All stages as one job: synthesize → train → rerank → evaluate → serve.

Each stage is its package's own job, with a directory of its own below ``run_dir``. A second call resumes
each stage. One engine of the base model serves the base ranking, and writer and judge unless the recipe has another
model for them. One engine of the tuned model serves its ranking and the served answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from limrank import cluster
from limrank.batch.manifest import Manifest, read_manifest
from limrank.batch.rundir import open_run
from limrank.cluster.resources import reserve
from limrank.cluster.waiting import wait_for_nodes
from limrank.config import ModelConfig, PipelineJob, dump_config
from limrank.config.recipe import input_paths
from limrank.config.stages import pipeline_hash, stage_configs
from limrank.data import benchmarks
from limrank.engines import EngineSource, EngineSpec, check_engine, check_scorer, load_tokenizer
from limrank.errors import UserError
from limrank.files import path_of
from limrank.progress import Event, Progress
from limrank.result import JobResult
from limrank.scoring import check_labels
from limrank.storage import Storage

FIRST_STAGE, BASE, TUNED = "first stage", "base model", "tuned model"


def run(config: PipelineJob, *, address: str, progress: Progress, overwrite: bool = False) -> JobResult:
    """Run every stage that is not done yet.

    Raises:
        UserError, EngineError: as the stages' own jobs.
    """
    from limrank.evaluation import systems
    from limrank.reranking import job as reranking
    from limrank.reranking.source import open_source
    from limrank.serving.one_query import best_document, serve_one_query
    from limrank.synthesis import job as synthesis
    from limrank.training import job as training

    stages = stage_configs(config)
    writes = bool(stages.synthesize.roles())
    writer = stages.synthesize.model
    if writes:
        check_engine(writer, config.engine)
    check_engine(config.model, config.engine)
    check_scorer(config.model, config.engine)
    tokenizer = load_tokenizer(config.model, config.engine)
    check_labels(tokenizer)
    synthesis.check_choice(config.synthesis)
    open_source(stages.first_stage).check()
    common = {"address": address, "progress": progress}
    with (
        open_run(
            config.run_dir,
            job="pipeline",
            config_yaml=dump_config(config),
            config_hash=pipeline_hash(config),
            overwrite=overwrite,
            inputs=input_paths(config),
        ) as run_dir,
        cluster.connect(address, paths=[config.run_dir]),
    ):
        results = [reranking.run(stages.first_stage, stage=FIRST_STAGE, **common)]
        to_write = writes and not _is_done(stages.synthesize.run_dir)
        to_rank = not _is_done(stages.rerank_base.run_dir)
        one_model = writer == config.model
        with ExitStack() as engines:
            engine = engines.enter_context(_engine(config, writer, to_write or (one_model and to_rank), progress))
            roles = dict.fromkeys(("writer", "judge"), engine) if engine and writes else None
            results.append(synthesis.run(stages.synthesize, engines=roles, **common))
            if _manifest(stages.synthesize.run_dir).status == "stopped":
                # At its token budget: no model is trained on a part of the examples.
                run_dir.finish("stopped")
                return _result(results, results[-1].messages[1:])
            if not one_model:
                engines.close()
                engine = engines.enter_context(_engine(config, config.model, to_rank, progress))
            roles = {"scorer": engine} if engine else None
            results.append(reranking.run(stages.rerank_base, engines=roles, stage=f"rerank, {BASE}", **common))
        results.append(training.run(stages.train, **common))
        needed = not (_is_done(stages.rerank_tuned.run_dir) and best_document(stages.serve.run_dir))
        with _engine(config, stages.rerank_tuned.model, needed, progress) as engine:
            roles = {"scorer": engine} if engine else None
            results.append(reranking.run(stages.rerank_tuned, engines=roles, stage=f"rerank, {TUNED}", **common))
            if engine:
                serve_one_query(stages.serve, engine, benchmarks.load(config.data), config.first_stage, progress)
        rankings = {FIRST_STAGE: stages.first_stage, BASE: stages.rerank_base, TUNED: stages.rerank_tuned}
        evaluated = systems.run(config, {name: stage.run_dir for name, stage in rankings.items()})
        run_dir.note(counts={"failed": sum(result.failed for result in results)})
        run_dir.finish("done")
    served = f"served over HTTP: the best document of the first query is {best_document(stages.serve.run_dir)}"
    return _result([*results, JobResult(warnings=evaluated.warnings)], [served, *evaluated.messages])


def plan(config: PipelineJob) -> dict[str, Any]:
    """What each stage would do, for ``--dry-run``. The plan of training waits for its examples."""
    from limrank.reranking import job as reranking
    from limrank.synthesis import job as synthesis

    stages = stage_configs(config)
    written, ranked = synthesis.plan(stages.synthesize), reranking.plan(stages.rerank_base)
    return {
        "synthesize": written["units"],
        "train": f"{config.training.max_examples or 'all kept'} examples, {config.training.epochs} epochs",
        "rerank": f"{ranked['units']}, by the base and by the tuned model",
        "workers": ranked["workers"],
        "warnings": written["warnings"] + ranked["warnings"],
        "first_prompt": written["first_prompt"],
    }


def _result(stages: Sequence[JobResult], messages: Sequence[Any]) -> JobResult:
    """The whole pipeline's result: the first message of each stage, then ``messages``."""
    return JobResult(
        sum(result.failed for result in stages),
        list(dict.fromkeys(warning for result in stages for warning in result.warnings)),
        [*(result.messages[0] for result in stages if result.messages), *messages],
    )


@contextmanager
def _engine(config: PipelineJob, model: ModelConfig, needed: bool, progress: Progress) -> Iterator[EngineSource | None]:
    """One engine, hosted in an actor for several stages; None where the stages are done and only check their rows."""
    from limrank.engines.actor import host_engine

    if not needed:
        yield None
        return
    spec = EngineSpec(model, config.engine, config.workers.tensor_parallel)
    wanted = reserve([spec], config.workers, 1)
    wait_for_nodes(wanted, spec.startup_timeout_s, 1, progress=progress)
    stage = f"engine, {path_of(model.id).name}"
    progress.update(Event(stage, 0, 1, "started"))
    with host_engine(spec, wanted) as source:
        progress.update(Event(stage, 1, 1, "started", finished=True))
        yield source


def _is_done(run_dir: str) -> bool:
    """Whether a stage ended well and left nothing to retry. Its own job checks its config."""
    manifest = _manifest(run_dir)
    return manifest.status == "done" and not manifest.counts.get("failed")


def _manifest(run_dir: str) -> Manifest:
    """A stage's manifest; an empty one where there is none. The stage's own job refuses a damaged one."""
    with suppress(UserError):
        return read_manifest(Storage(run_dir)) or Manifest()
    return Manifest()
