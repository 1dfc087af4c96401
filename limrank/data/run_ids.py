"""Match the query and document ids of a run to those of a benchmark.

Ids that do not match would give empty lists and scores of 0 without an explanation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from limrank.errors import UserError
from limrank.parsing import brief
from limrank.records import Benchmark, Query, Run

_MTEB_PREFIXES = {"litsearch": ("q", "d")}
"""The prefixes that mteb puts before a benchmark's query and document ids: its runs have ``q0`` and ``d123``."""


def match_run(run: Run, benchmark: Benchmark, where: str) -> tuple[Run, list[str]]:
    """A run's lists for a benchmark's queries, and warnings about ids that do not match.

    mteb's prefixes are removed if none of the run's ids is an id of the benchmark.

    Args:
        where: the name of the run, such as its file, for messages.

    Raises:
        UserError: the run has no list for any of the queries.
    """
    run, warnings = _without_prefixes(run, benchmark, where)
    lists, left_out = match_queries(run, benchmark.queries, where, benchmark.name, benchmark.unselected)
    return lists, warnings + left_out


def match_queries(
    run: Run, queries: Sequence[Query], where: str, whose: str, unselected: Collection[str] = ()
) -> tuple[Run, list[str]]:
    """Like :func:`match_run`, for query ids only.

    Args:
        whose: the source of the queries, for messages.
        unselected: ids of queries that are not judged, or that ``data.max_queries`` left out; there is no
            warning about their lists.
    """
    asked = {query.query_id for query in queries}
    unknown = [query_id for query_id in run if query_id not in asked and query_id not in unselected]
    if not any(run.get(query_id) for query_id in asked):
        if len(unknown) < len(run):
            raise UserError(f"{where}: has no list for any of the {len(asked)} queries that are judged and selected")
        raise UserError(
            f"{where}: has no list for any of the {len(asked)} queries of {whose}: its {len(run)} query ids are such as "
            f"{brief(unknown[0])}, those of {whose} such as {brief(queries[0].query_id)}"
        )
    warnings = []
    if unknown:
        warnings.append(
            f"{where}: {len(unknown)} of its {len(run)} lists are for queries that {whose} does not have, such as "
            f"{brief(unknown[0])}: they are left out"
        )
    return {query_id: scores for query_id, scores in run.items() if query_id in asked}, warnings


def unknown_documents(run: Run, benchmark: Benchmark) -> str:
    """A sentence about the documents of a run that the corpus lacks; empty if it has them all."""
    known = {document.doc_id for document in benchmark.documents}
    ranked = {doc_id: query_id for query_id, scores in run.items() for doc_id in scores}
    unknown = [doc_id for doc_id in ranked if doc_id not in known]
    if not unknown:
        return ""
    warning = (
        f"the corpus lacks {len(unknown)} of the {len(ranked)} documents that it ranks, such as "
        f"{brief(unknown[0])} of query {brief(ranked[unknown[0]])}"
    )
    if len(unknown) == len(ranked):
        warning += f": its ids seem to be of another layout; the corpus has {brief(benchmark.documents[0].doc_id)}"
    return warning


def _without_prefixes(run: Run, benchmark: Benchmark, where: str) -> tuple[Run, list[str]]:
    if benchmark.name not in _MTEB_PREFIXES:
        return run, []
    of_queries, of_documents = _MTEB_PREFIXES[benchmark.name]
    queries = {query.query_id for query in benchmark.queries} | benchmark.unselected
    documents = {document.doc_id for document in benchmark.documents}
    query_ids = _without_prefix(run, of_queries, queries)
    ranked = dict.fromkeys(doc_id for scores in run.values() for doc_id in scores)
    doc_ids = _without_prefix(ranked, of_documents, documents)
    if not query_ids and not doc_ids:
        return run, []
    mapped = {
        query_ids.get(query_id, query_id): {doc_ids.get(doc_id, doc_id): score for doc_id, score in scores.items()}
        for query_id, scores in run.items()
    }
    examples = [f"{brief(one)} for {brief(other)}" for one, other in (*_first(query_ids), *_first(doc_ids))]
    return mapped, [f"{where}: its ids are as mteb writes them, and read as {benchmark.name}'s: {', '.join(examples)}"]


def _without_prefix(ids: Collection[str], prefix: str, known: Collection[str]) -> dict[str, str]:
    """Ids → the same without their prefix; empty if some are known as they are, or none is known without it."""
    shorter = {an_id: an_id.removeprefix(prefix) for an_id in ids if an_id.startswith(prefix)}
    if any(an_id in known for an_id in ids) or not any(an_id in known for an_id in shorter.values()):
        return {}
    return shorter


def _first(ids: dict[str, str]) -> list[tuple[str, str]]:
    return list(ids.items())[:1]
