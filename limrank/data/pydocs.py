"""pydocs: a reasoning-retrieval benchmark made from the standard library of the Python that runs it.

The documents are the docstrings of the standard library's public functions, classes, methods and properties. The
queries (``pydocs_queries.yaml``) are hand-written needs in words that the docstrings avoid, with graded
relevance: 2 satisfies the need, 1 helps or is a sound alternative. Nothing is downloaded.

A document's id is the name by which the object is imported, ``heapq.merge`` or ``collections.deque.rotate``;
builtins have their bare names, ``sorted`` or ``str.split``. An object that several modules export occurs once.
Its own name comes before an alias, then a builtin, then the module family that defines it, then the shortest
path (``random.sample`` before ``random.Random.sample``).
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from functools import cache
from importlib import resources
from typing import Any

import yaml

from limrank.errors import UserError
from limrank.records import Benchmark, Document, Qrels, Query, Seed

SPLITS = ("dev", "test")

_log = logging.getLogger(__name__)


def documents() -> list[Document]:
    """The documented public standard library, sorted by id.

    A title is the id with the signature, if Python knows it. A text is the docstring without its indentation.
    Two documents never have the same text.
    """
    return list(_documents())


def queries(split: str) -> list[Query]:
    """The queries of ``split`` ("dev" or "test") in the order of the file."""
    return [Query(entry["id"], entry["query"]) for entry in _judged(split)]


def qrels(split: str) -> Qrels:
    """The judgements of ``split`` as written, including documents that this Python lacks."""
    return {entry["id"]: dict(entry["relevant"]) for entry in _judged(split)}


def benchmark(split: str) -> Benchmark:
    """The benchmark of ``split``, with judgements of documents that this Python has.

    A relevant document that it lacks is removed from the judgements, and a query without relevant documents
    from the queries; ``warnings`` has a sentence for each.

    Raises:
        UserError: there is no such split.
    """
    judgements = qrels(split)
    docs = documents()
    known = {doc.doc_id for doc in docs}
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    kept: Qrels = {}
    notes = []
    for query_id, grades in judgements.items():
        notes += [
            f"{query_id}: {doc_id} is not documented in this {python} and left the judgements."
            for doc_id in grades
            if doc_id not in known
        ]
        kept[query_id] = {doc_id: grade for doc_id, grade in grades.items() if doc_id in known}
        if not kept[query_id]:
            del kept[query_id]
            notes.append(f"{query_id}: dropped, for this {python} documents nothing that is relevant to it.")
    asked = [query for query in queries(split) if query.query_id in kept]
    return Benchmark(f"pydocs/{split}", docs, asked, kept, notes)


def seeds() -> list[Seed]:
    """Short direct needs, each with the contents of the document that answers it.

    They share no query and no relevant document with the test split. A seed whose document this Python lacks
    is left out, and a warning is logged.
    """
    by_id = {doc.doc_id: doc for doc in documents()}
    found = []
    for entry in _read("pydocs_seeds.yaml"):
        if doc := by_id.get(entry["doc"]):
            found.append(Seed(entry["id"], entry["query"], doc.contents))
        else:
            _log.warning("seed %s left out: this Python does not document %s", entry["id"], entry["doc"])
    return found


def _judged(split: str) -> list[dict[str, Any]]:
    if split not in SPLITS:
        raise UserError(f"pydocs has no split {split!r}: choose one of {', '.join(SPLITS)}")
    return [entry for entry in _read("pydocs_queries.yaml") if entry["split"] == split]


@cache
def _read(name: str) -> list[dict[str, Any]]:
    return yaml.safe_load(resources.files("limrank.data").joinpath(name).read_text("utf-8"))


@cache
def _documents() -> tuple[Document, ...]:
    # A clean interpreter: the corpus must not depend on what this process has patched (pytest replaces
    # threading.excepthook) or on -OO, and hundreds of imports would stay in this process. -I -S leaves out the
    # environment and site-packages.
    script = resources.files("limrank.data").joinpath("pydocs_corpus.py")
    with resources.as_file(script) as path:
        walk = subprocess.run(
            [sys.executable, "-I", "-S", "-W", "ignore", str(path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if walk.returncode != 0:
        raise RuntimeError(f"the standard library could not be walked:\n{walk.stderr}")
    return tuple(Document(*row) for row in json.loads(walk.stdout))
