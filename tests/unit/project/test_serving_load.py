"""The loops and figures of the server's benchmarks, in virtual time and without a server."""

import asyncio
import importlib
import itertools
import math

import pytest

from helpers import REPOSITORY
from helpers.virtual_time import run


@pytest.fixture
def module(monkeypatch):
    """Imports one of the benchmarks, as its own scripts do."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def load(module):
    return module("serving_load")


def requests(load, pairs=2):
    return itertools.repeat(load.Request("q", ("text",) * pairs))


def one_at_a_time(load, seconds):
    """A server that works on one request at a time."""
    lock = asyncio.Lock()

    async def send(request):
        async with lock:
            await asyncio.sleep(seconds)
        return load.Outcome(200)

    return send


def test_a_quantile_is_a_value_that_was_seen(load):
    values = list(range(1, 101))
    assert [load.quantile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert load.quantile([7.0], 0.01) == 7.0
    assert math.isnan(load.quantile([], 0.5))
    assert load.median([3.0, math.nan, 1.0]) == 2.0
    assert math.isnan(load.median([math.nan]))


def test_clients_of_a_closed_loop_send_one_request_at_a_time(load):
    async def closed():
        return await load.closed_loop(one_at_a_time(load, 1.0), requests(load), clients=4, count=8)

    found = run(closed())
    assert (found.requests, found.pairs, found.seconds) == (8, 16, 8.0)
    assert found.pairs_per_s == 2.0
    # The first four wait for each other; then each has always three before it.
    assert found.latencies == [1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0, 4.0]


def test_fewer_requests_than_clients(load):
    async def closed():
        return await load.closed_loop(one_at_a_time(load, 1.0), requests(load), clients=64, count=2)

    assert run(closed()).latencies == [1.0, 2.0]


def test_an_open_loop_counts_from_when_a_request_was_due(load):
    async def blocked():
        async def send(request):
            if not seen:
                seen.append(request)
                # The client itself stands still for 5 s: nothing is sent, and what was due then is late.
                asyncio.get_running_loop()._now += 5.0
            return load.Outcome(200)

        seen = []
        return await load.open_loop(send, requests(load), [0.0, 1.0, 2.0, 7.0])

    found = run(blocked())
    assert found.latencies == [5.0, 4.0, 3.0, 0.0]
    assert found.ends == [5.0, 5.0, 5.0, 7.0]


def test_an_open_loop_goes_on_whatever_is_unanswered(load):
    async def opened():
        return await load.open_loop(one_at_a_time(load, 3.0), requests(load), [0.0, 1.0, 2.0])

    assert run(opened()).latencies == [3.0, 5.0, 7.0]


def test_arrivals_are_random_and_the_same_for_every_variant(load):
    times = load.arrivals(50.0, 100.0, seed=0)
    assert times == load.arrivals(50.0, 100.0, seed=0) != load.arrivals(50.0, 100.0, seed=1)
    assert times == sorted(times)
    assert 4700 < len(times) < 5300
    assert times[-1] < 100.0
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    # Of an exponential distribution 1 / e is above the mean.
    assert sum(gap > 1 / 50 for gap in gaps) / len(gaps) == pytest.approx(1 / math.e, abs=0.03)
    assert load.arrivals(0.001, 1.0, seed=0) == [0.0]


def test_failures_are_counted_and_have_no_latency(load):
    found = load.Load(seconds=2.0)
    found.add(load.Outcome(200), 10, 0.5, 1.0)
    found.add(load.Outcome(429, 3.0, "overloaded"), 10, 0.1, 1.0)
    found.add(load.Outcome(500, None, "not JSON"), 10, 0.1, 1.0)
    found.add(load.Outcome("ServerDisconnectedError"), 10, 0.1, 1.0)
    assert found.statuses == {200: 1, 429: 1, "500 not JSON": 1, "ServerDisconnectedError": 1}
    assert (found.pairs_per_s, found.latencies, found.waits) == (5.0, [0.5], [3.0])
    assert "p50    500.0" in found.figures()
    assert "200: 1, 429: 1" in found.figures()


def test_real_requests_have_no_pair_in_common(load):
    made = load.real_requests("pydocs", [10, 100])
    for size, found in made.items():
        pairs = [(request.query, text) for request in found for text in request.documents]
        assert {len(request.documents) for request in found} == {size}
        assert len(set(pairs)) == len(pairs)
    assert {request.query for request in made[100]} == {request.query for request in made[10]}


def test_the_work_of_a_cell(module):
    cell = module("serve_load").Cell
    # 20 pairs/s for 60 s are 120 requests of 10, and at least one for each client.
    assert cell("closed", 4, 10).pairs(20.0, 60.0) == 1200
    assert cell("closed", 64, 100).pairs(20.0, 60.0) == 6400
    assert cell("open", 0.5, 10).pairs(20.0, 60.0) == 600
    assert str(cell("closed", 1, 10)) == "closed, 1 client, 10 candidates"
    assert str(cell("open", 0.9, 100)) == "open, 90% of capacity, 100 candidates"


def test_a_window_has_the_requests_that_were_due_in_it(load, module):
    overload = module("serve_overload")
    found = load.Load()
    for due, latency in ((0.5, 9.0), (1.0, 7.0), (2.5, 0.1), (3.0, 0.3), (3.5, 0.2)):
        found.add(load.Outcome(200), 1, latency, due + latency)
    assert overload.window_p50(found, 0.0) == 7.0
    assert overload.window_p50(found, 2.0) == pytest.approx(0.2)
    assert overload.window_p50(found, 0.0, math.inf) == pytest.approx(0.3)


def test_a_slope_does_not_follow_one_peak(module):
    overload, processes = module("serve_overload"), module("serving_processes")
    samples = [processes.Sample(float(at), 100.0 + at / 10, 50.0, 20, 8) for at in range(100)]
    samples[50].rss = 5000.0
    middle, low, high = overload.slopes(samples, "rss")
    assert middle == pytest.approx(0.1)
    assert low <= middle <= high
    assert overload.slopes(samples, "pss") == (0.0, 0.0, 0.0)
