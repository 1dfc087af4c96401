"""Pairs a second with 1, 2, 4 … 1,000 engines, each with a simulated rate.

    python benchmarks/scale_sim.py costs
    python benchmarks/scale_sim.py real 1 2 4 8
    python benchmarks/scale_sim.py sim [DRIVER_MS COMMIT_MS]

costs: what a chunk costs the driver and the storage, on a real Ray, with an engine that takes no time.
real: the real fan-out with so many engines that sleep. Efficiency is the rate as a share of N times that of one.
sim: a simulation of events with those costs, to 1,000 engines. Each engine has a rate drawn from a measured spread; the
driver serves one chunk at a time; a commit takes its time while the engine works on.
"""

from __future__ import annotations

import heapq
import math
import os
import platform
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

from limrank.batch.plan import share_cost, write_plan
from limrank.storage import Storage

# benchmarks/rerank_throughput.txt: pairs/s of three rounds of one engine, by data set.
ROUNDS = ((1.79, 2.22, 2.32), (2.73, 2.86, 2.91), (1.57, 1.67, 1.62), (1.78, 1.83, 1.73), (1.06, 1.16, 1.15))
ENGINES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
RUN_S = (60.0, 600.0, 3600.0)
TOKENS_A_SECOND = 20_000
"""Of an engine: a full chunk, 600,000 tokens, takes it thirty seconds."""

TOKENS_A_PAIR = 300
MOST = 600_000
SLEEP_MS, IN_FLIGHT = 200, 8
"""An engine that sleeps: 40 pairs a second, of 500 tokens each."""


def spread() -> float:
    """How much an engine's rate varies: the standard deviation over the mean, of rounds of the same work."""
    return statistics.fmean(statistics.stdev(rounds) / statistics.fmean(rounds) for rounds in ROUNDS)


# ---- simulated --------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """Seconds: of the driver for a chunk, and until a chunk's file is there."""

    driver: float
    commit: float


def simulate(engines: int, run_s: float, costs: Costs, seed: int = 0) -> tuple[float, int, float]:
    """(efficiency, chunks, share of the time in which the driver works). Without the start and the end of the engines."""
    draw = random.Random(f"{seed}/{engines}/{run_s}")
    total = engines * run_s * TOKENS_A_SECOND
    chunk_s = share_cost(round(total), MOST, engines) / TOKENS_A_SECOND
    chunks = max(engines, round(engines * run_s / chunk_s))
    sigma = spread()
    # The sum of the engines' rates is what N times one engine's would be.
    rates = [max(0.2, draw.gauss(1.0, sigma)) for _ in range(engines)]
    rates = [rate * engines / sum(rates) for rate in rates]
    # As in fanout._chunks_in_flight.
    pairs = max(1.0, chunk_s * TOKENS_A_SECOND / TOKENS_A_PAIR)
    share = -(-chunks // (4 * engines)) if engines > 1 else 64
    ahead = max(2, min(64, share, math.ceil(2048 / pairs) + 1))
    waiting, running = [0] * engines, [False] * engines
    events: list[tuple[float, int, str, int]] = []
    order = left = 0
    left, driver_at, driver_busy, ended = chunks, 0.0, 0.0, 0.0

    def push(when: float, what: str, engine: int) -> None:
        nonlocal order
        order += 1
        heapq.heappush(events, (when, order, what, engine))

    def hand_out(now: float, engine: int) -> None:
        nonlocal driver_at, driver_busy
        driver_at = max(driver_at, now) + costs.driver
        driver_busy += costs.driver
        push(driver_at, "handed", engine)

    for _ in range(ahead):
        for engine in range(engines):
            if left:
                left -= 1
                hand_out(0.0, engine)
    while events:
        now, _, what, engine = heapq.heappop(events)
        if what == "handed":
            waiting[engine] += 1
        elif what == "worked":
            running[engine] = False
            push(now + costs.commit, "committed", engine)
        elif what == "committed":
            ended = max(ended, now)
            if left:
                left -= 1
                hand_out(now, engine)
        if waiting[engine] and not running[engine]:
            waiting[engine] -= 1
            running[engine] = True
            push(now + chunk_s / rates[engine] * draw.uniform(0.9, 1.1), "worked", engine)
    return chunks * chunk_s / engines / ended, chunks, driver_busy / ended


def sim(driver_ms: float, commit_ms: float) -> None:
    costs = Costs(driver_ms / 1000, commit_ms / 1000)
    print(
        f"simulated: {driver_ms:g} ms of the driver a chunk, {commit_ms:g} ms until it is committed; an engine's rate varies by "
        f"{spread():.1%}"
    )
    print(f"{'engines':>8}" + "".join(f"{f'{run_s:g} s':>10}{'chunks':>9}{'driver':>8}" for run_s in RUN_S))
    for engines in ENGINES:
        cells = [simulate(engines, run_s, costs) for run_s in RUN_S]
        print(
            f"{engines:>8,}" + "".join(f"{found:>10.3f}{chunks:>9,}{busy:>8.0%}" for found, chunks, busy in cells),
            flush=True,
        )


# ---- real -------------------------------------------------------------------------------


def units(count: int) -> Iterator[tuple[dict, int]]:
    found = [{"doc_id": f"d{n}", "text": "a passage of a few words", "rank": n, "score": 1.0} for n in range(4)]
    for n in range(count):
        yield {"unit_id": f"q{n}", "cost": 2000, "query": f"a query {n}", "instruction": "", "candidates": found}, 4


def run(engines: int, count: int, sleep_ms: float) -> tuple[float, int, float]:
    """(pairs a second, chunks, seconds of the driver's processor) of the real fan-out."""
    from limrank.batch.fanout import fanout
    from limrank.batch.rundir import open_run
    from limrank.config import EngineConfig, ModelConfig, ScoringConfig, WorkersConfig
    from limrank.engines import EngineSpec
    from limrank.progress import Progress
    from limrank.records import rerank_unit_schema
    from limrank.reranking.job import RerankTask

    class Quiet:
        def show(self, event: object) -> None: ...

        def close(self) -> None: ...

    engine = EngineConfig(kind="fake", max_in_flight=IN_FLIGHT, fault={"latency_ms": sleep_ms})
    with (
        tempfile.TemporaryDirectory() as folder,
        open_run(folder, job="rerank", config_yaml="", config_hash="b") as run_dir,
    ):
        plan = write_plan(run_dir.storage, units(count), rerank_unit_schema(), chunk_cost=MOST, engines=engines)
        before = resource.getrusage(resource.RUSAGE_SELF)
        summary = fanout(
            run_dir,
            plan,
            RerankTask(ScoringConfig()),
            {"scorer": EngineSpec(ModelConfig(id="fake"), engine)},
            WorkersConfig(replicas=engines, cpus=0.05),
            progress=Progress(Quiet(), every_s=60),
            stage="",
            progress_unit="pairs",
        )
        after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return summary.rows / summary.seconds, len(plan.chunks), spent


def real(numbers: list[int]) -> None:
    single = None
    for engines in numbers:
        # Forty seconds of each engine's time.
        rate, chunks, spent = run(engines, engines * 400, SLEEP_MS)
        single = single or rate / engines
        print(
            f"real, {engines:>3} engines: {rate:>7.1f} pairs/s, {chunks} chunks, efficiency {rate / engines / single:.3f}; the "
            f"driver's processor {spent / chunks * 1000:.1f} ms a chunk; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )


def costs() -> None:
    rate, chunks, spent = run(1, 8192, 0.0)
    print(
        f"one engine without latency: {rate:,.0f} pairs/s in {chunks} chunks; the driver's processor {spent / chunks * 1000:.1f} ms a chunk"
    )
    import pyarrow as pa

    table = pa.table({"id": [f"q{n}" for n in range(256)], "score": [0.5] * 256})
    with tempfile.TemporaryDirectory() as folder:
        storage, took = Storage(folder), []
        for n in range(200):
            began = time.perf_counter()
            storage.write_text(f"attempts/chunk-{n:06d}/a.b", "")
            storage.write_table(f"rows/chunk-{n:06d}.parquet", table)
            took.append(time.perf_counter() - began)
    print(f"an attempt and a chunk's file on a local disk: median {statistics.median(took) * 1000:.1f} ms")


def main() -> None:
    what, *rest = sys.argv[1:] or ["sim"]
    if what == "sim":
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", flush=True)
        sim(*(float(each) for each in rest) if rest else (7.5, 1.0))
        return
    from limrank import cluster

    with cluster.connect("local"):
        import ray

        print(
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ray {ray.__version__}",
            flush=True,
        )
        costs() if what == "costs" else real([int(each) for each in rest])


if __name__ == "__main__":
    main()
