"""The data of smollm2-135m-rerank as BEIR folders: what it is trained on, and a development set.

    python models/smollm2-135m-rerank/make_data.py OUT PONY

PONY is a BEIR folder of the Pony tutorial. OUT/train has the topics of ``topics.jsonl``, Python's documentation and
the tutorial as one corpus, and the queries that were written for their passages. OUT/train-long has the longer passages
of ``long_topics.jsonl``, with their queries and some of OUT/train's. OUT/dev and OUT/dev-long have the queries of every
fifth topic, which are in no training set, over the passages of all topics of the file.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from limrank.data import beir, pydocs
from limrank.records import Document, Query

HERE = Path(__file__).resolve().parent
HELD_OUT = 5
"""One topic of this many is held out."""
REPEATED = 200
"""Queries of OUT/train that OUT/train-long has, too, so that what was learned is kept."""

Asked = list[tuple[Query, str]]
"""Queries, each with the id of the passage that answers it."""


def read(name: str) -> Iterator[dict[str, Any]]:
    with (HERE / name).open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def topics(name: str, file: str) -> tuple[list[Document], Asked, Asked]:
    """The passages of all topics, and the queries to learn from and held out."""
    documents: list[Document] = []
    learned: Asked = []
    held_out: Asked = []
    for number, topic in enumerate(read(file)):
        documents += [Document(f"{name}{number}-{index}", text) for index, text in enumerate(topic["passages"])]
        asked = [
            (Query(f"{name}{number}-q{index}", query["text"]), f"{name}{number}-{query['passage']}")
            for index, query in enumerate(topic["queries"])
        ]
        (learned if (number + 1) % HELD_OUT else held_out).extend(asked)
    return documents, learned, held_out


def of_documents(name: str, file: str, documents: Iterable[Document]) -> Asked:
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
    passages, learned, held_out = topics("topic", "topics.jsonl")
    python = pydocs.documents()
    tutorial = beir.read_corpus(beir.find_file(pony, "corpus.jsonl"))
    learned += of_documents("pydocs", "pydocs_queries.jsonl", python)
    learned += of_documents("pony", "pony_queries.jsonl", tutorial)
    corpus = [*passages, *python, *tutorial]
    write(out / "train", "train", corpus, learned)
    write(out / "dev", "test", passages, held_out)
    longer, learned_long, held_out_long = topics("long", "long_topics.jsonl")
    repeated = random.Random(1).sample(learned, REPEATED)
    write(out / "train-long", "train", [*longer, *corpus], [*learned_long, *repeated])
    write(out / "dev-long", "test", longer, held_out_long)
    print(
        f"{len(learned)} queries to learn from, {len(held_out)} held out; "
        f"of longer passages {len(learned_long)}, {len(held_out_long)} held out"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
