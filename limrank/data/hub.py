"""Benchmarks of the Hugging Face hub, read through ``datasets``.

============================  ==================================  =========================
name                          repository                          judged by
============================  ==================================  =========================
``bright/<subset>``           ``xlangai/BRIGHT``                  ``gold_ids``, grade 1
``litsearch``                 ``princeton-nlp/LitSearch``         ``corpusids``, grade 1
``followir/<collection>``     ``jhu-clsp/…-instructions-mteb``    config ``default``
============================  ==================================  =========================

Every function takes ``path``: a local directory of the repository's layout (its
``README.md`` names the files of each config), which is then read instead of the hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from limrank.data.beir import excluded_ids, judged_benchmark
from limrank.errors import LimrankError, UnavailableError, UserError, first_line
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
FOLLOWIR_COLLECTIONS = ("core17", "robust04", "news21")
NAMES = (
    *(f"bright/{subset}" for subset in BRIGHT_SUBSETS),
    "litsearch",
    *(f"followir/{collection}" for collection in FOLLOWIR_COLLECTIONS),
)


def load(name: str, split: str = "test", path: str | None = None) -> Benchmark:
    """Load a benchmark by its name (see :data:`NAMES`); each has the split ``test`` only.

    Raises:
        UserError: the name or the split is unknown, or the hub cannot be reached.
    """
    _check_name(name)
    if split != "test":
        raise UserError(f"data.split: {name} has no split {split!r}, only test")
    family, _, part = name.partition("/")
    with _as_published(path or name):
        if family == "bright":
            return _bright(part, path)
        return _followir(part, path) if family == "followir" else _litsearch(path)


def flipped(name: str, path: str | None = None) -> dict[str, list[str]]:
    """FollowIR's ``qrel_diff``: for each topic (a bare id) the documents that are relevant
    under the original instruction and no longer under the changed one."""
    rows = _followir_rows(_followir_repository(name), "qrel_diff", path)
    with _as_published(path or name):
        return {str(row["query-id"]): [str(doc_id) for doc_id in row["corpus-ids"]] for row in rows}


def top_ranked(name: str, path: str | None = None) -> Run:
    """FollowIR's candidates to rerank: 1000 documents for each query (``-og`` and
    ``-changed``), as a run whose scores are the negated places in the published list."""
    rows = _followir_rows(_followir_repository(name), "top_ranked", path)
    with _as_published(path or name):
        return {
            str(row["query-id"]): {
                str(doc_id): -float(place) for place, doc_id in enumerate(row["corpus-ids"], start=1)
            }
            for row in rows
        }


@contextmanager
def _as_published(source: str) -> Iterator[None]:
    """Rows that are not as the table above says, or cannot be read, are the fault of their source."""
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


def _bright(subset: str, path: str | None) -> Benchmark:
    repository = "xlangai/BRIGHT"
    queries: list[Query] = []
    qrels: Qrels = {}
    for row in _rows(repository, "examples", subset, path):
        query_id = str(row["id"])
        queries.append(Query(query_id, _text(row, "query"), excluded=excluded_ids(row["excluded_ids"])))
        qrels[query_id] = dict.fromkeys(row["gold_ids"], 1)
    documents = [
        Document(_text(row, "id"), _text(row, "content")) for row in _rows(repository, "documents", subset, path)
    ]
    return judged_benchmark(f"bright/{subset}", documents, queries, qrels)


def _litsearch(path: str | None) -> Benchmark:
    # The queries have no ids of their own: their number in the file, from 0, as in the
    # published runs.
    repository = "princeton-nlp/LitSearch"
    queries: list[Query] = []
    qrels: Qrels = {}
    for number, row in enumerate(_rows(repository, "query", "full", path)):
        queries.append(Query(str(number), _text(row, "query")))
        qrels[str(number)] = {str(doc_id): 1 for doc_id in row["corpusids"]}
    documents = [
        Document(str(row["corpusid"]), row["abstract"] or "", title=row["title"] or "")
        for row in _rows(repository, "corpus_clean", "full", path)
    ]
    return judged_benchmark("litsearch", documents, queries, qrels)


def _followir(collection: str, path: str | None) -> Benchmark:
    name = f"followir/{collection}"
    repository = _followir_repository(name)
    instructions = {str(row["query-id"]): row["instruction"] for row in _followir_rows(repository, "instruction", path)}
    queries = [
        Query(query_id, _text(row, "text"), instruction=instructions.get(query_id) or "")
        for row in _followir_rows(repository, "queries", path)
        for query_id in [_id(row)]
    ]
    qrels: Qrels = {}
    for row in _followir_rows(repository, "default", path):
        qrels.setdefault(str(row["query-id"]), {})[str(row["corpus-id"])] = int(row["score"])
    documents = [
        Document(_id(row), _text(row, "text"), title=row.get("title") or "")
        for row in _followir_rows(repository, "corpus", path)
    ]
    return judged_benchmark(name, documents, queries, qrels)


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise UserError(f"data.name: {name!r} is none of {', '.join(NAMES)}")


def _followir_repository(name: str) -> str:
    _check_name(name)
    family, _, collection = name.partition("/")
    if family != "followir":
        raise UserError(f"data.name: {name} has no changed instructions; followir/<collection> has")
    return f"jhu-clsp/{collection}-instructions-mteb"


def _id(row: dict[str, Any]) -> str:
    # Older revisions of the mteb layout have `_id`, newer ones `id`.
    return str(row["_id"] if "_id" in row else row["id"])


def _followir_rows(repository: str, config: str, path: str | None) -> Iterator[dict[str, Any]]:
    """The rows of a config's only split, whose name differs from revision to revision."""
    splits = _load(repository, config, path)
    if len(splits) != 1:
        raise UserError(f"data.name: {config!r} of {path or repository} should have one split, not {', '.join(splits)}")
    yield from next(iter(splits.values()))


def _rows(repository: str, config: str, split: str, path: str | None) -> Iterator[dict[str, Any]]:
    splits = _load(repository, config, path)
    if split not in splits:
        raise UserError(
            f"data.name: {config!r} of {path or repository} has no split {split!r}; there are: {', '.join(splits)}"
        )
    yield from splits[split]


def _load(repository: str, config: str, path: str | None) -> dict[str, Any]:
    return load_splits(path or repository, config, key="data.name")


def load_splits(source: str, config: str | None, *, key: str) -> dict[str, Any]:
    """The splits of a repository's config, by name; config None is the only one, or the default.

    Args:
        source: a repository of the hub, or a local directory of its layout.
        key: the recipe's, for a person.

    Raises:
        UserError: it cannot be loaded.
    """
    import datasets

    with told(key, repr(config) + f" of {source}" if config else source):
        return datasets.load_dataset(source, config)


@contextmanager
def told(key: str, what: str) -> Iterator[None]:
    """What ``datasets`` raises for a repository, in one line."""
    import datasets

    try:
        yield
    except Exception as error:  # of files that are here, by what is damaged
        # datasets raises ConnectionError (an OSError) where the hub cannot be reached, a
        # FileNotFoundError for a repository and a ValueError for a config that is not there.
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
        reason = clipped(first_line(cause))
        kind = UnavailableError if isinstance(error, ConnectionError) else UserError
        raise kind(f"{key}: cannot load {what}: {reason}") from None
