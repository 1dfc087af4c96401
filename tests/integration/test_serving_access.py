"""What a server takes, and from whom: real Ray Serve, its real proxy, raw sockets, the fake engine."""

import contextlib
import json
import re
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from limrank.config import ServeJob
from limrank.config.recipe import with_values
from limrank.serving import job
from limrank.serving.key_sources import VARIABLE, file_line, new_key

RECEIVE_S = 2.0
MOST = 2**20
KEYS = {"first": new_key(), "second": new_key()}
CONFIG = ServeJob(
    run_dir="unused",
    engine={"kind": "fake"},
    serving={
        "port": 0,
        "max_body_bytes": MOST,
        "receive_timeout_s": RECEIVE_S,
        "max_document_chars": 100,
        "rate_limit_pairs_per_minute": 500,
    },
)
BODY = {"query": "q", "documents": ["a", "b"]}
HUGE = 100 * 2**20


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("access") / "keys"
    path.write_text("".join(f"{file_line(name, key)}\n" for name, key in KEYS.items()))
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def server(local_ray, keys_file):
    config = with_values(CONFIG, {"serving.keys_file": str(keys_file)})
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VARIABLE, raising=False)
        with job.serving(config) as url:
            yield url


@pytest.fixture
def http(server):
    headers = {"Authorization": f"Bearer {KEYS['first']}"}
    with httpx.Client(base_url=server, timeout=60, trust_env=False, headers=headers) as client:
        yield client


def raw(server, data, *, read=True, timeout=20):
    """What the server answers to bytes, until it closes the connection; with ``read=False``, the open socket."""
    host, port = server.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=timeout)
    connection.sendall(data)
    return read_all(connection) if read else connection


def read_all(connection):
    found = b""
    with connection, contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            found += piece
    return found


def read_one(connection):
    """One answer, of a connection that stays open."""
    found = b""
    while True:
        start, end, body = found.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", start)
        if end and length and len(body) >= int(length[1]):
            return found
        piece = connection.recv(65536)
        assert piece, found
        found += piece


def head(length=None, path="/v1/rerank", host="localhost", **headers):
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {KEYS['first']}"]
    lines += [f"Content-Length: {length}"] if length is not None else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def code_of(answer):
    start, _, body = answer.partition(b"\r\n\r\n")
    return int(start.split()[1]), json.loads(body)["error"]["code"]


def peak_mb():
    """The most memory that Serve's proxy and the API's replica ever had, in MB, by process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            title = (folder / "cmdline").read_text(errors="replace")
            if "ProxyActor" in title or "ServeReplica:limrank:Api" in title:
                status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
                found[int(folder.name)] = int(status["VmHWM"].split()[0]) / 1024
    return found


def test_a_key_is_needed_but_for_the_probes(server):
    with httpx.Client(base_url=server, timeout=30, trust_env=False) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/-/healthz").status_code == 200
        assert client.get("/-/routes").status_code == 401
        missing = client.post("/v1/rerank", json=BODY)
        wrong = client.post("/v1/rerank", json=BODY, headers={"Authorization": "Bearer " + "x" * 40})
        by_header = client.post("/v1/rerank", json=BODY, headers={"X-API-Key": KEYS["second"]})
    assert (missing.status_code, missing.json()["error"]["code"]) == (401, "missing_api_key")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "invalid_api_key")
    assert missing.headers["www-authenticate"] == "Bearer"
    assert by_header.status_code == 200


def test_another_host_is_refused_in_the_proxy_too(server, http):
    for path in ("/v1/models", "/healthz", "/-/routes"):
        answer = http.get(path, headers={"Host": "rebound.example.com"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")
    assert http.get("/v1/models", headers={"Host": "localhost:1"}).status_code == 200


def test_no_origin_is_ever_allowed(http):
    asked = {"Origin": "https://example.com", "Access-Control-Request-Method": "POST"}
    for answer in (http.options("/v1/rerank", headers=asked), http.get("/v1/models", headers=asked)):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_cut_document_is_truncated(http):
    results = http.post("/v1/rerank", json=BODY | {"documents": ["a" * 101, "a" * 100]}).json()["results"]
    assert {result["index"]: result["truncated"] for result in results} == {0: True, 1: False}


def test_a_huge_body_costs_no_memory_and_nobody_waits(server, http):
    assert http.post("/v1/rerank", json=BODY).status_code == 200
    before = peak_mb()
    slowest, stop = [0.0], threading.Event()

    def others():
        with httpx.Client(base_url=server, timeout=30, trust_env=False) as client:
            key = {"Authorization": f"Bearer {KEYS['second']}"}
            while not stop.is_set():
                started = time.monotonic()
                assert client.get("/v1/models", headers=key).status_code == 200
                slowest[0] = max(slowest[0], time.monotonic() - started)

    other = threading.Thread(target=others)
    other.start()

    def pieces():
        for _ in range(100):
            yield b"x" * 2**20

    started = time.monotonic()
    by_length = http.post("/v1/rerank", content=b"x" * HUGE)
    by_chunks = http.post("/v1/rerank", content=pieces())
    refused_s = time.monotonic() - started
    stop.set()
    other.join()
    after = peak_mb()
    for answer in (by_length, by_chunks):
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        assert str(MOST) in answer.json()["error"]["message"]
        assert "serving.max_body_bytes" in answer.json()["error"]["message"]
    print(f"refused in {refused_s:.2f} s; others waited {slowest[0]:.3f} s at most; MB {before} -> {after}")
    assert before.keys() == after.keys() and len(before) >= 2
    assert all(after[process] - before[process] < 60 for process in before)
    assert refused_s < 6  # two bodies, each dropped for at most 2 s
    assert slowest[0] < 1
    assert http.post("/v1/rerank", json=BODY).status_code == 200


def test_the_length_alone_refuses_a_body(server):
    started = time.monotonic()
    connection = raw(server, head(HUGE), read=False)
    assert code_of(read_one(connection)) == (413, "body_too_large")
    connection.close()
    assert time.monotonic() - started < 1


def test_half_sent_requests_are_ended(server, http):
    kinds = {
        "nothing": b"",
        "line": b"POST /v1/rer",
        "headers": b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nX-A: b",
        "body": head(100) + b'{"query"',
        "chunk": head(Transfer_Encoding="chunked") + b"5\r\nhello\r\n",
    }
    started = time.monotonic()
    connections = [(kind, raw(server, data, read=False)) for kind, data in kinds.items() for _ in range(20)]
    assert http.post("/v1/rerank", json=BODY).status_code == 200
    assert time.monotonic() - started < RECEIVE_S
    answers = [(kind, read_all(connection)) for kind, connection in connections]
    assert RECEIVE_S * 0.9 < time.monotonic() - started < RECEIVE_S + 3
    for kind, answer in answers:
        if kind == "nothing":
            assert answer == b""
        else:
            assert code_of(answer) == (408, "receive_timeout"), kind


def test_headers_without_an_end_are_refused(server):
    answer = raw(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 400_000)
    assert not answer or code_of(answer) == (431, "headers_too_large")
    many = b"".join(b"X-%d: a\r\n" % number for number in range(200))
    answer = raw(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + many + b"\r\n")
    assert code_of(answer) == (431, "headers_too_large")


def test_a_connection_is_used_again_and_idle_ones_end(server):
    connection = raw(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", read=False)
    assert read_one(connection).startswith(b"HTTP/1.1 200")
    time.sleep(RECEIVE_S * 0.8)
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHo")
    time.sleep(RECEIVE_S * 0.5)
    connection.sendall(b"st: localhost\r\n\r\n")
    assert read_one(connection).startswith(b"HTTP/1.1 200")
    connection.sendall(b"GET")
    assert code_of(read_all(connection)) == (408, "receive_timeout")


def test_a_key_has_its_rate(server):
    with httpx.Client(base_url=server, timeout=60, trust_env=False, headers={"X-API-Key": KEYS["second"]}) as client:
        large = {"query": "q", "documents": ["a"] * 400}
        first, second = client.post("/v1/rerank", json=large), client.post("/v1/rerank", json=large)
    assert first.status_code == 200
    assert (second.status_code, second.json()["error"]["code"]) == (429, "rate_limited")
    assert 1 <= int(second.headers["retry-after"]) <= 60


def test_a_changed_file_holds_in_the_proxy_and_the_replica(server, keys_file):
    third = new_key()

    def statuses():
        with httpx.Client(base_url=server, timeout=30, trust_env=False) as client:
            return [client.get("/v1/models", headers={"X-API-Key": key}).status_code for key in (KEYS["first"], third)]

    assert statuses() == [200, 401]
    keys_file.write_text("no key at all\n")
    time.sleep(1.1)
    assert statuses() == [200, 401]
    keys_file.write_text(file_line("third", third) + "\n")
    deadline = time.monotonic() + 5
    while statuses() != [401, 200]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
