"""The data of smollm2-135m-rerank as BEIR folders: what it is trained on, and a development set.

    python models/smollm2-135m-rerank/make_data.py OUT PONY

PONY is a BEIR folder of the Pony tutorial. OUT/train has the topics of ``topics.jsonl``, Python's documentation and
the tutorial as one corpus, and the queries that were written for their passages. OUT/dev has the queries of every fifth
topic, which are in no training set, over the passages of all topics.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from limrank.data import beir, pydocs
from limrank.records import Document, Query

HERE = Path(__file__).resolve().parent
HELD_OUT = 5
"""One topic of this many is held out."""


def read(name: str) -> Iterator[dict[str, Any]]:
    with (HERE / name).open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def topics() -> tuple[list[Document], list[list[tuple[Query, str]]]]:
    """The passages of all topics, and each topic's queries with the id of the passage that answers them."""
    documents, asked = [], []
    for number, topic in enumerate(read("topics.jsonl")):
        documents += [Document(f"topic{number}-{index}", text) for index, text in enumerate(topic["passages"])]
        asked.append(
            [
                (Query(f"topic{number}-q{index}", query["text"]), f"topic{number}-{query['passage']}")
                for index, query in enumerate(topic["queries"])
            ]
        )
    return documents, asked


def of_documents(name: str, file: str, documents: Iterable[Document]) -> list[tuple[Query, str]]:
    """The queries of a file whose documents are there: another Python documents other objects."""
    known = {document.doc_id for document in documents}
    return [
        (Query(f"{name}-q{number}", row["text"]), row["doc_id"])
        for number, row in enumerate(read(file))
        if row["doc_id"] in known
    ]


def write(folder: Path, split: str, documents: Iterable[Document], asked: Iterable[tuple[Query, str]]) -> None:
    def lines(rows: Iterable[dict[str, Any]]) -> str:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    asked = list(asked)
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    corpus = ({"_id": each.doc_id, "title": each.title, "text": each.text} for each in documents)
    (folder / "corpus.jsonl").write_text(lines(corpus), encoding="utf-8")
    queries = ({"_id": query.query_id, "text": query.text} for query, _ in asked)
    (folder / "queries.jsonl").write_text(lines(queries), encoding="utf-8")
    judged = "".join(f"{query.query_id}\t{doc_id}\t1\n" for query, doc_id in asked)
    (folder / f"qrels/{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8")


def main(out: Path, pony: Path) -> None:
    passages, of_topics = topics()
    python = pydocs.documents()
    tutorial = beir.read_corpus(beir.find_file(pony, "corpus.jsonl"))
    learned = [pair for number, pairs in enumerate(of_topics) if (number + 1) % HELD_OUT for pair in pairs]
    held_out = [pair for number, pairs in enumerate(of_topics) if not (number + 1) % HELD_OUT for pair in pairs]
    learned += of_documents("pydocs", "pydocs_queries.jsonl", python)
    learned += of_documents("pony", "pony_queries.jsonl", tutorial)
    write(out / "train", "train", [*passages, *python, *tutorial], learned)
    write(out / "dev", "test", passages, held_out)
    print(f"{len(learned)} queries to learn from, {len(held_out)} held out")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
