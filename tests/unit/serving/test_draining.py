"""The end of a server: running requests are answered, new ones refused."""

import asyncio

import pytest

from helpers import asgi, virtual_time
from limrank.serving.draining import PATH, SECONDS, SECRET, Draining

KEY = "s" * 32


async def slow(scope, receive, send):
    """Answers after ten seconds."""
    await asyncio.sleep(0 if scope["path"] == "/healthz" else 10)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def drain(app, seconds="60", secret=KEY):
    return asgi.sent_by(app, headers=[(SECRET, secret), (SECONDS, seconds)], path=PATH)


async def at(second, coroutine):
    await asyncio.sleep(second)
    return asgi.Answer(await coroutine), asyncio.get_running_loop().time()


def test_running_requests_are_answered_and_new_ones_refused():
    async def main():
        app = Draining(slow, KEY)
        return await asyncio.gather(
            at(0, asgi.sent_by(app)),
            at(1, drain(app)),
            at(2, asgi.sent_by(app)),
            at(2, asgi.sent_by(app, path="/readyz")),
            at(2, asgi.sent_by(app, path="/healthz")),
        )

    running, drained, new, ready, live = virtual_time.run(main())
    assert (running[0].status, running[1]) == (200, 10)
    assert (drained[0].status, drained[1]) == (204, 10)
    for found, _ in (new, ready):
        assert (found.status, found.code, found.headers["retry-after"]) == (503, "draining", "5")
    assert live[0].status == 200


def test_what_runs_longer_than_the_time_is_ended():
    async def main():
        app = Draining(slow, KEY)
        return await asyncio.gather(at(0, asgi.sent_by(app)), at(1, drain(app, "3")))

    running, drained = virtual_time.run(main())
    assert (running[0].status, running[0].code, running[1]) == (503, "draining", 4)
    assert (drained[0].status, drained[1]) == (204, 4)


def test_an_idle_server_is_drained_at_once():
    app = Draining(slow, KEY)
    assert virtual_time.run(at(0, drain(app)))[1] == 0


@pytest.mark.parametrize("secret", ["", "t" * 32, KEY + "s", "é"])
def test_only_who_knows_the_secret_drains(secret):
    async def main():
        app = Draining(slow, KEY)
        refused = await at(0, drain(app, secret=secret))
        return refused, await at(0, asgi.sent_by(app))

    refused, later = virtual_time.run(main())
    assert (refused[0].status, later[0].status) == (200, 200)  # a path like any other


@pytest.mark.parametrize("seconds", ["", "soon", "nan", "inf", "-1"])
def test_a_time_that_is_none(seconds):
    async def main():
        app = Draining(slow, KEY)
        return await asyncio.gather(at(0, asgi.sent_by(app)), at(1, drain(app, seconds)))

    assert virtual_time.run(main())[1][1] == 1
