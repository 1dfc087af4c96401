"""The jobs and their sections, and the hash of everything that changes a job's rows."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import (
    Field,
    model_validator,
)

from limrank.config.base import (
    PathStr,
    Section,
)
from limrank.config.data import (
    DataConfig,
    FirstStageConfig,
    ask_rewritten,
    need_benchmark,
)
from limrank.config.engine import RERANKER, EngineConfig, ModelConfig, WorkersConfig, as_reranker
from limrank.config.evaluation import EvaluationConfig
from limrank.config.scoring import ScoringConfig, chain_fits, judges_alone, no_fusion
from limrank.config.serving import ServingConfig
from limrank.config.synthesis import SynthesisConfig
from limrank.config.training import OF_TEACHER, DevConfig, TrainingConfig
from limrank.uris import is_uri

DEFAULT_SEED = 12345


def _role(default: Role, model: ModelConfig | None, engine: EngineConfig | None, workers: WorkersConfig | None) -> Role:
    return Role(model or default.model, engine or default.engine, workers or default.workers)


def _own_engine(engine: EngineConfig | None, key: str = "engine") -> None:
    """Raises ValueError for a served reranker as the engine: it scores pairs and generates no text."""
    if engine is not None and engine.kind == "serve":
        raise ValueError(f"{key}.kind=serve: only a rerank job sends its work to a served reranker")


def _reranker(values: Any) -> Any:
    """The values with a packaged reranker as the model, where ``model`` names none."""
    model = values.get("model") if isinstance(values, dict) else None
    if isinstance(model, ModelConfig):
        return values | {"model": as_reranker(model)}
    if isinstance(model, dict) and "id" not in model:
        return values | {"model": {"id": RERANKER} | model}
    return values


_JUDGE = "a judge scores pairs, which have no first stage"


class Job(Section):
    """The keys of every job."""

    job: str = Field(description="the job's name")
    run_dir: PathStr = Field(
        description="the run directory: new, empty, or a run of the same config; a path, s3://… or gs://…"
    )
    seed: int = Field(default=DEFAULT_SEED, ge=0, le=2**53, description="seed of everything that is drawn at random")
    allow_failures: bool = Field(default=False, description="end with exit code 0 although rows failed")
    notes: tuple[str, ...] = Field(default=(), description="sentences for readers of the recipe; --dry-run prints them")


class Role(NamedTuple):
    """A model of a synthesize job, the engine that runs it, and its pool."""

    model: ModelConfig
    engine: EngineConfig
    workers: WorkersConfig


class SynthesizeJob(Job):
    job: Literal["synthesize"] = Field(default="synthesize", description="the job's name")
    model: ModelConfig = Field(default=ModelConfig(), description="the writer")
    judge: ModelConfig | None = Field(default=None, description="a second model that judges. null: the writer judges")
    engine: EngineConfig = Field(default=EngineConfig(), description="the writer's engine")
    judge_engine: EngineConfig | None = Field(default=None, description="the judge's engine. null: as engine")
    workers: WorkersConfig = Field(default=WorkersConfig(), description="the writer's pool")
    judge_workers: WorkersConfig | None = Field(
        default=None,
        description="the pool of a judge that is a model of its own; a range counts as its lower bound. null: "
        "as workers",
    )
    reranker: ModelConfig | None = Field(
        default=None,
        description="the reranker that is to be improved. It chooses mined negatives and says which examples are "
        "hard. null: BM25 chooses the negatives, and the judge's score says which are hard",
    )
    reranker_engine: EngineConfig | None = Field(default=None, description="the reranker's engine. null: as engine")
    reranker_workers: WorkersConfig | None = Field(default=None, description="the reranker's pool, as judge_workers")
    scoring: ScoringConfig = Field(default=ScoringConfig(mode="budget"), description="how the judge scores")
    synthesis: SynthesisConfig = Field(
        default=SynthesisConfig(), description="what is written, judged, rejected and chosen"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_model_is_one_engine(cls, values: Any) -> Any:
        """A judge or reranker with the writer's model id takes the writer's other model keys too, unless set."""
        model = values.get("model", {}) if isinstance(values, dict) else None
        if not isinstance(model, dict):
            return values
        same = {
            role: model | given
            for role in ("judge", "reranker")
            if isinstance(given := values.get(role), dict) and given.get("id", model.get("id")) == model.get("id")
        }
        return values | same

    @model_validator(mode="after")
    def _engines_of_its_own(self) -> SynthesizeJob:
        _own_engine(self.engine)
        _own_engine(self.judge_engine, "judge_engine")
        _own_engine(self.reranker_engine, "reranker_engine")
        if self.reranker is None and (self.reranker_engine or self.reranker_workers):
            raise ValueError("reranker_engine and reranker_workers need a model: reranker.id")
        no_fusion(self.scoring, "scoring", _JUDGE)
        if self.synthesis.source == "passages":
            keys = ("judge", "judge_engine", "judge_workers", "reranker")
            if given := [key for key in keys if getattr(self, key) is not None]:
                raise ValueError(f"{given[0]}: with synthesis.source=passages nothing is judged: set synthesis.teacher")
            return self
        roles = self.roles()
        chain_fits(roles["judge"].model, self.scoring)
        judges_alone(self.scoring)
        for name in ("judge", "reranker"):
            if getattr(self, f"{name}_workers") and roles[name][:2] == roles["writer"][:2]:
                raise ValueError(f"{name}_workers: the {name} is the writer's own model, and works in its pool")
        return self

    def roles(self) -> dict[str, Role]:
        """``writer``, ``judge`` and, where the recipe has one, ``reranker``. What the recipe does not set is the
        writer's. Queries for passages have only a writer, and with ``writer: none`` no engine."""
        writer = Role(self.model, self.engine, self.workers)
        if self.synthesis.source == "passages":
            return {} if self.synthesis.writer == "none" else {"writer": writer}
        roles = {"writer": writer, "judge": _role(writer, self.judge, self.judge_engine, self.judge_workers)}
        if self.reranker:
            roles["reranker"] = _role(writer, self.reranker, self.reranker_engine, self.reranker_workers)
        return roles


class TrainJob(Job):
    job: Literal["train"] = Field(default="train", description="the job's name")
    model: ModelConfig = Field(default=ModelConfig(), description="the model that training starts from")
    workers: WorkersConfig = Field(default=WorkersConfig(), description="the training workers")
    training: TrainingConfig = Field(description="examples, objective and optimizer")
    dev: DevConfig | None = Field(
        default=None,
        description="a small benchmark that the model in training reranks, separate from the examples and from "
        "the test",
    )

    @model_validator(mode="after")
    def _file_given(self) -> TrainJob:
        if not self.training.train_file:
            raise ValueError("training.train_file is needed")
        if self.dev and self.training.task == "writer":
            raise ValueError("dev is reranked by the model in training: training.task=writer does not rerank: unset it")
        if self.dev and self.training.labels:
            raise ValueError(
                "dev is reranked by true and false, which a model with training.labels does not learn: unset dev, and "
                "hold out a training.validation_share"
            )
        if self.training.patience and not (self.dev or self.training.validation_share):
            raise ValueError("training.patience needs held-out data: dev, or training.validation_share")
        if self.dev:
            need_benchmark(self.dev.data)
        if self.training.tensorboard and is_uri(self.run_dir):
            raise ValueError(f"training.tensorboard: its files need a local run_dir, which {self.run_dir} is not")
        if self.workers.tensor_parallel > 1:
            raise ValueError(
                "workers.tensor_parallel is for engines; training takes workers.replicas and training.sharding"
            )
        return self


class RerankJob(Job):
    job: Literal["rerank"] = Field(default="rerank", description="the job's name")
    data: DataConfig = Field(default=DataConfig(), description="queries and documents")
    first_stage: FirstStageConfig = Field(default=FirstStageConfig(), description="the candidates of each query")
    model: ModelConfig = Field(default=ModelConfig(id=RERANKER), description="the reranker")
    engine: EngineConfig = Field(default=EngineConfig(), description="what runs the model")
    scoring: ScoringConfig = Field(default=ScoringConfig(), description="how a pair is scored")
    workers: WorkersConfig = Field(default=WorkersConfig(), description="the pool of engines")

    @model_validator(mode="before")
    @classmethod
    def _ranks_by_default(cls, values: Any) -> Any:
        return _reranker(values)

    @model_validator(mode="after")
    def _rewritten_queries_are_asked(self) -> RerankJob:
        ask_rewritten(self.data, self.first_stage)
        return self

    @model_validator(mode="after")
    def _budget_can_be_kept(self) -> RerankJob:
        chain_fits(self.model, self.scoring)
        if self.engine.kind == "serve" and self.scoring.mode == "cascade" and self.scoring.token_budget:
            raise ValueError(
                "scoring.token_budget is for a whole run, and a server (engine.kind=serve) does not know the run"
            )
        return self


class EvaluateJob(Job):
    job: Literal["evaluate"] = Field(default="evaluate", description="the job's name")
    data: DataConfig | None = Field(
        default=None,
        description="the benchmark with the judgements. null: the one that the rerank job's run directory holds",
    )
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="the run and the measures")

    @model_validator(mode="after")
    def _judged(self) -> EvaluateJob:
        if self.data is not None:
            need_benchmark(self.data)
        return self


class ServeJob(Job):
    job: Literal["serve"] = Field(default="serve", description="the job's name")
    model: ModelConfig = Field(default=ModelConfig(id=RERANKER), description="the reranker")
    engine: EngineConfig = Field(default=EngineConfig(), description="what runs the model")
    scoring: ScoringConfig = Field(default=ScoringConfig(), description="how a pair is scored")
    workers: WorkersConfig = Field(default=WorkersConfig(), description="the pool of engines")
    serving: ServingConfig = Field(default=ServingConfig(), description="address and limits of the server")

    @model_validator(mode="before")
    @classmethod
    def _ranks_by_default(cls, values: Any) -> Any:
        return _reranker(values)

    @model_validator(mode="after")
    def _engine_of_its_own(self) -> ServeJob:
        _own_engine(self.engine)
        for mode in (self.scoring.mode, *(self.serving.modes or ())):
            chain_fits(self.model, self.scoring.model_copy(update={"mode": mode}))
        no_fusion(self.scoring, "scoring", "a request has no first-stage scores")
        return self


class PipelineJob(Job):
    """All stages in one job. Each stage has its own directory below ``run_dir``."""

    job: Literal["pipeline"] = Field(default="pipeline", description="the job's name")
    data: DataConfig = Field(default=DataConfig(), description="the benchmark that is reranked and evaluated")
    first_stage: FirstStageConfig = Field(default=FirstStageConfig(), description="the candidates of each query")
    model: ModelConfig = Field(
        default=ModelConfig(), description="the base reranker, and the model that training starts from"
    )
    writer: ModelConfig | None = Field(default=None, description="writer and judge of synthesis. null: as model")
    engine: EngineConfig = Field(default=EngineConfig(), description="what runs the models")
    scoring: ScoringConfig = Field(default=ScoringConfig(), description="how the rerankers score")
    judge_scoring: ScoringConfig = Field(default=ScoringConfig(mode="budget"), description="how the judge scores")
    workers: WorkersConfig = Field(default=WorkersConfig(), description="the pool of engines")
    synthesis: SynthesisConfig = Field(default=SynthesisConfig(), description="as in a synthesize job")
    training: TrainingConfig = Field(
        default=TrainingConfig(), description="as in a train job; train_file is the pipeline's own"
    )
    serving: ServingConfig = Field(default=ServingConfig(), description="address and limits of the server")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="the measures")

    @model_validator(mode="after")
    def _judged_and_engine_of_its_own(self) -> PipelineJob:
        need_benchmark(self.data)
        ask_rewritten(self.data, self.first_stage)
        _own_engine(self.engine)
        chain_fits(self.model, self.scoring)
        chain_fits(self.model, self.judge_scoring, "judge_scoring")
        no_fusion(self.judge_scoring, "judge_scoring", _JUDGE)
        if self.scoring.fuse and isinstance(self.scoring.fuse.first_stage, str):
            raise ValueError("scoring.fuse.first_stage: a pipeline takes a weight from 0 to 1")
        if self.scoring.labels:
            raise ValueError("scoring.labels: a pipeline trains true and false: rerank with labels by a job of its own")
        if self.scoring.calibration:
            raise ValueError(
                "scoring.calibration: belongs to one model, and a pipeline ranks with two: leave it to a rerank job"
            )
        judges_alone(self.judge_scoring, "judge_scoring")
        if self.evaluation.calibrate:
            raise ValueError("evaluation.calibrate: is for `limrank evaluate`; a pipeline has no queries to fit on")
        if self.training.task == "writer":
            raise ValueError("training.task=writer: a pipeline trains a reranker: train a writer by a train job")
        if self.training.labels:
            raise ValueError("training.labels: a pipeline trains true and false: train with labels by a job of its own")
        if self.training.objective in OF_TEACHER and not self.synthesis.teacher:
            raise ValueError(
                f"training.objective={self.training.objective} learns from graded lists: set synthesis.source=passages "
                "and synthesis.teacher"
            )
        return self


JOBS: dict[str, type[Job]] = {
    "synthesize": SynthesizeJob,
    "train": TrainJob,
    "rerank": RerankJob,
    "evaluate": EvaluateJob,
    "serve": ServeJob,
    "pipeline": PipelineJob,
}


def dump_config(config: Job) -> str:
    """The resolved config as YAML, in the order of its class's keys."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


SHIPPED = "limrank-inputs"
"""The folder with the inputs that travelled with a submitted job. Where the cluster unpacks it differs from one
submission to the next, so a hash counts only the part of a path from this folder on."""


def config_hash(values: dict[str, Any]) -> str:
    """A short hash of values: everything that changes a job's rows."""
    canonical = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    canonical = re.sub(rf'"/[^"]*/{SHIPPED}/', f'"{SHIPPED}/', canonical)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
