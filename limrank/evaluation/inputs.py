"""What there is to evaluate: a run with its queries and judgements, from a rerank job's
directory or from a file and a ``data`` section."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from limrank.config import DataConfig, EvaluateJob
from limrank.data import beir, benchmarks, hub, trec
from limrank.errors import UnavailableError, UserError
from limrank.records import Qrels, Query, Run


@dataclass(frozen=True)
class Inputs:
    """A run and what it is judged by.

    ``flipped`` is FollowIR's ``{topic: [doc_id]}`` for the topics whose queries are both
    selected; empty elsewhere. Costs are None where no manifest has them. ``facts`` say where
    all this came from, ``warnings`` what was left out.
    """

    name: str
    run: Run
    queries: list[Query]
    qrels: Qrels
    first_stage: Run | None = None
    flipped: dict[str, list[str]] = field(default_factory=dict)
    pairs_per_second: float | None = None
    tokens_per_pair: float | None = None
    facts: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def read_inputs(config: EvaluateJob) -> Inputs:
    """The run that a config names, without the documents that its queries exclude (BRIGHT
    drops them before ranking).

    Raises:
        UserError: a file or a key is missing, a file is malformed, or no query is judged.
    """
    found = _given_run(config) if config.evaluation.run else _rerank_run(Path(config.run_dir))
    if not found.qrels:
        raise UserError(f"{found.name}: none of its queries is judged: there is nothing to evaluate it by")
    return found


def drop_excluded(run: Run, queries: list[Query]) -> Run:
    """The run without each query's excluded documents."""
    excluded = {query.query_id: query.excluded for query in queries}
    return {
        query_id: {doc_id: score for doc_id, score in scores.items() if doc_id not in excluded.get(query_id, ())}
        for query_id, scores in run.items()
    }


def _given_run(config: EvaluateJob) -> Inputs:
    path = Path(config.evaluation.run)
    if config.data is None:
        raise UserError(f"data: is needed with evaluation.run, to know what {path.name} is judged by")
    run = trec.read_run(path)
    benchmark = benchmarks.load(config.data)
    warnings = [*benchmark.warnings]
    return Inputs(
        name=path.name,
        run=drop_excluded(run, benchmark.queries),
        queries=benchmark.queries,
        qrels=benchmark.qrels,
        flipped=_flipped(config.data, benchmark.qrels, warnings),
        facts={"run": str(path), "benchmark": benchmark.name},
        warnings=warnings,
    )


def _rerank_run(directory: Path) -> Inputs:
    recipe = _mapping(directory / "config.yaml", yaml.safe_load)
    if recipe.get("data", {}).get("format") == "pairs":
        raise UserError(
            f"run_dir {directory}: reranked pairs, which carry no judgements; "
            "to evaluate run.trec by a benchmark's, give it as evaluation.run, with data"
        )
    for name in ("run.trec", "queries.jsonl", "qrels.tsv"):
        if not (directory / name).is_file():
            raise UnavailableError(
                f"run_dir: no {name} in {directory}; run `limrank rerank` first, or give evaluation.run and data"
            )
    manifest = _mapping(directory / "manifest.json", json.loads)
    if manifest.get("status", "done") != "done":
        raise UserError(
            f"run_dir {directory}: the rerank job is {manifest['status']}; run `limrank rerank` again, it goes on from there"
        )
    run = trec.read_run(directory / "run.trec")
    queries = beir.read_queries(directory / "queries.jsonl")
    selected = {query.query_id for query in queries}
    judged = trec.read_qrels(directory / "qrels.tsv")
    qrels = {query_id: grades for query_id, grades in judged.items() if query_id in selected}
    warnings = []
    if strange := len(judged) - len(qrels):
        warnings.append(f"qrels.tsv: the judgements of {strange} queries that queries.jsonl lacks are left out")
    pairs_per_second, tokens_per_pair = _cost(manifest)
    first_stage = _first_stage(directory)
    return Inputs(
        name=_system_name(recipe) or directory.name,
        run=drop_excluded(run, queries),
        queries=queries,
        qrels=qrels,
        # Where nothing was reranked the two are the same, and one is enough.
        first_stage=first_stage if first_stage != run else None,
        flipped=_flipped(DataConfig.model_validate(recipe["data"]), qrels, warnings) if "data" in recipe else {},
        pairs_per_second=pairs_per_second,
        tokens_per_pair=tokens_per_pair,
        facts=_recorded_facts(directory, recipe, manifest),
        warnings=warnings,
    )


def _first_stage(directory: Path) -> Run | None:
    """The first stage's order, from the rows that the rerank job wrote; scored ``-rank`` as
    ``run.trec`` is."""
    import pyarrow.parquet as pq

    run: Run = {}
    for file in sorted((directory / "rows").glob("*.parquet")):
        table = pq.read_table(file, columns=["query_id", "doc_id", "first_stage_rank"])
        for row in table.to_pylist():
            run.setdefault(row["query_id"], {})[row["doc_id"]] = -float(row["first_stage_rank"])
    return run or None


def _flipped(data: DataConfig, qrels: Qrels, warnings: list[str]) -> dict[str, list[str]]:
    if data.format != "hub" or not data.name.startswith("followir/"):
        return {}
    try:
        topics = hub.flipped(data.name, data.path)
    except UserError as error:
        # The other measures need nothing from the hub.
        warnings.append(f"p-MRR is left out: {error}")
        return {}
    both = {topic: ids for topic, ids in topics.items() if {f"{topic}-og", f"{topic}-changed"} <= qrels.keys()}
    if len(both) < len(topics):
        warnings.append(f"p-MRR is over {len(both)} of {len(topics)} topics: the selection splits or lacks the others")
    return both


def _cost(manifest: dict[str, Any]) -> tuple[float | None, float | None]:
    """``(pairs_per_second, tokens_per_pair)`` of a rerank job, as far as it recorded them."""
    pairs = manifest.get("counts", {}).get("rows")
    seconds = manifest.get("seconds", {}).get("work")
    tokens = manifest.get("tokens", {})
    spent = (tokens.get("prompt") or 0) + (tokens.get("generated") or 0)
    return (pairs / seconds if pairs and seconds else None), (spent / pairs if pairs and spent else None)


def _system_name(recipe: dict[str, Any]) -> str | None:
    model = recipe.get("model", {}).get("id")
    mode = recipe.get("scoring", {}).get("mode")
    if mode == "none":
        return "first stage"
    return f"{Path(model).name}, {mode}" if model and mode else None


def _recorded_facts(directory: Path, recipe: dict[str, Any], manifest: dict[str, Any]) -> dict[str, str]:
    facts = {"run": str(directory)}
    facts |= {name: str(manifest[name]) for name in ("status", "started_at", "config_hash") if name in manifest}
    if versions := manifest.get("versions"):
        facts["versions of the run"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    if recipe:
        facts["recipe"] = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip()
    return facts


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    """A YAML or JSON mapping; empty where the file is missing, as beside a copied run."""
    if not path.is_file():
        return {}
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: should be a mapping of keys to values")
    return values
