"""``evaluation``: which run is measured, and by what."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    PositiveInt,
    model_validator,
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
    calibrate: Literal["platt", "isotonic"] | None = Field(
        default=None,
        description="fit a calibration of the run's scores on calibrate_on, write it as calibration.json, and report the "
        "reliability after it. platt: a line in log-odds. isotonic: any monotone curve, for a thousand pairs or more",
    )
    calibrate_on: PathStr | None = Field(
        default=None,
        description="the run directory of a rerank job of the same model and mode over other queries (dev)",
    )

    @model_validator(mode="after")
    def _calibrated_on_another_run(self) -> EvaluationConfig:
        if (self.calibrate is None) != (self.calibrate_on is None):
            given, needed = ("calibrate", "calibrate_on") if self.calibrate else ("calibrate_on", "calibrate")
            raise ValueError(f"evaluation.{given} needs evaluation.{needed}")
        if self.calibrate and (self.run or self.compare):
            other = "run" if self.run else "compare"
            raise ValueError(f"evaluation.calibrate needs the scores of one rerank job: its run_dir, and no {other}")
        return self
