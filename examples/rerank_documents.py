"""Rank a few documents in this process, without Ray: python examples/rerank_documents.py [--engine fake]"""

import argparse

from limrank import EngineConfig, ModelConfig, Reranker

QUERY = "I have several sorted feeds too large for memory and want one sorted stream"
DOCUMENTS = {
    "heapq.merge": "Merge multiple sorted inputs into a single sorted output, as an iterator.",
    "sorted": "Return a new list containing all items from the iterable in ascending order.",
    "shutil.copyfile": "Copy data from one file to another in the most efficient way possible.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="vllm", help="vllm, or fake, whose scores mean nothing")
    parser.add_argument("--model", default="smollm2-135m-rerank", help="a packaged model, a directory, or a hub id")
    options = parser.parse_args()

    model = ModelConfig(id=options.model, max_model_len=2048)
    with Reranker(model, engine=EngineConfig(kind=options.engine)) as reranker:
        ids, texts = list(DOCUMENTS), list(DOCUMENTS.values())
        for hit in reranker.rank(QUERY, texts, doc_ids=ids):
            print(hit.score, hit.doc_id)

        # Many queries at once keep the engine's batches full.
        queries = [QUERY, "order a list", "duplicate a file"]
        for query, hits in zip(queries, reranker.rank_many(queries, [texts] * 3, doc_ids=[ids] * 3), strict=True):
            print(f"best for {query!r}: {hits[0].doc_id}")


if __name__ == "__main__":
    main()
