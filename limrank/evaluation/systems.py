"""A pipeline's evaluation: the first stage, the base model and the tuned model over the same candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from limrank import models
from limrank.batch.rundir import versions
from limrank.config import PipelineJob
from limrank.evaluation.inputs import fused_name, query_texts, read_compared
from limrank.evaluation.report import REPORT, provenance, write_report
from limrank.evaluation.system import (
    Evaluation,
    evaluate_inputs,
    fusion_finding,
    p_mrr_facts,
    paired_differences,
    ranking_finding,
    report_rows,
)
from limrank.files import path_of
from limrank.result import JobResult
from limrank.storage import Storage

if TYPE_CHECKING:
    from rich.table import Table


_NUMBERS = {2: "two", 3: "three", 4: "four"}


def run(config: PipelineJob, run_dirs: Mapping[str, str]) -> JobResult:
    """Evaluate finished rerank runs over the same queries and write ``report.html`` into ``config.run_dir``. A run that
    is fused with its first stage appears twice, without and with fusion.

    Args:
        run_dirs: system's name → its rerank run. The report compares the others with the first one.

    Raises:
        UserError: see ``inputs.read_compared``; or a measure is unknown.
    """
    inputs = read_compared(list(run_dirs.values()))
    evaluations: list[Evaluation] = []
    fusions = []
    samples = config.evaluation.bootstrap_samples
    for name, each in zip(run_dirs, inputs, strict=True):
        if each.pure is None:
            evaluations.append(evaluate_inputs(each, config.evaluation, config.seed, name))
            continue
        pure = evaluate_inputs(replace(each, run=each.pure), config.evaluation, config.seed, name)
        fused = evaluate_inputs(each, config.evaluation, config.seed, fused_name(name, each.fusion_weight))
        evaluations += [pure, fused]
        fusions.append(fusion_finding(paired_differences(fused, pure, samples, config.seed)))
    base, *others = evaluations
    findings = [
        ranking_finding(each.name, base.name, paired_differences(each, base, samples, config.seed)) for each in others
    ] + fusions
    storage = Storage(config.run_dir)
    write_report(
        storage,
        ", ".join(each.name for each in evaluations).capitalize(),
        report_rows(evaluations),
        query_texts(inputs[0].queries),
        p_mrr_facts(evaluations) | _facts(config, len(inputs[0].queries)) | provenance(config.evaluation.measures),
        samples=samples,
        seed=config.seed,
        conclusion=findings,
    )
    warnings = dict.fromkeys(warning for each in inputs for warning in each.warnings)
    return JobResult(
        warnings=list(warnings),
        messages=[comparison_table(evaluations), *findings, f"report: {storage.display_path(REPORT)}"],
    )


def comparison_table(evaluations: Sequence[Evaluation]) -> Table:
    """A row per system: the first measure with its 95 % interval, speed and cost."""
    from rich.table import Table

    measure = next(iter(evaluations[0].intervals))
    table = Table(title=f"the same candidates in {_NUMBERS.get(len(evaluations), len(evaluations))} orders")
    for name in ("system", measure, "95 % interval", "pairs/s", "tokens per pair"):
        table.add_column(name, justify="left" if name == "system" else "right")
    for evaluation in evaluations:
        interval = evaluation.intervals[measure]
        rate, tokens = evaluation.pairs_per_second, evaluation.tokens_per_pair
        table.add_row(
            evaluation.name,
            f"{interval.mean:.4f}",
            f"{interval.low:.4f}–{interval.high:.4f}",
            "–" if rate is None else f"{rate:.1f}",
            "–" if tokens is None else f"{tokens:.0f}",
        )
    return table


def _facts(config: PipelineJob, queries: int) -> dict[str, str]:
    data, training, fuse = config.data, config.training, config.scoring.fuse
    return {
        "benchmark": f"{data.format} {data.name or data.split}, {queries} queries, depth {config.first_stage.depth}",
        "model": config.model.id if config.model.id in models.PACKAGED else path_of(config.model.id).name,
        "scoring": config.scoring.mode + (f"; fused with {fuse.first_stage:g} of the first stage" if fuse else ""),
        "training": f"{training.method}, {training.target}, {training.epochs} epochs",
        **{f"{name} version": found for name, found in versions().items()},
    }
