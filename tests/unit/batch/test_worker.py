import asyncio

import pyarrow as pa
import pytest

from helpers.rundirs import rows
from helpers.units import EchoTask, planned
from limrank.batch.budget import Budget
from limrank.batch.receipts import Receipt
from limrank.batch.worker import Admission, ChunkWorker
from limrank.config import EngineConfig, ModelConfig
from limrank.engines import EngineSpec
from limrank.engines.base import Limits, RequestLimiter
from limrank.errors import EndpointError, EngineError, UserError


class Engine:
    """As much of an engine as admission looks at."""

    def __init__(self, in_flight):
        self.limits = Limits(100, in_flight)
        self.limiter = RequestLimiter(2 * in_flight)


async def entered(admission, order, name, leave, isolated=False):
    async with admission.isolated() if isolated else admission.shared() as under_way:
        if not isolated:
            under_way()
        order.append(name)
        await leave.wait()


async def settle():
    await asyncio.sleep(0.02)


def test_chunks_enter_while_the_engine_has_capacity():
    async def scenario():
        engine, order, leave = Engine(2), [], asyncio.Event()
        admission = Admission({"scorer": engine})
        for name in "abc":
            asyncio.ensure_future(entered(admission, order, name, leave))
        engine.limiter.requests = 2  # as many as it runs
        await settle()
        assert order == ["a"]  # the first finds an empty worker, whatever is in the engine
        engine.limiter.requests = 1
        await settle()
        assert order == ["a", "b", "c"]
        leave.set()

    asyncio.run(scenario())


def test_the_next_chunk_waits_until_the_requests_of_this_one_are_there():
    async def scenario():
        admission, order = Admission({"scorer": Engine(2)}), []
        async with admission.shared() as under_way:
            waiting = asyncio.ensure_future(entered(admission, order, "b", asyncio.Event()))
            await settle()
            assert order == []
            under_way()
            await settle()
            assert order == ["b"]
        waiting.cancel()

    asyncio.run(scenario())


def test_an_isolated_chunk_waits_for_the_others_and_keeps_them_out():
    async def scenario():
        admission, order = Admission({"scorer": Engine(9)}), []
        first, second, third = asyncio.Event(), asyncio.Event(), asyncio.Event()
        works = [
            asyncio.ensure_future(entered(admission, order, "shared", first)),
            asyncio.ensure_future(entered(admission, order, "isolated", second, isolated=True)),
            asyncio.ensure_future(entered(admission, order, "later", third)),
        ]
        await settle()
        assert order == ["shared"]
        first.set()
        await settle()
        assert order == ["shared", "isolated"]
        second.set()
        await settle()
        assert order == ["shared", "isolated", "later"]
        third.set()
        await asyncio.gather(*works)

    asyncio.run(scenario())


def test_a_turn_ends_with_an_error():
    async def scenario():
        admission = Admission({"scorer": Engine(1)})
        for turn in (admission.shared, admission.isolated, admission.shared):
            with pytest.raises(RuntimeError):
                async with turn():
                    raise RuntimeError

    asyncio.run(scenario())


# ---- a worker, without Ray -----------------------------------------------------------

FAKE = EngineSpec(ModelConfig(id="fake"), EngineConfig(kind="fake"))


def answers(worker, *numbers):
    return worker(pa.table({"chunk": list(numbers), "position": list(numbers)})).to_pylist()


def test_a_worker_answers_with_receipts(tmp_path):
    storage, plan = planned(tmp_path, [f"u{number:03d}" for number in range(70)])
    worker = ChunkWorker(storage, EchoTask(), {"engine": FAKE}, "session", 10)
    first, second = (Receipt.from_json(row["receipt"]) for row in answers(worker, 0, 1))
    assert (first.rows, second.rows, len(rows(storage))) == (64, 6, plan.units)
    assert first.work[0].worker == second.work[0].worker
    assert 0 < second.work[0].busy_seconds <= second.work[0].ended - second.work[0].ready


def test_a_chunk_that_the_budget_does_not_allow_is_not_started(tmp_path):
    storage, plan = planned(tmp_path, [f"u{number:03d}" for number in range(130)])
    worker = ChunkWorker(storage, EchoTask(), {"engine": FAKE}, "session", 10, budgeted=True)
    scheduler = Budget(tokens=1).scheduler(storage, plan, plan.chunks, [])
    (first,) = answers(worker, 0)  # the first always starts: nothing is known before it
    scheduler.commit(Receipt(0, 64, 64, 0, 1, 1, 0, 0, ()))
    assert first["receipt"] and answers(worker, 1) == [{"receipt": None, "error_type": None, "error": None}]
    Budget(tokens=10**6).scheduler(storage, plan, plan.chunks, [])  # the next session's
    worker = ChunkWorker(storage, EchoTask(), {"engine": FAKE}, "session", 10, budgeted=True)
    assert answers(worker, 2)[0]["receipt"]


class Unopenable:
    holds_model, memory_bytes, startup_timeout_s = True, 0, 10.0

    def __init__(self, error):
        self.error = error

    def open(self):
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (EngineError("no memory"), ("EngineError", "no memory")),
        (UserError("no such model"), ("UserError", "no such model")),
        (ImportError("libcuda"), ("RuntimeError", "ImportError: libcuda")),
    ],
)
def test_an_engine_that_does_not_open_is_reported_at_once(tmp_path, error, message):
    storage, _ = planned(tmp_path, ["a"])
    (row,) = answers(ChunkWorker(storage, EchoTask(), {"engine": Unopenable(error)}, "session", 10), 0)
    assert (row["error_type"], row["error"]) == message
    assert row["receipt"] is None


def test_an_engine_that_takes_too_long_is_reported(tmp_path):
    class Slow(Unopenable):
        def open(self):
            import time

            time.sleep(0.5)

    storage, _ = planned(tmp_path, ["a"])
    (row,) = answers(ChunkWorker(storage, EchoTask(), {"engine": Slow(None)}, "session", 0.05), 0)
    assert row["error_type"] == "EngineError"
    assert "did not start within 0.05 s (engine.startup_timeout_s)" in row["error"]


def test_an_endpoint_that_is_gone_ends_the_job_and_no_unit(tmp_path):
    class Gone(EchoTask):
        async def run(self, unit, engines):
            raise EndpointError("refused")

    storage, _ = planned(tmp_path, ["a"])
    (row,) = answers(ChunkWorker(storage, Gone(), {"engine": FAKE}, "session", 10), 0)
    assert (row["error_type"], row["error"]) == ("EndpointError", "refused")
    assert storage.names("rows") == []


def test_a_full_disk_is_reported_by_the_run_s_name(tmp_path, monkeypatch):
    storage, _ = planned(tmp_path, ["a"])
    worker = ChunkWorker(storage, EchoTask(), {"engine": FAKE}, "session", 10)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(storage), "write_bytes", full)
    (row,) = answers(worker, 0)
    assert row["error_type"] == "StorageError"
    assert str(tmp_path) in row["error"] and "No space left on device" in row["error"]
