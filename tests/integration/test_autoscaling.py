"""Jobs on a cluster that has no GPU node until a job asks for one: Ray's own autoscaler starts and ends its nodes.
The fake engine needs no GPU, only Ray's word for it."""

import subprocess

import pytest

from helpers.beir import write_common
from helpers.growing import growing_cluster
from helpers.processes import below
from helpers.runs import ACTOR, Run, Work, chunk_units, committed, complaint, named, repeated, scores, wait_until

MOST_NODES = 2


@pytest.fixture(scope="module")
def cluster():
    gpu = {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": MOST_NODES}
    with growing_cluster({"gpu": gpu}, max_workers=MOST_NODES) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    beir = write_common(tmp_path_factory.mktemp("data") / "beir", queries=1024, documents=4)
    return Work(beir, queries=1024, depth=2, engine={"kind": "fake", "own_process": True, "max_in_flight": 8})


@pytest.fixture(scope="module")
def undisturbed(cluster, work, tmp_path_factory):
    """A run that finds no GPU node, with what it printed."""
    assert cluster.raylets() == []
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    command = work.command(run_dir, address="auto", workers={"replicas": 2})
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return run_dir, done


def test_a_job_brings_the_gpu_nodes_that_it_asks_for(undisturbed, work):
    run_dir, done = undisturbed
    # Nothing says that a replica takes a GPU, besides the cluster that can have some.
    assert "waiting for 2 × {CPU: 1, GPU: 1}: the autoscaler is starting nodes" in done.stderr
    assert len(committed(run_dir)) == len(chunk_units(run_dir)) and len(scores(work, run_dir)) == work.pairs


def test_a_node_that_dies_takes_no_row_along(cluster, undisturbed, work, tmp_path):
    run_dir = tmp_path / "run"
    command = work.command(run_dir, address="auto", workers={"replicas": 2, "gpus": 1}, latency_ms=60)

    def with_actor():
        return [each for each in cluster.raylets() if any(named(below_it, ACTOR) for below_it in below(each.pid))]

    with Run(command, log=tmp_path / "log", environment=cluster.environment) as run:
        wait_until(
            lambda: run.ended() or (len(committed(run_dir)) >= 2 and with_actor()), "a node at work", patience_s=120
        )
        assert len(committed(run_dir)) < len(chunk_units(run_dir)), run.log.read_text()[-3000:]
        with_actor()[0].kill()
        assert run.wait(120) == 0, run.log.read_text()[-3000:]
    chunks_again, _ = repeated(run_dir)
    assert chunks_again > 0
    assert scores(work, run_dir) == scores(work, undisturbed[0])


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ({"replicas": 3, "gpus": 1}, "3 replicas of 1 CPUs and 1 GPUs each"),
        ({"accelerator": "H100"}, "workers.accelerator H100: no node has one"),
    ],
)
def test_what_the_cluster_can_never_become_is_refused(cluster, work, tmp_path, workers, said):
    command = work.command(tmp_path / "run", address="auto", workers=workers)
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert said in complaint(done.stderr) and "0 to 2 × gpu 2 CPUs 1 GPUs, at most 2 workers" in done.stderr


def test_the_nodes_leave_when_no_job_needs_them(cluster, undisturbed):
    cluster.wait_for(raylets=0, patience_s=60)


def test_nodes_that_do_not_come_in_time_are_named(cluster, work, tmp_path):
    command = work.command(tmp_path / "run", address="auto", workers={"replicas": 2}, startup_timeout_s=0.1)
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    said = complaint(done.stderr)
    assert "waited 0.1 s (engine.startup_timeout_s) for 2 × {CPU: 1, GPU: 1}, and the cluster has room for 0" in said
