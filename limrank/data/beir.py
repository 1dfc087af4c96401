"""BEIR folders: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``.

Each file may end in ``.gz``. Besides ``_id`` and ``text``, a query may have BRIGHT's and FollowIR's fields:
``instruction`` (a string) and ``excluded_ids`` (a list of document ids; ``["N/A"]`` means none).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limrank.data.trec import check_length, id_fault, read_lines, read_qrels
from limrank.errors import UserError
from limrank.files import AnyPath, kind_of, listed, path_of
from limrank.parsing import brief, parse_json
from limrank.records import Benchmark, Document, Qrels, Query


def load(path: str | AnyPath, split: str = "test") -> Benchmark:
    """Read a BEIR folder.

    The queries are those that the split judges, in the order of the file. A folder without judgements, which
    reranking does not need, gives all its queries.

    Raises:
        UserError: something is missing, occurs twice, or has the wrong type; the message names the file and,
            if there is one, the line.
    """
    folder = path_of(path)
    if kind_of(folder) != "folder":
        raise UserError(f"{folder}: no such folder; data.path is a BEIR folder with corpus.jsonl and queries.jsonl")
    qrels_file = find_qrels(folder, split)
    documents = read_corpus(find_file(folder, "corpus.jsonl"))
    queries = read_queries(find_file(folder, "queries.jsonl"))
    name = f"{folder.name}/{split}"
    if qrels_file is None:
        warning = (
            f"{folder / 'qrels'}: no judgements there: all {len(queries)} queries are taken, none can be evaluated"
        )
        return Benchmark(name, documents, queries, {}, [warning, *_of_exclusions(name, documents, queries)])
    return judged_benchmark(name, documents, queries, read_qrels(qrels_file))


def judged_benchmark(name: str, documents: list[Document], queries: list[Query], qrels: Qrels) -> Benchmark:
    """A benchmark of the queries that ``qrels`` judges.

    Judgements of missing queries are left out. Judgements of missing documents stay, as in trec_eval, so that
    nDCG and recall compare with the published ideal ranking. ``warnings`` has a sentence about both.
    """
    known_queries = {query.query_id for query in queries}
    known_documents = {document.doc_id for document in documents}
    kept = {query_id: grades for query_id, grades in qrels.items() if query_id in known_queries}
    warnings = []
    if lost := len(qrels) - len(kept):
        warnings.append(f"{name}: the judgements of {lost} queries that the collection lacks are left out")
    if absent := sum(doc_id not in known_documents for grades in kept.values() for doc_id in grades):
        warning = f"{name}: {absent} judgements name documents that the collection lacks; they stay in the ideal"
        if absent == sum(len(grades) for grades in kept.values()):
            warning = (
                f"{name}: all {absent} judgements name documents that the collection lacks: are their ids its own?"
            )
        warnings.append(warning)
    asked = [query for query in queries if query.query_id in kept]
    unselected = frozenset(known_queries - kept.keys())
    noted = warnings + _of_exclusions(name, documents, asked)
    return Benchmark(name, documents, asked, kept, noted, unselected=unselected)


def _of_exclusions(name: str, documents: list[Document], queries: list[Query]) -> list[str]:
    """A warning if none of the excluded documents is in the collection; some may be missing without harm."""
    excluded = {doc_id: query.query_id for query in queries for doc_id in sorted(query.excluded)}
    if not excluded or any(document.doc_id in excluded for document in documents):
        return []
    doc_id, query_id = next(iter(excluded.items()))
    return [
        f"{name}: none of the {len(excluded)} documents that queries exclude is in the collection, such as "
        f"{brief(doc_id)} of query {brief(query_id)}: nothing is excluded"
    ]


def find_file(folder: AnyPath, name: str) -> AnyPath:
    """``folder/name``, or the same with ``.gz``. Raises UserError: neither is a file."""
    for candidate in (folder / name, folder / f"{name}.gz"):
        if kind_of(candidate) == "file":
            return candidate
    raise UserError(f"{folder / name}: no such file; a BEIR folder has corpus.jsonl and queries.jsonl")


def find_qrels(folder: AnyPath, split: str) -> AnyPath | None:
    """The judgement file of a split; None if the folder has no judgements.

    Raises:
        UserError: there are judgements, but none of that split; the message names the splits.
    """
    files = splits(folder)
    if files and split not in files:
        raise UserError(f"{folder / 'qrels' / split}.tsv: no such split; there are: {', '.join(files)}")
    return files.get(split)


def splits(folder: AnyPath) -> dict[str, AnyPath]:
    """The judgement files of a folder by split, sorted by name."""
    files = (file for file in listed(folder / "qrels") if file.name.removesuffix(".gz").endswith(".tsv"))
    return dict(sorted((file.name.removesuffix(".gz").removesuffix(".tsv"), file) for file in files))


def read_jsonl(path: str | AnyPath) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(line_number, object)`` of a JSON Lines file, one line in memory at a time.

    Raises:
        UserError: :func:`~limrank.parsing.parse_json` refuses a line, or the line is not an object; the
            message begins with ``file:line``.
    """
    for number, line in read_lines(path):
        yield number, parse_json(line, str(path), line=number, expect=dict)


def read_corpus(path: str | AnyPath) -> list[Document]:
    """The documents of ``corpus.jsonl``; ``title`` may be missing or null."""
    documents = list(scan_corpus(path))
    if not documents:
        raise UserError(f"{path}: the corpus is empty")
    return documents


def scan_corpus(path: str | AnyPath) -> Iterator[Document]:
    """Yield the documents of :func:`read_corpus`, one in memory at a time. The corpus may be empty."""
    for doc_id, record, where in _identified(path):
        yield Document(doc_id, _string(record, "text", where), title=_string(record, "title", where, needed=False))


def read_queries(path: str | AnyPath) -> list[Query]:
    """The queries of ``queries.jsonl``, in the order of the file."""
    queries = [_query(query_id, record, where) for query_id, record, where in _identified(path)]
    if not queries:
        raise UserError(f"{path}: there are no queries")
    return queries


def _query(query_id: str, record: dict[str, Any], where: str) -> Query:
    text = _string(record, "text", where)
    instruction = _string(record, "instruction", where, needed=False)
    check_length("text", text, where)
    check_length("instruction", instruction, where)
    return Query(query_id, text, instruction=instruction, excluded=_excluded(record, where))


def write_queries(path: str | Path, queries: list[Query]) -> None:
    """Write a file that :func:`read_queries` reads, without empty fields."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for query in queries:
            record: dict[str, Any] = {"_id": query.query_id, "text": query.text}
            if query.instruction:
                record["instruction"] = query.instruction
            if query.excluded:
                record["excluded_ids"] = sorted(query.excluded)
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def excluded_ids(ids: list[str] | None) -> frozenset[str]:
    """BRIGHT's ``excluded_ids`` as a set, which is empty for ``["N/A"]``, an empty list and None."""
    return frozenset(ids or ()) - {"N/A"}


def _identified(path: str | Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """``(id, record, "file:line")`` of every record; ids are unique and not empty."""
    first_seen: dict[str, int] = {}
    for number, record in read_jsonl(path):
        where = f"{path}:{number}"
        if "_id" not in record:
            raise UserError(f"{where}: _id is missing")
        value = record["_id"]
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise UserError(f"{where}: _id is {_type_name(value)}; it should be a string")
        an_id = str(value)
        if not an_id.strip():
            raise UserError(f"{where}: _id is empty")
        if fault := id_fault(an_id):
            raise UserError(f"{where}: _id {brief(an_id)} {fault}, and could not stand in a run file")
        first = first_seen.setdefault(an_id, number)
        if first != number:
            raise UserError(f"{where}: _id {brief(an_id)} is there twice: first on line {first}")
        yield an_id, record, where


def _string(record: dict[str, Any], key: str, where: str, needed: bool = True) -> str:
    value = record.get(key)
    if value is None and not needed:
        return ""
    if key not in record:
        raise UserError(f"{where}: {key} is missing")
    if not isinstance(value, str):
        raise UserError(f"{where}: {key} is {_type_name(value)}; it should be a string")
    return value


def _excluded(record: dict[str, Any], where: str) -> frozenset[str]:
    ids = record.get("excluded_ids")
    if ids is not None and not (isinstance(ids, list) and all(isinstance(an_id, str) for an_id in ids)):
        raise UserError(f"{where}: excluded_ids should be a list of strings")
    return excluded_ids(ids)


def _type_name(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"
