"""``scoring``: how a pair is scored."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from limrank.config.base import (
    Fraction,
    PathStr,
    Section,
    fault,
)
from limrank.config.engine import ModelConfig
from limrank.parsing import brief

Compatibility = Literal["rank1"]

_SAMPLED = 0.7
"""The temperature of chains that are averaged."""

_OF_SCORES = {
    "fuse": "mode none has no scores to fuse with the first stage's: unset one of them",
    "min_score": "compares scores, and scoring.mode none gives none",
    "labels": "are what a model answers, and scoring.mode none asks no model",
    "calibration": "changes scores, and scoring.mode none gives none",
}
"""Keys that need scores, and what is said of them with mode none."""

_LABEL = re.compile(r"[\w.+-]+")
_LONGEST_LABEL = 40


def _are_words(labels: tuple[str, ...]) -> tuple[str, ...]:
    for label in labels:
        if len(label) > _LONGEST_LABEL or not _LABEL.fullmatch(label):
            raise fault(f"has {brief(label)}, and a label is a word or a number of at most {_LONGEST_LABEL} characters")
        if labels.count(label) > 1:
            raise fault(f"has {brief(label)} twice")
    return labels


Labels = Annotated[tuple[str, ...], Field(min_length=2, max_length=20), AfterValidator(_are_words)]
"""Graded labels from least to most relevant."""


class FuseConfig(Section):
    first_stage: Fraction | PathStr = Field(
        description="weight of the first stage's score, from 0 (the reranker alone) to 1 (the first stage alone). Or the "
        "run directory of a finished rerank job over other queries: the weight with the highest nDCG@10 there",
    )

    @field_validator("first_stage", mode="before")
    @classmethod
    def _weight_or_path(cls, value: Any) -> Any:
        if isinstance(value, str) or (isinstance(value, int | float) and 0 <= value <= 1):
            return value
        raise fault(f"should be a weight from 0 to 1, or the run directory of a rerank job (got {brief(value)})")


class ScoringConfig(Section):
    mode: Literal["none", "direct", "think", "budget", "cascade"] = Field(
        default="direct",
        description="what the model writes before its answer. none: no model, the first stage's order. direct: "
        "nothing. think: a chain. budget: a short chain. cascade: a chain only where the order near "
        "the cut-off is in doubt",
    )
    max_think_tokens: PositiveInt | None = Field(
        default=None,
        description="longest chain in tokens. null: 8192 for think (the paper's), 256 for budget and cascade",
    )
    min_think_tokens: NonNegativeInt | None = Field(
        default=None,
        description="tokens that are kept for a chain where a prompt is long, which then loses the end of its passage; "
        "null: half of the context, or max_think_tokens where that is less; 0: none, the prompt keeps its length and "
        "the chain gets what it leaves (the paper's)",
    )
    compatibility: Compatibility | None = Field(
        default=None,
        description="rank1: an unfinished chain is truncated as by the reference, at its last . ! or ?, also "
        "inside a number. null: at its last sentence end",
    )
    samples: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1,
        description="chains that are sampled for a pair; its probability is the mean over them. 1: one chain",
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        default=None,
        description="sampling temperature of chains. null: 0.7 where samples is above 1, else 0, which is greedy",
    )
    labels: Labels | None = Field(
        default=None,
        description='graded labels from least to most relevant, such as ["0", "1", "2", "3"]; each has at most four tokens '
        "of the model. The score is the expected value on this scale, from 0 to 1. null: true and false",
    )
    prompt: str = Field(
        default="relevance",
        description="name of a prompt in limrank/prompts, a file, or the prompt's text. With labels, the default is "
        "relevance_graded",
    )
    cutoff: PositiveInt = Field(default=10, description="cascade: the order matters down to this rank")
    band: NonNegativeFloat = Field(
        default=0.5,
        description="cascade: two direct scores this near are in doubt, in standard deviations of their query's "
        "log-odds",
    )
    token_budget: PositiveInt | None = Field(
        default=None, description="cascade: generated tokens that the whole run may take. null: no limit"
    )

    fuse: FuseConfig | None = Field(
        default=None,
        description="order by a weighted sum of the reranker's log-odds and the first stage's score, each normalised to "
        "mean 0 and standard deviation 1 in its query. null: the reranker's order",
    )

    min_score: Fraction | None = Field(
        default=None,
        description="the lowest score that counts as relevant: pairs below it are rows, but not in the run, in a ranking "
        "or in an answer. null: all pairs are",
    )

    calibration: PathStr | None = Field(
        default=None,
        description="a calibration.json of `limrank evaluate`, which turns scores into probabilities of relevance and keeps "
        "their order. null: scores as they are read",
    )

    @field_validator(*_OF_SCORES)
    @classmethod
    def _scores_there(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("mode") == "none" and info.field_name:
            raise fault(_OF_SCORES[info.field_name])
        return value

    @field_validator("samples")
    @classmethod
    def _chains_to_sample(cls, samples: int, info: ValidationInfo) -> int:
        mode = info.data.get("mode")
        if samples > 1 and mode in ("none", "direct"):
            raise fault(
                f"is {samples}, and scoring.mode {mode} writes no chain to sample: take think, budget or cascade"
            )
        return samples

    @field_validator("temperature")
    @classmethod
    def _chains_differ(cls, temperature: float | None, info: ValidationInfo) -> float | None:
        if temperature == 0 and info.data.get("samples", 1) > 1:
            raise fault("is 0, at which all chains of a pair are the same: leave it out, or take scoring.samples 1")
        return temperature

    @property
    def prompt_name(self) -> str:
        """The prompt that is asked: its name, its file or its text."""
        is_default = self.prompt == type(self).model_fields["prompt"].default
        return "relevance_graded" if self.labels and is_default else self.prompt

    @property
    def chains(self) -> int:
        """The chains of a pair; 0 if the mode writes none."""
        return self.samples if self.think_tokens else 0

    @property
    def chain_temperature(self) -> float:
        """The sampling temperature of a chain; 0 is greedy."""
        if self.temperature is None:
            return _SAMPLED if self.samples > 1 else 0.0
        return self.temperature

    def hashed(self, exclude: set[str]) -> dict[str, Any]:
        """The keys that rows depend on, for :func:`config_hash`. Keys newer than run directories are
        left out at their defaults, so that the hash of an older run stays the same. Fusion reorders
        rows that are there, and a threshold leaves some out of the run."""
        unused = exclude | {"min_score", "fuse"} | (set() if self.think_tokens else {"samples", "temperature"})
        newer = {"samples", "temperature", "labels", "calibration"}
        return {
            key: value
            for key, value in self.model_dump(exclude=unused).items()
            if key not in newer or value != type(self).model_fields[key].default
        }

    @property
    def think_tokens(self) -> int:
        """The longest chain in tokens; 0 if the mode writes none."""
        defaults = {"none": 0, "direct": 0, "think": 8192, "budget": 256, "cascade": 256}
        if self.mode in ("none", "direct"):
            return 0
        return self.max_think_tokens or defaults[self.mode]


def chain_fits(model: ModelConfig, scoring: ScoringConfig, key: str = "scoring") -> None:
    """Raises ValueError where the tokens that are kept for a chain are all of the context."""
    kept = min(scoring.min_think_tokens or 0, scoring.think_tokens)
    if model.max_model_len and kept >= model.max_model_len:
        raise ValueError(
            f"{key}.min_think_tokens {kept} leaves no tokens for a prompt in model.max_model_len {model.max_model_len}"
        )


def no_fusion(scoring: ScoringConfig, key: str, why: str) -> None:
    """Raises ValueError for fusion where there is nothing to fuse with. ``why`` ends the message."""
    if scoring.fuse:
        raise ValueError(f"{key}.fuse: {why}")


def judges_alone(scoring: ScoringConfig, key: str = "scoring") -> None:
    """Raises ValueError for a key that a judge does not read: it writes one greedy chain, then true or false."""
    for name in ("samples", "temperature", "labels", "min_score", "calibration"):
        if getattr(scoring, name) != ScoringConfig.model_fields[name].default:
            raise ValueError(f"{key}.{name}: is for rerankers; a judge writes one greedy chain, then true or false")
