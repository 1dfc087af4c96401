"""A pipeline's stages: the config of each stage's own job, made from the pipeline's."""

from __future__ import annotations

from dataclasses import dataclass

from limrank.config.jobs import PipelineJob, RerankJob, ServeJob, SynthesizeJob, TrainJob, config_hash
from limrank.config.recipe import checked
from limrank.config.scoring import ScoringConfig
from limrank.config.synthesis import SynthesisConfig
from limrank.config.training import OF_TEACHER
from limrank.files import directory_of


@dataclass(frozen=True)
class Stages:
    """The job config of each stage. Each has a run directory below the pipeline's."""

    first_stage: RerankJob
    synthesize: SynthesizeJob
    rerank_base: RerankJob
    train: TrainJob
    rerank_tuned: RerankJob
    serve: ServeJob


def stage_configs(config: PipelineJob) -> Stages:
    """The stages of a pipeline.

    Raises:
        UserError: a stage's job takes no such values.
    """
    root = directory_of(config.run_dir, "run_dir")
    common = {"seed": config.seed, "allow_failures": config.allow_failures}
    rerank = checked(
        RerankJob,
        {
            "run_dir": str(root / "rerank-base"),
            "data": config.data,
            "first_stage": config.first_stage,
            # Named, since a rerank job's default model is another one.
            "model": config.model.model_copy(update={"id": config.model.id}),
            "engine": config.engine,
            "scoring": config.scoring,
            "workers": config.workers,
            **common,
        },
    )
    unfused = config.scoring.model_copy(update={"fuse": None})
    tuned = config.model.model_copy(update={"id": str(root / "train" / "model")})
    examples = "lists.jsonl" if config.training.objective in OF_TEACHER else "train.jsonl"
    return Stages(
        first_stage=rerank.model_copy(
            update={"run_dir": str(root / "first-stage"), "scoring": ScoringConfig(mode="none")}
        ),
        synthesize=checked(
            SynthesizeJob,
            {
                "run_dir": str(root / "synthesize"),
                "model": config.writer or config.model,
                "engine": config.engine,
                "workers": config.workers,
                "scoring": config.judge_scoring,
                "synthesis": _decontaminated(config),
                **common,
            },
        ),
        # Fusion is reported for the tuned model, so that the base model's row says what the model does.
        rerank_base=rerank.model_copy(update={"scoring": unfused}),
        train=checked(
            TrainJob,
            {
                "run_dir": str(root / "train"),
                "model": config.model,
                # Tensor parallelism is for engines. Training divides a model by training.sharding.
                "workers": config.workers.model_copy(update={"tensor_parallel": 1}),
                "training": config.training.model_copy(update={"train_file": str(root / "synthesize" / examples)}),
                **common,
            },
        ),
        rerank_tuned=rerank.model_copy(update={"run_dir": str(root / "rerank-tuned"), "model": tuned}),
        serve=checked(
            ServeJob,
            {
                "run_dir": str(root / "serve"),
                "model": tuned,
                "engine": config.engine,
                "scoring": unfused,
                "workers": config.workers,
                "serving": config.serving,
                **common,
            },
        ),
    )


def pipeline_hash(config: PipelineJob) -> str:
    """The hash of all that any stage's rows depend on. Each stage's own hash covers its files too."""
    not_of_rows = {"run_dir", "allow_failures", "notes", "workers", "serving", "evaluation"}
    if config.writer is None:
        not_of_rows.add("writer")  # newer than run directories
    return config_hash(
        config.model_dump(exclude=not_of_rows)
        | {
            "engine": config.engine.hashed({"latency_ms", "base_url", "request_timeout_s", "startup_timeout_s"}),
            "scoring": config.scoring.hashed(set()),
            "judge_scoring": config.judge_scoring.hashed(set()),
            "synthesis": config.synthesis.hashed({"max_tokens", "prices", "license"}),
            "training": config.training.hashed(),
        }
    )


def _decontaminated(config: PipelineJob) -> SynthesisConfig:
    """The synthesis section with the pipeline's own benchmark in ``decontaminate``: a model must not be
    trained on what it is evaluated with. A hub benchmark that is read from a folder is not
    added: the recipe has to list it."""
    data = config.data
    own = data.path if data.format == "beir" else None if data.path else f"benchmark://{data.name or data.format}"
    if own and data.revision:
        own += f"?revision={data.revision}"
    listed = config.synthesis.decontaminate
    if own is None or own in listed:
        return config.synthesis
    return config.synthesis.model_copy(update={"decontaminate": (*listed, own)})
