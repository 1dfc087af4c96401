import asyncio

import pytest

from helpers.rundirs import rows
from helpers.units import EchoTask, fake_engine, planned, runner
from limrank.batch.chunks import CRASHES_BEFORE_ISOLATION, CRASHES_IN_ISOLATION, Outcome, run_unit
from limrank.batch.receipts import read_receipts
from limrank.errors import EngineError, RowError, UserError
from limrank.records import Failure
from limrank.storage import Storage


def answers(storage):
    return {row["unit_id"]: row["answer"] for row in rows(storage)}


def test_a_chunk_is_committed_with_its_receipt(tmp_path):
    storage, _ = planned(tmp_path, ["a", "b"])
    receipt = runner(storage, EchoTask(), startup_seconds=2.5).run(0, isolated=False)
    assert storage.names("rows") == ["chunk-000000.parquet"]
    assert answers(storage) == {"a": "A", "b": "B"}
    assert (receipt.chunk, receipt.units, receipt.rows, receipt.failed) == (0, 2, 2, 0)
    (work,) = receipt.work
    assert work.startup_seconds == 2.5
    assert work.ready <= work.began <= work.ended
    assert read_receipts(storage) == [receipt]
    assert storage.names("failures") == []


def test_the_row_schema_s_own_metadata_stays_beside_the_receipt(tmp_path):
    class Versioned(EchoTask):
        @property
        def row_schema(self):
            return super().row_schema.with_metadata({"version": "1"})

    storage, _ = planned(tmp_path, ["a"])
    runner(storage, Versioned()).run(0, isolated=False)
    metadata = storage.read_table("rows/chunk-000000.parquet").schema.metadata
    assert metadata[b"version"] == b"1"
    assert read_receipts(storage)[0].rows == 1


def test_a_unit_that_cannot_be_done_is_one_failure_with_its_rows(tmp_path):
    storage, _ = planned(tmp_path, ["a", "b", "c"])
    receipt = runner(storage, EchoTask(row_error={"b"})).run(0, isolated=False)
    assert answers(storage) == {"a": "A", "b": None, "c": "C"}
    assert rows(storage, "failures") == [
        {"unit_id": "b", "step": "echo", "error_type": "RowError", "error": "b cannot be done", "attempts": 1}
    ]
    assert (receipt.units, receipt.rows, receipt.failed) == (3, 3, 1)


def test_a_bug_in_a_task_is_a_failure_and_not_a_crash(tmp_path):
    storage, _ = planned(tmp_path, ["a", "b"])
    runner(storage, EchoTask(bug={"a"})).run(0, isolated=False)
    assert answers(storage) == {"a": None, "b": "B"}
    assert [(row["error_type"], row["error"]) for row in rows(storage, "failures")] == [("ZeroDivisionError", "a bug")]


def test_failures_are_published_before_the_rows(tmp_path, monkeypatch):
    storage, _ = planned(tmp_path, ["a"])
    written = []
    real = Storage.write_table
    monkeypatch.setattr(
        Storage, "write_table", lambda self, name, table: (written.append(name), real(self, name, table))
    )
    runner(storage, EchoTask(row_error={"a"})).run(0, isolated=False)
    assert written == ["failures/chunk-000000.parquet", "rows/chunk-000000.parquet"]


def test_a_later_session_tries_what_failed_once_more_and_nothing_else(tmp_path):
    storage, _ = planned(tmp_path, ["a", "b", "c"])
    runner(storage, EchoTask(row_error={"b", "c"}, suffix="1")).run(0, isolated=False)
    retry = EchoTask(row_error={"c"}, suffix="2")
    receipt = runner(storage, retry, session="second").run(0, isolated=False)
    assert retry.calls == ["b", "c"]
    assert answers(storage) == {"a": "A1", "b": "B2", "c": None}
    # The failure that is fixed is gone; the other has two attempts.
    assert [(row["unit_id"], row["attempts"]) for row in rows(storage, "failures")] == [("c", 2)]
    assert (receipt.units, receipt.rows, receipt.failed) == (3, 3, 1)
    assert [work.session for work in receipt.work] == ["first", "second"]


def test_a_chunk_that_this_session_has_committed_is_not_run_again(tmp_path):
    storage, _ = planned(tmp_path, ["a", "b"])
    task = EchoTask(row_error={"b"})
    first = runner(storage, task).run(0, isolated=False)
    assert runner(storage, task).run(0, isolated=False) == first
    assert task.calls == ["a", "b"]


def test_a_chunk_without_failures_is_not_run_again_by_any_session(tmp_path):
    storage, _ = planned(tmp_path, ["a"])
    first = runner(storage, EchoTask()).run(0, isolated=False)
    task = EchoTask()
    assert runner(storage, task, session="second").run(0, isolated=False) == first
    assert task.calls == []


def test_rows_and_failures_of_two_commits_make_a_chunk_run_whole(tmp_path):
    # A driver was killed between the two writes of a second try.
    storage, _ = planned(tmp_path, ["a", "b"])
    runner(storage, EchoTask(row_error={"b"})).run(0, isolated=False)
    storage.remove("failures/chunk-000000.parquet")
    task = EchoTask()
    receipt = runner(storage, task, session="second").run(0, isolated=False)
    assert task.calls == ["a", "b"]
    assert (receipt.failed, answers(storage)) == (0, {"a": "A", "b": "B"})


@pytest.mark.parametrize("isolated", [False, True])
def test_a_second_try_that_comes_to_nothing_costs_no_row(tmp_path, isolated):
    class Parts(EchoTask):
        """A unit of two parts, of which one fails; a second try is ended by ``error``."""

        error = RowError("the server is full")

        async def run(self, unit, engines):
            rows = [{"unit_id": unit["unit_id"], "answer": "kept"}]
            return Outcome(rows, [Failure.of(f"{unit['unit_id']}/part", "echo", RowError("lost"))])

        async def retry(self, unit, rows, engines):
            raise self.error

    storage, _ = planned(tmp_path, ["a"])
    runner(storage, Parts()).run(0, isolated=False)
    runner(storage, Parts(), session="second").run(0, isolated=isolated)
    assert answers(storage) == {"a": "kept"}
    assert [(row["unit_id"], row["error"], row["attempts"]) for row in rows(storage, "failures")] == [
        ("a/part", "the server is full", 2)
    ]


def test_a_second_try_that_loses_another_row_keeps_the_old_one(tmp_path):
    class Kinds(EchoTask):
        async def run(self, unit, engines):
            rows = [{"unit_id": "a", "answer": "daily"}]
            return Outcome(rows, [Failure.of("a/expert", "echo", RowError("lost"))])

        async def retry(self, unit, rows, engines):
            rows = [{"unit_id": "a", "answer": "expert"}]
            return Outcome(rows, [Failure.of("a/daily", "echo", RowError("lost"))])

    storage, _ = planned(tmp_path, ["a"])
    key = ("unit_id", "answer")
    runner(storage, Kinds(row_key=key, retry_key=key)).run(0, isolated=False)
    runner(storage, Kinds(row_key=key, retry_key=key), session="second").run(0, isolated=False)
    assert sorted(row["answer"] for row in rows(storage)) == ["daily", "expert"]
    assert [row["unit_id"] for row in rows(storage, "failures")] == ["a/daily"]


def test_failures_of_another_commit_are_not_this_one_s(tmp_path):
    # As many failures, but of a second try whose rows were never written.
    storage, _ = planned(tmp_path, ["a", "b"])
    first = runner(storage, EchoTask(row_error={"a"})).run(0, isolated=False)
    rows_before = storage.read_bytes("rows/chunk-000000.parquet")
    runner(storage, EchoTask(row_error={"a"}), session="second").run(0, isolated=False)
    storage.write_bytes("rows/chunk-000000.parquet", rows_before)
    task = EchoTask()
    receipt = runner(storage, task, session="third").run(0, isolated=False)
    assert task.calls == ["a", "b"]
    assert [work.session for work in receipt.work] == ["first", "third"]
    assert first.commit != receipt.commit


def test_a_damaged_chunk_is_run_again(tmp_path):
    storage, _ = planned(tmp_path, ["a", "b"])
    runner(storage, EchoTask()).run(0, isolated=False)
    whole = storage.read_bytes("rows/chunk-000000.parquet")
    storage.write_bytes("rows/chunk-000000.parquet", whole[: len(whole) // 2])
    assert read_receipts(storage) == []
    runner(storage, EchoTask(), session="second").run(0, isolated=False)
    assert answers(storage) == {"a": "A", "b": "B"}


def test_a_row_that_does_not_fit_the_schema_is_its_unit_s_failure(tmp_path):
    class Odd(EchoTask):
        async def run(self, unit, engines):
            outcome = await super().run(unit, engines)
            return Outcome([outcome.rows[0] | {"answer": 7}]) if unit["unit_id"] == "b" else outcome

    storage, _ = planned(tmp_path, ["a", "b"])
    receipt = runner(storage, Odd()).run(0, isolated=False)
    assert (receipt.failed, answers(storage)) == (1, {"a": "A", "b": None})
    assert [row["error_type"] for row in rows(storage, "failures")] == ["ArrowTypeError"]


def test_an_endpoint_s_tries_are_in_the_failure(tmp_path):
    class Flaky(EchoTask):
        async def run(self, unit, engines):
            raise RowError("the endpoint failed 5 times", retryable=True, attempts=5)

    storage, _ = planned(tmp_path, ["a"])
    runner(storage, Flaky()).run(0, isolated=False)
    runner(storage, Flaky(), session="second").run(0, isolated=False)
    assert [row["attempts"] for row in rows(storage, "failures")] == [10]


def test_a_poison_unit_is_tried_once_more_by_a_later_session(tmp_path):
    storage, _ = planned(tmp_path, ["a", "bad"])

    def session(name):
        task = EchoTask(deadly={"bad"})
        while True:
            works = runner(storage, task, session=name)
            try:
                works.run(0, isolated=works.crashes(0) >= CRASHES_BEFORE_ISOLATION)
                return task.calls.count("bad")
            except EngineError:
                continue

    assert session("first") == CRASHES_BEFORE_ISOLATION + CRASHES_IN_ISOLATION
    assert session("second") == 1
    assert answers(storage) == {"a": "A", "bad": None}
    assert [row["unit_id"] for row in rows(storage, "failures")] == ["bad"]


@pytest.mark.parametrize("isolated", [False, True])
def test_a_dead_engine_commits_nothing(tmp_path, isolated):
    storage, _ = planned(tmp_path, ["a", "b"])
    with pytest.raises(EngineError, match="the engine died"):
        runner(storage, EchoTask(deadly={"b"})).run(0, isolated=isolated)
    assert storage.names("rows") == []
    assert storage.names("failures") == []


def test_a_fault_of_every_unit_goes_further(tmp_path):
    class Misconfigured(EchoTask):
        async def run(self, unit, engines):
            raise UserError("the labels are two tokens")

    storage, _ = planned(tmp_path, ["a"])
    with pytest.raises(UserError, match="two tokens"):
        runner(storage, Misconfigured()).run(0, isolated=False)
    assert storage.names("rows") == []


def test_every_attempt_is_on_record_before_the_work(tmp_path):
    storage, _ = planned(tmp_path, ["a"])
    seen = []

    class Looking(EchoTask):
        async def run(self, unit, engines):
            seen.append(await works.chunks.crashes(0))
            return await super().run(unit, engines)

    works = runner(storage, Looking(deadly={"a"}))
    assert works.crashes(0) == 0
    for _ in range(3):
        with pytest.raises(EngineError):
            works.run(0, isolated=False)
    assert seen == [1, 2, 3]
    assert works.crashes(0) == 3


def test_a_poison_unit_is_found_and_its_neighbours_are_committed(tmp_path):
    storage, _ = planned(tmp_path, ["a", "bad", "c"])
    task = EchoTask(deadly={"bad"})
    sessions = 0
    # What Ray does: it restarts the crashed worker, which runs the same chunk, without end.
    while storage.names("rows") == []:
        sessions += 1
        assert sessions < 10
        works = runner(storage, task)
        isolated = works.crashes(0) >= CRASHES_BEFORE_ISOLATION
        try:
            receipt = works.run(0, isolated=isolated)
        except EngineError:
            continue
    # Twice with the others, twice in isolation, and once without it.
    assert sessions == CRASHES_BEFORE_ISOLATION + CRASHES_IN_ISOLATION + 1 == 5
    assert task.calls.count("bad") == CRASHES_BEFORE_ISOLATION + CRASHES_IN_ISOLATION
    assert answers(storage) == {"a": "A", "bad": None, "c": "C"}
    assert rows(storage, "failures") == [
        {
            "unit_id": "bad",
            "step": "echo",
            "error_type": "EngineError",
            "error": "the engine crashed 2 times while it ran this unit in isolation",
            "attempts": 4,
        }
    ]
    assert (receipt.units, receipt.rows, receipt.failed) == (3, 3, 1)


@pytest.mark.parametrize("isolated", [False, True])
def test_a_job_that_is_killed_again_and_again_makes_no_unit_fail(tmp_path, isolated):
    storage, _ = planned(tmp_path, ["a", "b"])
    # To the files, a driver that is killed looks like this: an attempt that never ended.
    for session in range(20):
        works = runner(storage, EchoTask(deadly={"b"}), session=f"driver-{session}")
        assert works.crashes(0) == 0
        with pytest.raises(EngineError):
            works.run(0, isolated=isolated)
    receipt = runner(storage, EchoTask(), session="last").run(0, isolated=isolated)
    assert (receipt.rows, receipt.failed) == (2, 0)
    assert answers(storage) == {"a": "A", "b": "B"}


def test_crashes_that_an_earlier_session_saw_still_count(tmp_path):
    storage, _ = planned(tmp_path, ["a", "bad"])
    for _ in range(3):
        with pytest.raises(EngineError):
            runner(storage, EchoTask(deadly={"bad"}), session="first").run(0, isolated=False)
    # Of the three the last may have been the driver's own end.
    assert runner(storage, EchoTask(), session="second").crashes(0) == 2
    assert runner(storage, EchoTask(), session="first").crashes(0) == 3


def test_two_poison_units_of_a_chunk_are_both_found(tmp_path):
    storage, _ = planned(tmp_path, ["a", "bad", "c", "worse"])
    task = EchoTask(deadly={"bad", "worse"})
    for _ in range(2 * CRASHES_IN_ISOLATION):
        with pytest.raises(EngineError):
            runner(storage, task).run(0, isolated=True)
    runner(storage, task).run(0, isolated=True)
    assert answers(storage) == {"a": "A", "bad": None, "c": "C", "worse": None}
    assert sorted(row["unit_id"] for row in rows(storage, "failures")) == ["bad", "worse"]


def test_isolated_units_are_one_at_a_time_in_order(tmp_path):
    running, most = [], []

    class Watched(EchoTask):
        async def run(self, unit, engines):
            running.append(unit["unit_id"])
            most.append(len(running))
            await asyncio.sleep(0)
            running.remove(unit["unit_id"])
            return await super().run(unit, engines)

    for isolated, expected in ((True, 1), (False, 3)):
        most.clear()
        storage, _ = planned(tmp_path / str(isolated), ["a", "b", "c"])
        runner(storage, Watched()).run(0, isolated=isolated)
        assert max(most) == expected


def test_receipts_count_the_requests_of_their_own_chunk(tmp_path):
    names = [f"{letter}{number:02d}" for letter in "ab" for number in range(64)]
    storage, plan = planned(tmp_path, names)
    works = runner(storage, EchoTask(), {"engine": fake_engine()})
    receipts = [works.run(chunk.number, isolated=chunk.number == 1) for chunk in plan.chunks]
    # A prompt is its id, three bytes; an answer is min(max_tokens, 24) words, here four.
    assert [(each.requests, each.prompt_tokens, each.generated_tokens) for each in receipts] == [(64, 192, 256)] * 2
    assert read_receipts(storage) == receipts


def test_a_unit_s_failures_of_parts_stand_beside_its_rows(tmp_path):
    class Partly(EchoTask):
        async def run(self, unit, engines):
            outcome = await super().run(unit, engines)
            return Outcome(outcome.rows, [Failure.of("a/part", "score", RowError("too long"))])

    storage, _ = planned(tmp_path, ["a"])
    receipt = runner(storage, Partly()).run(0, isolated=False)
    assert (receipt.rows, receipt.failed) == (1, 1)
    assert answers(storage) == {"a": "A"}


def test_no_rows_are_still_a_finished_chunk(tmp_path):
    class Silent(EchoTask):
        async def run(self, unit, engines):
            return Outcome([])

    storage, _ = planned(tmp_path, ["a"])
    assert runner(storage, Silent()).run(0, isolated=False).rows == 0
    assert storage.names("rows") == ["chunk-000000.parquet"]
    assert storage.read_table("rows/chunk-000000.parquet").schema.equals(EchoTask().row_schema)


def test_run_unit_lets_a_dead_engine_through():
    async def of(task):
        return await run_unit(task, {"unit_id": "a"}, {})

    with pytest.raises(EngineError):
        asyncio.run(of(EchoTask(deadly={"a"})))
    outcome = asyncio.run(of(EchoTask(row_error={"a"})))
    assert (outcome.rows, len(outcome.failures)) == ([{"unit_id": "a", "answer": None}], 1)
