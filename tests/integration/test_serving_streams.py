"""Streamed answers as clients meet them: real Ray Serve and its proxy, real HTTP, the fake engine."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from limrank.config import ServeJob
from limrank.serving import job

POISON = "kills the engine"
LATENCY_S = 0.05
CONFIG = ServeJob(
    run_dir="unused",
    scoring={"mode": "budget", "max_think_tokens": 30},
    engine={"kind": "fake", "latency_ms": LATENCY_S * 1000, "max_in_flight": 8, "poison": POISON},
    serving={"port": 0, "modes": ["direct", "cascade"]},
)
DOCUMENTS = [f"passage {number}" for number in range(40)]
BODY = {"query": "q", "documents": DOCUMENTS, "stream": True}


@pytest.fixture(scope="module")
def server(local_ray):
    with job.serving(CONFIG) as url:
        yield url


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server, timeout=60, trust_env=False) as client:
        yield client


def events(response):
    """(seconds, name, data) of each event as it arrives."""
    began, name = time.monotonic(), None
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield time.monotonic() - began, name, json.loads(line.removeprefix("data: "))


def streamed(http, **more):
    with http.stream("POST", "/v1/rerank", json=BODY | more) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        assert len(response.headers.get_list("x-request-id")) == 1
        return list(events(response))


@pytest.mark.parametrize("mode", ["budget", "cascade", "direct"])
def test_events_arrive_one_by_one_and_end_with_the_plain_answer(http, mode):
    found = streamed(http, mode=mode)
    plain = http.post("/v1/rerank", json=BODY | {"mode": mode, "stream": False}).json()
    names = [name for _, name, _ in found]
    assert names[-1] == "done" and names.count("ranking") == 1
    done = found[-1][2]
    assert done["results"] == plain["results"]
    if mode != "budget":
        assert done["usage"] == plain["usage"]
    print(mode, [(round(seconds, 2), name) for seconds, name, _ in found])
    if mode == "direct":
        return
    # 40 chains and their labels, eight at a time, take half a second after the direct scores.
    ranking = next(seconds for seconds, name, _ in found if name == "ranking")
    assert found[-1][0] - ranking > 0.3
    later = [seconds for seconds, _, _ in found if seconds > ranking]
    assert len(later) >= 3
    assert max(b - a for a, b in zip(later, later[1:], strict=False)) < 0.4


def test_a_refused_stream_has_its_status(http):
    refused = http.post("/v1/rerank", json=BODY | {"mode": "think"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "mode_not_allowed")
    late = http.post("/v1/rerank", json=BODY | {"deadline_ms": 10})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_at_the_deadline_the_best_order_is_done(http):
    # 400 direct scores take 2.5 s, and their chains and labels 5 s.
    found = streamed(http, documents=DOCUMENTS * 10, deadline_ms=4500)
    results = found[-1][2]["results"]
    assert found[-1][1] == "done" and 4 < found[-1][0] < 8
    assert {result["status"] for result in results} >= {"direct"}
    assert None not in [result["relevance_score"] for result in results]


def test_a_client_that_leaves_frees_the_engine_within_a_second(http):
    # 800 pairs take 15 s.
    with http.stream("POST", "/v1/rerank", json=BODY | {"documents": DOCUMENTS * 20}) as response:
        for _ in events(response):
            break
    time.sleep(1)
    began = time.monotonic()
    assert http.post("/v1/rerank", json={"query": "q", "documents": ["a"], "mode": "direct"}).status_code == 200
    assert time.monotonic() - began < 0.5
    assert _metric(http, "limrank_queue_size_pairs") == 0


def test_a_socket_that_is_reset_frees_the_engine(server, http):
    host, port = server.removeprefix("http://").split(":")
    body = json.dumps(BODY | {"documents": DOCUMENTS * 20}).encode()
    connection = socket.create_connection((host, int(port)), timeout=20)
    head = f"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    connection.sendall(head + body)
    assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    deadline = time.monotonic() + 2
    while _metric(http, "limrank_queue_size_pairs") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _metric(http, "limrank_queue_size_pairs") == 0


def test_twenty_streams_at_a_time(server):
    found = [None] * 20

    def ask(number):
        with httpx.Client(base_url=server, timeout=60, trust_env=False) as client:
            found[number] = streamed(client, documents=DOCUMENTS[:10])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {each[-1][1] for each in found} == {"done"}
    results = [each[-1][2]["results"] for each in found]
    assert all(each == results[0] for each in results)


def test_an_engine_that_is_killed_ends_the_stream(http):
    with http.stream("POST", "/v1/rerank", json=BODY | {"documents": DOCUMENTS * 5}) as response:
        found = []
        for each in events(response):
            found.append(each)
            if len(found) == 1:
                killed = time.monotonic()
                for pid in _scorers():
                    os.kill(pid, signal.SIGKILL)
    print("killed; ended after", time.monotonic() - killed, [name for _, name, _ in found][-3:])
    assert time.monotonic() - killed < 20
    _, name, data = found[-1]
    assert (name, data["status"], data["error"]["code"]) == ("error", 503, "engine_unavailable")
    assert _becomes_ready(http)
    assert streamed(http)[-1][1] == "done"


def test_an_engine_that_crashes_ends_the_stream(http):
    found = []
    body = BODY | {"documents": [*DOCUMENTS * 5, POISON]}
    with http.stream("POST", "/v1/rerank", json=body) as response:
        status = response.status_code
        found = list(events(response)) if status == 200 else []
        if status != 200:
            assert response.read()
    assert (status == 503 and not found) or found[-1][1] == "error"
    assert _becomes_ready(http)
    assert streamed(http)[-1][1] == "done"


def _scorers():
    """The processes of the engine replicas."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if "ServeReplica:limrank:Scorer" in (folder / "cmdline").read_text(errors="replace"):
                found.append(int(folder.name))
    assert found
    return found


def _metric(http, name):
    text = http.get("/metrics").text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def _becomes_ready(http, within_s=60):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if http.get("/readyz").status_code == 200 and _scores(http):
                return True
        time.sleep(0.1)
    return False


def _scores(http):
    body = {"query": "q", "documents": ["a"], "mode": "direct"}
    return http.post("/v1/rerank", json=body).status_code == 200
