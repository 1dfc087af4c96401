"""Measure rankings against judgements, without a model or files: python examples/evaluate_a_run.py"""

from limrank import evaluate

QRELS = {
    "feeds": {"heapq.merge": 2, "sorted": 1},
    "copies": {"shutil.copyfile": 2},
    "unanswered": {"bisect.insort": 1},  # a judged query that a run lacks counts 0
}
RUNS = {
    "one": {"feeds": {"sorted": 3.1, "heapq.merge": 2.7}, "copies": {"shutil.copyfile": 1.5}},
    "other": {"feeds": {"heapq.merge": 0.9, "sorted": 0.4}, "copies": {"sorted": 0.8, "shutil.copyfile": 0.7}},
}


def main() -> None:
    for name, run in RUNS.items():
        result = evaluate(run, QRELS, ["nDCG@10", "RR"])  # paths of TREC files do as well
        for measure, (mean, low, high) in result.measures.items():
            print(f"{name:<5} {measure:<7} {mean:.4f} ({low:.4f} to {high:.4f})  {result.per_query[measure]}")
        print(f"{name:<5} ranks nothing for {', '.join(result.missing)}")


if __name__ == "__main__":
    main()
