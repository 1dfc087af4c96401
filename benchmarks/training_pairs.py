"""(query, passage, label) pairs of a BEIR folder, with BM25's best wrong passages as negatives:
a training file for `limrank train`.

    python benchmarks/training_pairs.py BEIR_FOLDER OUT.jsonl [--queries 500] [--negatives 1]
                                        [--from 1] [--to 20] [--words 120] [--seed 1]

The negatives are drawn from BM25's ranks ``from`` to ``to`` for the query, without the passages
that are judged relevant. Passages are cut after so many words.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limrank import retrieval
from limrank.config import DataConfig, FirstStageConfig
from limrank.data import benchmarks


def pairs(
    folder: str, queries: int, negatives: int, ranks: tuple[int, int], words: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Of each query its best passage, and then its negatives; queries are drawn by ``seed``."""
    benchmark = benchmarks.load(DataConfig(format="beir", path=folder))
    draw = random.Random(seed)
    chosen = set(draw.sample([query.query_id for query in benchmark.queries], queries))
    texts = {document.doc_id: document.contents for document in benchmark.documents}

    def pair(query: Any, text: str, label: bool) -> dict[str, Any]:
        return {"query": query.text, "passage": " ".join(text.split()[:words]), "label": label}

    for query, found in retrieval.candidates(benchmark, FirstStageConfig(depth=ranks[1])):
        if query.query_id not in chosen:
            continue
        grades = benchmark.qrels[query.query_id]
        wrong = [each.text for each in found[ranks[0] - 1 :] if not grades.get(each.doc_id)]
        yield pair(query, texts[max(grades, key=grades.__getitem__)], True)
        for text in draw.sample(wrong, min(negatives, len(wrong))):
            yield pair(query, text, False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--negatives", type=int, default=1)
    parser.add_argument("--from", type=int, default=1, dest="first")
    parser.add_argument("--to", type=int, default=20, dest="last")
    parser.add_argument("--words", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with given.out.open("w") as file:
        for each in pairs(
            given.folder, given.queries, given.negatives, (given.first, given.last), given.words, given.seed
        ):
            file.write(json.dumps(each, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
