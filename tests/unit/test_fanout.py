import threading
import time
from dataclasses import replace

import pytest
from helpers import Recorder, planned

from limrank.chunks import Receipt
from limrank.config import EngineConfig, ModelConfig, WorkersConfig
from limrank.engines import EngineSpec
from limrank.errors import EngineError, UserError
from limrank.fanout import Summary, _covered, _Session, check_resources, finish, resources, summarize
from limrank.plan import Chunk, Plan
from limrank.progress import Progress
from limrank.rundir import open_run
from limrank.worker import _fatal_row, _Turns

RECEIPT = Receipt(
    chunk=0,
    units=2,
    rows=20,
    failed=1,
    requests=20,
    prompt_tokens=100,
    cached_prompt_tokens=40,
    generated_tokens=10,
    began=100.0,
    ended=104.0,
    startup_seconds=3.0,
)
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
        "workers: 2 replicas of 2 CPUs each, and 1 CPU beside them, do not fit into the cluster's nodes "
        "(4 CPUs 0 GPUs): lower workers.replicas, workers.cpus or workers.gpus"
    )


def test_too_few_gpus():
    with pytest.raises(UserError, match="2 replicas of 1 CPUs and 1 GPUs each"):
        check_resources({"num_cpus": 1, "num_gpus": 1}, 2, [{"CPU": 64, "GPU": 1}])


def test_a_replica_is_not_spread_over_nodes():
    with pytest.raises(UserError, match="1 replicas of 1 CPUs and 8 GPUs each"):
        check_resources({"num_cpus": 1, "num_gpus": 8}, 1, [{"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 4}])


def test_what_a_replica_takes():
    vllm = [EngineSpec(ModelConfig(), EngineConfig(kind="vllm"))]
    fake = [EngineSpec(ModelConfig(), EngineConfig(kind="fake"))]
    four = WorkersConfig(tensor_parallel=4, cpus=2)
    assert resources(vllm, four, cluster_gpus=8) == {"num_cpus": 2, "num_gpus": 4}
    assert resources(vllm, four, cluster_gpus=0) == {"num_cpus": 2, "num_gpus": 0}
    assert resources(vllm, WorkersConfig(gpus=0.5), cluster_gpus=8) == {"num_cpus": 1, "num_gpus": 0.5}
    assert resources(fake, four, cluster_gpus=8) == {"num_cpus": 0.1, "num_gpus": 0}


@pytest.mark.parametrize(
    ("spans", "covered"),
    [
        ([], 0),
        ([(1, 3)], 2),
        ([(1, 3), (2, 5)], 4),
        ([(1, 9), (2, 3), (4, 5)], 8),
        ([(6, 7), (1, 2)], 2),
        ([(1, 2), (2, 3)], 2),
        ([(1, 2), (1, 2)], 1),
    ],
)
def test_time_that_spans_share_counts_once(spans, covered):
    assert _covered(spans) == covered


def test_a_summary_of_two_chunks_that_overlap():
    # 100 … 104 and 102 … 108: eight seconds of work for 40 pairs.
    other = replace(RECEIPT, chunk=1, began=102.0, ended=108.0, startup_seconds=5.0, failed=0)
    summary = summarize([RECEIPT, other], PLAN)
    assert summary == Summary(
        units=4,
        rows=40,
        failed=1,
        prompt_tokens=200,
        cached_prompt_tokens=80,
        generated_tokens=20,
        seconds=8.0,
        startup_seconds=5.0,
        rate=5.0,
    )
    assert summary.tokens == 220


def test_a_pause_between_two_sessions_is_no_work():
    tomorrow = replace(RECEIPT, chunk=1, began=90_000.0, ended=90_004.0)
    assert summarize([RECEIPT, tomorrow], PLAN).seconds == 8.0


def test_nothing_done_has_no_rate():
    assert summarize([], Plan([])).rate is None


def test_a_chunk_that_is_not_committed_is_told(tmp_path):
    _, plan = planned(tmp_path, ["a"])
    told = pytest.raises(EngineError, match="1 chunks were handed out and never committed; run it again")
    with open_run(str(tmp_path), job="rerank", config_yaml="", config_hash="a") as run, told:
        finish(run, plan, "pairs")


# ---- turns ---------------------------------------------------------------------------


def watch(turns, orders):
    """Runs ``shared`` and ``alone`` blocks in threads; the sets that ran at the same time."""
    inside, together = set(), []
    lock = threading.Lock()

    def work(number, kind):
        with turns.alone() if kind == "alone" else turns.shared():
            with lock:
                inside.add((number, kind))
                together.append(frozenset(inside))
            time.sleep(0.002)
            with lock:
                inside.discard((number, kind))

    threads = [threading.Thread(target=work, args=order) for order in enumerate(orders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    return together


def test_alone_is_alone_and_everyone_gets_a_turn():
    orders = ["shared", "shared", "alone", "shared", "alone", "alone", "shared", "shared"] * 3
    together = watch(_Turns(), orders)
    assert len(together) == len(orders)
    for group in together:
        if any(kind == "alone" for _, kind in group):
            assert len(group) == 1


def test_shared_ones_run_side_by_side():
    turns, met = _Turns(), threading.Barrier(3, timeout=5)

    def work():
        with turns.shared():
            met.wait()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert not met.broken


def test_one_that_waits_to_be_alone_goes_before_later_shared_ones():
    turns, order = _Turns(), []
    with turns.shared():
        alone = threading.Thread(target=lambda: enter(turns.alone(), order, "alone"))
        alone.start()
        while not turns._waiting_alone:
            time.sleep(0.001)
        later = threading.Thread(target=lambda: enter(turns.shared(), order, "shared"))
        later.start()
        time.sleep(0.02)
        assert order == []
    alone.join(5)
    later.join(5)
    assert order == ["alone", "shared"]


def enter(turn, order, name):
    with turn:
        order.append(name)


def test_a_turn_ends_with_an_error():
    turns = _Turns()
    for turn in (turns.shared, turns.alone, turns.shared):
        with pytest.raises(RuntimeError), turn():
            raise RuntimeError


# ---- what the driver sees ------------------------------------------------------------


def arrived(chunk, began, ended, **other):
    return {
        "chunk": chunk,
        "began": began,
        "ended": ended,
        "prompt_tokens": 30,
        "generated_tokens": 10,
        "failed": 0,
        "error": None,
        "error_type": None,
    } | other


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


@pytest.mark.parametrize("error", [UserError("mend it"), EngineError("dead"), PermissionError("no space")])
def test_an_error_of_a_worker_comes_out_as_what_it_was(error):
    session = _Session(PLAN, PLAN.chunks, Progress(Recorder()), "rerank", "pairs")
    expected = OSError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected, match=str(error)):
        session.take(_fatal_row(error))
