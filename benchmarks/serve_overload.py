"""A server under ten times the load that it can take, and under an hour of mixed load.

    python benchmarks/serve_overload.py [--engine fake|vllm] [--seconds 120] [--queue-s 3] [--times 10] [--out FILE]
    python benchmarks/serve_overload.py --mixed [--minutes 60] [--share 0.7] [--out FILE]

Overload: the capacity is measured first. Then the server starts anew with a queue (``serving.max_queued_pairs``) of
``--queue-s`` seconds at that capacity, and takes half its capacity, ten times its capacity, and half of it again.
Arrivals are random (Poisson), and every second request has a new connection. It should answer with 200 and 429 only
and name a plausible ``Retry-After``, its processes should not grow, and the median latency should be what it was
within ten seconds after the overload.

Mixed: requests of 1 to 50 candidates, direct and with chains, with each of several API keys; one in eight is
faulty and one in twelve is given up by its client. Memory, open files and threads of each process are sampled. Their
growth is the Theil-Sen slope after the first sixth of the time, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import random
import statistics
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from scipy.stats import theilslopes
from serving_load import (
    Load,
    Outcome,
    Report,
    Request,
    Send,
    arrivals,
    closed_loop,
    http_client,
    in_ms,
    open_loop,
    post,
    quantile,
    real_requests,
)
from serving_processes import Sample, Watch, header, limrank_server

from limrank import signals

NORMAL = 0.5
"""Share of the capacity that is normal load."""

BACK_S, WINDOW_S, BACK_TIMES = 10.0, 2.0, 1.5
"""The p50 of a window of two seconds is normal if it is at most so many times the one before the overload, and 20 ms."""

LONGEST_WAIT_S = 60
GROWTH_MIB, GROWTH_OTHER = 10.0, 5.0
"""MiB, and files or threads, that a process may gain in an hour, or during an overload."""

JUDGED_MINUTES = 30.0
"""A process needs minutes until it has all that its requests need."""

KEYS = {name: f"benchmark-key-{name}-0123456789" for name in ("search", "assistant", "batch")}


def recipe(options: argparse.Namespace, **serving: Any) -> dict[str, Any]:
    engine: dict[str, Any] = {"kind": options.engine}
    if options.engine == "fake":
        engine |= {"fault": {"latency_ms": options.latency_ms}, "max_in_flight": options.in_flight}
    model = {"id": options.model, "max_model_len": 2048}
    return {"model": model, "engine": engine, "serving": serving}


@asynccontextmanager
async def poster(url: str, key: str | None = None) -> AsyncIterator[Send]:
    """Sends a request by an open connection and the next one by a new one, in turn."""
    headers = {"Authorization": f"Bearer {key}"} if key else None
    async with http_client() as kept, http_client(new_connections=True) as new:
        sessions = itertools.cycle((kept, new))

        async def send(request: Request) -> Outcome:
            body = {"query": request.query, "documents": list(request.documents), "return_documents": False}
            return await post(next(sessions), f"{url}/v1/rerank", body, headers)

        yield send


# ---- overload ----------------------------------------------------------------------------


async def capacity_of(url: str, requests: list[Request], seconds: float, key: str | None = None) -> float:
    """Pairs a second with 16 requests in flight."""
    async with poster(url, key) as send:
        cycle = itertools.cycle(requests)
        first = await closed_loop(send, cycle, clients=4, count=8)
        count = max(16, round(first.pairs_per_s * seconds / len(requests[0].documents)))
        load = await closed_loop(send, cycle, clients=16, count=count)
    assert set(load.statuses) == {200}, load.statuses
    return load.pairs_per_s


async def warm_up(url: str, requests: list[Request]) -> None:
    """Eight requests, one at a time: the queue may be short."""
    async with poster(url) as send:
        load = await closed_loop(send, itertools.cycle(requests), clients=1, count=8)
    assert set(load.statuses) == {200}, load.statuses


async def phases(
    url: str, requests: list[Request], capacity: float, options: argparse.Namespace, watch: Watch
) -> tuple[list[Load], tuple[float, float]]:
    """The loads before, during and after the overload, and the seconds of the watch at which it began and ended."""
    loads, at = [], []
    async with poster(url) as send:
        cycle = itertools.cycle(requests)
        pairs = len(requests[0].documents)
        after = max(3 * BACK_S, 30 * pairs / capacity)
        for times, seconds in ((NORMAL, after), (options.times, options.seconds), (NORMAL, after)):
            at.append(watch.seconds)
            due = arrivals(times * capacity / pairs, seconds, seed=len(loads))
            loads.append(asyncio.create_task(open_loop(send, cycle, due)))
            # Normal load begins again at once, while the last answers of the overload are still to come.
            await asyncio.sleep(seconds)
        loads = [await load for load in loads]
    return loads, (at[1], at[2])


def overload(options: argparse.Namespace, report: Report) -> None:
    requests = real_requests(options.data, [options.size])[options.size]
    with limrank_server(recipe(options)) as server:
        capacity = asyncio.run(capacity_of(server.url, requests, min(20.0, options.seconds)))
    queue = max(options.size, round(capacity * options.queue_s))
    report(f"capacity: {capacity:.1f} pairs/s in requests of {options.size}; serving.max_queued_pairs: {queue}")
    with limrank_server(recipe(options, max_queued_pairs=queue)) as server:
        asyncio.run(warm_up(server.url, requests))
        watch = Watch(server, every_s=1.0)
        loads, (began, ended) = asyncio.run(phases(server.url, requests, capacity, options, watch))
        watch.close()
    before, during, after = loads
    report(f"\nhalf the capacity        {before.figures()}")
    report(f"{options.times:g} times the capacity   {during.figures()}")
    report(f"half the capacity again  {after.figures()}")
    windows = [(at, window_p50(after, at)) for at in windows_of(after)]
    report("p50 by seconds after the overload: " + ", ".join(f"{at:g}: {in_ms(p50).strip()} ms" for at, p50 in windows))
    report("\nprocesses, during the overload:")
    grown = growth(report, watch, began, ended, per_hour=False)
    report("\nbars:")
    others = {status: count for status, count in during.statuses.items() if status not in (200, 429)}
    report.bar("statuses besides 200 and 429", str(others or "none"), not others)
    in_time = sum(end <= options.seconds for end in during.ends)
    offered, answered = during.requests / options.seconds, during.requests / during.seconds
    report(f"  {offered:.0f} requests/s were offered, and {answered:.0f} answered")
    served = in_time * options.size / options.seconds / capacity
    report.bar("pairs/s in the overload / capacity, at least 0.8", f"{served:.2f}", served >= 0.8)
    waits = during.waits or [0.0]
    plausible = all(1 <= wait <= LONGEST_WAIT_S and wait == int(wait) for wait in waits)
    plausible &= len(during.waits) == during.statuses[429] and statistics.median(waits) <= 3 * options.queue_s + 1
    spread = f"{min(waits):g} to {max(waits):g} s, median {statistics.median(waits):g} s, a full queue {queue / capacity:.1f} s"
    report.bar("Retry-After with every 429", spread, plausible)
    report.bar(f"processes that grew by more than {GROWTH_MIB:g} MiB", str(grown or "none"), not grown)
    limit = BACK_TIMES * before.latency(0.5) + 0.02
    # A window has few requests, and at random some come together: the rest of the time has to be normal, too.
    back = next((at for at, p50 in windows if p50 <= limit and window_p50(after, at, math.inf) <= limit), None)
    found = "never" if back is None else f"{back:g} s"
    report.bar(
        f"p50 at most {in_ms(limit).strip()} ms again, within {BACK_S:g} s", found, back is not None and back <= BACK_S
    )


def windows_of(load: Load) -> list[float]:
    return [index * WINDOW_S for index in range(int(max(load.ends, default=0.0) // WINDOW_S) + 1)]


def window_p50(load: Load, at: float, seconds: float = WINDOW_S) -> float:
    """The p50 of the requests that were due within so many seconds from ``at``."""
    due = zip(load.latencies, load.ends, strict=True)
    return quantile([latency for latency, end in due if at <= end - latency < at + seconds], 0.5)


# ---- memory ------------------------------------------------------------------------------


def growth(report: Report, watch: Watch, began: float, ended: float, *, per_hour: bool) -> list[str]:
    """Prints what each process has at the begin and the end and its slopes; gives the processes that grew."""
    grown = []
    per_s = 3600.0 if per_hour else ended - began
    unit = "an hour" if per_hour else f"in {per_s:.0f} s"
    for (role, pid), samples in sorted(watch.samples.items()):
        # What a process needs for its first requests is no growth.
        settled = began + (ended - began) / 6
        kept = [sample for sample in samples if settled <= sample.at <= ended]
        if len(kept) < 5:
            continue
        tenth = max(1, len(kept) // 10)
        parts, gains = [], {}
        for name in ("rss", "pss", "files", "threads"):
            middle, low, high = (per_s * slope for slope in slopes(kept, name))
            gains[name] = middle if low > 0 else 0.0
            ends = (statistics.median(getattr(each, name) for each in part) for part in (kept[:tenth], kept[-tenth:]))
            parts.append("{} {:.0f} → {:.0f} ({:+.1f} [{:+.1f}, {:+.1f}])".format(name, *ends, middle, low, high))
        report(f"  {role:<15} {pid:>7}  {'  '.join(parts)} {unit}")
        # A leak raises both. PSS alone rises when another process gives up a shared page, RSS alone when one is read.
        memory = min(gains["rss"], gains["pss"])
        if memory > GROWTH_MIB:
            grown.append(f"{role} {pid}: {memory:+.1f} MiB {unit}")
        # In an overload the connections of waiting requests are open files.
        more = [name for name in ("files", "threads") if per_hour and gains[name] > GROWTH_OTHER]
        grown += [f"{role} {pid}: {gains[name]:+.1f} {name} {unit}" for name in more]
    return grown


def slopes(samples: list[Sample], name: str) -> tuple[float, float, float]:
    """The Theil-Sen slope per second, and the ends of its 95 % interval. At most 600 samples: it compares all pairs."""
    step = max(1, len(samples) // 600)
    kept = samples[::step]
    found = theilslopes([getattr(sample, name) for sample in kept], [sample.at for sample in kept])
    return found.slope, found.low_slope, found.high_slope


# ---- mixed load --------------------------------------------------------------------------


class Mix:
    """Requests of every kind, and which statuses each kind may get."""

    SIZES = (1, 5, 10, 20, 50)
    THINK_TOKENS = 8

    def __init__(self, url: str, data: str, seed: int) -> None:
        self._url = url
        self._rng = random.Random(seed)
        self._cycles = {size: itertools.cycle(made) for size, made in real_requests(data, self.SIZES).items()}
        self.seen: dict[str, Counter] = {}
        self.unexpected: Counter = Counter()
        self.latencies: list[tuple[float, float]] = []

    @property
    def pairs(self) -> float:
        """Direct pairs that a request costs on average. A request with chains counts twice."""
        size = statistics.mean(self.SIZES)
        return size * (7 / 8) * (0.9 + 0.1 * 2)

    async def send(self, session: aiohttp.ClientSession, due: float, began: float) -> None:
        rng, loop = self._rng, asyncio.get_running_loop()
        request = next(self._cycles[rng.choice(self.SIZES)])
        body: dict[str, Any] = {"query": request.query, "documents": list(request.documents)}
        headers = {"Authorization": f"Bearer {rng.choice(list(KEYS.values()))}"}
        kind, expected = "direct", {200, 429}
        if rng.random() < 0.125:
            kind, body, headers, expected = self._faulty(rng, body, headers)
        elif rng.random() < 0.1:
            kind = "budget"
            body |= {"mode": "budget", "max_think_tokens": self.THINK_TOKENS}
        elif rng.random() < 1 / 12:
            kind = "given up"
        sending = post(session, f"{self._url}/v1/rerank", body, headers)
        if kind == "given up":
            try:
                outcome = await asyncio.wait_for(sending, rng.uniform(0.0, 0.5))
            except TimeoutError:
                outcome, expected = Outcome("left"), {"left"}
        else:
            outcome = await sending
        self.seen.setdefault(kind, Counter())[outcome.status] += 1
        if outcome.status not in expected or outcome.detail == "not JSON":
            self.unexpected[f"{kind}: {outcome.status} {outcome.detail or ''}".strip()] += 1
        if outcome.status == 200 and kind == "direct":
            self.latencies.append((due, loop.time() - began - due))

    def _faulty(self, rng: random.Random, body: dict[str, Any], headers: dict[str, str]) -> tuple[str, Any, Any, set]:
        return rng.choice(
            [
                ("no JSON", b"{nope", headers, {400}),
                ("no documents", body | {"documents": []}, headers, {400}),
                ("another model", body | {"model": "another"}, headers, {404}),
                ("a wrong key", body, {"Authorization": "Bearer " + "x" * 40}, {401}),
                ("no key", body, {}, {401}),
                ("too many documents", body | {"documents": ["a"] * 1001}, headers, {422}),
                ("a long query", body | {"query": "q" * 20_001}, headers, {422}),
                ("a mode that is not offered", body | {"mode": "cascade"}, headers, {400}),
            ]
        )


async def mixed_load(mix: Mix, per_s: float, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    async with http_client() as kept, http_client(new_connections=True) as new, asyncio.TaskGroup() as group:
        began = loop.time()
        for number, due in enumerate(arrivals(per_s, seconds, seed=1)):
            if (wait := due - (loop.time() - began)) > 0:
                await asyncio.sleep(wait)
            group.create_task(mix.send((kept, new)[number % 2], due, began))


def mixed(options: argparse.Namespace, report: Report) -> None:
    seconds = options.minutes * 60
    serving = {"modes": ["budget"]}
    environment = {"LIMRANK_API_KEYS": ",".join(f"{name}={key}" for name, key in KEYS.items())}
    with limrank_server(recipe(options, **serving), environment) as server:
        requests = real_requests(options.data, [10])[10]
        capacity = asyncio.run(capacity_of(server.url, requests, min(20.0, seconds / 4), next(iter(KEYS.values()))))
        mix = Mix(server.url, options.data, seed=1)
        per_s = options.share * capacity / mix.pairs
        report(f"capacity: {capacity:.1f} pairs/s; {per_s:.2f} requests/s for {options.minutes:g} minutes")
        watch = Watch(server, every_s=max(0.5, min(10.0, seconds / 60)))
        asyncio.run(mixed_load(mix, per_s, seconds))
        ended = watch.seconds
        watch.close()
    if options.samples:
        keep(watch, Path(options.samples))
    report("\nanswers by kind of request:")
    for kind, counts in sorted(mix.seen.items()):
        report(f"  {kind:<28} " + ", ".join(f"{status}: {count}" for status, count in counts.most_common()))
    report("\np50 and p95 of direct requests, by tenths of the time:")
    for tenth in range(10):
        part = [spent for due, spent in mix.latencies if tenth * seconds / 10 <= due < (tenth + 1) * seconds / 10]
        report(f"  {tenth + 1:>2}: {in_ms(quantile(part, 0.5))} {in_ms(quantile(part, 0.95))} ms of {len(part)}")
    report("\nprocesses:")
    grown = growth(report, watch, 0.0, ended, per_hour=True)
    report("\nbars:")
    report.bar("answers that were not to be expected", str(dict(mix.unexpected) or "none"), not mix.unexpected)
    if options.minutes < JUDGED_MINUTES:
        report(f"  growth is not judged: that needs {JUDGED_MINUTES:g} minutes or more")
        return
    limits = f"{GROWTH_MIB:g} MiB or {GROWTH_OTHER:g} files or threads an hour"
    report.bar(f"processes that grew by more than {limits}", str(grown or "none"), not grown)


def keep(watch: Watch, path: Path) -> None:
    """Every sample, a line of JSON each."""
    with path.open("w") as file:
        for (role, pid), samples in watch.samples.items():
            for sample in samples:
                file.write(json.dumps({"role": role, "pid": pid, **vars(sample)}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="pydocs", metavar="BEIR_FOLDER", help="pydocs, or a BEIR folder")
    parser.add_argument("--engine", default="fake", choices=("fake", "vllm"))
    parser.add_argument("--model", default="smollm2-135m-rerank")
    parser.add_argument("--latency-ms", type=float, default=50.0, help="of the fake engine")
    parser.add_argument("--in-flight", type=int, default=8, help="of the fake engine")
    parser.add_argument("--size", type=int, default=10, help="candidates of a request in the overload")
    parser.add_argument("--seconds", type=float, default=120.0, help="of the overload")
    parser.add_argument("--times", type=float, default=10.0, help="the overload, in capacities")
    parser.add_argument("--queue-s", type=float, default=3.0, help="seconds of work that may wait")
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--minutes", type=float, default=60.0, help="of mixed load")
    parser.add_argument("--share", type=float, default=0.7, help="of the capacity, in mixed load")
    parser.add_argument("--samples", metavar="FILE", help="keep the samples of mixed load as JSON lines")
    parser.add_argument("--out", metavar="FILE")
    options = parser.parse_args()
    report = Report(options.out)
    report(header())
    with signals.stopping():  # a server must not outlive this process
        (mixed if options.mixed else overload)(options, report)


if __name__ == "__main__":
    main()
