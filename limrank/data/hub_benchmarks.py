"""Benchmarks of the Hugging Face hub, read through ``datasets``.

============================  ==================================  =========================
name                          repository                          judged by
============================  ==================================  =========================
``bright/<subset>``           ``xlangai/BRIGHT``                  ``gold_ids``, grade 1
``litsearch``                 ``princeton-nlp/LitSearch``         ``corpusids``, grade 1
``followir/<collection>``     ``jhu-clsp/…-instructions-mteb``    config ``default``
============================  ==================================  =========================

Every function takes ``path``, a local directory of the repository's layout (its ``README.md`` names the files
of each config) to read instead of the hub, and ``revision``, a git revision of the repository on the hub:
``mteb`` for that of :data:`MTEB_REVISIONS`, None for the newest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from limrank.data.beir import excluded_ids, judged_benchmark
from limrank.data.hub import HubRepository
from limrank.errors import LimrankError, UserError, first_line
from limrank.parsing import brief, clipped
from limrank.records import Benchmark, Document, Qrels, Query, Run

BRIGHT_SUBSETS = (
    "biology",
    "earth_science",
    "economics",
    "psychology",
    "robotics",
    "stackoverflow",
    "sustainable_living",
    "leetcode",
    "pony",
    "aops",
    "theoremqa_questions",
    "theoremqa_theorems",
)
_TASKS = {
    "aops": "bright_aops",
    "leetcode": "bright_leetcode",
    "pony": "bright_pony",
    "theoremqa_questions": "bright_theoremqa",
    "theoremqa_theorems": "bright_theoremqa",
}
"""Subsets of BRIGHT with a task sentence of their own → the prompt that holds it."""

FOLLOWIR_COLLECTIONS = ("core17", "robust04", "news21")
NAMES = (
    *(f"bright/{subset}" for subset in BRIGHT_SUBSETS),
    "litsearch",
    *(f"followir/{collection}" for collection in FOLLOWIR_COLLECTIONS),
)

MTEB_REVISIONS = {
    "xlangai/BRIGHT": "a75a0eb483f6a5233a6efc2d63d71540a4443dfb",
    "princeton-nlp/LitSearch": "9573fb284a1026c998df47024b888a163f0f0e25",
    "jhu-clsp/core17-instructions-mteb": "7030c7efc3585d9020f243b12862997889243b78",
    "jhu-clsp/news21-instructions-mteb": "39db677749b3b783bb277d0e2d4712f5f133f52b",
    "jhu-clsp/robust04-instructions-mteb": "0a3efedfcac0a7f859c46cff3a0fac0f8747b28f",
}
"""The revisions that mteb's tasks read, and of which its scores are published. BRIGHT has changed since."""


def load(name: str, split: str = "test", path: str | None = None, revision: str | None = None) -> Benchmark:
    """Load a benchmark by its name (see :data:`NAMES`); each has the split ``test`` only.

    Raises:
        UserError: the name or the split is unknown, or the hub cannot be reached.
    """
    repository = _repository(name, path, revision)
    if split != "test":
        raise UserError(f"data.split: {name} has no split {split!r}, only test")
    with _as_published(path or name):
        if name.startswith("bright/"):
            return _bright(name, repository)
        if name == "litsearch":
            return _litsearch(name, repository)
        return replace(_followir(name, repository), published=partial(top_ranked, name, path, revision))


def flipped(name: str, path: str | None = None, revision: str | None = None) -> dict[str, list[str]]:
    """FollowIR's ``qrel_diff``: topic id → documents relevant under the original instruction but not the changed one."""
    rows = _followir_repository(name, path, revision, "changed instructions").only_split("qrel_diff")
    with _as_published(path or name):
        return {str(row["query-id"]): [str(doc_id) for doc_id in row["corpus-ids"]] for row in rows}


def top_ranked(name: str, path: str | None = None, revision: str | None = None) -> Run:
    """FollowIR's candidates to rerank as a run: 1000 documents for each query (``-og`` and ``-changed``).

    A score is the negated rank in the published list.
    """
    rows = _followir_repository(name, path, revision, "published candidates").only_split("top_ranked")
    with _as_published(path or name):
        return {
            str(row["query-id"]): {str(doc_id): -float(rank) for rank, doc_id in enumerate(row["corpus-ids"], start=1)}
            for row in rows
        }


def query_template(name: str) -> str | None:
    """The name of the prompt (in ``limrank/prompts``) that Rank1 and LimRank put a benchmark's queries into.

    BRIGHT's subsets have one; for other benchmarks it is None.
    """
    family, _, subset = name.partition("/")
    return _TASKS.get(subset, "bright") if family == "bright" else None


def rewritten(name: str, config: str, path: str | None = None, revision: str | None = None) -> dict[str, str]:
    """BRIGHT's queries as a model rewrote them, by id: the paper's first stage searches for these.

    Args:
        config: of the repository, such as ``gpt4_reason``.
    """
    repository = _repository(name, path, revision)
    if not name.startswith("bright/"):
        raise UserError(f"data.first_stage_queries: {name} has no {config}, only bright/<subset> has; a file will do")
    with _as_published(path or name):
        rows = repository.rows(config, name.removeprefix("bright/"))
        return {str(row["id"]): _text(row, "query") for row in rows}


@contextmanager
def _as_published(source: str) -> Iterator[None]:
    """Turn errors of rows that cannot be read, or lack a column, into a UserError that names their source."""
    try:
        yield
    except LimrankError:
        raise
    except KeyError as error:
        raise UserError(f"data: {source}: a row without {clipped(first_line(error))}") from None
    except Exception as error:  # what datasets raises depends on what is damaged
        raise UserError(f"data: {source}: a row cannot be read: {clipped(first_line(error))}") from None


def _text(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise UserError(f"data: {key} should be text, not {brief(value)}")
    return value


def _bright(name: str, repository: HubRepository) -> Benchmark:
    subset = name.removeprefix("bright/")
    queries: list[Query] = []
    qrels: Qrels = {}
    for row in repository.rows("examples", subset):
        query_id = str(row["id"])
        queries.append(Query(query_id, _text(row, "query"), excluded=excluded_ids(row["excluded_ids"])))
        qrels[query_id] = dict.fromkeys(row["gold_ids"], 1)
    documents = [Document(_text(row, "id"), _text(row, "content")) for row in repository.rows("documents", subset)]
    return judged_benchmark(name, documents, queries, qrels)


def _litsearch(name: str, repository: HubRepository) -> Benchmark:
    # The queries have no ids: as in the published runs, the id is the index in the file.
    queries: list[Query] = []
    qrels: Qrels = {}
    for number, row in enumerate(repository.rows("query", "full")):
        queries.append(Query(str(number), _text(row, "query")))
        qrels[str(number)] = {str(doc_id): 1 for doc_id in row["corpusids"]}
    documents = [
        Document(str(row["corpusid"]), row["abstract"] or "", title=row["title"] or "")
        for row in repository.rows("corpus_clean", "full")
    ]
    return judged_benchmark(name, documents, queries, qrels)


def _followir(name: str, repository: HubRepository) -> Benchmark:
    instructions = {str(row["query-id"]): row["instruction"] for row in repository.only_split("instruction")}
    queries = [
        Query(query_id, _text(row, "text"), instruction=instructions.get(query_id) or "")
        for row in repository.only_split("queries")
        for query_id in [_id(row)]
    ]
    qrels: Qrels = {}
    for row in repository.only_split("default"):
        qrels.setdefault(str(row["query-id"]), {})[str(row["corpus-id"])] = int(row["score"])
    documents = [
        Document(_id(row), _text(row, "text"), title=row.get("title") or "") for row in repository.only_split("corpus")
    ]
    benchmark = judged_benchmark(name, documents, queries, qrels)
    without = [query.query_id for query in queries if not query.instruction]
    if not without:
        return benchmark
    warning = f"{name}: {len(without)} of {len(queries)} queries have no instruction, such as {brief(without[0])}"
    if len(without) == len(queries):
        raise UserError(
            f"data: {warning}; 'instruction' is for {', '.join(map(brief, list(instructions)[:3])) or 'none'}"
        )
    return replace(benchmark, warnings=[*benchmark.warnings, warning])


def _repository(name: str, path: str | None, revision: str | None) -> HubRepository:
    """The repository of a benchmark. Raises UserError: there is no benchmark of that name."""
    if name not in NAMES:
        raise UserError(f"data.name: {name!r} is none of {', '.join(NAMES)}")
    family, _, part = name.partition("/")
    if family == "followir":
        repository = f"jhu-clsp/{part}-instructions-mteb"
    else:
        repository = {"bright": "xlangai/BRIGHT", "litsearch": "princeton-nlp/LitSearch"}[family]
    if path:
        return HubRepository(path, "data.name")
    return HubRepository(repository, "data.name", MTEB_REVISIONS[repository] if revision == "mteb" else revision)


def _followir_repository(name: str, path: str | None, revision: str | None, what: str) -> HubRepository:
    """The repository of a FollowIR benchmark. Raises UserError: it is another benchmark, which has no ``what``."""
    repository = _repository(name, path, revision)
    if not name.startswith("followir/"):
        raise UserError(f"data.name: {name} has no {what}; followir/<collection> has")
    return repository


def pinned(name: str, revision: str | None) -> str | None:
    """The git revision that a recipe's ``data.revision`` stands for; None: the newest.

    Raises:
        UserError: there is no such benchmark.
    """
    return _repository(name, None, revision).revision


def _id(row: dict[str, Any]) -> str:
    # Older revisions of the mteb layout have `_id`, newer ones `id`.
    return str(row["_id"] if "_id" in row else row["id"])
