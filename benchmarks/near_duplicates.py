"""What finding near-duplicates costs: limrank's bands, and the same bands in datasketch's MinHashLSH.

    python benchmarks/near_duplicates.py 10000 100000 300000 1000000

MinHashLSH is left out above 300,000 queries, where it needs gigabytes, and ``frame`` above 10,000.

Each line is a fresh process. Memory is the peak beyond what the process had once the texts were made. One query in
ten is an earlier one with a word changed. ``zipf`` has queries of 4 to 16 words, drawn as Zipf has them; ``frame``
has queries that differ in their last two words only, so that most of them share some band with a thousand others.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from limrank.text import near_duplicates
from limrank.text.near_duplicates import BANDS, ROWS, find_duplicates

VOCABULARY = 60_000
LARGEST_LSH = 300_000
LARGEST_FRAME = 10_000
FRAME = "what is the average yearly cost of living in the town of"


def texts(kind: str, size: int) -> list[str]:
    draw = random.Random(1)
    vocabulary = [
        "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randrange(3, 10))) for _ in range(VOCABULARY)
    ]
    frequency = list(itertools.accumulate(1 / rank for rank in range(1, VOCABULARY + 1)))
    made: list[str] = []
    for number in range(size):
        if number % 10 == 9:
            words = draw.choice(made).split()
            words[draw.randrange(len(words))] = draw.choice(vocabulary)
        elif kind == "frame":
            words = [FRAME, *draw.choices(vocabulary, k=2)]
        else:
            words = draw.choices(vocabulary, cum_weights=frequency, k=draw.randrange(4, 17))
        made.append(" ".join(words))
    return made


def firsts_by_lsh(texts: Sequence[str], threshold: float) -> list[int]:
    """``near_duplicates._firsts`` by MinHashLSH, which does not say how many bands a candidate shares: the earliest
    are compared."""
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    minhash = MinHash(num_perm=BANDS * ROWS, seed=near_duplicates._SEED, hashfunc=near_duplicates._stable_hash)
    firsts = list(range(len(texts)))
    for index, text in enumerate(texts):
        shingles = near_duplicates._shingles(text)
        minhash.clear()
        minhash.update_batch(shingles)
        for other in sorted(lsh.query(minhash))[: near_duplicates.COMPARED]:
            if near_duplicates._similarity(shingles, near_duplicates._shingles(texts[other])) >= threshold:
                firsts[index] = other
                break
        else:
            lsh.insert(index, minhash, check_duplication=False)
    return firsts


def memory(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def measure(method: str, kind: str, size: int) -> str:
    queries = texts(kind, size)
    find_duplicates(enumerate(queries[:100]))  # imports
    if method == "lsh":
        near_duplicates._firsts = firsts_by_lsh
    before, began = memory("VmRSS"), time.process_time()
    found = find_duplicates(enumerate(queries))
    return f"{len(found):7} found  {memory('VmHWM') - before:6.0f} MiB  {time.process_time() - began:7.1f} s of CPU"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", type=int, nargs="+")
    parser.add_argument("--one", nargs=2)
    given = parser.parse_args()
    if given.one:
        print(measure(*given.one, given.sizes[0]))
        return
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"datasketch {version('datasketch')}, numpy {version('numpy')}"
    )
    for size, kind, method in itertools.product(given.sizes, ("zipf", "frame"), ("bands", "lsh")):
        if (method == "lsh" and size > LARGEST_LSH) or (kind == "frame" and size > LARGEST_FRAME):
            continue
        command = [sys.executable, __file__, str(size), "--one", method, kind]
        made = subprocess.run(command, capture_output=True, text=True)
        print(f"{size:8} {kind:6} {method:6}{made.stdout.rstrip() or made.stderr}", flush=True)


if __name__ == "__main__":
    main()
