"""A request whose API replica died, as Ray Serve's proxy lets us see it: nothing, or plain text."""

import asyncio
import json

import pytest

from helpers import asgi, virtual_time
from limrank.serving.resending import Resend

BODY = (b'{"query": ', b'"q"}')


class Proxy:
    """Serve's proxy: ``ends`` are how the first requests end, ``down`` the health checks without an answer."""

    def __init__(self, *ends, down=0):
        self.ends = list(ends)
        self.down = down
        self.received = []
        self.checks = 0

    async def __call__(self, scope, receive, send):
        if scope["path"] == "/healthz":
            self.checks += 1
            assert (scope["method"], dict(scope["headers"])) == ("GET", {b"host": b"localhost"})
            assert (await receive()) == {"type": "http.request", "body": b"", "more_body": False}
            if self.checks > self.down:
                await self.say(send, 200)
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        self.received.append(body)
        end = self.ends.pop(0) if self.ends else "answer"
        if end == "answer":
            await self.say(send, 200, body)
        elif end == "half":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        elif end == "wait":
            await receive()
        elif end in (404, 503):
            await self.say(send, end, b"Serve says no", b"text/plain; charset=utf-8")
        elif end == "own error":
            await self.say(send, 503, b'{"error": {}}')

    @staticmethod
    async def say(send, status, body=b"{}", kind=b"application/json"):
        headers = [(b"content-type", kind)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def answer(proxy, **options):
    return asgi.answer(Resend(proxy), BODY, [("Host", "localhost"), ("X-Secret", "s")], **options)


def test_an_answer_passes():
    proxy = Proxy()
    assert answer(proxy).body == b"".join(BODY)
    assert (len(proxy.received), proxy.checks) == (1, 0)


@pytest.mark.parametrize("end", ["nothing", 404, 503])
def test_a_request_whose_replica_died_is_sent_again_whole(end):
    proxy = Proxy(end, down=3)
    found = answer(proxy)
    assert (found.status, found.body) == (200, b"".join(BODY))
    assert proxy.received == [b"".join(BODY)] * 2
    assert proxy.checks == 4


def test_it_is_sent_twice_at_most():
    proxy = Proxy("nothing", "nothing", "nothing")
    found = answer(proxy)
    assert (found.status, found.code, found.headers["retry-after"]) == (503, "server_unavailable", "5")
    assert len(proxy.received) == 2


def test_it_waits_a_bounded_time():
    proxy = Proxy("nothing", down=10**9)

    async def timed():
        sent = await asgi.sent_by(Resend(proxy), BODY, [("Host", "localhost")])
        return asgi.Answer(sent), asyncio.get_running_loop().time()

    found, seconds = virtual_time.run(timed())
    assert (found.status, found.code, len(proxy.received)) == (503, "server_unavailable", 1)
    assert 30 <= seconds < 31


@pytest.mark.parametrize("end", ["half", "own error"])
def test_an_answer_that_has_begun_is_not_sent_again(end):
    proxy = Proxy(end)
    answer(proxy)
    assert len(proxy.received) == 1


def test_a_client_that_left_is_not_sent_again():
    proxy = Proxy("wait")
    sent = virtual_time.run(asgi.sent_by(Resend(proxy), BODY, then={"type": "http.disconnect"}))
    assert (sent, proxy.checks) == ([], 0)


def test_a_cancelled_request_is_not_sent_again():
    async def swallows(scope, receive, send):
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            return

    async def main():
        task = asyncio.create_task(asgi.sent_by(Resend(swallows)))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return asyncio.get_running_loop().time()

    assert virtual_time.run(main()) == 1


def test_serves_own_paths_pass_as_they_are():
    proxy = Proxy(503)
    found = answer(proxy, path="/-/routes")
    assert (found.status, found.body) == (503, b"Serve says no")
    with pytest.raises(json.JSONDecodeError):
        json.loads(found.body)
