"""``lists.jsonl`` and ``candidates/``: the queries that were written for passages, for a trainer and for a teacher."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

from limrank.data.trec import write_run_trec
from limrank.storage import Storage
from limrank.synthesis.mining import Mined

CANDIDATES = "candidates"


def list_records(mined: Mined, query_ids: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The records of ``lists.jsonl``: a query, its passages and the teacher's scores, the query's own passage first."""
    for query_id in query_ids:
        found = mined.queries[query_id]
        if found.fault or found.grade is None or not found.listed:
            continue
        query = mined.asked[query_id]
        passages = [(found.doc_id, found.grade), *((each.doc_id, each.grade) for each in found.listed)]
        yield {
            "query": query.text,
            **({"instruction": query.instruction} if query.instruction else {}),
            "passages": [mined.documents[doc_id].contents for doc_id, _ in passages],
            "scores": [grade.score for _, grade in passages],
        }


def write_candidates(storage: Storage, mined: Mined) -> None:
    """A BEIR folder of the queries that found their passage, which is their only judgement, with the run of their
    candidates. `limrank rerank` over it makes a run for ``synthesis.teacher``."""
    asked = mined.candidates
    ranked = dict.fromkeys(doc_id for found in asked.values() for doc_id in found)
    storage.write_text(f"{CANDIDATES}/queries.jsonl", _records(_query(mined, query_id) for query_id in asked))
    documents = (mined.documents[doc_id] for doc_id in ranked)
    storage.write_text(
        f"{CANDIDATES}/corpus.jsonl",
        _records({"_id": each.doc_id, "title": each.title, "text": each.text} for each in documents),
    )
    judged = "".join(f"{query_id}\t{mined.queries[query_id].doc_id}\t1\n" for query_id in asked)
    storage.write_text(f"{CANDIDATES}/qrels/train.tsv", "query-id\tcorpus-id\tscore\n" + judged)
    run = {
        query_id: {doc_id: -float(rank) for rank, doc_id in enumerate(found, 1)} for query_id, found in asked.items()
    }
    lines = io.StringIO()
    write_run_trec(lines, run)
    storage.write_text(f"{CANDIDATES}/run.trec", lines.getvalue())


def _query(mined: Mined, query_id: str) -> dict[str, Any]:
    query = mined.asked[query_id]
    return {"_id": query_id, "text": query.text, **({"instruction": query.instruction} if query.instruction else {})}


def _records(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
