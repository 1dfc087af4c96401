"""Addresses at which nobody answers, or somebody else does."""

import contextlib
import functools
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import yaml
from ray._private import services

from limrank import cli
from limrank.cluster import addresses
from limrank.cluster.addresses import check_dashboard, check_ray
from limrank.errors import UserError

DEAD = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def patience(monkeypatch, tmp_path):
    monkeypatch.setattr(addresses, "PATIENCE_S", 1.0)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "none"))
    # Whatever Ray another program has on this machine.
    monkeypatch.setattr(services, "find_gcs_addresses", functools.lru_cache(lambda: set()))


@pytest.fixture
def silent():
    """A port that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def answering(status, body):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    "address",
    [
        DEAD,
        f"ray://{DEAD}",
        "no-such-host.invalid:6379",
        "127.0.0.1",
        "127.0.0.1:99999",
        "nonsense",
        ":",
        "a b:1",
        "h:1:x",
        "[::1]:1",
    ],
)
def test_a_missing_cluster_is_refused_at_once(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with pytest.raises(UserError, match="^RAY_ADDRESS .*: (no Ray cluster is there|is no address)"):
        check_ray()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("address", ["", "auto", "local"])
def test_where_nothing_is_named_there_is_nothing_to_look_at(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    check_ray()


def test_another_server_than_ray_is_refused(silent, monkeypatch):
    for address in (silent, f"ray://{silent}"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match="something listens there that does not answer as Ray does"):
            check_ray()
    with answering(200, b"hello") as address, pytest.raises(UserError, match="does not answer as Ray does"):
        check_ray(address)


def test_a_cluster_that_was_here_and_is_gone(tmp_path, monkeypatch):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(DEAD)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(UserError, match="the cluster that was last started here, 127.0.0.1:1: no Ray cluster is there"):
        check_ray()


def test_a_server_of_other_calls_is_no_ray():
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(UserError, match=r"does not answer as Ray does \(UNIMPLEMENTED\)"):
            check_ray(f"127.0.0.1:{port}")
    finally:
        server.stop(None)


def test_a_name_that_is_looked_up_for_ever_is_left(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(30))
    started = time.monotonic()
    with pytest.raises(UserError, match="no Ray cluster is there"):
        check_ray("slow.example:6379")
    with pytest.raises(UserError, match="no Ray dashboard is there"):
        check_dashboard("http://slow.example:8265")
    assert time.monotonic() - started < 5


def test_a_dashboard_that_answers_by_drops_is_left():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip():
            with contextlib.suppress(OSError):
                server.accept()[0].close()  # a look whether it is there
                client, _ = server.accept()
                client.sendall(b"HTTP/1.1 200 OK\r\n")
                for number in range(50):
                    client.sendall(f"x-{number}: 1\r\n".encode())
                    time.sleep(0.2)

        threading.Thread(target=drip, daemon=True).start()
        started = time.monotonic()
        with pytest.raises(UserError, match="does not answer as a Ray dashboard"):
            check_dashboard(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("command", [["list"], ["status", "x"], ["logs", "x"], ["stop", "x"]])
def test_a_dashboard_that_answers_only_its_version_is_one_line(command, capsys):
    with answering(200, b'{"ray_version": "2.60.0"}') as address:
        assert cli.main(["jobs", *command, "--address", f"http://{address}"]) in (1, 2)
    one_line(capsys)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_wait(name, silent, tmp_path):
    program = subprocess.Popen(
        [sys.executable, "-m", "limrank", "rerank", recipe(tmp_path)],
        env=os.environ | {"RAY_ADDRESS": silent},
        stderr=subprocess.PIPE,
    )
    time.sleep(5)
    assert program.poll() is None
    asked = time.monotonic()
    program.send_signal(getattr(signal, name))
    _, message = program.communicate(timeout=10)
    assert program.returncode in (130, 143)
    assert time.monotonic() - asked < 3 and b"Traceback" not in message


def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"job": "rerank", "run_dir": str(tmp_path / "run"), "engine": {"kind": "fake"}}))
    return str(path)


def one_line(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("limrank: ") and "Traceback" not in line
    return line


def test_a_job_on_a_dead_cluster_is_exit_2(tmp_path):
    # In a process of its own: where other tests have a Ray, a job of this one would use that.
    ended = subprocess.run(
        [sys.executable, "-m", "limrank", "rerank", recipe(tmp_path)],
        env=os.environ | {"RAY_ADDRESS": DEAD},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("limrank: RAY_ADDRESS 127.0.0.1:1: no Ray cluster is there: Connection refused")


@pytest.mark.parametrize(
    "address",
    [
        *("nonsense", "http://", "http://127.0.0.1:1", "https://127.0.0.1:1", "ftp://127.0.0.1:8265", "http://a b:1"),
        *(
            "http://127.0.0.1:99999",
            "http://no-such-host.invalid:8265",
            "http://[::1",
            "http://\x1b[31m:1",
            "127.0.0.1:8265",
        ),
    ],
)
@pytest.mark.parametrize("command", [["list"], ["status", "x"], ["logs", "x"], ["logs", "-f", "x"], ["stop", "x"]])
def test_no_dashboard_is_exit_2_in_one_line(command, address, capsys):
    assert cli.main(["jobs", *command, "--address", address]) == 2
    one_line(capsys)


@pytest.mark.parametrize("job", ["rerank"])
@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "https://127.0.0.1:1", "http://no-such-host.invalid:8265"])
def test_a_job_that_is_sent_nowhere_is_exit_2(job, address, tmp_path, capsys):
    assert cli.main([job, recipe(tmp_path), "--address", address]) == 2
    assert "no Ray dashboard is there" in one_line(capsys)
    assert [each.name for each in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>"), (404, b"{}"), (500, b"oops"), (200, b"[]"), (200, b'{"version": 1}'), (302, b"")],
)
def test_a_server_that_is_no_dashboard_is_refused(status, body):
    with answering(status, body) as address, pytest.raises(UserError, match="does not answer as a Ray dashboard"):
        check_dashboard(f"http://{address}")


def test_a_dashboard_and_one_that_asks_for_a_token_are_let_through():
    with answering(200, b'{"ray_version": "2.60.0"}') as address:
        check_dashboard(f"http://{address}/")
    with answering(401, b"") as address:
        check_dashboard(f"http://{address}")


def test_a_server_that_never_answers_is_left(silent):
    with pytest.raises(UserError, match="does not answer as a Ray dashboard"):
        check_dashboard(f"http://{silent}")
