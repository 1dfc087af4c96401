"""Reads what is evaluated: a run with its queries and judgements, from a rerank job's directory or from a file and a
``data`` section; or the runs of several rerank jobs, for a comparison."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import yaml

from limrank.batch.manifest import Manifest, read_manifest
from limrank.batch.rows import is_chunk_file
from limrank.config import DataConfig, EvaluateJob, ScoringConfig
from limrank.config.recipe import checked
from limrank.data import beir, benchmarks, hub_benchmarks, trec
from limrank.data.run_ids import match_queries, match_run, unknown_documents
from limrank.errors import UnavailableError, UserError
from limrank.files import AnyPath, directory_of, is_file, kind_of, listed, opened, path_of
from limrank.parsing import parse_yaml
from limrank.records import Benchmark, Qrels, Query, Run
from limrank.storage import Storage
from limrank.uris import is_uri

ASection = TypeVar("ASection", DataConfig, ScoringConfig)

RUN_FILES = ("run.trec", "queries.jsonl", "qrels.tsv")
"""The files of a rerank job's directory that its evaluation needs."""

PURE_RUN = "run.pure.trec"
"""The order without fusion, which a fused run has too."""


@dataclass(frozen=True)
class Inputs:
    """A run and its judgements.

    Args:
        pure: the order without fusion, where ``run`` is fused with its first stage; else None.
        pure_name, fusion_weight: its name, and the first stage's weight in ``run``, where the manifest has it.
        flipped: FollowIR's ``{topic: [doc_id]}`` for the topics of which both queries are selected; empty for
            other data.
        pairs_per_second, tokens_per_pair, prompt_tokens, generated_tokens: None where no manifest has them. The
            token counts are totals over the run.
        model, scoring: the model's id and the mode (``budget 256``); empty where there is no recipe.
        facts: the origin of all this, for the report.
        warnings: sentences about what was left out.
    """

    name: str
    run: Run
    queries: list[Query]
    qrels: Qrels
    first_stage: Run | None = None
    pure: Run | None = None
    pure_name: str = ""
    fusion_weight: float | None = None
    flipped: dict[str, list[str]] = field(default_factory=dict)
    pairs_per_second: float | None = None
    tokens_per_pair: float | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    model: str = ""
    scoring: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def read_inputs(config: EvaluateJob) -> Inputs:
    """The run that a config names, without the documents that its queries exclude (BRIGHT drops them before ranking).

    Raises:
        UserError: a file or a key is missing, a file is malformed, or no query is judged.
    """
    found = _given_run(config) if config.evaluation.run else _rerank_run(directory_of(config.run_dir, "run_dir"))
    if not found.qrels:
        raise UserError(f"{found.name}: none of its queries is judged: there is nothing to evaluate it by")
    # A run that was not reranked is its own first stage. A fused one was, also where its order is the first stage's.
    return replace(found, first_stage=None) if found.first_stage == found.run and found.pure is None else found


def read_compared(directories: Sequence[str]) -> list[Inputs]:
    """Finished rerank runs over the same queries, in the order given, each with a name of its own.

    Raises:
        UserError: there are fewer than two; one is no finished rerank run, or is given twice; or their queries or
            judgements differ.
    """
    if len(directories) < 2:
        raise UserError(f"evaluation.compare: name at least two run directories (got {len(directories)})")
    if repeated := [directory for directory, count in Counter(directories).items() if count > 1]:
        raise UserError(f"evaluation.compare: {repeated[0]} is given twice")
    for directory in directories:
        _check_finished(directory)
    runs = [_rerank_run(path_of(directory)) for directory in directories]
    for directory, found in zip(directories[1:], runs[1:], strict=True):
        _check_same_queries(directories[0], runs[0], directory, found)
    if not runs[0].qrels:
        raise UserError(f"{directories[0]}: none of its queries is judged: there is nothing to compare by")
    names = unique_names([found.name for found in runs], directories)
    return [replace(found, name=name) for found, name in zip(runs, names, strict=True)]


def read_finished(directory: str, key: str) -> Inputs:
    """A finished rerank run.

    Raises:
        UserError: it is none. ``key`` is the recipe's, for the message.
    """
    _check_finished(directory, key)
    return _rerank_run(path_of(directory))


def unique_names(names: Sequence[str], directories: Sequence[str]) -> list[str]:
    """Names that differ: a name that several runs share gets its directory added, relative to their common parent."""
    unique = []
    for name, directory in zip(names, directories, strict=True):
        sharing = [other for other_name, other in zip(names, directories, strict=True) if other_name == name]
        unique.append(name if len(sharing) == 1 else f"{name} ({_below_common(directory, sharing)})")
    return unique


def _below_common(directory: str, directories: Sequence[str]) -> str:
    """A directory relative to the common parent; a whole one if others are elsewhere, as in a store."""
    paths = [each.partition("?")[0] if is_uri(each) else each for each in (directory, *directories)]
    if len({is_uri(each) for each in paths}) > 1:
        return paths[0]
    return os.path.relpath(paths[0], os.path.commonpath(paths[1:]))


def query_texts(queries: Sequence[Query]) -> dict[str, str]:
    """``{query_id: text}`` for a report; a query's instruction follows its text."""
    return {query.query_id: f"{query.text} {query.instruction}".strip() for query in queries}


def drop_excluded(run: Run, queries: list[Query]) -> Run:
    """The run without each query's excluded documents."""
    excluded = {query.query_id: query.excluded for query in queries}
    return {
        query_id: {doc_id: score for doc_id, score in scores.items() if doc_id not in excluded.get(query_id, ())}
        for query_id, scores in run.items()
    }


def _given_run(config: EvaluateJob) -> Inputs:
    path = path_of(config.evaluation.run)
    if config.data is None:
        raise UserError(f"data: is needed with evaluation.run, to know what {path.name} is judged by")
    given = trec.read_run(path)
    # A given run is ranked already: the texts that BM25 or a reranker would get do not matter.
    unused = {"first_stage_queries": None, "query_template": "{{ query }}"}
    benchmark = benchmarks.load(config.data.model_copy(update=unused))
    fitting, of_queries = match_run(given, benchmark, str(path))
    run = drop_excluded(fitting, benchmark.queries)
    warnings = [*benchmark.warnings, *of_queries, *_of_documents(run, benchmark, path)]
    return Inputs(
        name=path.name,
        run=run,
        queries=benchmark.queries,
        qrels=benchmark.qrels,
        flipped=_flipped(config.data, benchmark.qrels, warnings),
        facts={"run": str(path), "benchmark": benchmark.name} | _revision(benchmarks.provenance(config.data)),
        warnings=warnings,
    )


def _of_documents(run: Run, benchmark: Benchmark, path: AnyPath) -> list[str]:
    """A warning about documents that the corpus lacks: a folder may hold a part of what was ranked.

    Raises:
        UserError: neither the corpus nor the judgements know any document of the run, which would score 0.
    """
    strange = unknown_documents(run, benchmark)
    if not strange:
        return []
    known = {document.doc_id for document in benchmark.documents}
    for query_id, scores in run.items():
        judged = benchmark.qrels.get(query_id, {})
        if any(doc_id in known or doc_id in judged for doc_id in scores):
            return [f"{path}: {strange}"]
    raise UserError(f"{path}: {strange}")


def _check_finished(directory: str, key: str = "evaluation.compare") -> None:
    what = f"{directory}: not a finished rerank run"
    path = directory_of(directory, key)
    _check_judged(path, _recipe(path))
    for name in ("manifest.json", *RUN_FILES):
        if not is_file(path / name):
            raise UnavailableError(f"{what}: there is no {name} in it")
    manifest = _manifest(path)
    if manifest.job != "rerank":
        raise UserError(
            f"{what}, but {f'one of {manifest.job!r}' if manifest.job else 'its manifest.json names no job'}"
        )
    if manifest.status != "done":
        raise UnavailableError(
            f"{what}: it is {manifest.status or 'without a status'}; the same `limrank rerank` command resumes it"
        )
    if manifest.tokens.generated is None:
        raise UserError(f"{what}: its manifest.json counts no generated tokens")


def _check_judged(directory: AnyPath, recipe: dict[str, Any]) -> None:
    if recipe.get("data", {}).get("format") == "pairs":
        raise UserError(
            f"run_dir {directory}: reranked pairs, which carry no judgements; "
            "to evaluate run.trec by a benchmark's, give it as evaluation.run, with data"
        )


def _check_same_queries(one: str, first: Inputs, other: str, second: Inputs) -> None:
    queries = {query.query_id: query for query in first.queries}
    others = {query.query_id: query for query in second.queries}
    hint = "compare runs of the same data and selection"
    for query_id in [*queries, *others]:
        if queries.get(query_id) != others.get(query_id):
            raise UserError(f"{other}: other queries than {one} has (query {query_id!r}); {hint}")
    if first.qrels != second.qrels:
        raise UserError(f"{other}: other judgements than {one} has; {hint}")


def _rerank_run(directory: AnyPath) -> Inputs:
    recipe = _recipe(directory)
    _check_judged(directory, recipe)
    for name in RUN_FILES:
        if not is_file(directory / name):
            raise UnavailableError(
                f"run_dir: no {name} in {directory}; run `limrank rerank` first, or give evaluation.run and data"
            )
    manifest = _manifest(directory)
    if manifest.status not in ("done", ""):
        raise UserError(
            f"run_dir {directory}: the rerank job is {manifest.status}; the same `limrank rerank` command resumes it"
        )
    queries = beir.read_queries(directory / "queries.jsonl")
    least = _min_score(recipe)
    run, of_run = _matched(directory / "run.trec", queries, may_be_empty=least is not None)
    pure = _matched(directory / PURE_RUN, queries)[0] if _is_fused(directory, manifest) else None
    selected = {query.query_id for query in queries}
    judged = trec.read_qrels(directory / "qrels.tsv")
    qrels = {query_id: grades for query_id, grades in judged.items() if query_id in selected}
    warnings = of_run
    if strange := len(judged) - len(qrels):
        warnings.append(f"qrels.tsv: the judgements of {strange} queries that queries.jsonl lacks are left out")
    warnings += _of_rows(directory.name, manifest.counts.get("failed", 0), least)
    pairs_per_second, tokens_per_pair = _cost(manifest)
    model, scoring = _system(recipe, directory)
    name = _system_name(model, scoring) or directory.name
    return Inputs(
        name=name if pure is None else fused_name(name, manifest.fusion.weight),
        run=drop_excluded(run, queries),
        queries=queries,
        qrels=qrels,
        first_stage=_first_stage(directory),
        pure=None if pure is None else drop_excluded(pure, queries),
        pure_name=name,
        fusion_weight=manifest.fusion.weight,
        flipped=_flipped(_section(DataConfig, recipe, "data", directory), qrels, warnings) if "data" in recipe else {},
        pairs_per_second=pairs_per_second,
        tokens_per_pair=tokens_per_pair,
        prompt_tokens=manifest.tokens.prompt,
        generated_tokens=manifest.tokens.generated,
        model=model,
        scoring=scoring,
        facts=_recorded_facts(directory, recipe, manifest),
        warnings=warnings,
    )


def fused_name(name: str, weight: float | None) -> str:
    """The name of a system's fused order; None: nothing says the weight."""
    return f"{name}, fused" if weight is None else f"{name}, fused {weight:g}"


def _matched(file: AnyPath, queries: Sequence[Query], *, may_be_empty: bool = False) -> tuple[Run, list[str]]:
    run = trec.read_run(file, may_be_empty=may_be_empty)
    return match_queries(run, queries, str(file), "queries.jsonl") if run else ({}, [])


def _min_score(recipe: dict[str, Any]) -> float | None:
    """The threshold of a run, which no pair may reach; None: all pairs are in it."""
    value = recipe.get("scoring", {}).get("min_score")
    return value if isinstance(value, int | float) else None


def _of_rows(name: str, failed: int, least: float | None) -> list[str]:
    """Warnings about rows that count in the means as nobody might expect."""
    place = "ranked after everything that was scored" if least is None else "not in the run"
    warnings = [f"{name}: {failed} failures; what failed is {place}"] if failed else []
    if least is not None:
        warnings.append(
            f"{name}: pairs below scoring.min_score {least:g} are not in the run; its first stage has them all"
        )
    return warnings


def _is_fused(directory: AnyPath, manifest: Manifest) -> bool:
    """Whether a run is fused: as its manifest says, or, with a copied run that has none, as its files do."""
    if manifest.fusion.weight is None:
        return not manifest.status and is_file(directory / PURE_RUN)
    if not is_file(directory / PURE_RUN):
        raise UnavailableError(
            f"run_dir: no {PURE_RUN} in {directory}, whose run is fused; the same `limrank rerank` command writes it"
        )
    return True


def _first_stage(directory: AnyPath) -> Run | None:
    """The first stage's order, from the rows of the rerank job. Scores are ``-rank``, as in ``run.trec``."""
    run: Run = {}
    for file in listed(directory / "rows"):
        if not is_chunk_file(file.name):
            continue
        for query_id, doc_id, rank in _ranks(file):
            run.setdefault(query_id, {})[doc_id] = -float(rank)
    return run or None


def _ranks(file: AnyPath) -> list[tuple[str, str, int]]:
    """``(query_id, doc_id, first_stage_rank)`` of one file of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ("query_id", "doc_id", "first_stage_rank")
    damaged = f"{file}: damaged; delete it, and the same `limrank rerank` command writes its rows"
    try:
        with opened(file) as stream:
            table = pq.ParquetFile(pa.BufferReader(stream.read())).read(columns=list(columns))
            rows = [tuple(row[name] for name in columns) for row in table.to_pylist()]
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise UserError(f"{damaged} ({type(error).__name__})") from None
    if not all(isinstance(value, kind) for row in rows for value, kind in zip(row, (str, str, int), strict=True)):
        raise UserError(damaged)
    return rows


def _flipped(data: DataConfig, qrels: Qrels, warnings: list[str]) -> dict[str, list[str]]:
    if data.format != "hub" or not data.name.startswith("followir/"):
        return {}
    try:
        topics = hub_benchmarks.flipped(data.name, data.path, data.revision)
    except UserError as error:
        # The other measures do not need the hub.
        warnings.append(f"p-MRR is left out: {error}")
        return {}
    both = {topic: ids for topic, ids in topics.items() if {f"{topic}-og", f"{topic}-changed"} <= qrels.keys()}
    if len(both) < len(topics):
        warnings.append(f"p-MRR is over {len(both)} of {len(topics)} topics: the selection splits or lacks the others")
    return both


def _cost(manifest: Manifest) -> tuple[float | None, float | None]:
    """``(pairs_per_second, tokens_per_pair)`` of a rerank job, None where it did not record them. Rows of the first
    stage have no cost."""
    pairs, seconds = manifest.counts.get("rows"), manifest.seconds.get("work")
    spent = (manifest.tokens.prompt or 0) + (manifest.tokens.generated or 0)
    if not pairs or not spent:
        return None, None
    return (pairs / seconds if seconds else None), spent / pairs


def _system(recipe: dict[str, Any], directory: AnyPath) -> tuple[str, str]:
    """``(model, scoring)`` of a rerank job: the model's id and the mode (``budget 256``); empty where the recipe does
    not have them."""
    model = recipe.get("model", {}).get("id") or ""
    mode = recipe.get("scoring", {}).get("mode") or ""
    if not isinstance(model, str) or not isinstance(mode, str):
        raise UserError(f"{directory / 'config.yaml'}: model.id and scoring.mode should be text")
    if mode == "budget":
        named = {name: recipe["scoring"][name] for name in ("mode", "max_think_tokens") if name in recipe["scoring"]}
        settings = _section(ScoringConfig, {"scoring": named}, "scoring", directory)
        mode = f"budget {settings.think_tokens}"
    samples = recipe.get("scoring", {}).get("samples", 1)
    return model, f"{mode}, {samples} chains" if isinstance(samples, int) and samples > 1 else mode


def _system_name(model: str, scoring: str) -> str:
    if scoring == "none":
        return "first stage"
    return f"{path_of(model).name}, {scoring}" if model and scoring else ""


def _recorded_facts(directory: AnyPath, recipe: dict[str, Any], manifest: Manifest) -> dict[str, str]:
    facts = {"run": str(directory)}
    recorded = {"status": manifest.status, "started_at": manifest.started_at, "config_hash": manifest.config_hash}
    facts |= {name: value for name, value in recorded.items() if value}
    facts |= _revision(manifest.data.model_dump(exclude_unset=True))
    if manifest.versions:
        facts["versions of the run"] = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    if recipe:
        facts["recipe"] = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip()
    return facts


def _revision(data: Mapping[str, str | None]) -> dict[str, str]:
    """The report's fact about data from the hub. ``data`` is as ``benchmarks.provenance`` returns it."""
    return {"data revision": data.get("revision") or "the hub's newest"} if data else {}


def _manifest(directory: AnyPath) -> Manifest:
    """The run's manifest; an empty one where it is missing, as it may be with a copied run."""
    return read_manifest(Storage(str(directory))) or Manifest()


def _recipe(directory: AnyPath) -> dict[str, Any]:
    """The contents of ``config.yaml``; empty where it is missing."""
    path = directory / "config.yaml"
    data = _bytes(path)
    if data is None:
        return {}
    values = parse_yaml(data, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: should be a mapping of keys to values")
    for name in ("data", "model", "scoring"):
        if not isinstance(values.get(name, {}), dict):
            raise UserError(f"{path}: {name}: should be a section of keys")
    return values


def _bytes(path: AnyPath) -> bytes | None:
    """The contents of a file; None where there is none. Raises UserError for a folder of its name."""
    if kind_of(path) == "missing":
        return None
    with opened(path) as file:
        return file.read()


def _section(kind: type[ASection], recipe: Mapping[str, Any], name: str, directory: AnyPath) -> ASection:
    """A section of a run's recipe, checked."""
    return checked(kind, recipe[name], f"{directory / 'config.yaml'}: {name}")
