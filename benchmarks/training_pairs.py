"""(query, passage, label) pairs of a BEIR folder, with BM25's best wrong passages as negatives:
a training file for `limrank train`.

    python benchmarks/training_pairs.py BEIR_FOLDER OUT.jsonl [--queries 500] [--negatives 1]
                                        [--from 1] [--to 20] [--words 120] [--answers] [--seed 1]

The negatives are drawn from BM25's ranks ``from`` to ``to`` for the query, without the passages
that are judged relevant. Passages are cut after so many words.

``--answers`` takes queries that carry the answers to them, and adds to each a negative that is
about the same and does not tell: its own passage without the sentences that hold an answer. The
passage itself then loses one of its other sentences, so that a gap gives nothing away.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limrank import retrieval
from limrank.config import DataConfig, FirstStageConfig
from limrank.data import benchmarks

_LEFT_WORDS = 15
"""A passage with fewer words than that left is no passage."""


def pairs(
    folder: str, queries: int, negatives: int, ranks: tuple[int, int], words: int, answers: bool, seed: int
) -> Iterator[dict[str, Any]]:
    """Of each query its best passage, and then its negatives; queries that have a relevant
    passage are drawn by ``seed``."""
    benchmark = benchmarks.load(DataConfig(format="beir", path=folder))
    draw = random.Random(seed)
    texts = {document.doc_id: document.contents for document in benchmark.documents}
    best = {query_id: _best(grades, texts) for query_id, grades in benchmark.qrels.items()}
    told = _answers(folder) if answers else {}

    def cut(text: str) -> str:
        return " ".join(text.split()[:words])

    rows: dict[str, list[tuple[str, bool]]] = {}
    for query in benchmark.queries:
        if not (passage := cut(best.get(query.query_id) or "")):
            continue
        if not answers:
            rows[query.query_id] = [(passage, True)]
        elif found := without_answer(passage, told.get(query.query_id, []), draw):
            rows[query.query_id] = [(found[0], True), (found[1], False)]
    if len(rows) < queries:
        raise SystemExit(f"{folder}: {len(rows)} queries will do, fewer than {queries}")
    chosen = set(draw.sample(list(rows), queries))
    for query, candidates in retrieval.candidates(benchmark, FirstStageConfig(depth=ranks[1])):
        if query.query_id not in chosen:
            continue
        grades = benchmark.qrels[query.query_id]
        wrong = [each.text for each in candidates[ranks[0] - 1 :] if not grades.get(each.doc_id)]
        drawn = [(cut(text), False) for text in draw.sample(wrong, min(negatives, len(wrong)))]
        for text, label in [*rows[query.query_id], *drawn]:
            yield {"query": query.text, "passage": text, "label": label}


def _best(grades: dict[str, int], texts: dict[str, str]) -> str | None:
    """The passage of the highest grade; None where none that is there is relevant."""
    relevant = [doc_id for doc_id, grade in grades.items() if grade > 0 and doc_id in texts]
    return texts[max(relevant, key=grades.__getitem__)] if relevant else None


def without_answer(text: str, answers: list[str], draw: random.Random) -> tuple[str, str] | None:
    """The passage without one of its sentences, and without all that hold an answer: half of an
    answer's words, or more. None where no sentence does, or too little would be left."""
    sentences = re.split(r"(?<=[.!?])\s+", text)
    holds = [any(_share(answer, sentence) >= 0.5 for answer in answers) for sentence in sentences]
    others = [place for place, it_holds in enumerate(holds) if not it_holds]
    if len(others) in (0, len(sentences)):
        return None
    dropped = draw.choice(others)
    told = " ".join(sentence for place, sentence in enumerate(sentences) if place != dropped)
    silent = " ".join(sentences[place] for place in others)
    return (told, silent) if min(len(told.split()), len(silent.split())) >= _LEFT_WORDS else None


def _share(answer: str, sentence: str) -> float:
    """Of the answer's different words, the share that the sentence has."""
    wanted, there = (set(re.findall(r"\w+", text.lower())) for text in (answer, sentence))
    return len(wanted & there) / len(wanted) if wanted else 0.0


def _answers(folder: str) -> dict[str, list[str]]:
    with (Path(folder) / "queries.jsonl").open() as file:
        found = map(json.loads, file)
        return {each["_id"]: (each.get("metadata") or {}).get("answers", []) for each in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--negatives", type=int, default=1)
    parser.add_argument("--from", type=int, default=1, dest="first")
    parser.add_argument("--to", type=int, default=20, dest="last")
    parser.add_argument("--words", type=int, default=120)
    parser.add_argument("--answers", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with given.out.open("w") as file:
        ranks = (given.first, given.last)
        for each in pairs(given.folder, given.queries, given.negatives, ranks, given.words, given.answers, given.seed):
            file.write(json.dumps(each, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
