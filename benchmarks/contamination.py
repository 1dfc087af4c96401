"""What decontamination finds of copies that are planted, and of real texts that are none.

    python benchmarks/contamination.py SEEDS BENCHMARK...

All are BEIR folders; the benchmarks' test splits make one index. Planted are each query
and relevant document, and copies with one word changed: at every place of texts of 4 to 30
words, at three that are drawn of longer ones. The real texts are the first 1,000 queries of
SEEDS and all its passages; those found are shown. Speed is in texts a second of processor
time, each looked up among queries and among documents.
"""

from __future__ import annotations

import os
import pickle
import platform
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from limrank.data import beir
from limrank.data.trec import read_qrels
from limrank.synthesis.contamination import Benchmarks, Overlap
from limrank.text.overlap import MIN_WORDS

SPLIT = "test"
REAL_QUERIES = 1000
LONG_TEXT = 30
PLACES_OF_A_LONG_TEXT = 3


def planted(folder: Path) -> tuple[list[str], list[str]]:
    """The judged queries and the relevant documents, read without what is measured."""
    qrels = read_qrels(folder / "qrels" / f"{SPLIT}.tsv")
    relevant = {doc_id for grades in qrels.values() for doc_id, grade in grades.items() if grade > 0}
    queries = [query.text for query in beir.read_queries(folder / "queries.jsonl") if query.query_id in qrels]
    corpus = folder / "corpus.jsonl"
    documents = beir.read_corpus(corpus) if corpus.exists() else []
    # Cranfield has a relevant document without a word.
    return queries, [each.contents for each in documents if each.doc_id in relevant and each.contents]


def with_one_changed(texts: list[str]) -> list[str]:
    """Copies of each text, each with another of its words changed."""
    draw = random.Random(1)
    copies = []
    for words in map(str.split, texts):
        if len(words) < MIN_WORDS:
            continue
        places = range(len(words))
        for place in draw.sample(places, PLACES_OF_A_LONG_TEXT) if len(words) > LONG_TEXT else places:
            copies.append(" ".join([*words[:place], "zebra", *words[place + 1 :]]))
    return copies


def found(find: Callable[[str], Overlap | None], texts: list[str]) -> str:
    return f"{sum(find(text) is not None for text in texts)} of {len(texts)}"


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    seeds, *folders = map(Path, sys.argv[1:])
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    tracemalloc.start()
    index = Benchmarks.of(folders, SPLIT)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    own = [planted(folder) for folder in folders]
    queries = [text for texts, _ in own for text in texts]
    documents = [text for _, texts in own for text in texts]
    print(
        f"{len(queries)} queries and {len(documents)} relevant documents: "
        f"{held / 2**20:.1f} MiB in memory, {len(pickle.dumps(index)) / 2**20:.1f} MiB pickled"
    )
    for what, find, texts in (
        ("queries", index.query_overlap, queries),
        ("documents", index.passage_overlap, documents),
    ):
        print(f"{what} found: {found(find, texts)}, with one word changed {found(find, with_one_changed(texts))}")
    real_queries = {query.query_id: query.text for query in beir.read_queries(seeds / "queries.jsonl")[:REAL_QUERIES]}
    real_passages = {document.doc_id: document.contents for document in beir.read_corpus(seeds / "corpus.jsonl")}
    for what, real in (("queries", real_queries), ("passages", real_passages)):
        began = time.process_time()
        overlaps = {an_id: index.query_overlap(text) or index.passage_overlap(text) for an_id, text in real.items()}
        seconds = time.process_time() - began
        hits = {an_id: overlap for an_id, overlap in overlaps.items() if overlap}
        print(f"real {what} of {seeds.name} found: {len(hits)} of {len(real)}; {len(real) / seconds:.0f} a second")
        for an_id, hit in hits.items():
            print(f"    {an_id}: {hit.words} words, {hit.share:.2f} of {hit.kind} {hit.id} of {hit.benchmark}")


if __name__ == "__main__":
    main()
