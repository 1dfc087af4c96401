"""A server's throughput and latency, beside its engine alone and vLLM's own server.

    python benchmarks/serve_load.py [--data BEIR_FOLDER] [--model smollm2-135m-rerank] [--engine vllm|fake]
               [--clients 1 4 16 64] [--sizes 10 100] [--shares 0.3 0.6 0.9] [--seconds 60] [--rounds 3]
               [--variants served bare vllm] [--replicas] [--quick] [--out FILE]

- served: ``limrank serve`` with one replica, `POST /v1/rerank`
- bare: its engine alone, in a process with ``score_query`` and nothing else
- vllm: vLLM's own server with the model as a classifier of true and false, `POST /v1/score`

Requests of 10 and of 100 BM25 candidates. In a closed loop each of 1 to 64 clients sends its next request when it
has an answer. In an open loop requests arrive at random (Poisson) at a share of the capacity, and a latency counts
from the time at which a request was due. Capacity is what the bare engine does first, with four requests in flight.

One engine runs at a time. Each round starts and stops every variant; their order is turned by one from round to
round. A cell has the same requests for every variant and as many as take about ``--seconds`` at capacity, at least
one for each client. Cells that would take four times as long are left out, and named. Figures are medians over
rounds.

``--replicas`` sets one replica against two, with the fake engine at a fixed rate: two real engines would share the
cores of one.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving_load import Load, Report, Request, in_ms, median, real_requests
from serving_processes import BareTarget, HttpTarget, Target, bare_engine, header, limrank_server, vllm_server

from limrank import signals

CONTEXT = 2048
SHARE, UNLOADED_MS = 0.95, 15.0
REPLICAS = 1.9
WARM_UP = 8
"""Requests before the first cell."""

LONGEST = 4
"""Times ``--seconds`` that a cell may take."""


@dataclass(frozen=True)
class Cell:
    """One loop over requests of one size; ``load`` is the number of clients, or the share of the capacity."""

    loop: str
    load: float
    size: int

    def __str__(self) -> str:
        load = (
            f"{self.load:g} client{'s' * (self.load != 1)}" if self.loop == "closed" else f"{self.load:.0%} of capacity"
        )
        return f"{self.loop}, {load}, {self.size} candidates"

    def pairs(self, capacity: float, seconds: float) -> float:
        """The pairs of the cell."""
        if self.loop == "open":
            return self.load * capacity * seconds
        return max(self.load, round(capacity * seconds / self.size)) * self.size

    def run(self, target: Target, requests: list[Request], skip: int, capacity: float, seconds: float) -> Load:
        if self.loop == "closed":
            count = round(self.pairs(capacity, seconds) / self.size)
            return target.run("closed", requests, skip=skip, clients=int(self.load), count=count)
        rate = self.load * capacity / self.size
        return target.run("open", requests, skip=skip, per_s=rate, seconds=seconds, seed=0)


class Variants:
    def __init__(self, options: argparse.Namespace) -> None:
        self._model = {"id": options.model, "max_model_len": CONTEXT}
        if options.dtype:
            self._model["dtype"] = options.dtype
        self._engine = {"kind": options.engine}
        if options.engine == "fake":
            self._engine |= {"fault": {"latency_ms": options.latency_ms}, "max_in_flight": options.in_flight}
        self._keys = {"model": self._model, "engine": self._engine, "scoring": {"mode": "direct"}}

    @contextmanager
    def open(self, name: str) -> Iterator[Target]:
        if name == "bare":
            with bare_engine(self._model, self._engine) as target:
                yield target
        elif name == "vllm":
            with vllm_server(self._model, self._engine) as server:
                yield HttpTarget(server.url, "/v1/score", "served")
        else:
            with limrank_server(self._keys) as server:
                yield HttpTarget(server.url, "/v1/rerank")


def warm_up(target: Target, requests: list[Request]) -> None:
    load = target.run("closed", requests, skip=len(requests) - WARM_UP, clients=4, count=WARM_UP)
    assert set(load.statuses) == {200}, load.statuses


def measured_capacity(target: BareTarget, requests: list[Request], seconds: float) -> float:
    """Pairs a second with four requests in flight at a time."""
    warm_up(target, requests)
    first = target.run("closed", requests, clients=4, count=4).pairs_per_s
    count = max(4, round(first * seconds / len(requests[0].documents)))
    return target.run("closed", requests, skip=4, clients=4, count=count).pairs_per_s


def measure(options: argparse.Namespace, report: Report) -> None:
    requests = real_requests(options.data, options.sizes)
    variants = Variants(options)
    report(f"requests of {Path(options.data).name}: " + ", ".join(f"{len(requests[n])} of {n}" for n in options.sizes))
    with variants.open("bare") as target:
        capacity = measured_capacity(target, requests[min(options.sizes)], min(options.seconds, 30))
    report(f"capacity: {capacity:.1f} pairs/s, the bare engine with 4 requests of {min(options.sizes)} in flight")
    cells = [Cell("closed", clients, size) for size in options.sizes for clients in options.clients]
    cells += [Cell("open", share, size) for size in options.sizes for share in options.shares]
    long = [cell for cell in cells if cell.pairs(capacity, options.seconds) > LONGEST * options.seconds * capacity]
    for cell in long:
        report(f"left out: {cell}: some {cell.pairs(capacity, options.seconds) / capacity:.0f} s a round")
    cells = [cell for cell in cells if cell not in long]
    seen: dict[tuple[Cell, str], list[Load]] = {}
    names = options.variants
    for turn in range(options.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            with variants.open(name) as target:
                warm_up(target, requests[min(options.sizes)])
                skip = dict.fromkeys(options.sizes, 0)
                for cell in cells:
                    load = cell.run(target, requests[cell.size], skip[cell.size], capacity, options.seconds)
                    skip[cell.size] += load.requests
                    seen.setdefault((cell, name), []).append(load)
                    report(f"  round {turn + 1}: {str(cell):<46} {name:<7} {load.figures()}")
    medians(report, cells, names, seen)
    if {"served", "bare"} <= set(names):
        against_bare(report, cells, seen)


def medians(report: Report, cells: list[Cell], names: list[str], seen: dict[tuple[Cell, str], list[Load]]) -> None:
    report("\nmedians over rounds:")
    for cell, name in itertools.product(cells, names):
        loads = seen[cell, name]
        rate = statistics.median(load.pairs_per_s for load in loads)
        at = "  ".join(
            f"{label} {in_ms(median([load.latency(share) for load in loads]))}"
            for label, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
        )
        counts = sum((load.statuses for load in loads[1:]), loads[0].statuses.copy())
        ended = ", ".join(f"{status}: {count}" for status, count in sorted(counts.items(), key=str))
        report(f"  {str(cell):<46} {name:<7} {rate:8.2f} pairs/s  {at} ms  {ended}")


def against_bare(report: Report, cells: list[Cell], seen: dict[tuple[Cell, str], list[Load]]) -> None:
    """The bars, from the rounds' ratios and differences."""
    closed = [cell for cell in cells if cell.loop == "closed"]
    for size in sorted({cell.size for cell in closed}):
        most = max((cell for cell in closed if cell.size == size), key=lambda cell: cell.load)
        one = Cell("closed", 1, size)
        if most != one:
            saturated(report, seen, most)
        if one in closed:
            slower = rounds(seen, one, lambda served, bare: 1000 * (served.latency(0.5) - bare.latency(0.5)))
            found = statistics.median(slower)
            report.bar(
                f"served p50 - bare p50 ({one}), at most {UNLOADED_MS:g} ms", f"{found:.1f} ms", found <= UNLOADED_MS
            )


def saturated(report: Report, seen: dict[tuple[Cell, str], list[Load]], most: Cell) -> None:
    found = statistics.median(rounds(seen, most, lambda served, bare: served.pairs_per_s / bare.pairs_per_s))
    report.bar(f"served / bare at saturation ({most}), at least {SHARE:g}", f"{found:.3f}", found >= SHARE)


def rounds(seen: dict[tuple[Cell, str], list[Load]], cell: Cell, compare) -> list[float]:
    return [compare(*pair) for pair in zip(seen[cell, "served"], seen[cell, "bare"], strict=True)]


def replicas(options: argparse.Namespace, report: Report) -> None:
    """One replica against two, with an engine of a fixed rate."""
    size = min(options.sizes)
    requests = real_requests(options.data, [size])[size]
    engine = {"kind": "fake", "fault": {"latency_ms": options.latency_ms}, "max_in_flight": options.in_flight}
    rate = 1000 * options.in_flight / options.latency_ms
    clients = 4 * options.in_flight
    report(
        f"\none replica against two: the fake engine, {rate:g} pairs/s each, not two real engines, which do not fit these "
        f"cores; {clients} clients, {size} candidates"
    )
    seen: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(options.rounds):
        for count in (1, 2) if turn % 2 == 0 else (2, 1):
            with limrank_server({"engine": engine, "workers": {"replicas": count}}) as server:
                target = HttpTarget(server.url, "/v1/rerank")
                warm_up(target, requests)
                sent = max(clients, round(count * rate * options.seconds / size))
                load = target.run("closed", requests, clients=clients, count=sent)
                seen[count].append(load.pairs_per_s)
                report(f"  round {turn + 1}: {count} replica{'s' * (count > 1)}  {load.figures()}")
    found = statistics.median(two / one for one, two in zip(seen[1], seen[2], strict=True))
    report.bar(f"two replicas / one, at least {REPLICAS:g}", f"{found:.2f}", found >= REPLICAS)
    report.bar(
        f"one replica / its engine's rate, at least {SHARE:g}",
        f"{(s := statistics.median(seen[1]) / rate):.3f}",
        s >= SHARE,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="pydocs", metavar="BEIR_FOLDER", help="pydocs, or a BEIR folder")
    parser.add_argument("--model", default="smollm2-135m-rerank")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--engine", default="vllm", choices=("vllm", "fake"))
    parser.add_argument("--latency-ms", type=float, default=40.0, help="of the fake engine")
    parser.add_argument("--in-flight", type=int, default=4, help="of the fake engine")
    parser.add_argument("--variants", nargs="*", default=["served", "bare", "vllm"], choices=("served", "bare", "vllm"))
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--sizes", nargs="+", type=int, default=[10, 100])
    parser.add_argument("--shares", nargs="*", type=float, default=[0.3, 0.6, 0.9])
    parser.add_argument("--seconds", type=float, default=60.0, help="of a cell")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--replicas", action="store_true", help="also one replica against two, with the fake engine")
    parser.add_argument("--quick", action="store_true", help="one round of few short cells, which shows that it runs")
    parser.add_argument("--out", metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.clients, options.sizes, options.shares, options.seconds, options.rounds = [1, 4], [10], [0.5], 4.0, 1
    if options.engine == "fake":
        options.variants = [name for name in options.variants if name != "vllm"]
    report = Report(options.out)
    report(header())
    with signals.stopping():  # a server must not outlive this process
        if options.variants:
            measure(options, report)
        if options.replicas:
            replicas(options, report)


if __name__ == "__main__":
    main()
