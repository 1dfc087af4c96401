"""What a driver needs in memory for ten thousand pairs, and for a million.

    python benchmarks/pairs_memory.py

Each line is a fresh process and its peak resident memory. ``imports`` is one that only
imports what the others do. A query has 100 candidates of about 800 characters.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from limrank.batch.plan import write_plan
from limrank.config import RerankJob
from limrank.records import rerank_row_schema, rerank_unit_schema
from limrank.reranking import job
from limrank.reranking.runs import write_runs
from limrank.reranking.source import open_source, units
from limrank.storage import Storage

DEPTH = 100
SIZES = (10_000, 100_000, 1_000_000)
QUERIES_A_CHUNK = 64


def write_pairs(path: Path, pairs: int) -> None:
    """One row group for each 100,000 rows, with texts that differ."""
    with pq.ParquetWriter(path, pa.schema([(n, pa.string()) for n in ("query_id", "query", "doc_id", "text")])) as file:
        for start in range(0, pairs, 100_000):
            numbers = range(start, min(start + 100_000, pairs))
            columns = {
                "query_id": [f"q{n // DEPTH}" for n in numbers],
                "query": [f"a need of some ten words that this query {n // DEPTH} has" for n in numbers],
                "doc_id": [f"d{n}" for n in numbers],
                "text": [f"passage {n} " + "says something of use or not " * 27 for n in numbers],
            }
            file.write_table(pa.table(columns))


def write_rows(storage: Storage, pairs: int) -> None:
    """Committed chunks as workers would leave them, chains included."""
    a_chunk = QUERIES_A_CHUNK * DEPTH
    for start in range(0, pairs, a_chunk):
        rows = [
            {"query_id": f"q{n // DEPTH}", "doc_id": f"d{n}", "rank": n % DEPTH + 1, "reasoning": f"because {n} " * 20}
            for n in range(start, min(start + a_chunk, pairs))
        ]
        name = f"rows/chunk-{start // a_chunk:06d}.parquet"
        storage.write_table(name, pa.Table.from_pylist(rows, schema=rerank_row_schema()))


def config(folder: str) -> RerankJob:
    data = {"format": "pairs", "path": f"{folder}/pairs.parquet"}
    return RerankJob(run_dir=f"{folder}/run", data=data, engine={"kind": "fake"})


def step(name: str, folder: str) -> str:
    settings = config(folder)
    if name == "imports":
        return "nothing"
    if name == "write_runs":
        write_runs(Storage(settings.run_dir))
        return f"{Path(settings.run_dir, 'run.trec').stat().st_size / 2**20:.0f} MiB of run.trec"
    if name == "dry run":
        return job.plan(settings)["units"]
    source = open_source(settings)
    source.check()
    plan = write_plan(
        Storage(settings.run_dir), units(source, settings.scoring), rerank_unit_schema(), chunk_cost=600_000
    )
    return f"{plan.units} queries, {plan.size} pairs in {len(plan.chunks)} chunks"


def peak_mib() -> float:
    """This process's own (Linux): getrusage's starts at what the parent had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def main() -> None:
    if len(sys.argv) == 3:
        began = time.perf_counter()
        done = step(*sys.argv[1:])
        print(f"{peak_mib():6.0f} MiB  {time.perf_counter() - began:6.1f} s  {done}")
        return
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, pyarrow {pa.__version__}"
    )
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            write_pairs(Path(folder) / "pairs.parquet", size)
            write_rows(Storage(f"{folder}/run"), size)
            for name in ("imports", "dry run", "check and plan", "write_runs"):
                made = subprocess.run([sys.executable, __file__, name, folder], capture_output=True, text=True)
                print(f"{size:8} pairs  {name:15}{made.stdout.rstrip() or made.stderr}", flush=True)


if __name__ == "__main__":
    main()
