"""Rerank BM25's candidates of a benchmark and measure both: python examples/rerank_a_benchmark.py [--engine fake]

The benchmark is pydocs, which every machine has. Killed, the same command goes on where it stopped.
"""

import argparse

from limrank import evaluate, rerank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="vllm", help="vllm, or fake, whose scores mean nothing")
    parser.add_argument("--model", default="smollm2-135m-rerank", help="a packaged model, a directory, or a hub id")
    parser.add_argument("--run-dir", default="runs/example-rerank")
    parser.add_argument("--max-queries", type=int, default=10)
    options = parser.parse_args()

    result = rerank(
        run_dir=options.run_dir,
        data={"format": "pydocs", "max_queries": options.max_queries},  # or {"format": "beir", "path": …}
        first_stage={"depth": 10},
        model={"id": options.model, "max_model_len": 2048},
        engine={"kind": options.engine},
        progress=True,
    )
    first_stage: dict[str, dict[str, float]] = {}
    for row in result.rows.select(["query_id", "doc_id", "first_stage_rank"]).to_pylist():
        first_stage.setdefault(row["query_id"], {})[row["doc_id"]] = -row["first_stage_rank"]

    for name, run in (("BM25", first_stage), ("reranked", result.run)):
        mean, low, high = evaluate(run, result.qrels, ["nDCG@10"]).measures["nDCG@10"]
        print(f"{name:<9} nDCG@10 {mean:.4f} ({low:.4f} to {high:.4f})")
    print(f"{result.rows.num_rows} pairs, {result.failed} failed, in {result.run_dir}")


if __name__ == "__main__":
    main()
