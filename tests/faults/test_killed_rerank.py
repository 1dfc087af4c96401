"""`limrank rerank` killed at a random moment, and the same command again."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

QUERIES, DEPTH = 120, 5


@pytest.fixture(scope="module")
def beir(tmp_path_factory):
    """Long passages, so that a few queries fill a chunk: 120 queries are 15 chunks."""
    folder = tmp_path_factory.mktemp("data") / "beir"
    (folder / "qrels").mkdir(parents=True)
    filler = "word " * 12_000
    documents = [{"_id": f"d{n}", "title": "", "text": f"common {filler} {n}"} for n in range(DEPTH)]
    queries = [{"_id": f"q{n}", "text": f"common need {n}"} for n in range(QUERIES)]
    for name, records in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    judged = "".join(f"q{n}\td0\t1\n" for n in range(QUERIES))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


def command(beir, run_dir):
    recipe = run_dir.parent / "rerank.yaml"
    recipe.write_text(
        f"job: rerank\nrun_dir: {run_dir}\ndata: {{format: beir, path: {beir}}}\nfirst_stage: {{depth: {DEPTH}}}\n"
        "engine: {kind: fake, latency_ms: 60, max_in_flight: 4}\nmodel: {max_model_len: 200000}\n"
    )
    return [sys.executable, "-m", "limrank", "rerank", str(recipe), "--address", "local"]


def committed(run_dir):
    """Name and time of each committed chunk."""
    return {path.name: path.stat().st_mtime_ns for path in (run_dir / "rows").glob("chunk-*.parquet")}


def rows(run_dir):
    from limrank.storage import Storage

    storage = Storage(str(run_dir))
    return [row for name in storage.names("rows") for row in storage.read_table(f"rows/{name}").to_pylist()]


def wait_for_chunks(process, run_dir, count, patience_s=120):
    deadline = time.monotonic() + patience_s
    while len(committed(run_dir)) < count:
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline, f"fewer than {count} chunks in {patience_s} s"
        time.sleep(0.02)


def kill_driver(process):
    os.kill(process.pid, signal.SIGKILL)


def kill_worker(process):
    """The engine actor, as an out-of-memory kill would end it; the driver lives on."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if "MapWorker" in " ".join(child.cmdline()) or "ChunkWorker" in " ".join(child.cmdline()):
            child.kill()
            return
    raise AssertionError("no engine actor found")


def run_whole(beir, run_dir):
    done = subprocess.run(command(beir, run_dir), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done


def check_complete(run_dir):
    found = rows(run_dir)
    pairs = {(row["query_id"], row["doc_id"]) for row in found}
    assert len(found) == len(pairs) == QUERIES * DEPTH
    assert {row["status"] for row in found} == {"direct"}
    assert json.loads((run_dir / "manifest.json").read_text())["counts"]["rows"] == QUERIES * DEPTH
    return {(row["query_id"], row["doc_id"]): row["score"] for row in found}


@pytest.fixture(scope="module")
def undisturbed(beir, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    run_whole(beir, run_dir)
    return check_complete(run_dir)


def test_a_killed_driver_is_resumed(beir, tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    process = subprocess.Popen(command(beir, run_dir), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_chunks(process, run_dir, random.randint(1, 6))
    kill_driver(process)
    process.wait()
    time.sleep(2)  # its workers, gone with it, may be in the middle of a last rename
    before = committed(run_dir)
    assert len(before) > 0
    run_whole(beir, run_dir)
    after = committed(run_dir)
    assert {name: after[name] for name in before} == before, "a committed chunk was scored again"
    assert check_complete(run_dir) == undisturbed


def test_a_killed_engine_actor_is_replaced(beir, tmp_path, undisturbed):
    run_dir = tmp_path / "run"
    process = subprocess.Popen(command(beir, run_dir), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_chunks(process, run_dir, random.randint(1, 4))
    kill_worker(process)
    assert process.wait(timeout=240) == 0
    assert check_complete(run_dir) == undisturbed
