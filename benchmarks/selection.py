"""What choosing examples costs: 20,000 of 200,000, over many cells and over one.

    OPENBLAS_NUM_THREADS=1 python benchmarks/selection.py many    # or: one

Prints seconds of CPU, and memory beside the pool's own. ``many`` is 180 cells.
"""

from __future__ import annotations

import itertools
import platform
import random
import resource
import sys
import time

import numpy as np

from limrank.synthesis.select import select

QUERIES = 100_000
SIZE = 20_000
WORDS = 60_000


def rows(domains: int, kinds: tuple[str, ...], difficulties: tuple[str, ...]):
    """A positive and a negative a query of 30 words, which are drawn as Zipf has them."""
    draw = random.Random(1)
    words = [f"word{number}" for number in range(WORDS)]
    frequency = list(itertools.accumulate(1 / rank for rank in range(1, WORDS + 1)))
    for number in range(QUERIES):
        row = {
            "seed_id": f"s{number}",
            "query_kind": kinds[number % len(kinds)],
            "domain": f"domain {int(draw.random() ** 2 * domains)}",
            "difficulty": draw.choice(difficulties),
            "query": " ".join(draw.choices(words, cum_weights=frequency, k=30)),
            "instruction": None,
            "kept": True,
        }
        for label in (True, False):
            yield row | {"example_id": f"s{number}/{label}", "label": label, "judge_score": draw.random()}


def main() -> None:
    cells = sys.argv[1] if len(sys.argv) > 1 else "many"
    wide = (30, ("daily", "expert"), ("direct", "indirect", "multi_hop"))
    pool = list(rows(*(wide if cells == "many" else (1, ("daily",), ("direct",)))))
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}; {cells}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for by in ("random", "coverage"):
        began = time.process_time()
        selection = select(pool, SIZE, by, seed=1)
        seconds = time.process_time() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{by}: {len(selection.example_ids)} examples of {selection.queries} queries, "
            f"{seconds:.1f} s of CPU, {peak - before:.0f} MiB at most beside the pool"
        )


if __name__ == "__main__":
    main()
