"""What several tests share, started once and only when a test asks for it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers import REPOSITORY
from helpers.qwen_tokenizer import qwen_tokenizer

# Ray reads it when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

MODEL = "smollm2-135m-instruct"
CONTEXT = 2048


def pytest_make_parametrize_id(val, argname):
    """Bytes are named by their argument: a name of their content (gzip's has the second in it) would differ
    between the processes of one run."""
    return argname if isinstance(val, bytes | bytearray) else None


class LiveEngine:
    """An engine on an event loop of its own, in a thread, for tests that are not coroutines."""

    def __init__(self, kind, model=MODEL, **settings):
        from limrank.config import EngineConfig, ModelConfig
        from limrank.engines import open_engine

        async def opened():
            # Numbers are compared: never by the rounding of the processor that runs the test.
            chosen = ModelConfig(id=model, dtype="float32", max_model_len=CONTEXT)
            return open_engine(chosen, EngineConfig(kind=kind, **{"kv_cache_gib": 1} | settings))

        self.kind = kind
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name=f"{kind}-engine", daemon=True).start()
        self.engine = self.run(opened(), timeout=600)

    def run(self, coroutine, timeout=120):
        """What the coroutine returns, or raises, on the engine's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    def close(self):
        self.run(self.engine.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)


@pytest.fixture(scope="session")
def live_engine():
    """Opens an engine for a ``with`` block: ``live_engine("fake", fail_rate=0.1)``."""

    @contextmanager
    def opened(kind, model=MODEL, **settings):
        live = LiveEngine(kind, model, **settings)
        try:
            yield live
        finally:
            live.close()

    return opened


@pytest.fixture(scope="session")
def model_dir():
    """The packaged small model as a directory."""
    from limrank import models

    return models.resolve(MODEL)


@pytest.fixture(scope="session")
def qwen_tokenizers():
    """Qwen2.5's tokenizer, of the vocabulary that a package carries: ``unmarked`` as it is, and ``marked``
    with ``<think>`` and ``</think>`` as training adds them, 151665 and 151666."""
    return {"marked": qwen_tokenizer(marked=True), "unmarked": qwen_tokenizer(marked=False)}


@pytest.fixture(scope="session")
def vllm_engine(model_dir, live_engine):
    """A real vLLM engine in this process: ``.engine`` and ``.run(coroutine)``."""
    with live_engine("vllm") as live:
        yield live


@pytest.fixture(scope="session")
def vllm_server(model_dir, tmp_path_factory):
    """The base URL of vLLM's own OpenAI server with the small model."""
    from limrank.config import EngineConfig
    from limrank.engines.vllm import _environment

    _environment(EngineConfig(kv_cache_gib=1))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_dir)]
    command += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--block-size", "32", "--max-model-len", str(CONTEXT)]
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with log.open("w") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait_for_server(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_for_server(server, url, log, patience_s=600):
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        assert server.poll() is None, f"the server ended:\n{log.read_text()[-3000:]}"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"the server did not come up:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def local_ray():
    """One Ray on this machine. Logical CPUs may exceed the cores."""
    import ray

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data that lies beside the repository and is no part of it."""
    beside = REPOSITORY.parent / "shared" / "data"
    path = Path(os.environ.get("LIMRANK_SHARED_DATA") or beside)
    if not path.is_dir():
        pytest.skip(f"no shared data: {path} is not there (LIMRANK_SHARED_DATA names another place)")
    return path


@pytest.fixture
def private_cache(tmp_path, monkeypatch):
    """Of what `datasets` makes of the files it reads."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def offline(monkeypatch):
    """The hub is not asked, and not waited for: its libraries read the variable when they are imported."""
    import huggingface_hub

    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
