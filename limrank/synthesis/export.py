"""From a run's rows to the files that a trainer, a person or LLaMA-Factory reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from limrank import prompts
from limrank.batch.summary import Summary, step_tokens
from limrank.config import ScoringConfig, SynthesisConfig, SynthesizeJob, TokenPrices, is_prompt_text
from limrank.engines.base import Usage
from limrank.records import Query, synthesis_example_schema
from limrank.scoring import completion, pair_text, prompt_template
from limrank.storage import Storage
from limrank.synthesis import card, report
from limrank.synthesis.mined_files import list_records, write_candidates
from limrank.synthesis.pool import Pool, Row
from limrank.synthesis.stats import tally
from limrank.synthesis.teachers import teacher_name, teacher_usage

_ROWS_A_GROUP = 10_000
_ROLE_OF_STEP = {"judge": "judge", "mine": "reranker", "base": "reranker", "teacher": "teacher"}
"""Role by step; every other step is the writer's."""


def export(
    storage: Storage, config: SynthesizeJob, summary: Summary, pool: Pool, queries_a_seed: int
) -> dict[str, Any]:
    """Write ``examples.parquet`` (every row in its final state), ``train.jsonl`` and ``alpaca.json``
    (the selected rows), ``stats.json``, ``DATASET.md`` and ``report.html``; of passages also ``lists.jsonl`` and
    ``candidates/``.

    Args:
        queries_a_seed: planned queries for each seed that repeats no benchmark.

    Returns:
        The contents of ``stats.json``.
    """
    _write_examples(storage, pool.rows())
    prompt = config.scoring.prompt
    with _lines(storage, "train.jsonl") as write:
        for row in _selected(pool):
            write(json.dumps(training_pair(row, prompt), ensure_ascii=False) + "\n")
    with _lines(storage, "alpaca.json") as write:
        comma = "["
        for row in _selected(pool):
            pair = training_pair(row, prompt)
            record = {"instruction": pair["prompt"], "input": "", "output": pair["completion"]}
            write(f"{comma}\n{json.dumps(record, ensure_ascii=False)}")
            comma = ","
        write("[]\n" if comma == "[" else "\n]\n")
    if pool.mined:
        lists = list_records(pool.mined, pool.selected_queries())
        with _lines(storage, "lists.jsonl") as write:
            for record in lists:
                write(json.dumps(record, ensure_ascii=False) + "\n")
        write_candidates(storage, pool.mined)
    counts = tally(pool.rows(), pool.selection)
    graded = teacher_usage(config.synthesis.teacher, storage)
    queries = (summary.units - counts["contaminated_seeds"]) * queries_a_seed
    stats = _facts(config, summary, queries, graded) | counts
    storage.write_text("stats.json", json.dumps(stats, ensure_ascii=False, indent=2) + "\n")
    storage.write_text("DATASET.md", card.render(stats, _selected(pool)))
    storage.write_text("report.html", report.render("Synthetic examples", stats, pool.rows()))
    return stats


def training_pair(row: Row, prompt: str = "relevance") -> dict[str, str]:
    """The reranker's prompt and its completion: the judge's chain and the label.

    A chain whose verdict is not the label is left out, which can happen with agreement by ranking:
    a model should not learn to contradict itself."""
    query = Query(row["example_id"], row["query"], row["instruction"] or "")
    text = pair_text(prompt_template(ScoringConfig(prompt=prompt)), query, row["passage"])
    chain = row["reasoning"] if row["verdict"] in (None, row["label"]) else None
    return {"prompt": text, "completion": completion(chain, row["label"])}


def _selected(pool: Pool) -> Iterator[Row]:
    return (row for row in pool.rows() if row["selected"])


def _write_examples(storage: Storage, rows: Iterator[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = synthesis_example_schema()
    with (
        storage.open_output("examples.parquet") as stream,
        pq.ParquetWriter(stream, schema, compression="zstd") as file,
    ):
        while group := list(islice(rows, _ROWS_A_GROUP)):
            file.write_table(pa.Table.from_pylist(group, schema=schema))


@contextmanager
def _lines(storage: Storage, name: str) -> Iterator[Callable[[str], None]]:
    with storage.open_output(name) as stream:
        yield lambda text: stream.write(text.encode())


def _facts(config: SynthesizeJob, summary: Summary, queries: int, graded: Usage) -> dict[str, Any]:
    """``graded``: what the teacher's requests took."""
    steps = config.synthesis.prompt_names()
    used = {**summary.steps, **({"teacher": graded} if graded.requests else {})}
    if config.synthesis.source == "seeds" and config.synthesis.judge_by == "label_tokens":
        steps["judge"] = config.scoring.prompt
    if (teacher := config.synthesis.teacher) and teacher.kind == "listwise":
        steps["teacher"] = teacher.prompt
    return {
        "schema_version": 3,
        "seeds": summary.units,
        "seed_source": _name(config.synthesis.seeds),
        "license": config.synthesis.license,
        "queries": queries,
        "failed": summary.failed,
        "writer": "none: the queries are the seeds' own",
        **{name: _name(role.model.id) for name, role in config.roles().items()},
        **_decides(config.synthesis),
        **({} if config.synthesis.chains else {"chains": False}),
        **({"embedding": _embedding(config.synthesis)} if config.synthesis.chooses_by_embedding else {}),
        "prompts": {step: _prompt(name) for step, name in steps.items()},
        "tokens": {
            "prompt": summary.prompt_tokens + graded.prompt,
            "generated": summary.generated_tokens + graded.generated,
        },
        "steps": {name: _step(name, usage, config) for name, usage in used.items()},
    }


def _decides(settings: SynthesisConfig) -> dict[str, Any]:
    """What decides which examples are kept."""
    if settings.source == "seeds":
        return {"judge_by": settings.judge_by, "agreement": settings.agreement}
    return {
        "source": settings.source,
        "writer_kind": settings.writer,
        "round_trip": settings.round_trip.model_dump() if settings.round_trip.filters else None,
        "teacher": settings.teacher and teacher_name(settings.teacher),
    }


def _prompt(name: str) -> dict[str, str]:
    digest = hashlib.sha256(prompts.load(name).encode()).hexdigest()
    return {"name": "in the recipe" if is_prompt_text(name) else _name(name), "sha256": digest[:12]}


def _name(path: str) -> str:
    """The last component of an absolute path, so that an export does not tell where it lies on this
    machine; any other name unchanged."""
    return Path(path).name if Path(path).is_absolute() else path


def _embedding(settings: SynthesisConfig) -> str:
    return _name(settings.embedder) if settings.embedder else "by words"


def _step(name: str, usage: Usage, config: SynthesizeJob) -> dict[str, Any]:
    prices = config.synthesis.prices.get(_ROLE_OF_STEP.get(name, "writer"))
    return step_tokens(usage) | ({"cost": round(_cost(usage, prices), 6)} if prices else {})


def _cost(usage: Usage, prices: TokenPrices) -> float:
    cached = prices.prompt if prices.cached_prompt is None else prices.cached_prompt
    fresh = usage.prompt - usage.cached_prompt
    return (fresh * prices.prompt + usage.cached_prompt * cached + usage.generated * prices.generated) / 1e6
