"""The fake engine's own process, and a start that is slow or fails. Answers: see the engine contract."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from helpers.processes import command_line
from limrank.config import EngineConfig, ModelConfig
from limrank.engines import open_engine
from limrank.errors import EngineError

LABELS = (" true", " false")


def opened(**settings):
    return open_engine(ModelConfig(), EngineConfig(kind="fake", **settings))


def engine_processes(pid=None):
    return [child for child in psutil.Process(pid).children() if "limrank-fake-engine" in command_line(child)]


def test_its_own_process_changes_no_answer():
    async def answers(**settings):
        engine = opened(**settings)
        try:
            return [await engine.label_logprobs(f"pair {n}", LABELS) for n in range(5)]
        finally:
            await engine.aclose()

    assert asyncio.run(answers()) == asyncio.run(answers(own_process=True))
    assert engine_processes() == []  # closed with the engine


def test_the_death_of_its_process_is_the_engines():
    async def killed():
        engine = opened(own_process=True, latency_ms=60_000)
        while not (found := engine_processes()):  # it has its name once it runs
            await asyncio.sleep(0.01)
        (process,) = found
        in_flight = [asyncio.create_task(engine.label_logprobs(f"pair {n}", LABELS)) for n in range(3)]
        await asyncio.sleep(0.1)
        process.kill()
        async with asyncio.timeout(5):  # at once, not when their minute is over
            ends = await asyncio.gather(*in_flight, return_exceptions=True)
            ends += await asyncio.gather(engine.generate("after", max_tokens=4), return_exceptions=True)
        await engine.aclose()
        return ends, process.pid

    ends, pid = asyncio.run(killed())
    assert [type(end) for end in ends] == [EngineError] * 4
    assert str(ends[0]) == f"the fake engine's process {pid} crashed"


def test_its_process_ends_with_a_killed_parent():
    program = """
        import time
        from limrank.config import EngineConfig, ModelConfig
        from limrank.engines import open_engine

        engine = open_engine(ModelConfig(), EngineConfig(kind="fake", own_process=True))
        print("ready", flush=True)
        time.sleep(60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    (process,) = engine_processes(parent.pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert psutil.wait_procs([process], timeout=10)[1] == []


def test_a_slow_start_and_one_that_fails():
    began = time.monotonic()
    with pytest.raises(EngineError, match="did not start"):
        opened(start_s=0.3, fail_start=True)
    assert time.monotonic() - began >= 0.3
