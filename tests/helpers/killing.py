"""Which part of a run is killed, at which moment, and what has to come of it."""

import contextlib
import math
import os
import random
import time
from dataclasses import dataclass

from helpers.processes import below
from helpers.runs import ACTOR, ENGINE, Run, committed, named, repeated, scores, wait_until

SEED = os.environ.get("LIMRANK_FAULT_SEED") or str(random.randrange(10**6))
"""Of the random moments; a failed test prints it."""

TRIES = 4

# ---- what is killed -------------------------------------------------------------------


def driver(run, cluster):
    return run.process.pid


def engine(run, cluster):
    """The engine's own process, as an accelerator's fault would end it."""
    return _any([each.pid for each in run.look() if named(each, ENGINE)])


def actor(run, cluster):
    """The engine actor, as an out-of-memory kill would end it."""
    return _any([each.pid for each in run.look() if named(each, ACTOR)])


def raylet(run, cluster):
    """The raylet of a node, not the head, that has an engine actor."""
    run.look()
    with_actor = []
    for node in cluster.nodes[1:]:
        if node.process.poll() is None and any(named(each, ACTOR) for each in below(node.process.pid)):
            with_actor.append(node.raylet)
    return _any(with_actor)


VICTIMS = {"engine": engine, "actor": actor, "raylet": raylet, "driver": driver}


def _any(pids):
    return random.choice(pids) if pids else None


# ---- when -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """So long after so many chunks are committed and the victim is there."""

    chunks: int
    delay_s: float


def moments(victim, count, chunks):
    """Random ones, the k-th in the k-th part of the run: from its start-up to its tail."""
    rng = random.Random(f"{SEED} {victim}")
    found = []
    for part in range(count):
        after = int((part + rng.random()) / count * chunks)
        # A driver is there long before its engine; the tail leaves no time.
        start_up = 8.0 if victim == "driver" else 2.0
        longest = start_up if after == 0 else 0.3 * (after < chunks - 1)
        found.append(Moment(after, rng.uniform(0, longest)))
    return found


def kill_at(moment, victim, run, run_dir, cluster=None):
    """Whether it was killed; False where the run ended before."""
    find = VICTIMS[victim]
    wait_until(
        lambda: run.ended() or (len(committed(run_dir)) >= moment.chunks and find(run, cluster)),
        f"{moment.chunks} chunks and the {victim}",
    )
    time.sleep(moment.delay_s)
    pid = None if run.ended() else find(run, cluster)
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)
        return True
    return False


# ---- what has to come of it -------------------------------------------------------------


def survive(work, victim, moment, folder, expected, note, *, cluster=None, replicas=2, tolerance=0.0):
    """Run, kill, and check what comes of it; a run that ended before it could be killed
    is tried again with an earlier moment."""
    for number in range(TRIES):
        run_dir = folder / f"run-{number}"
        print(f"LIMRANK_FAULT_SEED={SEED}: {victim} at {moment} of {run_dir}")
        command, environment = _command(work, run_dir, cluster, replicas)
        with Run(command, log=folder / f"run-{number}.log", environment=environment, cluster=cluster) as run:
            if not kill_at(moment, victim, run, run_dir, cluster):
                moment = Moment(max(0, moment.chunks - 2), 0.0)
                continue
            code = run.wait()
            assert run.engines_left() == []
            if victim == "driver":
                run.leave()
                _resume(work, run_dir, folder, command, environment, cluster)
            else:
                assert code == 0, run.log.read_text()[-3000:]
                assert run.left() == []
        found = scores(work, run_dir)
        assert found.keys() == expected.keys()
        assert all(math.isclose(found[pair], expected[pair], rel_tol=0, abs_tol=tolerance) for pair in expected)
        chunks, units = repeated(run_dir)
        note(
            {
                "killed": victim if not tolerance else f"{victim} (vLLM)",
                "at_chunk": moment.chunks,
                "delay_s": moment.delay_s,
                "chunks": chunks,
                "units": units,
                "of": work.queries,
            }
        )
        return
    raise AssertionError(f"{TRIES} runs ended before the {victim} could be killed")


def _command(work, run_dir, cluster, replicas):
    if cluster is None:
        return work.command(run_dir), None
    # A node holds one. Each has the requests' time so many times over, so that the run is
    # as long as on one.
    workers = {"replicas": replicas, "cpus": 2}
    settings = {"latency_ms": 30 * replicas} if work.engine["kind"] == "fake" else {}
    command = work.command(run_dir, address="auto", workers=workers, **settings)
    return command, cluster.environment | {"RAY_ADDRESS": cluster.gcs}


def _resume(work, run_dir, folder, command, environment, cluster):
    before = committed(run_dir)
    with Run(command, log=folder / "again.log", environment=environment, cluster=cluster) as again:
        assert again.wait() == 0, again.log.read_text()[-3000:]
        assert again.left() == []
    after = committed(run_dir)
    assert {name: after[name] for name in before} == before, "a committed chunk was scored again"
