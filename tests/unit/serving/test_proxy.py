"""The checks of Ray Serve's proxy, in a uvicorn of its own."""

import contextlib
import json
import socket
import threading
import time

import pytest
import uvicorn
from uvicorn.protocols.http import auto

from helpers.asgi import Bodies
from helpers.asgi import answer as answer_of
from limrank.config import ServingConfig
from limrank.serving import proxy
from limrank.serving.access import Access, Guard
from limrank.serving.draining import Draining
from limrank.serving.keys import KeyRing
from limrank.serving.request_ids import RequestIds
from limrank.serving.resending import Resend

TIMEOUT_S = 0.5


@pytest.fixture(scope="module")
def port():
    """The port of a uvicorn with the proxy's protocol, whose connections may stay idle for a second."""
    protocol = proxy.header_limits(TIMEOUT_S, most_bytes=2000)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(Bodies(), http=protocol, lifespan="off", log_config=None, timeout_keep_alive=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


def exchange(port, *pieces, pause=0.0):
    """What the server answers until it closes the connection, and the seconds that took."""
    found, started = b"", time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        with contextlib.suppress(ConnectionError):
            for number, piece in enumerate(pieces):
                time.sleep(pause if number else 0)
                connection.sendall(piece)
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65536):
                found += piece
    return found, time.monotonic() - started


WHOLE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("sent", [b"GET /", b"GET / HTTP/1.1\r\nHost: lo", b"\r\n"])
def test_headers_that_do_not_end(port, sent):
    answer, took = exchange(port, sent)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]) == len(body)
    assert json.loads(body)["error"]["code"] == "receive_timeout"
    assert TIMEOUT_S * 0.9 < took < TIMEOUT_S + 2


def test_a_connection_that_says_nothing(port):
    answer, took = exchange(port)
    assert answer == b"" and TIMEOUT_S * 0.9 < took < TIMEOUT_S + 2


def test_drops_of_headers_do_not_start_the_time_again(port):
    answer, took = exchange(port, *(b"GET / HTTP/1.1\r\n", *(b"X: a\r\n" for _ in range(6))), pause=0.2)
    assert b"408" in answer.partition(b"\r\n")[0] and took < 3


def test_headers_without_an_end(port):
    answer, took = exchange(port, b"GET / HTTP/1.1\r\nX: ", b"a" * 2000, pause=0.1)
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n") and took < TIMEOUT_S


def test_trailers_without_an_end(port):
    start = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "
    answer, took = exchange(port, start, b"a" * 3000, pause=0.1)
    assert answer == b"" and took < TIMEOUT_S + 2


def test_chunks_are_no_headers(port):
    start = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer, _ = exchange(port, start, *(b"3e8\r\n" + b"a" * 1000 + b"\r\n" for _ in range(6)), b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")


def test_a_request_does_not_steer_serve():
    seen = []

    async def app(scope, receive, send):
        seen.extend(scope["headers"])
        await Bodies()(scope, receive, send)

    steering = [
        "x-request-timeout-seconds",
        "x-request-disconnect-disabled",
        "serve_multiplexed_model_id",
        "x-session-id",
    ]
    answer_of(proxy.OwnHeaders(app), headers=[*((name, "?1") for name in steering), ("X-Mine", "a")])
    assert seen == [(b"x-mine", b"a")]


def test_whole_requests_are_answered_and_the_connection_kept(port):
    answer, took = exchange(port, WHOLE, WHOLE[:10], WHOLE[10:], pause=0.3)
    assert answer.count(b"HTTP/1.1 200") == 2
    assert took < 4  # uvicorn ends the idle connection after a second
    answer, _ = exchange(port, WHOLE, b"GET", pause=0.3)
    assert answer.count(b"HTTP/1.1 200") == 1 and b"HTTP/1.1 408" in answer


def test_a_body_may_take_longer_than_the_headers(port):
    start = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5000\r\n\r\n"
    answer, _ = exchange(port, start, b"a" * 2500, b"a" * 2500, pause=TIMEOUT_S * 1.2)
    assert answer.startswith(b"HTTP/1.1 200")


def test_what_serve_s_proxy_gets(monkeypatch):
    monkeypatch.setattr(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)
    access = Access.of(ServingConfig(max_body_bytes=5000), KeyRing({"a": "0" * 64}))
    variables = proxy.controller_options(access, "secret")["runtime_env"]["env_vars"]
    assert all(isinstance(value, str) for value in variables.values())
    module, _, function = variables.pop("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH").rpartition(".")
    assert getattr(__import__(module, fromlist=[function]), function) is proxy.middlewares
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    _, _, middleware, drain, _ = found = proxy.middlewares()
    assert [each.cls for each in found] == [Resend, proxy.OwnHeaders, Guard, Draining, RequestIds]
    assert drain.kwargs == {"secret": "secret"}
    assert middleware.kwargs["access"].limits.body_bytes == 5000
    assert auto.AutoHTTPProtocol.__name__ == "HeaderLimits"
