"""Write and judge training examples from a few seeds: python examples/synthesize_examples.py [--engine fake]

The small packaged model writes poor examples, and the filters reject most of them.
"""

import argparse
from collections import Counter

from limrank import synthesize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="vllm", help="vllm, or fake, which writes nonsense")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a packaged model, a directory, or a hub id")
    parser.add_argument("--run-dir", default="runs/example-synthesize")
    parser.add_argument("--max-seeds", type=int, default=3)
    options = parser.parse_args()

    result = synthesize(
        run_dir=options.run_dir,
        model={"id": options.model, "max_model_len": 2048},
        engine={"kind": options.engine},
        synthesis={"seeds": "pydocs", "max_seeds": options.max_seeds, "kinds": ["daily"]},
        progress=True,
    )
    outcomes = Counter(reason or "kept" for reason in result.rows["reject_reason"].to_pylist())
    for outcome, count in outcomes.most_common():
        print(f"{count:>4}  {outcome}")
    print(f"{result.stats['kept']} of {result.rows.num_rows} examples to train on: {result.train_file}")


if __name__ == "__main__":
    main()
