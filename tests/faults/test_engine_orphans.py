"""``kill -9`` of a process that runs vLLM leaves none of its processes behind."""

import subprocess
import sys
import textwrap
import time

import pytest

from helpers.processes import alive, below, command_line

pytestmark = pytest.mark.faults

OPEN_AND_WAIT = """
    import time
    from limrank.config import EngineConfig, ModelConfig
    from limrank.engines import open_engine

    if __name__ == "__main__":
        engine = open_engine(ModelConfig(id="smollm2-135m-instruct", max_model_len=512), EngineConfig(kv_cache_gib=1))
        print("ready", flush=True)
        time.sleep(600)
"""


@pytest.fixture
def engine_process(tmp_path, model_dir):
    script = tmp_path / "engine.py"
    script.write_text(textwrap.dedent(OPEN_AND_WAIT))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=log, text=True)
    yield process
    process.kill()
    process.wait()


def command_lines(processes):
    return [command_line(process) for process in processes]


def survivors(processes, patience_s=10):
    deadline = time.monotonic() + patience_s
    while (left := [process for process in processes if alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return command_lines(left)


def test_a_running_engine_leaves_no_orphan(engine_process):
    assert "ready\n" in engine_process.stdout  # read up to it, past vLLM's own lines
    started = below(engine_process.pid)
    assert any("EngineCore" in name for name in command_lines(started)), command_lines(started)
    engine_process.kill()
    assert survivors(started) == []


def test_an_engine_that_is_starting_leaves_no_orphan(engine_process):
    deadline = time.monotonic() + 120
    while not any("EngineCore" in name for name in command_lines(below(engine_process.pid))):
        assert time.monotonic() < deadline
        assert engine_process.poll() is None
        time.sleep(0.2)
    time.sleep(1)
    started = below(engine_process.pid)
    engine_process.kill()
    assert survivors(started) == []
