"""``scoring``: how a pair is scored."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
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
    prompt: str = Field(
        default="relevance", description="name of a prompt in limrank/prompts, a file, or the prompt's text"
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

    @model_validator(mode="after")
    def _scores_to_fuse(self) -> ScoringConfig:
        if self.fuse and self.mode == "none":
            raise ValueError("scoring.fuse: mode none has no scores to fuse with the first stage's: unset one of them")
        return self

    def hashed(self, exclude: set[str]) -> dict[str, Any]:
        """The keys that rows depend on, for :func:`config_hash`. Fusion reorders rows that are there."""
        return self.model_dump(exclude=exclude | {"fuse"})

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
