"""Runs an async function of (unit, engines) over a Ray cluster: the one loop there is.

Ray Data dispatches chunks to a pool of engine actors; what it carries is receipts. Each
actor owns an event loop in a thread of its own, on which its engines live: a consumer
that stalls Ray's own loop cannot starve them. Several chunks overlap in an actor, so
that there is no barrier between units, or between the steps of a unit. Rows are
committed by the actor (see ``chunks.py``), and resuming is a list of file names.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from limrank import errors
from limrank.batch.budget import CHUNKS_A_BUDGET, NO_BOUNDS, Bounds, Budget
from limrank.batch.chunks import Task
from limrank.batch.plan import Chunk, Plan
from limrank.batch.receipts import Receipt, read_receipts
from limrank.batch.rows import check_unique
from limrank.batch.rundir import RunDir
from limrank.batch.summary import Summary, manifest_sections, summarize
from limrank.batch.worker import ChunkWorker
from limrank.cluster.resources import reserve, wait_for_resources
from limrank.config import WorkersConfig
from limrank.engines import EngineSource
from limrank.errors import EngineError, first_line
from limrank.progress import Event, Progress
from limrank.storage import Storage

_CPU_CHUNK_COST = 15_000
_CHUNK_COST = 600_000
_MANY_REQUESTS = 2048
"""More than any engine runs at a time."""

_MOST_AT_ONCE = 64
_STARTS_THAT_MAY_DIE = 3
"""Processes in a row that may die while their engine starts (a lost spot machine) before
it is the engine's own doing (out of memory)."""


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
    bounds: Bounds = NO_BOUNDS,
) -> Summary:
    """Run every chunk of the plan that is not committed yet, and try what failed in the
    committed ones once more. Ray must be initialised.

    Args:
        engines: role → engine, opened in every actor.
        weighed_in: what the units' weight counts, for a person: ``pairs``, ``seeds``.
        bounds: what ends the run before its plan does. No chunk begins that is not expected to
            fit, or to be needed (see ``budget.py``), and the summary is of what there is.

    Raises:
        UserError: the cluster can never give what ``workers`` asks for, or an engine
            refuses its settings.
        EngineError: an engine did not come up, or the cluster had no room for one in time.
        StorageError: the run directory cannot be written.
    """
    pending, budget = _to_do(run, plan, bounds)
    session = _Session(plan, pending, progress, stage, progress_unit)
    if pending and not (budget and budget.is_spent):
        _dispatch(run.storage, pending, task, engines, workers, session, budget)
    summary = finish(run, plan, task, progress_unit, partly=budget is not None and budget.is_spent)
    session.show(finished=True)
    return summary


def chunk_cost(engine_kind: str, token_budget: int | None = None) -> int:
    """About 30 s of work in estimated tokens, by what reads them; less where a budget is
    so small that a chunk would be much of it."""
    import ray

    on_cpu = engine_kind == "vllm" and not (ray.is_initialized() and ray.cluster_resources().get("GPU"))
    cost = _CPU_CHUNK_COST if on_cpu else _CHUNK_COST
    return cost if token_budget is None else min(cost, max(1, token_budget // CHUNKS_A_BUDGET))


def is_needed(run: RunDir, plan: Plan, bounds: Bounds) -> bool:
    """Whether :func:`fanout` would begin anything."""
    pending, budget = _to_do(run, plan, bounds)
    return bool(pending) and not (budget and budget.is_spent)


def _to_do(run: RunDir, plan: Plan, bounds: Bounds) -> tuple[list[Chunk], Budget | None]:
    """What is left to do in the order in which it is handed out, and what says how much of it may begin."""
    committed = read_receipts(run.storage)
    pending = bounds.order(_unfinished(plan, committed), plan, committed)
    return pending, bounds.budget(run.storage, plan, pending, committed) if bounds.any else None


def unfinished(run: RunDir, plan: Plan) -> list[Chunk]:
    """The chunks that have something left to do: not committed, or with failures that
    were there before this session."""
    return _unfinished(plan, read_receipts(run.storage))


def _unfinished(plan: Plan, committed: Sequence[Receipt]) -> list[Chunk]:
    done = {receipt.chunk for receipt in committed if not receipt.failed}
    return [chunk for chunk in plan.chunks if chunk.number not in done]


def _dispatch(
    storage: Storage,
    pending: list[Chunk],
    task: Task,
    engines: Mapping[str, EngineSource],
    workers: WorkersConfig,
    session: _Session,
    budget: Budget | None,
) -> None:
    import pyarrow as pa
    import ray
    from ray.data import ActorPoolStrategy
    from ray.exceptions import RayActorError

    # One client is enough where the engines live elsewhere. With several, a unit that kills
    # the engine would do so while another one's suspects run alone.
    clients = not any(source.holds_model for source in engines.values())
    fewest, most = (1, 1) if clients else (workers.min_replicas, workers.max_replicas)
    wanted = reserve(engines.values(), workers, fewest)
    timeout_s = max(source.startup_timeout_s for source in engines.values())
    wait_for_resources(wanted, timeout_s)
    prepare_ray_data()
    fewest, most = min(fewest, len(pending)), min(most, len(pending))
    at_once = _at_once(pending, most)
    receipts = (
        # A block each, so that chunks are handed out one by one.
        ray.data.from_arrow(
            [pa.table({"chunk": [chunk.number], "position": [position]}) for position, chunk in enumerate(pending)]
        ).map_batches(
            ChunkWorker,
            fn_constructor_args=(storage, task, dict(engines), uuid.uuid4().hex, timeout_s, budget is not None),
            batch_format="pyarrow",
            batch_size=None,
            # A worker whose node is lost comes up where there is room: on a node that joins,
            # or, once the last chunks are handed out, in an idle worker's place.
            compute=ActorPoolStrategy(
                min_size=fewest,
                max_size=most,
                # Ray Data enlarges a pool whose workers have almost twice what they can begin.
                max_tasks_in_flight_per_actor=at_once * (2 if fewest < most else 1),
                max_concurrent_calls_per_actor=at_once,
                enable_true_multi_threading=True,
            ),
            **wanted,
        )
    )
    try:
        for batch in receipts.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0):
            for row in batch.to_pylist():
                receipt = session.take(row)
                if budget and receipt:
                    budget.take(receipt)
    except RayActorError as error:
        raise EngineError(
            f"{_STARTS_THAT_MAY_DIE + 1} processes in a row died while their engine started: is there "
            f"memory for the model? Ray says: {first_line(error)}"
        ) from error


def _at_once(pending: Sequence[Chunk], replicas: int) -> int:
    """Chunks that a worker is handed at a time. Its engine decides how many of them are at
    work (``worker.Admission``); these are enough to fill any engine, and at the end of a
    run not so many that one worker sits on what another could do."""
    size = sum(chunk.size for chunk in pending) / len(pending)
    share = math.ceil(len(pending) / (4 * replicas)) if replicas > 1 else _MOST_AT_ONCE
    return max(2, min(_MOST_AT_ONCE, share, math.ceil(_MANY_REQUESTS / max(size, 1)) + 1))


class _Session:
    """What this driver sees of the work, for progress and rates."""

    def __init__(self, plan: Plan, pending: list[Chunk], progress: Progress, stage: str, progress_unit: str) -> None:
        self._sizes = {chunk.number: chunk.size for chunk in pending}
        self._total = plan.size
        self._already = plan.size - sum(self._sizes.values())
        self._progress = progress
        self._stage = stage
        self._progress_unit = progress_unit
        self.done_weight = 0
        self.tokens = 0
        self.failed = 0
        self._began: float | None = None
        self._ended = 0.0
        self.show()

    @property
    def seconds(self) -> float:
        return self._ended - self._began if self._began is not None else 0.0

    def take(self, row: dict[str, Any]) -> Receipt | None:
        """The receipt of a chunk that a worker hands back; None where it was not begun."""
        if row["error_type"]:
            raise getattr(errors, row["error_type"], RuntimeError)(row["error"])
        if row["receipt"] is None:
            return None
        receipt = Receipt.from_json(row["receipt"])
        # A chunk that ran twice (its first actor died after the commit) counts once.
        self.done_weight += self._sizes.pop(receipt.chunk, 0)
        self.tokens += receipt.prompt_tokens + receipt.generated_tokens
        self.failed += receipt.failed
        began, ended = receipt.work[-1].began, receipt.work[-1].ended
        self._began = began if self._began is None else min(self._began, began)
        self._ended = max(self._ended, ended)
        self.show()
        return receipt

    def show(self, finished: bool = False) -> None:
        seconds = self.seconds
        self._progress.update(
            Event(
                self._stage,
                self._already + self.done_weight,
                self._total,
                self._progress_unit,
                failed=self.failed,
                rate=self.done_weight / seconds if seconds else None,
                tokens_per_second=self.tokens / seconds if seconds else None,
                finished=finished,
            )
        )


def finish(run: RunDir, plan: Plan, task: Task, progress_unit: str, *, partly: bool = False) -> Summary:
    """Check that every chunk is committed, once, and put the totals into the manifest.
    ``partly``: some may be left for a later call."""
    receipts = read_receipts(run.storage)
    missing = len(plan.chunks) - len(receipts)
    if missing and not partly:
        raise EngineError(f"run_dir {run.root}: {missing} chunks were handed out and never committed; run it again")
    check_unique(run.storage, task.row_key)
    done = {receipt.chunk for receipt in receipts}
    summary = summarize(receipts, sum(chunk.size for chunk in plan.chunks if chunk.number in done))
    run.note(**manifest_sections(summary, progress_unit))
    return summary


def prepare_ray_data() -> None:
    """Ray Data as limrank uses it: no output of its own, and errors that come at once."""
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.max_consecutive_actor_init_deaths = _STARTS_THAT_MAY_DIE
    # A chunk takes as long as it takes; what hangs at the start is told by our own clock.
    context.execution_no_progress_timeout_s = -1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
