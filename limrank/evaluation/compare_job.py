"""The evaluate job for several rerank runs: ``metrics.json``, ``compare.png`` and ``report.html``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from limrank.batch.run_dir_checks import check_run_dir, open_outputs
from limrank.config import EvaluateJob
from limrank.errors import UserError
from limrank.evaluation.compare import (
    MARGIN,
    Compared,
    Comparison,
    compare,
    conclusion,
    interval_text,
    percent_text,
    share_first_stage,
    short_names,
)
from limrank.evaluation.inputs import Inputs, query_texts, read_compared
from limrank.evaluation.metrics import parse_measure
from limrank.evaluation.plot import Point, draw_quality
from limrank.evaluation.report import REPORT, Plot, System, provenance, write_report
from limrank.evaluation.system import Interval
from limrank.printable import printable
from limrank.result import JobResult
from limrank.storage import Storage

if TYPE_CHECKING:
    from rich.table import Table


def run(config: EvaluateJob) -> JobResult:
    """Compare the runs of ``evaluation.compare`` and write ``metrics.json``, ``compare.png``
    and ``report.html`` into ``run_dir``.

    Raises:
        UserError: see ``inputs.read_compared``; or a measure is unknown, or ``run_dir`` is one of the runs.
    """
    inputs = _read(config)
    settings = config.evaluation
    comparison = compare(inputs, settings.measures, settings.bootstrap_samples, config.seed)
    sentences = conclusion(comparison)
    _write_outputs(config, comparison, inputs, sentences)
    return JobResult(
        warnings=_warnings(inputs, comparison),
        messages=[console_table(comparison), *sentences, f"report: {Storage(config.run_dir).display_path(REPORT)}"],
    )


def plan(config: EvaluateJob) -> dict[str, Any]:
    """The comparison that :func:`run` would make, for ``--dry-run``. Raises the same errors."""
    inputs = _read(config)
    check_run_dir(config)
    return {
        "runs": [each.name for each in inputs],
        "queries": len(inputs[0].qrels),
        "measures": list(config.evaluation.measures),
        "warnings": _warnings(inputs),
    }


def console_table(comparison: Comparison) -> Table:
    """A rich table with a row for each run, cheapest first."""
    from rich.table import Table

    reference = comparison.reference
    queries = len(reference.values)
    table = Table(title=f"{comparison.measure} by generated tokens · {queries} queries")
    table.add_column("run")
    difference = f"difference from {printable(short_names(comparison)[-1])}"
    for name in (comparison.measure, "generated\nper query", "share", "pairs/s", difference, "not\ninferior"):
        table.add_column(name, justify="right")
    for each, name in zip(comparison.compared, short_names(comparison), strict=True):
        share, rate = comparison.share(each), each.evaluation.pairs_per_second
        table.add_row(
            printable(name),
            "{:.4f} ({:.4f}–{:.4f})".format(*each.quality),
            f"{each.generated:,.0f}",
            "–" if share is None else percent_text(share),
            "–" if rate is None else f"{rate:.1f}",
            "–" if each.from_reference is None else interval_text(each.from_reference),
            "–" if each is reference else "yes" if each.non_inferior else "no",
        )
    return table


def _read(config: EvaluateJob) -> list[Inputs]:
    if config.evaluation.run:
        raise UserError("evaluation.run and evaluation.compare are two jobs: unset one of them")
    if config.run_dir in config.evaluation.compare:
        raise UserError(f"run_dir: {config.run_dir} is one of the runs to compare: take another with -s run_dir=…")
    for measure in config.evaluation.measures:
        parse_measure(measure)
    return read_compared(config.evaluation.compare)


def _warnings(inputs: Sequence[Inputs], comparison: Comparison | None = None) -> list[str]:
    warnings = list(dict.fromkeys(warning for each in inputs for warning in each.warnings))
    if not share_first_stage(inputs):
        warnings.append("the runs reorder different candidates: some of the difference is due to the first stage")
    for each in comparison.compared if comparison else ():
        if missing := len(each.evaluation.scores.missing):
            warnings.append(f"{each.name}: ranks nothing for {missing} judged queries; each counts 0 in every mean")
    return warnings


def _write_outputs(
    config: EvaluateJob, comparison: Comparison, inputs: Sequence[Inputs], sentences: Sequence[str]
) -> None:
    samples, seed = config.evaluation.bootstrap_samples, config.seed
    storage = open_outputs(config)
    directories = dict(zip((each.name for each in inputs), config.evaluation.compare, strict=True))
    metrics = {
        "measure": comparison.measure,
        "queries": len(comparison.reference.values),
        "reference": comparison.reference.name,
        "margin": MARGIN,
        "conclusion": list(sentences),
        "runs": [_metrics(comparison, each, directories.get(each.name)) for each in comparison.compared],
        "bootstrap": {"samples": samples, "confidence": 0.95, "seed": seed},
    }
    text = json.dumps(metrics, indent=2, ensure_ascii=False)
    storage.write_text("metrics.json", text + "\n")
    points = [
        Point(name, each.generated, *each.quality, each.on_frontier)
        for name, each in zip(short_names(comparison), comparison.compared, strict=True)
    ]
    png = draw_quality(points, comparison.measure)
    storage.write_bytes("compare.png", png)
    caption = (
        f"{comparison.measure} by generated tokens per query, with 95 % intervals. "
        "The line joins the runs that no cheaper run equals."
    )
    write_report(
        storage,
        f"{comparison.measure} against generated tokens",
        [_system(each) for each in (comparison.reference, *comparison.compared[:-1])],
        query_texts(inputs[0].queries),
        directories | provenance(config.evaluation.measures),
        samples=samples,
        seed=seed,
        conclusion=sentences,
        plot=Plot(png, caption),
    )


def _metrics(comparison: Comparison, each: Compared, directory: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": each.name,
        "run_dir": directory,
        "model": each.model or None,
        "scoring": each.scoring or None,
        "measures": {name: interval._asdict() for name, interval in each.evaluation.intervals.items()},
        "generated_tokens_per_query": each.generated,
        "prompt_tokens_per_query": each.prompt,
        "pairs_per_second": each.evaluation.pairs_per_second,
        "share_of_reference_tokens": comparison.share(each),
        "non_inferior": each.non_inferior,
        "on_frontier": each.on_frontier,
    }
    if each.from_reference:
        found["difference_from_reference"] = Interval(*each.from_reference)._asdict()
    if each.from_first_stage:
        found["difference_from_first_stage"] = Interval(*each.from_first_stage)._asdict()
    return found


def _system(each: Compared) -> System:
    evaluation = each.evaluation
    return System(
        evaluation.name, evaluation.scores, evaluation.pairs_per_second, evaluation.tokens_per_pair, each.generated
    )
