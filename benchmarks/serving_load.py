"""What the benchmarks of the server share: requests of real candidates, closed and open loops, and their figures.

A loop takes a function that sends one request, so a server and an engine in this process get the same load.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from limrank import retrieval
from limrank.config import DataConfig, FirstStageConfig
from limrank.data import benchmarks

ANSWER_S = 1200.0
"""Seconds after which a request counts as unanswered."""


# ---- requests --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """A query and its candidates."""

    query: str
    documents: tuple[str, ...]


def real_requests(data: str, sizes: Sequence[int]) -> dict[int, list[Request]]:
    """Requests of each size, from the 100 best candidates of each query. Requests of one size have no pair in common.

    Args:
        data: ``pydocs``, or a BEIR folder. Its ``run.bm25.top100.trec`` is the first stage if it has one, else BM25.
    """
    if data == "pydocs":
        config = DataConfig(format="pydocs", split="test")
    else:
        config = DataConfig(format="beir", path=str(Path(data).resolve()))
    run = Path(data) / "run.bm25.top100.trec"
    stage = FirstStageConfig(kind="run", path=str(run)) if run.is_file() else FirstStageConfig()
    stage = stage.model_copy(update={"depth": 100})
    found = [
        (query.text, [candidate.text for candidate in candidates])
        for query, candidates in retrieval.candidates(benchmarks.load(config), stage)
    ]
    requests = {
        size: [
            Request(query, tuple(texts[start : start + size]))
            for start in range(0, 100, size)
            for query, texts in found
            if len(texts) >= start + size
        ]
        for size in sizes
    }
    for size, made in requests.items():
        if not made:
            raise SystemExit(f"{data}: no query has {size} candidates")
    return requests


# ---- sending ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended: an HTTP status, or the name of the error without an answer.

    Attributes:
        retry_after_s: of the answer's header.
        detail: the error's code in an answer that is no success; ``not JSON`` for another body.
    """

    status: int | str
    retry_after_s: float | None = None
    detail: str | None = None


Send = Callable[[Request], Awaitable[Outcome]]


@asynccontextmanager
async def http_client(*, new_connections: bool = False) -> AsyncIterator[aiohttp.ClientSession]:
    """A client without a limit of connections. A proxy of the environment is not used."""
    connector = aiohttp.TCPConnector(limit=0, force_close=new_connections)
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


async def post(
    session: aiohttp.ClientSession, url: str, body: bytes | Mapping, headers: Mapping[str, str] | None = None
) -> Outcome:
    """Send a body, and read the whole answer."""
    content = {"data": body} if isinstance(body, bytes) else {"json": body}
    try:
        async with session.post(url, headers=headers, **content) as answer:
            raw = await answer.read()
            waits = answer.headers.get("Retry-After")
            detail = None if answer.status == 200 else _code(raw)
            return Outcome(answer.status, float(waits) if waits else None, detail)
    except (aiohttp.ClientError, TimeoutError) as error:
        return Outcome(type(error).__name__)


def _code(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["error"]["code"])
    except (ValueError, LookupError, TypeError):
        return "not JSON"


# ---- loops -----------------------------------------------------------------------------


@dataclass
class Load:
    """What came of the requests of one loop.

    Attributes:
        seconds: from the first request to the last answer.
        pairs: of the requests that were answered with 200.
        latencies: seconds of those requests. In an open loop from the time at which the request was due, so a late
            start counts.
        ends: for each of them the second at which it was answered.
        statuses: number of requests by how they ended.
        waits: the ``Retry-After`` of refused requests.
    """

    seconds: float = 0.0
    pairs: int = 0
    latencies: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)

    @property
    def requests(self) -> int:
        return sum(self.statuses.values())

    @property
    def pairs_per_s(self) -> float:
        return self.pairs / self.seconds if self.seconds else math.nan

    def latency(self, share: float) -> float:
        """A quantile of the latencies in seconds: the smallest that so large a share does not exceed."""
        return quantile(self.latencies, share)

    def add(self, outcome: Outcome, pairs: int, seconds: float, end: float) -> None:
        self.statuses[outcome.status if outcome.detail != "not JSON" else f"{outcome.status} not JSON"] += 1
        if outcome.status == 200:
            self.pairs += pairs
            self.latencies.append(seconds)
            self.ends.append(end)
        elif outcome.retry_after_s is not None:
            self.waits.append(outcome.retry_after_s)

    def figures(self) -> str:
        counts = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items(), key=str))
        p50, p95, p99 = (in_ms(self.latency(share)) for share in (0.5, 0.95, 0.99))
        return f"{self.pairs_per_s:8.2f} pairs/s  p50 {p50}  p95 {p95}  p99 {p99} ms  {counts}"


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed; NaN without values."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def in_ms(seconds: float) -> str:
    return f"{seconds * 1000:8.1f}"


async def closed_loop(send: Send, requests: Iterator[Request], *, clients: int, count: int) -> Load:
    """``count`` requests by so many clients, each of which sends its next request when it has an answer."""
    load, left, now = Load(), iter(range(count)), asyncio.get_running_loop().time
    began = now()

    async def client() -> None:
        for _ in left:
            request = next(requests)
            sent = now()
            outcome = await send(request)
            ended = now()
            load.add(outcome, len(request.documents), ended - sent, ended - began)

    await asyncio.gather(*(client() for _ in range(min(clients, count))))
    load.seconds = now() - began
    return load


def arrivals(per_s: float, seconds: float, seed: int) -> list[float]:
    """The times of a Poisson process, in seconds: the same for the same arguments."""
    rng = random.Random(f"{seed} {per_s} {seconds}")
    times = itertools.accumulate(rng.expovariate(per_s) for _ in itertools.count())
    return list(itertools.takewhile(lambda at: at < seconds, times)) or [0.0]


async def open_loop(send: Send, requests: Iterator[Request], times: Sequence[float]) -> Load:
    """A request at each of the times, however many are unanswered. Ends with the last answer."""
    load, now = Load(), asyncio.get_running_loop().time
    began = now()

    async def one(request: Request, due: float) -> None:
        outcome = await send(request)
        ended = now() - began
        load.add(outcome, len(request.documents), ended - due, ended)

    async with asyncio.TaskGroup() as group:
        for due in times:
            wait = due - (now() - began)
            if wait > 0:
                await asyncio.sleep(wait)
            group.create_task(one(next(requests), due))
    load.seconds = now() - began
    return load


def median(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


class Report:
    """Prints lines, and writes them to a file too."""

    def __init__(self, path: str | None) -> None:
        self._file = open(path, "w", encoding="utf-8") if path else None  # noqa: SIM115

    def __call__(self, line: str = "") -> None:
        print(line, flush=True)
        if self._file:
            print(line, file=self._file, flush=True)

    def bar(self, what: str, found: str, met: bool) -> None:
        self(f"  {what}: {found}: {'met' if met else 'MISSED'}")
