"""``evaluation``: which run is measured, and by what."""

from __future__ import annotations

from pydantic import (
    Field,
    PositiveInt,
)

from limrank.config.base import (
    PathStr,
    Section,
)


class EvaluationConfig(Section):
    run: PathStr | None = Field(
        default=None, description="a run in TREC or JSON form, in place of a rerank job's run_dir"
    )
    compare: tuple[PathStr, ...] = Field(
        default=(),
        description="run directories of rerank jobs: quality against generated tokens, in place of one run's "
        "evaluation",
    )
    measures: tuple[str, ...] = Field(
        default=("nDCG@10", "AP", "RR", "R@20", "P@5"), description="measures by ir_measures' names"
    )
    bootstrap_samples: PositiveInt = Field(
        default=2000, le=1_000_000, description="samples for the confidence intervals"
    )
