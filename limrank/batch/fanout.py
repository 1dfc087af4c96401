"""The only loop: it runs an async function of (unit, engines) over a Ray cluster.

Ray Data dispatches chunks to a pool of engine actors and carries receipts back. Each actor has an event loop in a
thread of its own, on which its engines live: a consumer that stalls Ray's own loop cannot starve them. Several chunks
overlap in an actor, so that there is no barrier between units, or between the steps of a unit. The actor commits
the rows (see ``chunks.py``). A resume compares a list of file names with the plan.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from limrank import errors, loops
from limrank.batch.budget import CHUNKS_PER_BUDGET, UNLIMITED, Budget, ChunkScheduler
from limrank.batch.chunks import ChunkRunner, Task, Worker
from limrank.batch.plan import Chunk, Plan
from limrank.batch.receipts import Receipt, read_receipts
from limrank.batch.rows import check_unique
from limrank.batch.rundir import RunDir
from limrank.batch.summary import Summary, manifest_sections, summarize
from limrank.batch.worker import ChunkWorker
from limrank.cluster.resources import can_have_gpus, reserve
from limrank.cluster.waiting import wait_for_resources
from limrank.config import WorkersConfig
from limrank.engines import EngineSource
from limrank.errors import EngineError, first_line
from limrank.progress import Event, Progress

_CPU_CHUNK_COST = 15_000
_CHUNK_COST = 600_000
_MANY_REQUESTS = 2048
"""More than any engine runs at a time."""

_MAX_CHUNKS_IN_FLIGHT = 64
_MAX_START_CRASHES = 3
"""Consecutive processes that may crash while their engine starts (a lost spot machine). One more is put down to
the engine itself (out of memory)."""


def fanout(
    run: RunDir,
    plan: Plan,
    task: Task,
    engines: Mapping[str, EngineSource],
    workers: WorkersConfig,
    *,
    progress: Progress,
    stage: str,
    progress_unit: str,
    budget: Budget = UNLIMITED,
) -> Summary:
    """Run every chunk of the plan that is not committed yet, and retry the failures of the committed chunks once.

    Ray must be initialised.

    Args:
        engines: role → engine, opened in every actor.
        stage: the name of this work in progress reports.
        progress_unit: what a chunk's size counts: ``pairs``, ``seeds``.
        budget: what ends the run before its plan does (see ``budget.py``). The summary is then of the chunks
            that were run.

    Raises:
        UserError: the cluster can never give what ``workers`` asks for, or an engine refuses its settings.
        EngineError: an engine did not come up, or the cluster had no resources for one in time.
        StorageError: the run directory cannot be written.
        LockLostError: another driver has taken it over.
    """
    pending, scheduler = _to_do(run, plan, budget)
    session = _Session(plan, pending, progress, stage, progress_unit)
    if pending and not (scheduler and scheduler.is_exhausted):
        _dispatch(run, pending, task, engines, workers, session, scheduler)
    summary = finish(run, plan, task, progress_unit, partial=scheduler is not None and scheduler.is_exhausted)
    session.report(finished=True)
    return summary


def run_without_engines(run: RunDir, plan: Plan, task: Task, progress_unit: str) -> Summary:
    """:func:`fanout` in this process, for work that asks no engine. Ray is not needed. It takes too little time for
    reports of its progress.

    Raises:
        StorageError: the run directory cannot be written.
    """
    runner = ChunkRunner(run.storage, task, {}, Worker(uuid.uuid4().hex))

    async def run_all() -> None:
        for chunk in unfinished(run, plan):
            await runner.run(await runner.open(chunk.number), isolated=False)

    loops.run(run_all())
    return finish(run, plan, task, progress_unit)


def chunk_cost(engine_kind: str, token_budget: int | None = None) -> int:
    """The most that a chunk costs: about 30 s of work, in estimated tokens. A small ``token_budget`` makes chunks smaller."""
    import ray

    on_cpu = not (ray.is_initialized() and can_have_gpus())
    return chunk_limit(engine_kind, on_cpu, token_budget)


def chunk_limit(engine_kind: str, on_cpu: bool, token_budget: int | None = None) -> int:
    """:func:`chunk_cost` where it is known whether engines run on CPUs."""
    cost = _CPU_CHUNK_COST if engine_kind == "vllm" and on_cpu else _CHUNK_COST
    return cost if token_budget is None else min(cost, max(1, token_budget // CHUNKS_PER_BUDGET))


def is_needed(run: RunDir, plan: Plan, budget: Budget) -> bool:
    """Whether :func:`fanout` would start any chunk."""
    pending, scheduler = _to_do(run, plan, budget)
    return bool(pending) and not (scheduler and scheduler.is_exhausted)


def _to_do(run: RunDir, plan: Plan, budget: Budget) -> tuple[list[Chunk], ChunkScheduler | None]:
    """The unfinished chunks in the order in which they are handed out, and the scheduler where a budget limits them."""
    committed = read_receipts(run.storage)
    pending = budget.order(_unfinished(plan, committed), plan, committed)
    return pending, budget.scheduler(run.storage, plan, pending, committed) if budget.is_limited else None


def unfinished(run: RunDir, plan: Plan) -> list[Chunk]:
    """The chunks that are not committed, or that were committed with failures."""
    return _unfinished(plan, read_receipts(run.storage))


def _unfinished(plan: Plan, committed: Sequence[Receipt]) -> list[Chunk]:
    done = {receipt.chunk for receipt in committed if not receipt.failed}
    return [chunk for chunk in plan.chunks if chunk.number not in done]


def _dispatch(
    run: RunDir,
    pending: list[Chunk],
    task: Task,
    engines: Mapping[str, EngineSource],
    workers: WorkersConfig,
    session: _Session,
    scheduler: ChunkScheduler | None,
) -> None:
    import pyarrow as pa
    import ray
    from ray.data import ActorPoolStrategy
    from ray.exceptions import RayActorError

    # One client is enough for remote engines. With several, a unit that crashes the engine
    # could do so while another client runs its suspects in isolation.
    clients = not any(source.holds_model for source in engines.values())
    fewest, most = (1, 1) if clients else (workers.min_replicas, workers.max_replicas)
    wanted = reserve(engines.values(), workers, fewest)
    timeout_s = max(source.startup_timeout_s for source in engines.values())
    # The pool begins with the first node, and its other engines join as their nodes come.
    wait_for_resources(wanted, timeout_s, fewest, progress=session.progress)
    prepare_ray_data()
    fewest, most = min(fewest, len(pending)), min(most, len(pending))
    in_flight = _chunks_in_flight(pending, most)
    receipts = (
        # One block a chunk, so that chunks are handed out one by one.
        ray.data.from_arrow(
            [pa.table({"chunk": [chunk.number], "position": [position]}) for position, chunk in enumerate(pending)]
        ).map_batches(
            ChunkWorker,
            fn_constructor_args=(run.storage, task, dict(engines), uuid.uuid4().hex, timeout_s, scheduler is not None),
            batch_format="pyarrow",
            batch_size=1,  # of a block's one row; Ray Data refuses None for workers with GPUs
            # A worker whose node is lost restarts where there are resources: on a node that joins,
            # or, once the last chunks are handed out, in place of an idle worker.
            compute=ActorPoolStrategy(
                min_size=fewest,
                max_size=most,
                # Ray Data enlarges a pool whose workers have almost twice what they can start.
                max_tasks_in_flight_per_actor=in_flight * (2 if fewest < most else 1),
                max_concurrent_calls_per_actor=in_flight,
                enable_true_multi_threading=True,
            ),
            **wanted,
        )
    )
    try:
        for batch in receipts.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0):
            run.lock.check()
            for row in batch.to_pylist():
                receipt = session.take(row)
                if scheduler and receipt:
                    scheduler.commit(receipt)
    except RayActorError as error:
        raise EngineError(
            f"{_MAX_START_CRASHES + 1} processes in a row crashed while their engine started: is there "
            f"memory for the model? Ray says: {first_line(error)}"
        ) from error


def _chunks_in_flight(pending: Sequence[Chunk], replicas: int) -> int:
    """How many chunks a worker is handed at a time. The worker decides how many of them run (``worker.Admission``).

    They are enough to fill any engine, and at the end of a run few enough that no worker holds chunks that an idle
    one could run.
    """
    size = sum(chunk.size for chunk in pending) / len(pending)
    share = math.ceil(len(pending) / (4 * replicas)) if replicas > 1 else _MAX_CHUNKS_IN_FLIGHT
    return max(2, min(_MAX_CHUNKS_IN_FLIGHT, share, math.ceil(_MANY_REQUESTS / max(size, 1)) + 1))


class _Session:
    """The work that this driver has seen, for progress and rates."""

    def __init__(self, plan: Plan, pending: list[Chunk], progress: Progress, stage: str, progress_unit: str) -> None:
        self._sizes = {chunk.number: chunk.size for chunk in pending}
        self._total = plan.size
        self._already = plan.size - sum(self._sizes.values())
        self.progress = progress
        self._stage = stage
        self._progress_unit = progress_unit
        self.done_size = 0
        self.tokens = 0
        self.failed = 0
        self._began: float | None = None
        self._ended = 0.0
        self.report()

    @property
    def seconds(self) -> float:
        return self._ended - self._began if self._began is not None else 0.0

    def take(self, row: dict[str, Any]) -> Receipt | None:
        """The receipt in a worker's answer; None where the budget did not let the chunk start."""
        if row["error_type"]:
            raise getattr(errors, row["error_type"], RuntimeError)(row["error"])
        if row["receipt"] is None:
            return None
        receipt = Receipt.from_json(row["receipt"])
        self.add(receipt)
        return receipt

    def add(self, receipt: Receipt) -> None:
        # A chunk that ran twice (its first actor crashed after the commit) counts once.
        self.done_size += self._sizes.pop(receipt.chunk, 0)
        self.tokens += receipt.prompt_tokens + receipt.generated_tokens
        self.failed += receipt.failed
        began, ended = receipt.work[-1].began, receipt.work[-1].ended
        self._began = began if self._began is None else min(self._began, began)
        self._ended = max(self._ended, ended)
        self.report()

    def report(self, finished: bool = False) -> None:
        seconds = self.seconds
        self.progress.update(
            Event(
                self._stage,
                self._already + self.done_size,
                self._total,
                self._progress_unit,
                failed=self.failed,
                rate=self.done_size / seconds if seconds else None,
                tokens_per_second=self.tokens / seconds if seconds else None,
                finished=finished,
            )
        )


def finish(run: RunDir, plan: Plan, task: Task, progress_unit: str, *, partial: bool = False) -> Summary:
    """Check that every chunk is committed, and every row once, and note the totals in the manifest.

    Args:
        partial: chunks may be left for a later call.

    Raises:
        EngineError: a chunk is missing.
        StorageError: two rows have the same key.
    """
    receipts = read_receipts(run.storage)
    missing = len(plan.chunks) - len(receipts)
    if missing and not partial:
        raise EngineError(
            f"run_dir {run.root}: {missing} chunks were handed out and not committed; run the same command once more"
        )
    check_unique(run.storage, task.row_key)
    done = {receipt.chunk for receipt in receipts}
    summary = summarize(receipts, sum(chunk.size for chunk in plan.chunks if chunk.number in done))
    run.note(**manifest_sections(summary, progress_unit))
    return summary


def prepare_ray_data() -> None:
    """Set Ray Data up as limrank uses it: no output of its own, and no wait before an error."""
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.max_consecutive_actor_init_deaths = _MAX_START_CRASHES
    # A chunk may take any time. An engine that hangs at its start has limrank's own time-out.
    context.execution_no_progress_timeout_s = -1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
