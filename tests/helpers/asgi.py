"""ASGI by hand: an application is called with the messages that a test chooses."""

import asyncio
import json

from helpers import virtual_time


class Answer:
    def __init__(self, sent):
        start = next(message for message in sent if message["type"] == "http.response.start")
        self.status = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.body = b"".join(message.get("body", b"") for message in sent if message["type"] == "http.response.body")

    @property
    def code(self):
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error["code"]

    @property
    def message(self):
        return json.loads(self.body)["error"]["message"]


class Bodies:
    """An application that keeps what it received, and answers 200."""

    def __init__(self):
        self.received = []
        self.calls = 0

    async def __call__(self, scope, receive, send):
        self.calls += 1
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.received.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


async def sent_by(app, pieces=(b"",), headers=(), *, path="/v1/rerank", kind="http", delay=0.0, then=None):
    """The messages that an application sends for a body in pieces. After them the client sends ``then``, or is
    silent.

    Args:
        delay: seconds before each piece.
        then: a message; None for none.
    """
    waiting = [
        {"type": "http.request", "body": piece, "more_body": then is not None or number < len(pieces)}
        for number, piece in enumerate(pieces, 1)
    ]
    sent = []

    async def receive():
        await asyncio.sleep(delay)
        if waiting:
            return waiting.pop(0)
        if then is None:
            await asyncio.Event().wait()
        return then

    async def send(message):
        sent.append(message)

    pairs = [(name.lower().encode(), value.encode()) for name, value in headers]
    scope = {"type": kind, "method": "POST", "path": path, "headers": pairs}
    await app(scope, receive, send)
    return sent


def answer(app, *arguments, **options):
    """The answer of an application, in virtual time."""
    return Answer(virtual_time.run(sent_by(app, *arguments, **options)))
