"""A small real HTTP server that answers as it is told, and an OpenAI engine that asks it."""

import asyncio
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from limrank.config import EngineConfig, ModelConfig
from limrank.engines import meter
from limrank.engines.openai import OpenAIEngine

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


HELLO = {"choices": [{"index": 0, "text": " hello", "finish_reason": "stop"}], "usage": USAGE}


class Endpoint(ThreadingHTTPServer):
    """Gives its answers in turn, the last one for ever: (status, body) or a callable."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = [(200, HELLO)]
        self.requests = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def next_answer(self):
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers["Content-Length"])
        self.server.requests.append((self.path, self.headers, json.loads(self.rfile.read(length))))
        self._answer()

    def do_GET(self):
        self.server.requests.append((self.path, self.headers, None))
        self._answer()

    def _answer(self):
        answer = self.server.next_answer()
        if callable(answer):
            answer(self)
        else:
            status, body = answer
            self.send(status, "application/json" if isinstance(body, dict) else "text/html", body)

    def send(self, status, kind, body):
        data = json.dumps(body) if isinstance(body, dict) else body
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(data.encode())

    def log_message(self, *arguments):
        pass


@contextmanager
def serving():
    with Endpoint() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def asked(url, call, **settings):
    """What ``call(engine)`` gives, on an engine that is opened and closed around it."""

    async def run():
        engine = OpenAIEngine(ModelConfig(id="small"), EngineConfig(kind="openai", base_url=url, **settings))
        try:
            return await call(engine)
        finally:
            await engine.aclose()

    return asyncio.run(run())


def generate(url, prompt="hi", **settings):
    return asked(url, lambda engine: engine.generate(prompt, max_tokens=2), **settings)


def sse(*events):
    return "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)


def stream(url):
    async def pieces(engine):
        with meter() as usage:
            return [piece async for piece in engine.stream("hi", max_tokens=2)], usage

    return asked(url, pieces)


def logprobs_answer(top):
    given = {"tokens": [" a"], "token_logprobs": [-1.0], "text_offset": [0], "top_logprobs": [top]}
    return HELLO | {"choices": [{"index": 0, "text": " a", "finish_reason": "length", "logprobs": given}]}


def labels(url, prompt="hi"):
    return asked(url, lambda engine: engine.label_logprobs(prompt, (" true", " false")))


def check(url, **settings):
    return asked(url, lambda engine: engine.check(), **settings)
