"""A job over several hosts, some of which leave, join, are cut off or die: its rows are those of an undisturbed run.

Real Ray nodes in network namespaces (see ``helpers/namespaces.py``) and the fake engine. As root: `make cluster-test`.
"""

import math
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from helpers import namespaces
from helpers.beir import write_common
from helpers.rundirs import rows_of
from helpers.runs import ACTOR, Work, chunk_units, committed, named, repeated, scores, wait_until

HOSTS = 3
PATIENCE_S = 400
LATENCY_MS = 240
"""Of a request of the fake engine: a run of three engines takes about a minute."""


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    beir = write_common(tmp_path_factory.mktemp("data") / "beir", queries=1024, documents=4)
    return Work(beir, queries=1024, depth=4, engine={"kind": "fake", "latency_ms": LATENCY_MS, "max_in_flight": 8})


@pytest.fixture(scope="session")
def undisturbed(work, tmp_path_factory):
    """The scores of a run on this machine to which nothing happened."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    done = subprocess.run(work.command(run_dir, latency_ms=0), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return scores(work, run_dir)


@pytest.fixture
def cluster():
    with namespaces.cluster(HOSTS) as running:
        yield running


class Started:
    """A rerank job on a cluster: an engine on each host."""

    def __init__(self, cluster, work, run_dir):
        self.run_dir = run_dir
        self.log = run_dir.with_suffix(".log")
        self.command = work.command(run_dir, address="auto", workers={"replicas": HOSTS, "cpus": 2})
        with self.log.open("a") as stream:
            self.process = cluster.popen(self.command, stdout=stream, stderr=subprocess.STDOUT)

    def wait_for_chunks(self, count):
        wait_until(lambda: len(committed(self.run_dir)) >= count or self.ended(), f"{count} chunks", patience_s=120)
        assert not self.ended(), self.log.read_text()

    def ended(self):
        return self.process.poll() is not None

    def finish(self):
        wait_until(self.ended, "the job to end", every_s=0.5, patience_s=PATIENCE_S)
        assert self.process.returncode == 0, self.log.read_text()[-3000:]


def has_engine(host):
    pids = namespaces.ip("netns", "pids", host.name).split()
    return any(named(psutil.Process(int(pid)), ACTOR) for pid in pids if psutil.pid_exists(int(pid)))


def assert_same(work, job, expected):
    found = scores(work, job.run_dir)
    assert found.keys() == expected.keys()
    assert all(math.isclose(found[pair], expected[pair], rel_tol=0, abs_tol=0) for pair in expected)
    chunks, units = repeated(job.run_dir)
    print(f"{chunks} chunks with {units} of {work.queries} queries were begun again")


def test_the_pipeline_runs_over_several_hosts(cluster, tmp_path):
    recipe = {
        "job": "pipeline",
        "data": {"format": "pydocs", "split": "dev", "max_queries": 12},
        "first_stage": {"depth": 4},
        "engine": {"kind": "fake"},
        "workers": {"replicas": HOSTS, "cpus": 2},
        "synthesis": {"max_seeds": 6, "mined_negatives": 1},
        "training": {"target": "direct", "max_examples": 4, "epochs": 1, "cutoff_tokens": 128, "lora_rank": 4},
    }

    def run(name, **values):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe | {"run_dir": str(tmp_path / name)} | values))
        return [sys.executable, "-m", "limrank", "pipeline", str(path), "--address"]

    log = tmp_path / "there.log"
    with log.open("w") as stream:
        there = cluster.popen([*run("there"), "auto"], stdout=stream, stderr=subprocess.STDOUT)
    wait_until(lambda: there.poll() is not None, f"the pipeline of {log}", every_s=0.5, patience_s=PATIENCE_S)
    assert there.returncode == 0, log.read_text()[-3000:]
    here = subprocess.run([*run("here", workers={}), "local"], capture_output=True, text=True, check=False)
    assert here.returncode == 0, here.stderr[-3000:]
    for stage in ("rerank-base", "rerank-tuned"):
        rows = [
            {(row["query_id"], row["doc_id"]): row["score"] for row in rows_of(tmp_path / name / stage)}
            for name in ("there", "here")
        ]
        assert rows[0] == rows[1] and len(rows[0]) == 48


def test_a_host_leaves_and_another_joins(cluster, work, undisturbed, tmp_path):
    job = Started(cluster, work, tmp_path / "run")
    job.wait_for_chunks(2)
    wait_until(lambda: has_engine(cluster.hosts[2]), "an engine on the third host")
    cluster.hosts[2].kill()
    new = cluster.add_host()
    cluster.start(new)
    wait_until(lambda: has_engine(new) or job.ended(), "an engine on the new host", patience_s=90)
    assert not job.ended(), "the run ended before the new host had an engine"
    job.finish()
    assert_same(work, job, undisturbed)


@pytest.mark.parametrize(("cut_s", "survives"), [(30, None), (100, False)])
def test_a_host_is_cut_off(cluster, work, undisturbed, tmp_path, cut_s, survives):
    """For half a minute, in which Ray may or may not give it up, and for longer than Ray waits for a node."""
    job = Started(cluster, work, tmp_path / "run")
    job.wait_for_chunks(2)
    host = cluster.hosts[1]
    host.cut()
    time.sleep(cut_s)
    host.mend()
    if survives is not None:
        assert (host.address in cluster.alive()) is survives
    job.finish()
    assert_same(work, job, undisturbed)


def test_the_head_dies_and_the_command_is_given_again(cluster, work, undisturbed, tmp_path):
    job = Started(cluster, work, tmp_path / "run")
    job.wait_for_chunks(4)
    cluster.head.kill()
    before = committed(job.run_dir)
    assert 4 <= len(before) < len(chunk_units(job.run_dir))
    # The other machines are let go with it, as a launcher does; their disks are not the run's.
    for host in cluster.hosts[1:]:
        host.kill()
    for host in cluster.hosts:
        cluster.start(host)
    again = Started(cluster, work, job.run_dir)
    again.finish()
    after = committed(job.run_dir)
    assert {name: after[name] for name in before} == before, "a committed chunk was scored again"
    assert_same(work, again, undisturbed)
