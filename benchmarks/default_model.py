"""Does the packaged reranker rank? Against BM25, by itself and fused with it, over six collections.

    python benchmarks/default_model.py OUT [--models smollm2-135m-rerank smollm2-135m-instruct] [--data ../shared/data]
        [--collections dl19 scifact …] [--queries 60] [--depth 20] [--max-model-len 512] [--teacher]

OUT/MODEL-COLLECTION-DEPTH.json holds every score, and is not computed again. Printed is nDCG@10 of BM25's candidates: in
BM25's order, in the model's, fused by each weight of BM25, and in the best possible one; and how far the model, and the
fused order at --weight, are above BM25, with a 95 % interval over queries (paired bootstrap). --teacher has the packaged
sentence embedder in place of a model. Of a collection with more queries --queries are drawn.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from limrank import retrieval
from limrank.config import DataConfig, FirstStageConfig, ModelConfig
from limrank.data import benchmarks
from limrank.evaluation.metrics import evaluate
from limrank.evaluation.significance import paired_bootstrap
from limrank.reranking.reranker import Reranker
from limrank.scoring.fusion import fused_order

MEASURE = "nDCG@10"
WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.5)
TEACHER = "all-minilm-l6-v2"
FOLDERS = {"dl19": "msmarco_dl19_pool", "pony": "bright_pony_tutorial", "msmarco": "msmarco_seed_instructir"}
COLLECTIONS = ("dl19", "scifact", "cranfield", "msmarco", "pony", "pydocs")


def load(name: str, given: argparse.Namespace):
    """A collection's queries with their candidates, and its judgements."""
    folder = given.data / FOLDERS.get(name, name)
    data = DataConfig(format="beir", path=str(folder), max_queries=given.queries)
    first_stage = FirstStageConfig(depth=given.depth)
    if name.startswith("pydocs"):
        data = DataConfig(format="pydocs", split="dev" if name == "pydocs-dev" else "test")
    elif name == "dl19":
        data = DataConfig(format="beir", path=str(folder))
        run = str(folder / "run.bm25.top100.trec")
        first_stage = FirstStageConfig(depth=given.depth, kind="run", path=run)
    elif "/" in name:
        data = DataConfig(format="beir", path=name, max_queries=given.queries)
    benchmark = benchmarks.load(data)
    found = list(retrieval.candidates(benchmark, first_stage))
    return found, {query.query_id: benchmark.qrels.get(query.query_id, {}) for query, _ in found}


def by_model(reranker: Reranker, found) -> list[list[float]]:
    texts = [[each.text for each in candidates] for _, candidates in found]
    ids = [[each.doc_id for each in candidates] for _, candidates in found]
    ranked = reranker.rank_many([query.text for query, _ in found], texts, doc_ids=ids)
    scores = [{hit.doc_id: hit.score for hit in hits} for hits in ranked]
    return [[known[doc_id] for doc_id in each] for known, each in zip(scores, ids, strict=True)]


def by_teacher(found) -> list[list[float]]:
    """Cosines, as numbers from 0 to 1."""
    from limrank.synthesis.embeddings import sentence_embeddings

    texts = list(dict.fromkeys([q.text for q, _ in found] + [each.text for _, some in found for each in some]))
    vectors = dict(zip(texts, sentence_embeddings(TEACHER, texts), strict=True))
    return [[float(vectors[query.text] @ vectors[each.text] + 1) / 2 for each in some] for query, some in found]


def order(found, scores, weight: float) -> dict[str, dict[str, float]]:
    runs = {}
    for (query, candidates), each in zip(found, scores, strict=True):
        first = [candidate.score for candidate in candidates]
        ranks = [candidate.rank for candidate in candidates]
        ranked = range(len(candidates)) if weight == 1 else fused_order(each, first, ranks, weight)
        runs[query.query_id] = {candidates[index].doc_id: -float(rank) for rank, index in enumerate(ranked)}
    return runs


def report(model: str, name: str, found, qrels, scores, seconds: float, weight: float) -> dict:
    measured = {w: evaluate(qrels, order(found, scores, w), [MEASURE]) for w in (0.0, *WEIGHTS, 1.0)}
    perfect = {
        query.query_id: {each.doc_id: float(qrels[query.query_id].get(each.doc_id, 0)) for each in candidates}
        for query, candidates in found
    }
    best = evaluate(qrels, perfect, [MEASURE]).mean[MEASURE]
    base = measured[1.0].per_query[MEASURE]

    def above(w: float) -> str:
        mine = measured[w].per_query[MEASURE]
        each = paired_bootstrap([mine[q] for q in base], list(base.values()), seed=1)
        return f"{each.difference:+.3f} ({each.low:+.3f} to {each.high:+.3f})"

    means = {w: result.mean[MEASURE] for w, result in measured.items()}
    print(
        f"{name:12} {len(found):4} queries  BM25 {means[1.0]:.3f}  model {means[0.0]:.3f} {above(0.0)}  "
        f"fused {means[weight]:.3f} {above(weight)}  best {best:.3f}  "
        + " ".join(f"{w}:{means[w]:.3f}" for w in WEIGHTS)
        + (f"  {sum(map(len, scores)) / seconds:.1f} pairs/s" if seconds else ""),
        flush=True,
    )
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", default=["smollm2-135m-rerank"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--collections", nargs="+", default=COLLECTIONS)
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--max-model-len", type=int, default=512)
    parser.add_argument("--weight", type=float, default=0.2)
    parser.add_argument("--teacher", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for model in [TEACHER] if given.teacher else given.models:
        print(f"== {Path(model).name if '/' not in model else model}, BM25's top {given.depth}")
        reranker = None
        for name in given.collections:
            found, qrels = load(name, given)
            file = given.out / f"{model.replace('/', '_')}-{name.replace('/', '_')}-{given.depth}.json"
            seconds = 0.0
            if not file.exists():
                if reranker is None and not given.teacher:
                    reranker = Reranker(ModelConfig(id=model, max_model_len=given.max_model_len))
                began = time.perf_counter()
                scores = by_teacher(found) if given.teacher else by_model(reranker, found)
                seconds = time.perf_counter() - began
                file.write_text(json.dumps(scores))
            report(model, name, found, qrels, json.loads(file.read_text()), seconds, given.weight)
        if reranker:
            reranker.close()


if __name__ == "__main__":
    main()
