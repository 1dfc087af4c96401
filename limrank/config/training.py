"""``training`` and ``dev``: how a reranker is trained, and evaluated meanwhile."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveInt,
    model_validator,
)

from limrank.config.base import (
    Fraction,
    PathStr,
    Section,
)
from limrank.config.data import (
    DataConfig,
    FirstStageConfig,
    ask_rewritten,
)
from limrank.config.scoring import Labels

Task = Literal["reranker", "writer"]
Objective = Literal["label", "binary", "softmax", "ranknet", "margin_mse", "listnet"]
OF_TEACHER = ("margin_mse", "listnet")
"""The objectives that learn from a teacher's scores, and not from labels."""


class TrainingConfig(Section):
    task: Task = Field(
        default="reranker",
        description="reranker: learn to judge a query and a passage. writer: learn to write the query that a passage "
        "answers, for a synthesize job",
    )
    train_file: PathStr | Literal["pydocs"] | None = Field(
        default=None,
        description="training examples: prompt and completion, alpaca, pairs, or lists with a teacher's scores, as "
        "JSON, Parquet or a saved dataset. For a writer: pairs of query and passage, or whatever synthesis.seeds takes",
    )
    method: Literal["lora", "full"] = Field(
        default="lora", description="lora: train an adapter and merge it. full: train all weights"
    )
    target: Literal["direct", "think", "mixed"] = Field(
        default="think",
        description="what the model learns to write. direct: the label; think: a chain and the label; mixed: half "
        "of each",
    )
    objective: Objective = Field(
        default="label",
        description="label: cross-entropy of the completion (the paper's). The others need target=direct and "
        "train the log-odds of the label. binary: one passage at a time; softmax, ranknet: a query's "
        "relevant passage above its others; margin_mse, listnet: a query's passages as a teacher scores them. They "
        "do not make labels likely among all tokens; an endpoint that returns only its likeliest tokens needs that",
    )
    labels: Labels | None = Field(
        default=None,
        description="graded labels that the model learns to answer, as in scoring.labels, from least to most relevant. "
        "They need target=direct and objective=label. A teacher's scores become labels: each the one that is nearest "
        "on the scale from the file's lowest to its highest score. null: true and false",
    )
    teacher_temperature: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="what a teacher's scores are divided by, for margin_mse and listnet. null: their standard "
        "deviation within a query, averaged over the queries of the file",
    )
    list_size: Annotated[int, Field(ge=2)] | None = Field(
        default=None,
        description="for margin_mse and listnet: at most this many passages of a query. The highest-scored one is "
        "kept, the others are drawn by the run's seed. null: all",
    )
    max_examples: PositiveInt | None = Field(
        default=None,
        description="use at most this many examples, drawn by the run's seed, half of each label where there are "
        "enough. null: all",
    )
    epochs: PositiveInt = Field(default=7, description="passes over the examples")
    learning_rate: float = Field(default=3e-5, gt=0, allow_inf_nan=False, description="highest learning rate")
    warmup_ratio: Fraction = Field(default=0.03, description="share of the steps in which the learning rate rises")
    batch_size: PositiveInt = Field(
        default=4,
        description="sequences in a forward pass. Where an objective compares passages: queries, with all their passages",
    )
    gradient_accumulation: PositiveInt = Field(default=8, description="forward passes in a step")
    cutoff_tokens: PositiveInt = Field(
        default=2500,
        description="maximum length of an example in tokens. A longer one loses the end of its chain, then of its passage",
    )
    sharding: Literal["none", "full"] = Field(
        default="none",
        description="full: each worker holds a shard of the weights, gradients and optimizer state (FSDP2), for "
        "models that are too large for one worker. none: each worker holds all",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass: less memory, a third more time"
    )
    lora_rank: PositiveInt = Field(default=32, description="rank of the adapter")
    lora_alpha: PositiveInt = Field(default=64, description="the adapter's scale (alpha)")
    lora_targets: tuple[str, ...] = Field(
        default=(),
        description="linear layers that get an adapter, by the last component of their names (q_proj, …). Empty: all",
    )
    lora_embeddings: Literal["added", "all"] = Field(
        default="added",
        description="embeddings that are trained with the adapter. added: the rows of the think tokens, if "
        "these are added. all: the whole matrices (the paper's)",
    )
    validation_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.01, description="share of the examples that is held out, by whole queries"
    )
    save_steps: PositiveInt = Field(default=250, description="steps between checkpoints")
    keep_checkpoints: PositiveInt = Field(
        default=1,
        description="number of best checkpoints to keep besides the last one. Without held-out data: the "
        "checkpoints before the last one",
    )
    eval_steps: PositiveInt | None = Field(
        default=None, description="steps between evaluations on held-out data. null: at the end of each epoch"
    )
    patience: PositiveInt | None = Field(
        default=None,
        description="stop after this many consecutive evaluations without an improvement. null: never",
    )
    export: Literal["best", "last"] = Field(
        default="best",
        description="which weights become the model. best: those of the best evaluation on held-out data; last: "
        "those of the last step (the paper's)",
    )
    tensorboard: bool = Field(default=False, description="also write the metrics to tensorboard/")

    def hashed(self, exclude: Collection[str] = ()) -> dict[str, Any]:
        """The keys that trained weights depend on, for :func:`config_hash`. Keys newer than run directories
        are left out at their defaults, so that the hash of an older run stays the same."""
        newer = {"task", "labels", "teacher_temperature", "list_size"}
        return {
            key: value
            for key, value in self.model_dump(exclude=set(exclude)).items()
            if key not in newer or value != type(self).model_fields[key].default
        }

    @model_validator(mode="after")
    def _writers_write(self) -> TrainingConfig:
        if self.task == "writer":
            for key in ("target", "objective"):
                value, default = getattr(self, key), type(self).model_fields[key].default
                if value != default:
                    raise ValueError(
                        f"training.{key}={value} is of a reranker: training.task=writer learns queries: unset it"
                    )
        return self

    @model_validator(mode="after")
    def _log_odds_are_direct(self) -> TrainingConfig:
        if self.objective != "label" and self.target != "direct":
            raise ValueError(
                f"training.objective={self.objective} trains labels without a chain: set training.target=direct"
            )
        return self

    @model_validator(mode="after")
    def _labels_are_answers(self) -> TrainingConfig:
        if self.labels is None:
            return self
        if self.task == "writer":
            raise ValueError("training.labels are a reranker's: training.task=writer learns queries: unset one of them")
        if self.objective != "label":
            raise ValueError(
                f"training.labels need training.objective=label: {self.objective} trains the log-odds of true and false"
            )
        if self.target != "direct":
            raise ValueError(
                f"training.labels are learned without a chain: set training.target=direct, not {self.target}"
            )
        return self

    @model_validator(mode="after")
    def _scores_are_of_a_teacher(self) -> TrainingConfig:
        for key in ("teacher_temperature", "list_size"):
            if getattr(self, key) is not None and self.objective not in OF_TEACHER:
                raise ValueError(
                    f"training.{key} belongs to a teacher's scores, which training.objective={self.objective} does not "
                    f"read: take {' or '.join(OF_TEACHER)}, or unset it"
                )
        return self

    @model_validator(mode="after")
    def _adapters_are_of_lora(self) -> TrainingConfig:
        if self.lora_targets and self.method != "lora":
            raise ValueError(
                f"training.lora_targets names layers for an adapter: training.method={self.method} has none"
            )
        if self.lora_embeddings == "all" and self.method != "lora":
            raise ValueError(
                f"training.lora_embeddings belongs to an adapter: training.method={self.method} trains all weights"
            )
        return self


class DevConfig(Section):
    """The benchmark that a model in training reranks directly, to measure nDCG@10."""

    data: DataConfig = Field(description="the benchmark")
    first_stage: FirstStageConfig = Field(default=FirstStageConfig(depth=20), description="the candidates")

    @model_validator(mode="after")
    def _rewritten_queries_are_asked(self) -> DevConfig:
        ask_rewritten(self.data, self.first_stage, "dev.")
        return self
