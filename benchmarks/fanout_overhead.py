"""What the fan-out itself costs: real Ray, the fake engine at zero latency, so that all
the time is ours.

    python benchmarks/fanout_overhead.py [ROWS …]

For each number of rows, once in units of 100 pairs and once in units of one: rows a second
while chunks were worked on, and over the whole call; the driver's and the worker's memory.
The worker's is taken at a quarter of the chunks and at the end: it should not grow.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import psutil

from limrank import cluster
from limrank.batch.fanout import fanout
from limrank.batch.plan import write_plan
from limrank.batch.rundir import open_run
from limrank.config import EngineConfig, ModelConfig, ScoringConfig, WorkersConfig
from limrank.engines import EngineSpec
from limrank.progress import Event, Progress
from limrank.records import rerank_unit_schema
from limrank.reranking.job import RerankTask

SIZES = (10_000, 100_000, 1_000_000)
ENGINE = EngineSpec(ModelConfig(id="fake"), EngineConfig(kind="fake"))


def units(rows: int, candidates: int) -> Iterator[tuple[dict, int]]:
    found = [
        {"doc_id": f"d{n}", "text": "a passage of a few words " * 2, "rank": n, "score": 1.0} for n in range(candidates)
    ]
    for n in range(rows // candidates):
        unit = {"unit_id": f"q{n}", "cost": 40 * candidates, "query": f"a query {n}", "instruction": ""}
        yield unit | {"candidates": found}, candidates


class Watch:
    """Progress that is not shown, and the memory of this process and its worker."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.share = 0.0
        self.driver = 0
        self.workers: list[tuple[float, int]] = []
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def show(self, event: Event) -> None:
        self.share = event.done / event.total

    def close(self) -> None:
        self.done.set()
        self._thread.join()

    def _look(self) -> None:
        own = psutil.Process()
        while not self.done.wait(0.5):
            self.driver = max(self.driver, own.memory_info().rss)
            for child in own.children(recursive=True):
                try:
                    if "MapWorker" in " ".join(child.cmdline()):
                        self.workers.append((self.share, child.memory_info().rss))
                except psutil.Error:
                    continue

    def worker(self, share: float) -> float:
        """MiB of the worker when this share was done, as near as it was looked at."""
        return min(self.workers, key=lambda seen: abs(seen[0] - share))[1] / 2**20 if self.workers else float("nan")


def measure(rows: int, candidates: int) -> str:
    watch = Watch()
    with (
        tempfile.TemporaryDirectory() as folder,
        open_run(folder, job="rerank", config_yaml="", config_hash="b") as run,
    ):
        began = time.monotonic()
        plan = write_plan(run.storage, units(rows, candidates), rerank_unit_schema(), chunk_cost=600_000)
        planned = time.monotonic()
        summary = fanout(
            run,
            plan,
            RerankTask(ScoringConfig()),
            {"scorer": ENGINE},
            WorkersConfig(),
            progress=Progress(watch, every_s=0.5),
            stage="",
            progress_unit="pairs",
        )
        ended = time.monotonic()
        assert (summary.rows, summary.failed) == (rows, 0)
    watch.close()
    return (
        f"{rows:>9,} rows in units of {candidates:>3}, {len(plan.chunks):>6,} chunks: {rows / summary.seconds:>7,.0f} rows/s "
        f"({rows / (ended - planned):>7,.0f} over the whole call, planning apart: {planned - began:.0f} s); driver "
        f"{watch.driver / 2**20:,.0f} MiB, worker {watch.worker(0.25):,.0f} → {watch.worker(1.0):,.0f} MiB"
    )


def main() -> None:
    sizes = [int(size) for size in sys.argv[1:]] or SIZES
    with cluster.connect("local"):
        import ray  # after connect(), which sets what Ray reads when it is imported

        print(
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ray {ray.__version__}",
            flush=True,
        )
        for candidates in (100, 1):
            for rows in sizes:
                print(measure(rows, candidates), flush=True)


if __name__ == "__main__":
    main()
