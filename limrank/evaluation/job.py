"""The evaluate job: a run and its judgements → ``metrics.json``, ``per_query.parquet`` and
``report.html``.

The run is either a rerank job's (``run.trec``, ``queries.jsonl``, ``qrels.tsv`` in its directory), which is compared
with its first stage, or any file. ``evaluation.compare`` names several runs: see ``compare_job.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from limrank.batch.run_dir_checks import check_run_dir, open_outputs
from limrank.config import EvaluateJob
from limrank.evaluation import compare_job
from limrank.evaluation.calibration import FILE, RunReliability, run_reliability
from limrank.evaluation.inputs import query_texts, read_inputs
from limrank.evaluation.metrics import Scores, parse_measure
from limrank.evaluation.report import REPORT, provenance, write_report
from limrank.evaluation.significance import Difference
from limrank.evaluation.system import (
    Evaluation,
    Interval,
    evaluate_inputs,
    fusion_finding,
    p_mrr_facts,
    paired_differences,
    report_rows,
)
from limrank.printable import printable
from limrank.progress import Progress
from limrank.result import JobResult
from limrank.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.table import Table


@dataclass(frozen=True)
class EvaluateResult:
    """The findings of the evaluate job.

    Attributes:
        system: the run; fused with its first stage where the rerank job fused it.
        pure: the order of a fused run without fusion; None where it is not fused.
        differences: ``system - first_stage`` by measure, paired by query.
        pure_differences: ``pure - first_stage``, in the same way.
        fusion_differences: ``system - pure``, in the same way.
        warnings: sentences for the user.
    """

    storage: Storage
    system: Evaluation
    first_stage: Evaluation | None
    differences: dict[str, Difference]
    warnings: list[str]
    pure: Evaluation | None = None
    pure_differences: dict[str, Difference] = field(default_factory=dict)
    fusion_differences: dict[str, Difference] = field(default_factory=dict)
    reliability: RunReliability | None = None


def run(config: EvaluateJob, *, address: str, progress: Progress, overwrite: bool = False) -> JobResult:
    """The job as the command line calls it. It needs no cluster and takes seconds: ``address``, ``progress`` and
    ``overwrite`` have no effect.

    Raises:
        UserError: see :func:`evaluate_job`.
    """
    if config.evaluation.compare:
        return compare_job.run(config)
    result = evaluate_job(config)
    messages = [console_table(result), f"report: {result.storage.display_path(REPORT)}"]
    if result.reliability and result.reliability.fitted:
        messages[1:1] = [result.reliability.sentence(), f"calibration: {result.storage.display_path(FILE)}"]
    return JobResult(0, result.warnings, messages)


def plan(config: EvaluateJob) -> dict[str, Any]:
    """What a run would measure, for ``--dry-run``. It reads the same files and writes nothing.

    Raises:
        UserError: see :func:`evaluate_job`.
    """
    if config.evaluation.compare:
        return compare_job.plan(config)
    inputs = read_inputs(config)
    for measure in config.evaluation.measures:
        parse_measure(measure)
    if config.evaluation.calibrate:
        run_reliability(config, inputs)
    check_run_dir(config)
    return {
        "run": inputs.name,
        "queries": len(inputs.qrels),
        "measures": list(config.evaluation.measures),
        "warnings": inputs.warnings,
    }


def evaluate_job(config: EvaluateJob) -> EvaluateResult:
    """Evaluate ``evaluation.run`` over ``data``, or else the rerank job in ``run_dir``. The outputs go into ``run_dir``.

    Raises:
        UserError: something is missing or malformed; the message names the file or key.
    """
    inputs = read_inputs(config)
    storage = open_outputs(config)
    samples, seed = config.evaluation.bootstrap_samples, config.seed
    system = evaluate_inputs(inputs, config.evaluation, seed)
    first_stage = pure = None
    if inputs.first_stage is not None:
        # The first stage's order has no cost.
        order = replace(inputs, run=inputs.first_stage, pairs_per_second=None, tokens_per_pair=None)
        first_stage = evaluate_inputs(order, config.evaluation, seed, "first stage")
    if inputs.pure is not None:
        pure = evaluate_inputs(replace(inputs, run=inputs.pure), config.evaluation, seed, inputs.pure_name)

    def differences(one: Evaluation | None, other: Evaluation | None) -> dict[str, Difference]:
        return paired_differences(one, other, samples, seed) if one and other else {}

    warnings = [*inputs.warnings]
    if missing := len(system.scores.missing):
        warnings.append(f"{inputs.name}: ranks nothing for {missing} judged queries; each counts 0 in every mean")
    if unjudged := len(inputs.run.keys() - inputs.qrels.keys()):
        warnings.append(f"{inputs.name}: ranks {unjudged} queries that are not judged; they are not evaluated")
    reliability = None if config.evaluation.run else run_reliability(config, inputs)
    result = EvaluateResult(
        storage,
        system,
        first_stage,
        differences(system, first_stage),
        warnings,
        pure,
        differences(pure, first_stage),
        differences(system, pure),
        reliability,
    )
    facts = inputs.facts | provenance(config.evaluation.measures)
    write_outputs(storage, result, query_texts(inputs.queries), facts, samples=samples, seed=seed)
    return result


def console_table(result: EvaluateResult) -> Table:
    """The means to 4 decimals, as the ``ir_measures`` command prints them, as a rich table. A fused run has a row for
    each of the three orders."""
    from rich.table import Table

    table = Table(title=f"{printable(result.system.name)} · {len(result.system.scores.queries)} queries")
    table.add_column("measure")
    if result.pure:
        return _of_three_orders(table, result)
    table.add_column("mean", justify="right")
    table.add_column("95 % interval", justify="right")
    if result.first_stage:
        table.add_column("first stage", justify="right")
        table.add_column("difference (95 % interval)", justify="right")
    for measure, (mean, low, high) in result.system.intervals.items():
        cells = [measure, f"{mean:.4f}", f"{low:.4f} – {high:.4f}"]
        if result.first_stage:
            cells.append(f"{result.first_stage.intervals[measure].mean:.4f}")
            cells.append(_signed(result.differences.get(measure)))
        table.add_row(*cells)
    return table


def _of_three_orders(table: Table, result: EvaluateResult) -> Table:
    table.add_column("order")
    for name in ("mean", "95 % interval", "minus first stage", "minus pure"):
        table.add_column(name, justify="right")
    orders = (
        ("first stage", result.first_stage, {}, {}),
        ("pure", result.pure, result.pure_differences, {}),
        ("fused", result.system, result.differences, result.fusion_differences),
    )
    for measure in result.system.intervals:
        for name, evaluation, from_first_stage, from_pure in orders:
            if evaluation is None:
                continue
            mean, low, high = evaluation.intervals[measure]
            differences = (_signed(each.get(measure)) for each in (from_first_stage, from_pure))
            table.add_row(measure, name, f"{mean:.4f}", f"{low:.4f} – {high:.4f}", *differences)
    return table


def _signed(difference: Difference | None) -> str:
    return f"{difference[0]:+.4f} ({difference[1]:+.4f} to {difference[2]:+.4f})" if difference else ""


def write_outputs(
    storage: Storage,
    result: EvaluateResult,
    queries: dict[str, str],
    facts: dict[str, str],
    *,
    samples: int,
    seed: int,
) -> None:
    """Write ``metrics.json``, ``per_query.parquet`` and ``report.html``.

    ``metrics.json`` maps each measure to ``{mean, low, high}``. It also has ``queries`` and ``missing`` (counts),
    ``bootstrap``, ``reliability`` where pairs are scored, and, where there is a first stage, ``first_stage`` and
    ``differences`` (by measure). A fused run has ``pure``, ``pure_differences`` and ``fusion_differences`` too (see
    :class:`EvaluateResult`).
    ``per_query.parquet`` has one row a query: ``query_id`` and a column a measure.

    Args:
        queries: texts by query id, for the report.
        facts: what was run, for the report.
    """
    metrics: dict[str, Any] = {measure: interval._asdict() for measure, interval in result.system.intervals.items()}
    metrics |= {"queries": len(result.system.scores.queries), "missing": len(result.system.scores.missing)}
    if result.first_stage:
        metrics["first_stage"] = _plain(result.first_stage.intervals)
        metrics["differences"] = _plain(result.differences)
    if result.pure:
        metrics["pure"] = _plain(result.pure.intervals)
        metrics["pure_differences"] = _plain(result.pure_differences)
        metrics["fusion_differences"] = _plain(result.fusion_differences)
    if result.reliability:
        metrics["reliability"] = result.reliability.values()
        if result.reliability.fitted:
            fitted = json.dumps(result.reliability.fitted.values(), indent=2, ensure_ascii=False)
            storage.write_text(FILE, fitted + "\n")
    metrics["bootstrap"] = {"samples": samples, "confidence": 0.95, "seed": seed}
    text = json.dumps(metrics, indent=2, ensure_ascii=False)
    storage.write_text("metrics.json", text + "\n")
    storage.write_table("per_query.parquet", _per_query(result.system.scores))
    evaluations = [evaluation for evaluation in (result.first_stage, result.pure, result.system) if evaluation]
    title, rows = f"Evaluation of {result.system.name}", report_rows(evaluations)
    facts = p_mrr_facts(evaluations) | facts
    findings = [fusion_finding(result.fusion_differences)] if result.pure else []
    write_report(
        storage,
        title,
        rows,
        queries,
        facts,
        samples=samples,
        seed=seed,
        conclusion=findings,
        reliability=result.reliability.section() if result.reliability else None,
    )


def _plain(values: Mapping[str, Interval | Difference]) -> dict[str, dict[str, float]]:
    return {name: Interval(*value)._asdict() for name, value in values.items()}


def _per_query(scores: Scores) -> pa.Table:
    import pyarrow as pa

    columns = {"query_id": pa.array(scores.queries, pa.string())}
    columns |= {measure: pa.array(values.values(), pa.float64()) for measure, values in scores.per_query.items()}
    metadata = {"limrank.schema": "per_query", "limrank.schema_version": "1"}
    return pa.table(columns).replace_schema_metadata(metadata)
