"""Jobs with their run directories and data in an S3 store (moto's server)."""

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.rundirs import rows
from helpers.tiny_model import make_tiny
from limrank import models
from limrank.batch import lock
from limrank.batch.plan import write_plan
from limrank.batch.rundir import open_run
from limrank.cli import main
from limrank.data.seeds import load_seeds
from limrank.errors import LockLostError, StorageError, UserError
from limrank.storage import Storage, filesystem
from limrank.training.metrics import read_metrics
from limrank.training.sources import read_examples

pytest.importorskip("moto.server", reason="moto[server] is in the dev extra")

QUERIES, DEPTH = 60, 4
RUN = {"job": "rerank", "config_yaml": "job: rerank\n", "config_hash": "aaaa"}


@pytest.fixture(scope="module")
def store():
    """A server, and an environment that names it, here and in every process started here."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        # No proxy stands before this machine.
        "NO_PROXY": "127.0.0.1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(store):
    """A new bucket's URI."""
    import boto3

    name = f"bucket-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=f"http://{store}").create_bucket(Bucket=name)
    return f"s3://{name}"


def pairs():
    """Long passages, so that a few queries fill a chunk."""
    lines = [
        (f"q{q}", f"need {q}", f"d{d}", f"passage {d} " + "word " * 24_000)
        for q in range(QUERIES)
        for d in range(DEPTH)
    ]
    return pa.table(
        dict(zip(("query_id", "query", "doc_id", "text"), map(list, zip(*lines, strict=True)), strict=True))
    )


def write_pairs(uri):
    files, path = filesystem(uri)
    with files.open_output_stream(path) as stream:
        pq.write_table(pairs(), stream)
    return uri


def command(tmp_path, run_dir, data, latency_ms=0, **sections):
    recipe = {
        "job": "rerank",
        "run_dir": run_dir,
        "data": {"format": "pairs", "path": data},
        "engine": {"kind": "fake", "latency_ms": latency_ms, "max_in_flight": 4},
        "model": {"max_model_len": 200_000},
    }
    path = tmp_path / f"{uuid.uuid4().hex}.yaml"
    path.write_text(json.dumps(recipe | sections))
    return [sys.executable, "-m", "limrank", "rerank", str(path), "--address", "local"]


def limrank(arguments, **environment):
    return subprocess.run(arguments, capture_output=True, text=True, timeout=180, env=os.environ | environment)


def committed(storage):
    files, path = filesystem(storage.root)
    return {name: files.get_file_info(f"{path}/rows/{name}").mtime_ns for name in storage.names("rows")}


def check_complete(storage):
    found = rows(storage)
    scored = {(row["query_id"], row["doc_id"]) for row in found}
    assert len(found) == len(scored) == QUERIES * DEPTH
    assert {row["status"] for row in found} == {"direct"}
    manifest = json.loads(storage.read_text("manifest.json"))
    assert manifest["status"] == "done"
    assert manifest["counts"] == {"units": QUERIES, "rows": QUERIES * DEPTH, "failed": 0}
    run = json.loads(storage.read_text("run.json"))
    assert {query_id: len(ranked) for query_id, ranked in run.items()} == {f"q{n}": DEPTH for n in range(QUERIES)}
    trec = [line.split() for line in storage.read_text("run.trec").splitlines()]
    assert {(line[0], line[2]): float(line[4]) for line in trec} == {
        (query_id, doc_id): score for query_id, ranked in run.items() for doc_id, score in ranked.items()
    }
    assert not storage.exists("lock.json")


def test_a_killed_driver_is_resumed_and_a_second_one_refused(bucket, tmp_path):
    data = write_pairs(f"{bucket}/data/pairs.parquet")
    storage = Storage(f"{bucket}/runs/one")
    arguments = command(tmp_path, storage.root, data, latency_ms=500)
    driver = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(storage.names("rows")) < 2:
        assert driver.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = limrank(arguments)
    assert second.returncode == 2
    assert f"process {driver.pid} on" in second.stderr and "is working in it" in second.stderr
    assert driver.poll() is None
    driver.kill()
    driver.wait()
    time.sleep(2)  # its workers, gone with it, may be in the middle of a last commit
    before = committed(storage)
    assert 2 <= len(before) < len(json.loads(storage.read_text("plan.json"))["chunks"])
    assert storage.exists("lock.json")

    resumed = limrank(command(tmp_path, storage.root, data))
    assert resumed.returncode == 0, resumed.stderr
    assert f"run: {storage.root}/run.trec" in resumed.stdout
    after = committed(storage)
    assert {name: after[name] for name in before} == before, "a committed chunk was scored again"
    check_complete(storage)
    assert json.loads(storage.read_text("manifest.json"))["resumed"] is True


def test_a_dead_driver_s_lock_is_taken_over_within_30_s(bucket):
    # One on another host: whether its process lives cannot be seen from here.
    storage = Storage(f"{bucket}/runs/one")
    with open_run(storage.root, **RUN):
        held = json.loads(storage.read_text("lock.json"))
    renewed = time.time()
    storage.write_text("lock.json", json.dumps(held | {"host": "elsewhere", "renewed": renewed}))
    with pytest.raises(UserError, match="on elsewhere is working in it"), open_run(storage.root, **RUN):
        pass
    while True:
        try:
            with open_run(storage.root, **RUN):
                took = time.time() - renewed
            break
        except UserError:
            time.sleep(1)
    assert 15 < took < 30


def leave_lock(storage, host="elsewhere", skew=0.0):
    held = {"token": "theirs", "host": host, "pid": 1, "renewed": time.time() + skew}
    storage.write_text("lock.json", json.dumps(held))


def test_of_many_that_start_together_one_gets_it(bucket):
    got, refused = [], []
    together, ended = threading.Barrier(6), threading.Barrier(6)

    def start(number):
        together.wait()
        try:
            with open_run(f"{bucket}/run", **RUN):
                got.append(number)
                ended.wait()
        except UserError:
            refused.append(number)
            ended.wait()

    leave_lock(Storage(f"{bucket}/run"), socket.gethostname())  # process 1 lives, and the lock is fresh
    with pytest.raises(UserError, match="process 1 on"), open_run(f"{bucket}/run", **RUN):
        pass
    Storage(f"{bucket}/run").remove("lock.json")
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(start, range(6)))
    assert (len(got), len(refused)) == (1, 5)
    assert not Storage(f"{bucket}/run").exists("lock.json")


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_a_host_s_clock_may_be_wrong(bucket, monkeypatch, skew):
    storage = Storage(f"{bucket}/run")
    leave_lock(storage, skew=skew)
    with pytest.raises(UserError, match="process 1 on elsewhere is working in it"), open_run(storage.root, **RUN):
        pass
    monkeypatch.setattr(lock, "LOCK_STALE_S", 0.5)
    time.sleep(2)  # the store's times are whole seconds
    with open_run(storage.root, **RUN):
        assert json.loads(storage.read_text("lock.json"))["token"] != "theirs"


def test_a_driver_whose_lock_was_taken_over_stops(bucket, monkeypatch):
    monkeypatch.setattr(lock, "LOCK_HEARTBEAT_S", 0.2)
    storage = Storage(f"{bucket}/run")
    taken = "process 1 on elsewhere has taken it over"
    with pytest.raises(LockLostError, match=taken), open_run(storage.root, **RUN):
        leave_lock(storage)
        time.sleep(60)  # is interrupted
    assert json.loads(storage.read_text("lock.json"))["token"] == "theirs"
    assert json.loads(storage.read_text("manifest.json"))["status"] == "running"


def test_a_lock_that_a_person_deleted_is_written_again(bucket, monkeypatch):
    monkeypatch.setattr(lock, "LOCK_HEARTBEAT_S", 0.1)
    storage = Storage(f"{bucket}/run")
    with open_run(storage.root, **RUN) as run:
        storage.remove("lock.json")
        deadline = time.monotonic() + 10
        while not storage.exists("lock.json"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        run.finish("done")


def test_a_plan_is_never_replaced(bucket):
    storage = Storage(f"{bucket}/run")
    schema = pa.schema([("unit_id", pa.string()), ("cost", pa.int64())])
    units = [({"unit_id": "a", "cost": 1}, 1)]
    write_plan(storage, units, schema, chunk_cost=10)
    write_plan(storage, units, schema, chunk_cost=10)  # the same: a request that was sent twice
    with pytest.raises(StorageError, match="another driver has written plan.json"):
        write_plan(storage, [*units, ({"unit_id": "b", "cost": 1}, 1)], schema, chunk_cost=10)


def test_output_that_breaks_off_is_not_published(bucket, store):
    storage = Storage(f"{bucket}/run")
    storage.write_text("run.trec", "whole")
    with pytest.raises(ZeroDivisionError), storage.open_output("run.trec") as stream:
        stream.write(b"half" * (8 << 20))
        raise ZeroDivisionError
    assert storage.read_text("run.trec") == "whole"
    with storage.open_output("run.trec") as stream:
        stream.write(b"half" * (8 << 20))
    assert len(storage.read_bytes("run.trec")) == 32 << 20


def test_overwrite_empties_a_prefix_and_nothing_beside_it(bucket):
    storage, beside = Storage(f"{bucket}/runs/one"), Storage(f"{bucket}/runs/one-more")
    beside.write_text("run.trec", "kept")
    with open_run(storage.root, **RUN):
        for n in range(3):
            storage.write_text(f"rows/chunk-{n:06d}.parquet", "old")
            storage.write_text(f"attempts/chunk-{n:06d}/s.first", "")
            storage.remove(f"attempts/chunk-{n:06d}/s.first")
        storage.remove("never/there")
        assert storage.names("rows") == [f"chunk-{n:06d}.parquet" for n in range(3)]
        assert storage.names("attempts/chunk-000000") == storage.names("nowhere") == []
    storage.write_text("notes.txt", "a person's")
    with open_run(storage.root, **(RUN | {"config_hash": "bbbb"}), overwrite=True) as run:
        assert not run.resumed
        assert storage.names("rows") == []
        assert storage.names("") == ["config.yaml", "lock.json", "manifest.json", "notes.txt"]
    with pytest.raises(UserError, match="holds what is not limrank's"), open_run(beside.root, **RUN, overwrite=True):
        pass
    assert beside.read_text("run.trec") == "kept"


def test_a_store_can_be_named_in_the_path(bucket, store, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    settings = f"?endpoint_override={store}&scheme=http"
    write_pairs(f"{bucket}/pairs/a.parquet{settings}")
    run_dir = f"{bucket}/run{settings}"
    done = limrank(command(tmp_path, run_dir, f"{bucket}/pairs{settings}", scoring={"mode": "none"}))
    assert done.returncode == 0, done.stderr
    assert f"run: {bucket}/run/run.trec" in done.stdout
    assert len(rows(Storage(run_dir))) == QUERIES * DEPTH


def refused(arguments, **environment):
    """The one line on stderr of a command that ends at once."""
    began = time.monotonic()
    done = limrank(arguments, **environment)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert time.monotonic() - began < 30
    return done.stderr


def test_a_bucket_or_an_object_that_is_not_there(bucket, tmp_path):
    data = write_pairs(f"{bucket}/pairs.parquet")
    message = refused(command(tmp_path, "s3://no-such-bucket/run", data))
    assert "run_dir s3://no-such-bucket/run: cannot be written: " in message and "bucket does not exist" in message
    message = refused(command(tmp_path, f"{bucket}/run", f"{bucket}/other.parquet"))
    assert f"{bucket}/other.parquet: no such file or folder" in message
    assert Storage(bucket).names("run") == []


def test_credentials_that_the_store_does_not_know(bucket, store, tmp_path):
    local = tmp_path / "pairs.parquet"
    pq.write_table(pairs(), local)
    httpx.post(f"http://{store}/moto-api/reset-auth", content="0", trust_env=False)
    try:
        message = refused(command(tmp_path, f"{bucket}/run", str(local)))
        assert f"run_dir {bucket}/run: cannot be written: " in message
        assert "does not exist in our records" in message or "ACCESS_DENIED" in message
        message = refused(command(tmp_path, f"{bucket}/run", f"{bucket}/pairs.parquet"))
        assert message.startswith(f"limrank: {bucket}/pairs.parquet: cannot be read")
    finally:
        httpx.post(f"http://{store}/moto-api/reset-auth", content="inf", trust_env=False)


def test_a_store_that_does_not_answer(bucket, tmp_path):
    local = tmp_path / "pairs.parquet"
    pq.write_table(pairs(), local)
    message = refused(command(tmp_path, f"{bucket}/run", str(local)), AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert f"run_dir {bucket}/run: cannot be written: " in message and "does not answer" in message


def test_training_resumes_in_a_store_and_leaves_a_model_there(bucket, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    model = make_tiny(tmp_path / "tiny", tied=True)
    examples = tmp_path / "pairs.jsonl"
    examples.write_text(
        "".join(
            json.dumps({"query": f"q {n}", "passage": "word " * n, "label": n % 2 == 1}) + "\n" for n in range(1, 17)
        )
    )
    storage = Storage(f"{bucket}/runs/train")
    training = {"train_file": str(examples), "target": "direct", "epochs": 30, "batch_size": 1}
    training |= {"gradient_accumulation": 1, "validation_share": 0, "save_steps": 20}
    recipe = tmp_path / "train.yaml"
    recipe.write_text(
        json.dumps(
            {
                "job": "train",
                "run_dir": storage.root,
                "model": {"id": str(model), "dtype": "float32"},
                "training": training,
            }
        )
    )
    arguments = [sys.executable, "-m", "limrank", "train", str(recipe), "--address", "local"]
    driver = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while not storage.exists("checkpoints/checkpoint_manager_snapshot.json"):
        assert driver.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    time.sleep(3)  # its workers, gone with it
    before = read_metrics(storage)[:20]
    # As if it had been killed in the middle of writing the list of its checkpoints.
    storage.write_text("checkpoints/checkpoint_manager_snapshot.json", '{"checkpoint_results": [{"check')

    resumed = limrank(arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert f"model: {bucket}/runs/train/model" in resumed.stdout
    assert "is incomplete because its driver crashed" in resumed.stderr
    metrics = read_metrics(storage)
    assert [line["step"] for line in metrics] == list(range(1, 481))
    # Their times too are as they were: those of the steps that were not made again.
    assert len(before) == 20 and metrics[:20] == before
    assert storage.read_bytes("curves.png").startswith(b"\x89PNG")
    manifest = json.loads(storage.read_text("manifest.json"))
    assert manifest["status"] == "done" and manifest["resumed"]
    assert {"config.json", "model.safetensors", "README.md"} <= set(storage.names("model"))
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(storage.names("adapter"))

    # The model is loaded from there, fetched once.
    monkeypatch.setenv("LIMRANK_CACHE", str(tmp_path / "cache"))
    uri = f"{storage.root}/model"
    fetched = models.resolve(uri)
    AutoModelForCausalLM.from_pretrained(fetched)
    assert models.resolve(uri) == fetched
    assert {path.name for path in fetched.iterdir()} == set(storage.names("model"))
    small = models.resolve(uri, weights=False)
    assert {path.name for path in small.iterdir()} == set(storage.names("model")) - {"model.safetensors"}
    assert models.served_name(f"{uri}?scheme=http") == "model"
    storage.write_text("model/config.json", storage.read_text("model/config.json") + " ")
    assert models.resolve(uri) != fetched
    storage.remove("model/config.json")
    with pytest.raises(UserError, match="holds no config.json, so it is not a model, or not yet complete"):
        models.resolve(uri)


def test_a_pipeline_leaves_everything_in_a_store(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LIMRANK_CACHE", str(tmp_path / "cache"))
    root = f"{bucket}/runs/all"
    recipe = {
        "job": "pipeline",
        "run_dir": root,
        "model": {"id": str(make_tiny(tmp_path / "tiny", tied=True)), "dtype": "float32"},
        "data": {"format": "pydocs", "split": "dev", "max_queries": 3},
        "first_stage": {"depth": 3},
        "engine": {"kind": "fake"},
        "synthesis": {"max_seeds": 3, "mined_negatives": 1},
        "training": {"target": "direct", "max_examples": 4, "epochs": 1, "cutoff_tokens": 128, "lora_rank": 4},
        "serving": {"port": 0},
    }
    (tmp_path / "pipeline.yaml").write_text(json.dumps(recipe))
    done = limrank([sys.executable, "-m", "limrank", "pipeline", str(tmp_path / "pipeline.yaml"), "--address", "local"])
    assert done.returncode == 0, done.stderr
    assert f"report: {root}/report.html" in done.stdout
    storage = Storage(root)
    assert json.loads(storage.read_text("manifest.json"))["status"] == "done"
    assert "tuned model" in storage.read_text("report.html")
    assert json.loads(storage.read_text("serve/answer.json"))["results"]
    assert {"model.safetensors", "config.json"} <= set(Storage(f"{root}/train").names("model"))

    assert main(["failures", root]) == 0
    assert capsys.readouterr().out.count("nothing failed") == 5
    compared = f"run_dir={bucket}/compared"
    assert main(["evaluate", "--compare", f"{root}/rerank-base", f"{root}/rerank-tuned", "-s", compared]) == 0
    assert {"compare.png", "metrics.json", "report.html"} <= set(Storage(f"{bucket}/compared").names(""))


def test_a_run_is_evaluated_where_it_lies(bucket, tmp_path, capsys):
    data = {"format": "pydocs", "split": "dev", "max_queries": 4}
    storage = Storage(f"{bucket}/runs/bm25")
    recipe = {"job": "rerank", "run_dir": storage.root, "data": data, "scoring": {"mode": "none"}}
    # A recipe may lie there too.
    Storage(bucket).write_text("rerank.yaml", json.dumps(recipe | {"first_stage": {"depth": 5}}))
    assert main(["rerank", f"{bucket}/rerank.yaml", "--address", "local"]) == 0
    Storage(bucket).write_text("evaluate.yaml", json.dumps({"job": "evaluate", "run_dir": storage.root}))
    assert main(["evaluate", f"{bucket}/evaluate.yaml", "--dry-run"]) == 0
    assert not storage.exists("metrics.json")
    assert main(["evaluate", f"{bucket}/evaluate.yaml"]) == 0
    assert f"report: {storage.root}/report.html" in capsys.readouterr().out
    metrics = json.loads(storage.read_text("metrics.json"))
    assert metrics["queries"] == 4 and storage.read_table("per_query.parquet").num_rows == 4
    assert "nDCG@10" in storage.read_text("report.html")
    # The run's file, as any other: the same numbers, into a directory of its own.
    values = {"job": "evaluate", "run_dir": f"{bucket}/given", "data": data}
    values["evaluation"] = {"run": f"{storage.root}/run.trec"}
    (tmp_path / "given.yaml").write_text(json.dumps(values))
    assert main(["evaluate", str(tmp_path / "given.yaml")]) == 0
    given = json.loads(Storage(f"{bucket}/given").read_text("metrics.json"))
    assert given["nDCG@10"] == metrics["nDCG@10"]
    # Another run over the same queries: a folder of a benchmark's files, first stage and judgements in the store.
    benchmark = Storage(f"{bucket}/benchmark")
    benchmark.write_text(
        "corpus.jsonl", "".join(json.dumps({"_id": f"d{n}", "text": f"word{n} all"}) + "\n" for n in range(4))
    )
    benchmark.write_text("queries.jsonl", json.dumps({"_id": "q", "text": "word2"}) + "\n")
    benchmark.write_text("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq\td2\t1\n")
    ranked = Storage(f"{bucket}/runs/beir")
    values = {"job": "rerank", "run_dir": ranked.root, "data": {"format": "beir", "path": benchmark.root}}
    (tmp_path / "beir.yaml").write_text(json.dumps(values | {"scoring": {"mode": "none"}}))
    assert main(["rerank", str(tmp_path / "beir.yaml"), "--address", "local"]) == 0
    assert next(iter(json.loads(ranked.read_text("run.json"))["q"])) == "d2"
    assert main(["failures", ranked.root]) == 0
    assert f"{ranked.root} (rerank, done): nothing failed" in capsys.readouterr().out


def test_training_files_and_seeds_are_read_from_a_store(bucket):
    storage = Storage(f"{bucket}/data")
    pair = {"query": "q", "passage": "p", "label": True}
    storage.write_bytes("train.jsonl.gz", gzip.compress((json.dumps(pair) + "\n").encode() * 3))
    assert [each.line for each in read_examples(f"{storage.root}/train.jsonl.gz")] == [1, 2, 3]
    with pytest.raises(UserError, match=r"data/none.jsonl: no such file or folder"):
        read_examples(f"{storage.root}/none.jsonl")
    storage.write_text("seeds.jsonl", json.dumps({"id": "s", "query": "q", "passage": "p"}) + "\n")
    storage.write_table("seeds.parquet", pa.table({"id": ["s"], "query": ["q"], "passage": ["p"]}))
    assert load_seeds(f"{storage.root}/seeds.jsonl") == load_seeds(f"{storage.root}/seeds.parquet")
