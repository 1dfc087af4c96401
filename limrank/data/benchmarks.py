"""The benchmark of a recipe's ``data`` section, and the hash of its contents."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path
from typing import get_args

from limrank import prompts
from limrank.config import DataConfig, Rewriting
from limrank.data import beir, hub_benchmarks
from limrank.errors import UserError
from limrank.files import AnyPath, kind_of, opened, path_of, printable_path
from limrank.parsing import brief
from limrank.records import Benchmark
from limrank.text.analyzer import words


def load(data: DataConfig) -> Benchmark:
    """Load the benchmark of a ``data`` section and select its queries.

    Raises:
        UserError: see the loader of the format.
    """
    if data.format == "beir":
        benchmark = beir.load(data.path, data.split)
    elif data.format == "hub":
        benchmark = hub_benchmarks.load(data.name, data.split, data.path, data.revision)
    elif data.format == "pydocs":
        from limrank.data import pydocs

        benchmark = pydocs.benchmark(data.split)
    else:
        raise UserError(f"data.format: {data.format} is no benchmark: only `limrank rerank` takes it")
    if not benchmark.queries:
        raise UserError(f"{benchmark.name}: no query is left to rerank or evaluate: the judgements name none of them")
    selected = without_themselves(select(benchmark, data.max_queries))
    if template := query_template(data):
        selected = replace(selected, queries=[replace(query, template=template) for query in selected.queries])
    return _with_rewritten_queries(selected, data) if data.first_stage_queries else selected


def query_template(data: DataConfig) -> str:
    """The text around a query in a reranker's prompt, with a placeholder for the query.

    It is empty if the reranker is given only the query: without a template, or with one that is nothing but the
    placeholder.

    Raises:
        UserError: there is no such prompt, it has no placeholder for the query, or it has another placeholder.
    """
    named = data.query_template or (hub_benchmarks.query_template(data.name) if data.format == "hub" else None)
    if named is None:
        return ""
    try:
        template = prompts.load(named)
    except UserError as error:
        raise UserError(f"data.query_template: {error}") from None
    if "{%" in template:
        raise UserError(
            "data.query_template: has {% … %}; it is a text with the placeholder {{ query }}, and nothing else"
        )
    placeholders = set(_PLACEHOLDER.findall(template))
    prompts.require_placeholders(placeholders, {"query"}, "data.query_template")
    if unknown := sorted(placeholders - {"query"}):
        raise UserError(f"data.query_template: {{{{ {unknown[0][:60]} }}}} is no placeholder of it; {{{{ query }}}} is")
    return "" if _PLACEHOLDER.fullmatch(template) else template


_PLACEHOLDER = re.compile(r"\{\{\s*(.*?)\s*\}\}", re.DOTALL)


def _with_rewritten_queries(benchmark: Benchmark, data: DataConfig) -> Benchmark:
    """The benchmark with the rewritten queries that BM25 searches for."""
    source = data.first_stage_queries
    texts = _rewritten(data)
    lacking = [query.query_id for query in benchmark.queries if not texts.get(query.query_id, "").strip()]
    if lacking:
        raise UserError(
            f"data.first_stage_queries: {source} has no text for {len(lacking)} of the {len(benchmark.queries)} queries "
            f"of {benchmark.name}, such as {brief(lacking[0])}"
        )
    queries = [replace(query, retrieval_text=texts[query.query_id]) for query in benchmark.queries]
    return replace(benchmark, queries=queries)


def _rewritten(data: DataConfig) -> dict[str, str]:
    """``{query_id: text}`` of ``data.first_stage_queries``."""
    source = data.first_stage_queries
    if source in get_args(Rewriting):
        if data.format != "hub":
            raise UserError(f"data.first_stage_queries: {source} is BRIGHT's; data.format={data.format} takes a file")
        return hub_benchmarks.rewritten(data.name, source, data.path, data.revision)
    if kind_of(source) != "file":
        raise UserError(
            f"data.first_stage_queries: {printable_path(source)}: no such file, and BRIGHT's are {', '.join(get_args(Rewriting))}"
        )
    return {query.query_id: query.text for query in beir.read_queries(source)}


def without_themselves(benchmark: Benchmark) -> Benchmark:
    """Exclude each query's own document from its candidates.

    ArguAna's corpus holds its queries. A query's own document has its id, and its text or title is the query.
    BEIR compares only the ids, and so drops documents that share a number with a query by chance (Cranfield's).
    A document that is judged relevant stays.
    """
    asked = {query.query_id: query for query in benchmark.queries}
    own = {
        document.doc_id
        for document in benchmark.documents
        if (query := asked.get(document.doc_id))
        and query.query_id not in query.excluded
        and benchmark.qrels.get(query.query_id, {}).get(query.query_id, 0) <= 0
        and any(is_same_text(query.text, text) for text in (document.text, document.contents, document.title))
    }
    if not own:
        return benchmark
    queries = [
        replace(query, excluded=query.excluded | {query.query_id}) if query.query_id in own else query
        for query in benchmark.queries
    ]
    warning = f"{len(own)} queries are in the corpus themselves, by id and text: they are no candidates of their own"
    return replace(benchmark, queries=queries, warnings=[*benchmark.warnings, warning])


_SAME = 0.8
"""The least share of the words of both texts that must be common to them, in order."""


def is_same_text(one: str, other: str) -> bool:
    """Whether two texts are the same but for case, white space, punctuation and a few words."""
    first, second = list(words(one)), list(words(other))
    compared = SequenceMatcher(None, first, second, autojunk=False)
    # The first ratio compares only lengths: it rules most texts out at no cost.
    return bool(first and second) and compared.real_quick_ratio() >= _SAME and compared.ratio() >= _SAME


def select(benchmark: Benchmark, max_queries: int | None) -> Benchmark:
    """The benchmark with at most ``max_queries`` queries and their judgements.

    The ``k`` queries of ``n`` are evenly spaced: those at the indexes ``i·n // k`` for ``i`` in ``0…k-1``.
    """
    n = len(benchmark.queries)
    if max_queries is None or max_queries >= n:
        return benchmark
    queries = [benchmark.queries[i * n // max_queries] for i in range(max_queries)]
    qrels = {query.query_id: benchmark.qrels[query.query_id] for query in queries if query.query_id in benchmark.qrels}
    unselected = frozenset(query.query_id for query in benchmark.queries) - {query.query_id for query in queries}
    return replace(benchmark, queries=queries, qrels=qrels, unselected=benchmark.unselected | unselected)


def fingerprint(data: DataConfig) -> str:
    """SHA-256 (hex) of the data that a job's rows depend on.

    It covers the documents, the queries, their selection (split, ``max_queries``) and the queries that BM25
    searches for, and not the judgements. A local folder is hashed by the contents of its files, not by its
    path; a benchmark of the hub by its name and ``data.revision``, without a request to the hub.

    Raises:
        UserError: a file is missing.
    """
    digest = hashlib.sha256()
    for piece in _pieces(data):
        # With the length in front, "ab", "c" differs from "a", "bc".
        digest.update(f"{len(piece)}:".encode() + piece)
    return digest.hexdigest()


def provenance(data: DataConfig) -> dict[str, str | None]:
    """The ``name`` and git ``revision`` (None: the newest) of a benchmark of the hub, for a run's manifest.

    It is empty for a folder, whose contents the config hash covers.
    """
    if data.format != "hub" or data.path:
        return {}
    return {"name": data.name, "revision": hub_benchmarks.pinned(data.name, data.revision)}


def file_fingerprint(path: str | AnyPath) -> str:
    """SHA-256 (hex) of a file's contents. Raises UserError: it is missing."""
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _pieces(data: DataConfig) -> Iterator[bytes]:
    yield json.dumps([data.format, data.split, data.max_queries]).encode()
    if data.format == "beir":
        for name in ("corpus.jsonl", "queries.jsonl"):
            yield from _blocks(beir.find_file(path_of(data.path), name))
    elif data.format == "hub":
        yield data.name.encode()
        if data.revision:
            yield f"at {hub_benchmarks.pinned(data.name, data.revision)}".encode()
        if data.path:
            for file in sorted(file for file in Path(data.path).rglob("*") if file.is_file()):
                yield from _blocks(file)
    else:
        from limrank.data import pydocs

        for document in pydocs.documents():
            yield json.dumps([document.doc_id, document.title, document.text]).encode()
        for query in pydocs.queries(data.split):
            yield json.dumps([query.query_id, query.text]).encode()
    if data.first_stage_queries in get_args(Rewriting):
        yield f"asks {data.first_stage_queries}".encode()
    elif data.first_stage_queries:
        yield file_fingerprint(data.first_stage_queries).encode()


def _blocks(path: str | AnyPath) -> Iterator[bytes]:
    with opened(path, unpack=False) as file:
        while block := file.read(1 << 20):
            yield block
