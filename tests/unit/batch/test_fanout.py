import pytest

from helpers.units import EchoTask, Recorder, planned, runner
from limrank.batch.fanout import _chunks_in_flight, _Session, finish, run_without_engines, unfinished
from limrank.batch.plan import Chunk, Plan
from limrank.batch.receipts import Receipt, Work
from limrank.batch.rundir import open_run
from limrank.batch.worker import _fatal
from limrank.cluster.resources import check_memory, check_resources, fitting, remaining, resources
from limrank.config import EngineConfig, ModelConfig, WorkersConfig
from limrank.engines import EngineSpec
from limrank.errors import EndpointError, EngineError, LimrankError, StorageError, UserError
from limrank.progress import Progress

PLAN = Plan([Chunk(0, 2, 50, 20), Chunk(1, 2, 50, 20)])


@pytest.mark.parametrize(
    ("cpus", "gpus", "replicas", "nodes"),
    [
        (1, 0, 3, [{"CPU": 4}]),
        (1, 1, 2, [{"CPU": 3, "GPU": 2}]),
        (0.5, 0, 2, [{"CPU": 2}]),
        (2, 4, 2, [{"CPU": 4, "GPU": 4}, {"CPU": 4, "GPU": 4}]),
    ],
)
def test_what_fits(cpus, gpus, replicas, nodes):
    check_resources({"num_cpus": cpus, "num_gpus": gpus}, replicas, nodes)


def test_the_last_cpu_stays_free():
    with pytest.raises(UserError) as caught:
        check_resources({"num_cpus": 2, "num_gpus": 0}, 2, [{"CPU": 4}])
    assert str(caught.value) == (
        "workers: 2 replicas of 2 CPUs each, and 1 CPU in addition, do not fit into the cluster's nodes "
        "(not yet taken by this job: 4 CPUs 0 GPUs): lower workers.replicas, workers.cpus or workers.gpus"
    )


def test_too_few_gpus():
    with pytest.raises(UserError, match="2 replicas of 1 CPUs and 1 GPUs each"):
        check_resources({"num_cpus": 1, "num_gpus": 1}, 2, [{"CPU": 64, "GPU": 1}])


def test_a_replica_is_not_spread_over_nodes():
    with pytest.raises(UserError, match="1 replicas of 1 CPUs and 8 GPUs each"):
        check_resources({"num_cpus": 1, "num_gpus": 8}, 1, [{"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 4}])


def test_what_a_replica_takes():
    vllm = [EngineSpec(ModelConfig(), EngineConfig(kind="vllm"))]
    endpoint = [EngineSpec(ModelConfig(), EngineConfig(kind="openai", base_url="http://127.0.0.1:1/v1"))]
    four = WorkersConfig(tensor_parallel=4, cpus=2)
    assert resources(vllm, four, cluster_gpus=8) == {"num_cpus": 2, "num_gpus": 4}
    assert resources(vllm, four, cluster_gpus=0) == {"num_cpus": 2, "num_gpus": 0}
    assert resources(vllm, WorkersConfig(gpus=0.5), cluster_gpus=8) == {"num_cpus": 1, "num_gpus": 0.5}
    assert resources(endpoint, four, cluster_gpus=8) == {"num_cpus": 0.1, "num_gpus": 0}


def test_how_many_replicas_the_nodes_hold():
    one_each = [{"CPU": 3}] * 3
    assert fitting({"num_cpus": 2, "num_gpus": 0}, one_each) == 3
    assert fitting({"num_cpus": 2, "num_gpus": 0}, one_each[:2]) == 2
    assert fitting({"num_cpus": 3, "num_gpus": 0}, one_each) == 2  # a CPU is left free
    assert fitting({"num_cpus": 1, "num_gpus": 0}, []) == 0
    assert fitting({"num_cpus": 0.1, "num_gpus": 0.2}, [{"CPU": 8, "GPU": 1}]) == 5  # 1 // 0.2 is 4
    mixed = [{"CPU": 8, "GPU": 4, "accelerator_type:L4": 1}, {"CPU": 8, "GPU": 4}]
    assert fitting({"num_cpus": 1, "num_gpus": 2, "accelerator_type": "L4"}, mixed) == 2


def test_a_model_that_no_node_has_the_memory_for_is_refused():
    gib = 2**30
    check_memory(7 * gib, [{"CPU": 4, "memory": 4 * gib}, {"CPU": 4, "memory": 8 * gib}])
    with pytest.raises(UserError, match=r"take about 9.0 GiB, and no node of the cluster has more than 8.0 GiB"):
        check_memory(9 * gib, [{"CPU": 4, "memory": 4 * gib}, {"CPU": 4, "memory": 8 * gib}])


def test_a_chunk_that_is_not_committed_is_reported(tmp_path):
    _, plan = planned(tmp_path, ["a"])
    message = pytest.raises(
        EngineError, match="1 chunks were handed out and not committed; run the same command once more"
    )
    with open_run(str(tmp_path), job="rerank", config_yaml="", config_hash="a") as run, message:
        finish(run, plan, EchoTask(), "pairs")


# ---- without engines -----------------------------------------------------------------


def run_here(root, plan, task):
    with open_run(str(root), job="rerank", config_yaml="", config_hash="a") as run:
        return run_without_engines(run, plan, task, "pairs")


def test_work_without_engines_runs_here_and_is_done_once(tmp_path):
    names = ["a", "b", "c"]
    storage, plan = planned(tmp_path, names, cost=1000)
    assert len(plan.chunks) == 3
    task = EchoTask()
    summary = run_here(tmp_path, plan, task)
    assert (summary.units, summary.rows, summary.failed, summary.tokens) == (3, 3, 0, 0)
    assert run_here(tmp_path, plan, task).rows == 3
    storage.remove("rows/chunk-000001.parquet")
    assert run_here(tmp_path, plan, task).rows == 3
    assert sorted(task.calls) == ["a", "b", "b", "c"]


def test_a_unit_that_fails_without_engines_is_retried_by_the_next_call(tmp_path):
    _, plan = planned(tmp_path, ["a", "b"])
    assert run_here(tmp_path, plan, EchoTask(bug={"a"})).failed == 1
    task = EchoTask()
    assert run_here(tmp_path, plan, task).failed == 0
    assert task.calls == ["a"]


def test_nothing_to_do_without_engines(tmp_path):
    _, plan = planned(tmp_path, [])
    assert run_here(tmp_path, plan, EchoTask()).units == 0


# ---- what the driver sees ------------------------------------------------------------


def arrived(chunk, began, ended, failed=0):
    work = Work("session", "worker", began, ended, 90.0, 3.0, 1, 1.0)
    receipt = Receipt(chunk, 2, 20, failed, 20, 30, 0, 10, (work,))
    return {"receipt": receipt.to_json(), "error": None, "error_type": None}


def test_progress_counts_what_was_done_before_and_rates_what_is_done_now():
    recorder = Recorder()
    session = _Session(PLAN, [PLAN.chunks[1]], Progress(recorder, every_s=0), "rerank", "pairs")
    session.take(arrived(1, 100.0, 104.0, failed=2))
    first, last = recorder.events
    assert (first.done, first.total, first.rate) == (20, 40, None)
    assert (last.done, last.failed, last.rate, last.tokens_per_second) == (40, 2, 5.0, 10.0)


def test_a_chunk_that_came_twice_counts_once():
    recorder = Recorder()
    session = _Session(PLAN, PLAN.chunks, Progress(recorder, every_s=0), "rerank", "pairs")
    for _ in range(2):
        session.take(arrived(0, 100.0, 104.0))
    assert recorder.events[-1].done == 20


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (UserError("mend it"), UserError),
        (EngineError("dead"), EngineError),
        (EndpointError("gone"), EndpointError),
        (StorageError("no space"), StorageError),
        (ZeroDivisionError("a bug"), RuntimeError),
    ],
)
def test_an_error_of_a_worker_comes_out_as_what_it_was(error, raised):
    session = _Session(PLAN, PLAN.chunks, Progress(Recorder()), "rerank", "pairs")
    with pytest.raises(LimrankError if raised is not RuntimeError else RuntimeError, match=str(error)) as caught:
        session.take(_fatal(error))
    assert type(caught.value) is raised


@pytest.mark.parametrize(
    ("chunks", "weight", "replicas", "at_once"),
    [
        (1000, 6400, 1, 2),  # one chunk fills any engine, and the next is there when it ends
        (1000, 64, 1, 33),
        (1000, 1, 1, 64),
        (16, 64, 4, 2),  # four chunks each: none may sit on more than a quarter of its share
        (200, 64, 4, 13),
    ],
)
def test_chunks_that_a_worker_is_handed_at_a_time(chunks, weight, replicas, at_once):
    assert _chunks_in_flight([Chunk(n, 64, 1, weight) for n in range(chunks)], replicas) == at_once


def test_an_accelerator_that_no_node_has_is_refused():
    nodes = [{"CPU": 8, "GPU": 8, "accelerator_type:A100": 1}, {"CPU": 8}]
    wanted = {"num_cpus": 1, "num_gpus": 1, "accelerator_type": "A100"}
    check_resources(wanted, 7, nodes)
    with pytest.raises(UserError, match="workers.accelerator H100: no node has one; the cluster's are \\['A100'\\]"):
        check_resources(wanted | {"accelerator_type": "H100"}, 1, nodes)


def test_only_unfinished_chunks_and_those_with_failures_are_left(tmp_path):
    names = [f"u{number:03d}" for number in range(130)]
    storage, plan = planned(tmp_path, names)
    runner(storage, EchoTask()).run(0, isolated=False)
    runner(storage, EchoTask(row_error={"u100"})).run(1, isolated=False)
    with open_run(str(tmp_path), job="rerank", config_yaml="", config_hash="a") as run:
        assert [chunk.number for chunk in unfinished(run, plan)] == [1, 2]


def test_what_two_pools_leave_each_other():
    one = {"num_cpus": 1, "num_gpus": 1}
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 2.0}]
    left = remaining(one, 2, nodes)
    assert sum(node["GPU"] for node in left) == 1 and sum(node["CPU"] for node in left) == 6
    check_resources(one, 1, left)
    with pytest.raises(UserError, match="2 replicas"):
        check_resources(one, 2, left)
    assert nodes[0]["GPU"] == 1.0
