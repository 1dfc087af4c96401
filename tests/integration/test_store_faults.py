"""Stores that throttle, fail, or lack conditional writes: moto's S3 server behind a proxy that injects faults."""

import json
import time
import uuid

import pytest

from helpers.faulty_store import FaultyStore
from limrank.batch import lock, rundir
from limrank.batch.rundir import open_run
from limrank.errors import StorageError, UserError
from limrank.storage import Storage
from limrank.stores import store

pytest.importorskip("moto.server", reason="moto[server] is in the dev extra")

RUN = {"job": "rerank", "config_yaml": "job: rerank\n", "config_hash": "aaaa"}


@pytest.fixture(scope="module")
def moto():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    values = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (values | {"NO_PROXY": "127.0.0.1"}).items():
            patch.setenv(name, value)
        yield "{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def client(moto):
    import boto3

    return boto3.client("s3", endpoint_url=f"http://{moto}")


@pytest.fixture
def faulty(moto, client, monkeypatch):
    """The proxy, and the storage of a new bucket behind it."""
    monkeypatch.setattr(store, "_LONGEST_WAIT_S", 0.1)
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    with FaultyStore(moto) as proxy:
        yield proxy, Storage(f"s3://{bucket}/run?endpoint_override={proxy.host}&scheme=http")


@pytest.mark.parametrize("status", [503, 429])
def test_a_store_that_throttles_is_waited_for(faulty, status, caplog):
    proxy, storage = faulty
    proxy.first(14, status)
    storage.write_text("a.json", "1")
    assert proxy.counts[status] == 14
    assert "Please reduce your request rate. (HTTP status" in caplog.text and "waiting for it" in caplog.text
    proxy.first(7, status)
    assert storage.read_text("a.json") == "1"
    proxy.first(7, status)
    assert storage.names("") == ["a.json"]
    proxy.first(7, status)
    with storage.open_input("a.json") as file:
        assert file.read() == b"1"


def test_a_run_is_locked_and_unlocked_while_a_store_throttles(faulty):
    proxy, storage = faulty
    proxy.share(0.4, 503)
    with open_run(storage.root, **RUN) as run:
        with pytest.raises(UserError, match="is working in it"), open_run(storage.root, **RUN):
            pass
        run.finish("done")
    assert proxy.counts[503] > 3
    assert not storage.exists("lock.json")


def test_a_store_that_is_out_of_reach_for_a_while(faulty, monkeypatch):
    proxy, storage = faulty
    storage.write_text("a.json", "1")
    proxy.first(12, 0)
    storage.write_text("a.json", "2")
    assert (proxy.counts[0], storage.read_text("a.json")) == (12, "2")
    monkeypatch.setattr(store, "PATIENCE_S", 0.5)
    proxy.share(1, 503)
    with pytest.raises(StorageError, match=r"cannot be written: Please reduce .*the same command resumes"):
        storage.write_text("a.json", "3")


def test_a_driver_that_fails_while_the_store_is_away_ends_soon(faulty, monkeypatch):
    proxy, storage = faulty
    monkeypatch.setattr(lock, "LOCK_HEARTBEAT_S", 0.2)
    monkeypatch.setattr(lock, "_AT_THE_END_S", 0.2)
    monkeypatch.setattr(rundir, "_AT_THE_END_S", 0.2)
    with pytest.raises(ZeroDivisionError), open_run(storage.root, **RUN):
        proxy.share(1, 503)
        while proxy.counts[503] < 3:  # a renewal is under way
            time.sleep(0.05)
        raise ZeroDivisionError
    proxy.share(0, 503)
    # Nothing could be written: it looks like a killed driver's, which is taken over.
    assert json.loads(storage.read_text("manifest.json"))["status"] == "running"
    assert storage.exists("lock.json")


def test_an_upload_that_fails_half_way_is_aborted(faulty, client, tmp_path):
    proxy, storage = faulty
    storage.write_text("model.safetensors", "old")
    proxy.rule = lambda request: 403 if "partNumber=2" in request.path else None
    with pytest.raises(StorageError), storage.open_output("model.safetensors") as stream:
        stream.write(bytes(3 * store._PART))
    assert proxy.counts[403]
    assert storage.read_text("model.safetensors") == "old"
    bucket = storage.root.split("/")[2]
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")


@pytest.mark.parametrize("answer", ["ignored", 501])
def test_a_store_without_conditional_writes_has_a_lock_all_the_same(faulty, answer, caplog):
    proxy, storage = faulty
    if answer == "ignored":
        proxy.conditional = False
    else:
        proxy.rule = lambda request: 501 if {"if-none-match", "if-match"} & {*map(str.lower, request.headers)} else None
    with open_run(storage.root, **RUN) as run:
        with pytest.raises(UserError, match="is working in it"), open_run(storage.root, **RUN):
            pass
        assert json.loads(storage.read_text("lock.json"))["pid"]
        run.finish("done")
    assert not storage.exists("lock.json")
    assert caplog.text.count("has no conditional writes") == 1
    assert [name for name in storage.entries() if name.startswith(".")] == []
