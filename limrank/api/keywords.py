"""The keyword arguments of the job functions: the recipe's keys, and what they take."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from limrank.config import (
    DataConfig,
    DevConfig,
    EngineConfig,
    FirstStageConfig,
    ModelConfig,
    ScoringConfig,
    ServingConfig,
    SynthesisConfig,
    TrainingConfig,
    WorkersConfig,
)

PathLike = str | os.PathLike[str]
Keys = Mapping[str, Any]
"""A section of a recipe as a dictionary."""


class JobKeys(TypedDict, total=False):
    """What every job takes (:class:`limrank.config.Job`)."""

    run_dir: PathLike
    seed: int
    allow_failures: bool
    notes: Sequence[str]


class SynthesizeKeys(JobKeys, total=False):
    """The keys of :class:`limrank.SynthesizeJob`."""

    model: ModelConfig | Keys
    judge: ModelConfig | Keys | None
    engine: EngineConfig | Keys
    judge_engine: EngineConfig | Keys | None
    workers: WorkersConfig | Keys
    judge_workers: WorkersConfig | Keys | None
    reranker: ModelConfig | Keys | None
    reranker_engine: EngineConfig | Keys | None
    reranker_workers: WorkersConfig | Keys | None
    scoring: ScoringConfig | Keys
    synthesis: SynthesisConfig | Keys


class TrainKeys(JobKeys, total=False):
    """The keys of :class:`limrank.TrainJob`."""

    model: ModelConfig | Keys
    workers: WorkersConfig | Keys
    training: TrainingConfig | Keys
    dev: DevConfig | Keys | None


class RerankKeys(JobKeys, total=False):
    """The keys of :class:`limrank.RerankJob`."""

    data: DataConfig | Keys
    first_stage: FirstStageConfig | Keys
    model: ModelConfig | Keys
    engine: EngineConfig | Keys
    scoring: ScoringConfig | Keys
    workers: WorkersConfig | Keys


class ServeKeys(JobKeys, total=False):
    """The keys of :class:`limrank.ServeJob`."""

    model: ModelConfig | Keys
    engine: EngineConfig | Keys
    scoring: ScoringConfig | Keys
    workers: WorkersConfig | Keys
    serving: ServingConfig | Keys
