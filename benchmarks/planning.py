"""Two risks of the fan-out, tried: planning a million units, and two writers of one chunk.

    python benchmarks/planning.py

Prints seconds, peak memory, and what was read while two writers published one name.
"""

from __future__ import annotations

import os
import platform
import resource
import tempfile
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq

from limrank.batch.plan import read_chunk, write_plan
from limrank.records import rerank_unit_schema
from limrank.storage import Storage

UNITS = 1_000_000
READS = 3_000


def units():
    for n in range(UNITS):
        candidate = {"doc_id": f"d{n}", "text": "a passage of a few words " * 8, "rank": 1, "score": 1.0}
        # A spread of costs, the same in every run.
        unit = {"unit_id": f"q{n}", "cost": 10 + n * 7919 % 490, "query": "a query " * 4, "instruction": ""}
        yield unit | {"candidates": [candidate]}, 1


def plan_a_million(storage: Storage) -> None:
    began = time.perf_counter()
    plan = write_plan(storage, units(), rerank_unit_schema(), chunk_cost=600_000)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    first = read_chunk(storage, len(plan.chunks) // 2)
    reading = time.perf_counter() - began
    print(f"planned {plan.units} units in {len(plan.chunks)} chunks: {seconds:.1f} s, peak memory {peak:.0f} MiB")
    print(f"reading one chunk of {len(first)} units back: {reading * 1000:.1f} ms")


def two_writers(storage: Storage) -> None:
    stop = threading.Event()
    name = "rows/chunk-000000.parquet"

    def publish(value: int) -> None:
        table = pa.table({"writer": [value] * 20_000})
        while not stop.is_set():
            storage.write_table(name, table)

    writers = [threading.Thread(target=publish, args=(value,)) for value in (1, 2)]
    for writer in writers:
        writer.start()
    while not storage.exists(name):
        time.sleep(0.001)
    seen = {1: 0, 2: 0}
    for _ in range(READS):
        values = pq.read_table(pa.BufferReader(storage.read_bytes(name)))["writer"].unique().to_pylist()
        assert len(values) == 1, f"a mixture was read: {values}"
        seen[values[0]] += 1
    stop.set()
    for writer in writers:
        writer.join()
    print(f"two writers of one name: {READS} reads, each whole, {seen[1]} of one and {seen[2]} of the other")


def main() -> None:
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, pyarrow {pa.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        plan_a_million(Storage(folder))
        two_writers(Storage(folder))


if __name__ == "__main__":
    main()
