"""Serve a reranker over HTTP and ask it in two ways: python examples/serve_and_ask.py [--engine fake]"""

import argparse

import httpx

from limrank import EngineConfig, ModelConfig, Reranker, serve

QUERY = "merge sorted feeds"
DOCUMENTS = ["heapq.merge merges sorted inputs.", "sorted returns a new sorted list.", "bisect finds a position."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="vllm", help="vllm, or fake, whose scores mean nothing")
    parser.add_argument("--model", default="smollm2-135m-rerank", help="a packaged model, a directory, or a hub id")
    options = parser.parse_args()

    model = ModelConfig(id=options.model, max_model_len=2048)
    with serve(model=model, engine={"kind": options.engine}, serving={"port": 0}) as url:
        # Any client of Jina's or Cohere's rerank API:
        body = {"query": QUERY, "documents": DOCUMENTS, "top_n": 2}
        for result in httpx.post(f"{url}/v1/rerank", json=body, timeout=60).json()["results"]:
            print(f"{result['relevance_score']:.4f}  {DOCUMENTS[result['index']]}")

        # Or this library, from a machine without an engine:
        with Reranker(model, engine=EngineConfig(kind="serve", base_url=url)) as reranker:
            print("best:", reranker.rank(QUERY, DOCUMENTS)[0].document)


if __name__ == "__main__":
    main()
