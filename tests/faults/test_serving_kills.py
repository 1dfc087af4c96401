"""Each of a server's actors is killed under load: real Ray Serve, the fake engine, and 20 clients that go on."""

import contextlib
import os
import signal
import threading
import time
from collections import Counter

import httpx
import pytest

from helpers.processes import below, command_line
from helpers.runs import wait_until
from limrank import Client
from limrank.config import ServeJob
from limrank.errors import LimrankError
from limrank.serving import job

CONFIG = ServeJob(
    run_dir="unused",
    engine={"kind": "fake", "latency_ms": 20, "max_in_flight": 16},
    workers={"replicas": 2},
    serving={"port": 0},
)
DOCUMENTS = [f"passage {number}" for number in range(5)]
VICTIMS = {
    "engine replica": "ServeReplica:limrank:Scorer",
    "API replica": "ServeReplica:limrank:Api",
    "proxy": "ray::ProxyActor",
    "controller": "ray::ServeController",
}
CLIENTS, PLAIN = 16, 4
BEFORE_S, AFTER_S, BACK_S = 1.0, 2.0, 90.0


@pytest.fixture(scope="module")
def server(local_ray):
    with job.serving(CONFIG) as url:
        yield url


@pytest.fixture(scope="module")
def expected(server):
    """The scores of each query, asked for while nothing happens."""
    with Client(server) as client:
        return {query: client.score(query, DOCUMENTS) for query in map(query_of, range(CLIENTS))}


def query_of(number):
    return f"query {number}"


class Clients:
    """limrank's own clients, and plain ones without retries, each in a thread, until the ``with`` block ends.

    Attributes:
        answered: number of right answers of limrank's clients.
        wrong, lost: what the others of their requests got.
        statuses: of plain clients: the status of a JSON answer, the status and its text of another one, or the
            transport's error.
    """

    def __init__(self, url, expected):
        self.answered, self.wrong, self.lost, self.statuses = 0, [], [], Counter()
        self._url, self._expected = url, expected
        self._ended = threading.Event()
        targets = [(self._own, number) for number in range(CLIENTS)] + [(self._plain, n) for n in range(PLAIN)]
        self._threads = [threading.Thread(target=target, args=(number,), daemon=True) for target, number in targets]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception):
        self._ended.set()
        for thread in self._threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in self._threads)

    def _own(self, number):
        query = query_of(number)
        # The waits between so many attempts are longer than any of the actors takes to come back.
        with Client(self._url, timeout=BACK_S, max_retries=30) as client:
            while not self._ended.is_set():
                try:
                    scores = client.score(query, DOCUMENTS)
                except LimrankError as error:
                    self.lost.append(str(error))
                    continue
                if scores == self._expected[query]:
                    self.answered += 1
                else:
                    self.wrong.append((query, scores))

    def _plain(self, number):
        body = {"query": query_of(number), "documents": DOCUMENTS}
        with httpx.Client(base_url=self._url, timeout=60, trust_env=False) as client:
            while not self._ended.is_set():
                try:
                    answer = client.post("/v1/rerank", json=body)
                except httpx.TransportError as error:
                    self.statuses[type(error).__name__] += 1
                    time.sleep(0.2)
                    continue
                if answer.headers.get("content-type") == "application/json":
                    self.statuses[answer.status_code] += 1
                else:
                    self.statuses[f"{answer.status_code}: {answer.text[:80]}"] += 1
                if answer.status_code != 200:
                    time.sleep(0.2)


def pids_of(victim):
    return {each.pid for each in below(os.getpid()) if VICTIMS[victim] in command_line(each)}


def ready(url):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200
    return False


@pytest.mark.parametrize("victim", VICTIMS)
def test_no_request_is_lost(server, expected, victim):
    wait_until(lambda: ready(server), "the server")
    before = pids_of(victim)
    assert before, f"no process of the {victim}"
    with Clients(server, expected) as clients:
        time.sleep(BEFORE_S)
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        at = time.monotonic()
        wait_until(lambda: pids_of(victim) - before and ready(server), f"another {victim}", patience_s=BACK_S)
        back_s, answered = time.monotonic() - at, clients.answered
        time.sleep(AFTER_S)
        wait_until(lambda: clients.answered > answered, "an answer after the kill", patience_s=BACK_S)
    print(f"{victim}: {clients.answered} answers, plain clients {dict(clients.statuses)}, back after {back_s:.1f} s")
    assert clients.lost == []
    assert clients.wrong == []
    allowed = {200, 429, 503}
    if victim == "proxy":  # the connections end with it
        allowed |= {"RemoteProtocolError", "ConnectError", "ReadError"}
    assert set(clients.statuses) <= allowed
    assert clients.statuses[200]
