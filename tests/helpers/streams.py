"""Server-sent events of an ASGI application, each with the time at which it was sent."""

import asyncio
import json

from helpers import virtual_time


class Stream:
    """What an application sent.

    Attributes:
        events: (seconds, name, data); a comment has the name ``:``.
    """

    def __init__(self, sent, seconds):
        start = sent[0][1]
        self.status = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        parts = [(second, message.get("body", b"")) for second, message in sent[1:]]
        self.body = b"".join(part for _, part in parts)
        self.seconds = seconds
        self.ended = bool(sent[1:]) and not sent[-1][1].get("more_body", False)
        self.events = []
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            for second, part in parts:
                self.events += [(second, *_read(block)) for block in part.decode().split("\n\n") if block]

    @property
    def names(self):
        return [name for _, name, _ in self.events]

    def data(self, name):
        return [data for _, found, data in self.events if found == name]

    @property
    def error(self):
        return json.loads(self.body)["error"]

    def merged(self):
        """The ranking after each event that has one, as a client puts it together."""
        known, rankings = {}, []
        for _, name, data in self.events:
            if name in ("ranking", "scores", "done"):
                for result in data["results"]:
                    known[result["index"]] = known.get(result["index"], {}) | result
                order = data["order"] if name == "scores" else [result["index"] for result in data["results"]]
                rankings.append([known[index] for index in order])
        return rankings


def _read(block):
    if block.startswith(":"):
        return ":", None
    first, second = block.split("\n")
    assert first.startswith("event: ") and second.startswith("data: ")
    return first.removeprefix("event: "), json.loads(second.removeprefix("data: "))


async def stream(api, body, *, path="/v1/rerank", leaves_after=None, headers=()):
    """The answer to a request.

    Args:
        leaves_after: seconds after which the client leaves; None: it stays.
    """
    clock = asyncio.get_running_loop().time
    began = clock()
    content = [json.dumps(body).encode()]
    sent = []

    async def receive():
        if content:
            return {"type": "http.request", "body": content.pop(), "more_body": False}
        await (asyncio.Event().wait() if leaves_after is None else asyncio.sleep(leaves_after - (clock() - began)))
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append((clock() - began, message))

    pairs = [(name.lower().encode(), value.encode()) for name, value in headers]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), *pairs],
        "state": {},
    }
    await api(scope, receive, send)
    return Stream(sent, clock() - began)


def streamed(api, body, **options):
    """:func:`stream` in virtual time."""
    return virtual_time.run(stream(api, body, **options))
