"""The inputs of synthesis: seeds (a query and the passage that answers it) and personas.

A *source* of seeds is one of:

==============================  ========================================================
``"pydocs"``                    the built-in seeds, about the Python standard library
a BEIR folder                   each query with a relevant passage, and its best passage
a ``.jsonl``/``.parquet`` file  rows of ``query``, ``passage`` and ``seed_id`` or ``id``
a folder of ``datasets``        the same rows; ``train`` if there are several splits
``hub://OWNER/NAME``            a retrieval dataset or such rows (``hub_datasets.py``), or a
                                local directory of that layout
==============================  ========================================================

Personas are in a ``.jsonl`` file (``persona``, ``id``), in a dataset of the hub
(``hub://OWNER/NAME/CONFIG``) of such rows, or in any other text file, one a line. The name of a text file may
end in ``.gz``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from limrank.data import beir, tables
from limrank.data.hub_datasets import SCHEME, HubDataset
from limrank.data.trec import check_length, read_lines, read_qrels
from limrank.errors import UnavailableError, UserError, first_line
from limrank.files import AnyPath, is_folder, kind_of, path_of, printable_path
from limrank.parsing import brief, clipped
from limrank.records import Document, Persona, Qrels, Query, Seed
from limrank.storage import filesystem

_Rows = Iterator[tuple[int, str, dict[str, Any]]]
"""``(1-based number, location for messages, record)``."""

_SEED_KEYS = ("seed_id", "id", "query", "passage")

_log = logging.getLogger(__name__)


def load_seeds(source: str, max_seeds: int | None = None, *, seed: int = 0, key: str = "synthesis.seeds") -> list[Seed]:
    """The seeds of ``source``, or a sample of ``max_seeds`` of them, drawn by ``seed`` and in the order of the source.

    In a BEIR folder or a retrieval dataset, the judgements are those of the split ``train``, or else ``test``,
    or else the first by name. A query's passage is the contents of the document with its highest grade above
    0, the one judged first at a tie. Queries without such a document, or with a blank text, are left out; a
    logged warning counts those that are judged. Memory holds only the relevant documents of a corpus.

    In a file, a seed without an id gets its 1-based line (in Parquet: row) number.

    Args:
        key: the recipe's key, for messages.

    Raises:
        UserError: the source is missing, is of no kind above, or is empty; a key is missing or has the wrong
            type; or an id occurs twice. The message names the file and, if there is one, the line.
    """
    if source == "pydocs":
        from limrank.data import pydocs

        seeds = pydocs.seeds()
    elif dataset := _hub_dataset(source, key):
        seeds = _hub_seeds(dataset)
    elif kind_of(source) == "folder" and not tables.is_saved_dataset(path_of(source)):
        seeds = _beir_seeds(path_of(source))
    else:
        seeds = _row_seeds(_seed_rows(source, key), source)
    if max_seeds is None or max_seeds >= len(seeds):
        return seeds
    drawn = random.Random(f"{seed}/seeds").sample(range(len(seeds)), max_seeds)
    return [seeds[index] for index in sorted(drawn)]


def load_corpus(source: str, *, queries: bool = True) -> list[Document]:
    """All documents of ``source``, among which negatives can be mined.

    These are the documents of pydocs or of a corpus, or the distinct passages of rows, each with the id of the
    first seed that has it. The passage of every seed is the ``contents`` of one of them.

    Args:
        queries: False: rows need no query.

    Raises:
        UserError: see :func:`load_seeds`.
    """
    if source == "pydocs":
        from limrank.data import pydocs

        return pydocs.documents()
    dataset = _hub_dataset(source)
    if dataset and dataset.is_retrieval():
        return list(dataset.documents())
    if not dataset and is_folder(source) and not tables.is_saved_dataset(path_of(source)):
        return beir.read_corpus(beir.find_file(path_of(source), "corpus.jsonl"))
    # A passage that answers two seeds must not become a negative of the second.
    by_passage: dict[str, Document] = {}
    if queries:
        rows: Iterable[tuple[str, str]] = (
            (seed.seed_id, seed.passage) for seed in _row_seeds(_seed_rows(source), source)
        )
    else:
        identified = _identified(_seed_rows(source), "seed_id", "id")
        rows = ((row_id, _string(record, "passage", where)) for row_id, where, record in identified)
    for row_id, passage in rows:
        by_passage.setdefault(passage, Document(row_id, passage))
    if not by_passage:
        raise UserError(f"{source}: there are no passages")
    return list(by_passage.values())


def load_judged(source: str) -> dict[str, set[str]]:
    """The ids of the documents that are judged relevant to each query of a BEIR folder or a retrieval dataset: a seed
    has only the best of them. Other sources have no judgements.

    Raises:
        UserError: see :func:`load_seeds`.
    """
    if source == "pydocs":
        return {}
    if dataset := _hub_dataset(source):
        qrels = dataset.qrels() if dataset.is_retrieval() else {}
    elif is_folder(source) and not tables.is_saved_dataset(path_of(source)):
        qrels = read_qrels(_seed_qrels(path_of(source)))
    else:
        qrels = {}
    return {query_id: _relevant({query_id: grades}) for query_id, grades in qrels.items()}


def load_personas(path: str | None) -> list[Persona]:
    """The personas of a file or of a dataset of the hub; the built-in ones if ``path`` is None.

    The rows of a dataset or of a ``.jsonl`` file have ``persona`` and optionally ``id``. Any other file is text
    with one persona a line. Blank lines are skipped; a persona without an id gets its 1-based line number.

    Raises:
        UserError: the file is missing or empty, ``persona`` is missing or has the wrong type, or an id occurs
            twice. The message names the file and, if there is one, the line.
    """
    if path is None:
        with resources.as_file(resources.files("limrank.data").joinpath("personas.txt")) as built_in:
            return load_personas(str(built_in))
    dataset = HubDataset.of(path, "synthesis.personas") if path.startswith(SCHEME) else None
    if dataset or _is_jsonl(path):
        rows = dataset.rows(("id", "persona")) if dataset else _jsonl_rows(path)
        personas = [
            Persona(persona_id, _string(record, "persona", where).strip())
            for persona_id, where, record in _identified(rows, "id")
        ]
    else:
        personas = []
        for number, line in read_lines(path):
            check_length("a persona", line, f"{path}:{number}")
            personas.append(Persona(str(number), line.strip()))
    if not personas:
        raise UserError(f"{path}: there are no personas")
    return personas


def fingerprint(seeds: Iterable[Seed], personas: Iterable[Persona]) -> str:
    """SHA-256 (hex) of seeds and personas: their ids, texts and order, not their source."""
    digest = hashlib.sha256()
    # A JSON array a line: the end of a field or a record is unambiguous.
    for seed in seeds:
        digest.update(json.dumps(["seed", seed.seed_id, seed.query, seed.passage]).encode() + b"\n")
    for persona in personas:
        digest.update(json.dumps(["persona", persona.persona_id, persona.text]).encode() + b"\n")
    return digest.hexdigest()


def _hub_dataset(source: str, key: str = "synthesis.seeds") -> HubDataset | None:
    if not source.startswith(SCHEME) and (not is_folder(source) or tables.is_saved_dataset(path_of(source))):
        return None
    return HubDataset.of(source, key)


def _hub_seeds(dataset: HubDataset) -> list[Seed]:
    if not dataset.is_retrieval():
        return _row_seeds(dataset.rows(_SEED_KEYS), str(dataset))
    qrels = dataset.qrels()
    passages = {document.doc_id: document.contents for document in dataset.documents(_relevant(qrels))}
    seeds = _judged_seeds(dataset.queries(), qrels, passages, str(dataset))
    if not seeds:
        raise UserError(f"{dataset}: there are no seeds: no query has a relevant passage in the corpus")
    return seeds


def _beir_seeds(folder: AnyPath) -> list[Seed]:
    corpus_file = beir.find_file(folder, "corpus.jsonl")
    queries_file = beir.find_file(folder, "queries.jsonl")
    qrels_file = _seed_qrels(folder)
    qrels = read_qrels(qrels_file)
    relevant, passages, documents = _relevant(qrels), {}, 0
    for document in beir.scan_corpus(corpus_file):
        documents += 1
        if document.doc_id in relevant:
            passages[document.doc_id] = document.contents
    if not documents:
        raise UserError(f"{corpus_file}: the corpus is empty")
    seeds = _judged_seeds(beir.read_queries(queries_file), qrels, passages, str(folder))
    if not seeds:
        # No other split is tried: it may be the one that the model is evaluated on.
        raise UserError(
            f"{qrels_file}: there are no seeds: no query of {queries_file.name} has a relevant passage "
            f"in {corpus_file.name}; give the queries and passages of this split"
        )
    return seeds


def _relevant(qrels: Qrels) -> set[str]:
    return {doc_id for grades in qrels.values() for doc_id, grade in grades.items() if grade > 0}


def _judged_seeds(queries: Iterable[Query], qrels: Qrels, passages: Mapping[str, str], source: str) -> list[Seed]:
    """A seed for each query that has a relevant passage, with its best one."""
    seeds = []
    judged = 0
    for query in queries:
        grades = qrels.get(query.query_id, {})
        relevant = [doc_id for doc_id, grade in grades.items() if grade > 0]
        usable = [doc_id for doc_id in relevant if passages.get(doc_id, "").strip()]
        judged += bool(relevant)
        if usable and query.text.strip():
            best = max(usable, key=grades.__getitem__)  # the first judged at a tie
            seeds.append(Seed(query.query_id, query.text, passages[best]))
    if seeds and (lost := judged - len(seeds)):
        _log.warning("%s: %d judged queries left out: no text, or no relevant passage in the corpus", source, lost)
    return seeds


def _seed_qrels(folder: AnyPath) -> AnyPath:
    """The judgement file of the split train, or else test, or else the first by name."""
    files = beir.splits(folder)
    if not files:
        raise UserError(f"{folder / 'qrels'}: no judgements (.tsv) there; a seed is a query with a relevant passage")
    return files.get("train") or files.get("test") or files[min(files)]


def _row_seeds(rows: _Rows, source: str) -> list[Seed]:
    seeds = [
        Seed(seed_id, _string(record, "query", where), _string(record, "passage", where))
        for seed_id, where, record in _identified(rows, "seed_id", "id")
    ]
    if not seeds:
        raise UserError(f"{source}: there are no seeds")
    return seeds


def _seed_rows(path: str, key: str = "synthesis.seeds") -> _Rows:
    if dataset := _hub_dataset(path, key):
        return dataset.rows(_SEED_KEYS)
    kind = kind_of(path)
    if kind == "folder":
        return _dataset_rows(Path(path), key)
    if kind == "missing":
        raise UnavailableError(
            f"{printable_path(path)}: no such file or folder; seeds are pydocs, a BEIR folder, a .jsonl or .parquet file, "
            "a saved dataset, or hub://OWNER/NAME"
        )
    if _is_jsonl(path):
        return _jsonl_rows(path)
    if path_of(path).suffix == ".parquet":
        return _parquet_rows(path)
    raise UserError(f"{path}: seeds are not read from this kind of file; give a .jsonl or a .parquet file")


def _jsonl_rows(path: str) -> _Rows:
    for number, record in beir.read_jsonl(path):
        yield number, f"{path}:{number}", record


def _dataset_rows(folder: Path, key: str) -> _Rows:
    dataset, _ = tables.load_saved_dataset(folder, "train", key)
    columns = [name for name in _SEED_KEYS if name in dataset.column_names]
    number = 0
    try:
        for number, record in enumerate(dataset.select_columns(columns), start=1):
            yield number, f"{folder}: row {number}", record
    except Exception as error:  # what datasets raises depends on what is damaged
        raise UserError(f"{folder}: row {number + 1} cannot be read: {clipped(first_line(error))}") from None


def _parquet_rows(path: str) -> _Rows:
    import pyarrow.parquet as pq

    number = 0
    try:
        files, below = filesystem(path)
        with pq.ParquetFile(below, filesystem=files) as file:
            # Only these columns: others, such as embeddings, may be wide.
            columns = [name for name in _SEED_KEYS if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield number, f"{path}: row {number}", record
    except Exception as error:  # what pyarrow raises depends on what is damaged
        raise tables.unreadable(path, error) from None


def _identified(rows: _Rows, *keys: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield ``(id, location, record)`` for every row; ids are unique and not empty.

    An id is the value of the first of ``keys`` that is not missing or null, or else the row's number.
    """
    first_seen: dict[str, str] = {}
    for number, where, record in rows:
        key = next((key for key in keys if record.get(key) is not None), None)
        value = number if key is None else record[key]
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise UserError(f"{where}: {key} is of type {type(value).__name__}; it should be a string")
        an_id = str(value)
        if not an_id.strip():
            raise UserError(f"{where}: {key} is empty")
        if an_id in first_seen:
            what = f"{key} {brief(an_id)}" if key else f"the number {an_id!r}, in place of a missing id,"
            raise UserError(f"{where}: {what} is there twice: first at {first_seen[an_id]}")
        first_seen[an_id] = where
        yield an_id, where, record


def _string(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if value is None:
        raise UserError(f"{where}: {key} is missing")
    if not isinstance(value, str):
        raise UserError(f"{where}: {key} is of type {type(value).__name__}; it should be a string")
    if not value.strip():
        raise UserError(f"{where}: {key} is empty")
    if key != "passage":  # a prompt may truncate a passage
        check_length(key, value, where)
    return value


def _is_jsonl(path: str) -> bool:
    return path_of(path).name.removesuffix(".gz").endswith(".jsonl")
