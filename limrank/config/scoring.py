"""``scoring``: how a pair is scored."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
)

from limrank.config.base import (
    Section,
)
from limrank.config.engine import ModelConfig

Compatibility = Literal["rank1"]


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
