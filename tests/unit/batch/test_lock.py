"""One driver a run directory: who holds the lock, and when it is taken over."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limrank.batch import lock
from limrank.batch.lock import LOCK_HEARTBEAT_S, LOCK_STALE_S
from limrank.batch.rundir import open_run
from limrank.cli import main
from limrank.errors import LockLostError, StorageError, UserError
from limrank.storage import Storage

COMMON = {"job": "rerank", "config_yaml": "job: rerank\n", "config_hash": "aaaa"}


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "run"))


def taking(storage, **options):
    """Takes the run directory and gives it back at once."""
    with open_run(storage.root, **(COMMON | options)) as run:
        return run


def dead_pid():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def leave_lock(storage, *, host=None, pid=None, age=0.0, skew=0.0):
    holder = {
        "token": "theirs",
        "host": host or socket.gethostname(),
        "pid": os.getpid() if pid is None else pid,
        "renewed": time.time() + skew,
    }
    storage.write_text("lock.json", json.dumps(holder))
    os.utime(storage.local("lock.json"), (time.time() - age, time.time() - age))


def test_a_second_driver_is_refused_and_the_first_goes_on(storage):
    with open_run(storage.root, **COMMON) as run:
        with pytest.raises(UserError, match=f"process {os.getpid()} on .* is working in it"):
            taking(storage, overwrite=True)
        run.finish("done")
    assert json.loads(storage.read_text("manifest.json"))["status"] == "done"
    assert not storage.exists("lock.json")


def test_of_many_that_start_together_one_gets_it(storage):
    got, refused = [], []
    together, ended = threading.Barrier(8), threading.Barrier(8)

    def start(number):
        together.wait()
        try:
            with open_run(storage.root, **COMMON):
                got.append(number)
                ended.wait()
        except UserError:
            refused.append(number)
            ended.wait()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(start, range(8)))
    assert (len(got), len(refused)) == (1, 7)


def test_a_lock_of_a_dead_process_on_this_host_is_taken_over_at_once(storage):
    leave_lock(storage, pid=dead_pid())
    with open_run(storage.root, **COMMON):
        assert json.loads(storage.read_text("lock.json"))["pid"] == os.getpid()


def test_a_lock_of_another_host_is_taken_over_when_it_is_stale(storage):
    leave_lock(storage, host="another-host", age=LOCK_STALE_S - 5)
    with pytest.raises(UserError, match="on another-host is working in it"):
        taking(storage)
    leave_lock(storage, host="another-host", age=LOCK_STALE_S + 1)
    taking(storage)


def test_a_host_s_clock_may_be_wrong(storage):
    leave_lock(storage, host="another-host", age=LOCK_STALE_S + 1, skew=3600)
    taking(storage)
    leave_lock(storage, host="another-host", skew=-3600)
    with pytest.raises(UserError, match="on another-host is working in it"):
        taking(storage)


def test_the_contract_s_thirty_seconds():
    # The worst case: it died just after it had renewed.
    assert LOCK_STALE_S <= 30
    # And a live one may miss two renewals.
    assert 3 * LOCK_HEARTBEAT_S <= LOCK_STALE_S


def test_a_lock_is_renewed_and_not_taken_back(storage, monkeypatch):
    monkeypatch.setattr(lock, "LOCK_HEARTBEAT_S", 0.02)

    def renewed():
        return json.loads(storage.read_text("lock.json"))["renewed"]

    taken = r"process \d+ on another-host has taken it over"
    with pytest.raises(LockLostError, match=taken), open_run(storage.root, **COMMON) as run:
        first = renewed()
        deadline = time.monotonic() + 5
        while renewed() == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert renewed() > first
        with lock._exclusive(storage):
            leave_lock(storage, host="another-host")
        while time.monotonic() < deadline:
            time.sleep(0.01)
        run.finish("done")
    assert json.loads(storage.read_text("lock.json"))["token"] == "theirs"
    # The manifest is the other driver's too.
    assert json.loads(storage.read_text("manifest.json"))["status"] == "running"
    # What another driver holds is not removed either.
    assert storage.exists("lock.json")


def test_a_lock_that_is_not_renewed_for_too_long_is_said_once(storage, monkeypatch, caplog):
    monkeypatch.setattr(lock, "LOCK_HEARTBEAT_S", 0.01)
    monkeypatch.setattr(lock, "LOCK_STALE_S", 0.05)

    def fails(self):
        raise NotImplementedError("no such operation")

    with open_run(storage.root, **COMMON) as run:
        monkeypatch.setattr(lock.Lock, "renew", fails)
        deadline = time.monotonic() + 5
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        run.finish("done")
    (said,) = [record.getMessage() for record in caplog.records]
    assert "another driver may take it over: no such operation" in said


def test_a_lock_that_is_not_json_is_nobodys(storage):
    storage.write_text("lock.json", "")
    taking(storage)


def test_the_command_ends_with_one_line_and_exit_code_1(storage, tmp_path, monkeypatch, capsys):
    def taken_over(*arguments, **options):
        leave_lock(storage, host="another-host")
        time.sleep(60)  # is interrupted

    monkeypatch.setattr(lock, "LOCK_HEARTBEAT_S", 0.05)
    monkeypatch.setattr("limrank.reranking.job.write_runs", taken_over)
    pairs = pa.table({"query_id": ["a"], "query": ["q"], "doc_id": ["x"], "text": ["one"]})
    pq.write_table(pairs, tmp_path / "pairs.parquet")
    data = {"format": "pairs", "path": str(tmp_path / "pairs.parquet")}
    recipe = {"job": "rerank", "run_dir": storage.root, "data": data, "scoring": {"mode": "none"}}
    (tmp_path / "rerank.yaml").write_text(json.dumps(recipe))
    assert main(["rerank", str(tmp_path / "rerank.yaml"), "--address", "local"]) == 1
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert written.startswith(f"limrank: LockLostError: run_dir {storage.root}: process ")
    assert "on another-host has taken it over" in written
    assert not storage.exists("run.trec")


def test_a_lock_that_cannot_be_read_is_not_taken_over(storage, monkeypatch):
    """Another account's, or a store that refuses to give it."""
    taking(storage)
    leave_lock(storage, host="another-host")
    read = Storage.read_bytes

    def refused(self, name):
        if name == "lock.json":
            raise StorageError(f"{name} cannot be read: Permission denied")
        return read(self, name)

    monkeypatch.setattr(Storage, "read_bytes", refused)
    with pytest.raises(UserError, match="lock.json cannot be read: Permission denied"):
        taking(storage)
    monkeypatch.undo()
    assert json.loads(storage.read_text("lock.json"))["token"] == "theirs"
