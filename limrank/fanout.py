"""Runs an async function of (unit, engines) over a Ray cluster: the one loop there is.

Ray Data dispatches chunks to a pool of engine actors; what it carries is receipts. Each
actor owns an event loop in a thread of its own, on which its engines live: a consumer
that stalls Ray's own loop cannot starve them. Several chunks overlap in an actor, so
that there is no barrier between units, or between the steps of a unit. Rows are
committed by the actor (see ``chunks.py``), and resuming is a list of file names.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limrank.chunks import Receipt, Task, read_receipts
from limrank.config import WorkersConfig
from limrank.engines import EngineSource
from limrank.errors import EngineError, UserError
from limrank.plan import Chunk, Plan
from limrank.progress import Event, Progress
from limrank.rundir import RunDir
from limrank.storage import Storage
from limrank.worker import ChunkWorker

OVERLAP = 8
"""Chunks that an actor works on at a time: while one drains, the next ones fill the engine."""

_ANY_NUMBER = 1_000_000
_CPU_CHUNK_COST = 15_000
_CHUNK_COST = 600_000


@dataclass(frozen=True)
class Summary:
    """Totals over all committed chunks, whichever session they come from.

    ``seconds`` is the time in which at least one chunk was being worked on, start-up left
    out; ``startup_seconds`` is the slowest engine's; ``rate`` is weight (pairs, seeds) a second.
    """

    units: int
    rows: int
    failed: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    seconds: float
    startup_seconds: float
    rate: float | None

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.generated_tokens


def fanout(
    run: RunDir,
    plan: Plan,
    task: Task,
    engines: Mapping[str, EngineSource],
    workers: WorkersConfig,
    *,
    progress: Progress,
    stage: str,
    weighed_in: str,
) -> Summary:
    """Run every chunk of the plan that is not committed yet. Ray must be initialised.

    Args:
        engines: role → engine, opened in every actor.
        weighed_in: what the units' weight counts, for a person: ``pairs``, ``seeds``.

    Raises:
        UserError: the cluster can never give what ``workers`` asks for, or an engine
            refuses its settings.
        EngineError: an engine did not come up.
    """
    committed = {name.removesuffix(".parquet") for name in run.storage.names("rows")}
    pending = [chunk for chunk in plan.chunks if chunk.name not in committed]
    session = _Session(plan, pending, progress, stage, weighed_in)
    if pending:
        _dispatch(run.storage, pending, task, engines, workers, session)
    summary = finish(run, plan, weighed_in)
    session.show(finished=True)
    return summary


def chunk_cost(engine_kind: str) -> int:
    """About 30 s of work in estimated tokens, by what reads them."""
    import ray

    on_cpu = engine_kind == "vllm" and not (ray.is_initialized() and ray.cluster_resources().get("GPU"))
    return _CPU_CHUNK_COST if on_cpu else _CHUNK_COST


def claim(
    engines: Iterable[EngineSource], workers: WorkersConfig, replicas: int, *, spare_cpus: int = 1
) -> dict[str, Any]:
    """What one replica takes of the cluster that this process is connected to, as Ray's
    ``num_cpus``, ``num_gpus`` and ``accelerator_type``. ``spare_cpus`` are left to Ray's own tasks.

    Raises:
        UserError: the cluster as it stands cannot hold the replicas; Ray would wait for ever.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = resources(engines, workers, sum(node.get("GPU", 0.0) for node in nodes))
    check_resources(wanted, replicas, nodes, spare_cpus)
    return wanted


def resources(engines: Iterable[EngineSource], workers: WorkersConfig, cluster_gpus: float) -> dict[str, Any]:
    """What one replica takes. Engines that live elsewhere take a sliver of a CPU here."""
    if not any(source.holds_model for source in engines):
        return {"num_cpus": 0.1, "num_gpus": 0.0}
    gpus = workers.gpus
    if gpus is None:
        gpus = float(workers.tensor_parallel) if cluster_gpus else 0.0
    wanted = {"num_cpus": workers.cpus, "num_gpus": gpus}
    return wanted | {"accelerator_type": workers.accelerator} if workers.accelerator else wanted


def check_resources(
    wanted: Mapping[str, Any], replicas: int, nodes: Sequence[Mapping[str, float]], spare_cpus: int = 1
) -> None:
    """Raises UserError where the nodes cannot hold the replicas, each on one node, and
    ``spare_cpus`` beside them."""
    kinds = (("CPU", "num_cpus"), ("GPU", "num_gpus"))
    needed = " and ".join(f"{wanted[key]:g} {kind}s" for kind, key in kinds if wanted[key])
    accelerator = wanted.get("accelerator_type")
    if accelerator:
        has = {name.partition(":")[2] for node in nodes for name in node if name.startswith("accelerator_type:")}
        if accelerator not in has:
            raise UserError(f"workers.accelerator {accelerator}: no node has one; the cluster's are {sorted(has)}")
        nodes = [node for node in nodes if f"accelerator_type:{accelerator}" in node]
    fitting = sum(_fitting(wanted, node) for node in nodes)
    whole = sum(node.get("CPU", 0.0) for node in nodes)
    if fitting < replicas or whole < wanted["num_cpus"] * replicas + spare_cpus:
        have = ", ".join(f"{node.get('CPU', 0):g} CPUs {node.get('GPU', 0):g} GPUs" for node in nodes)
        beside = f", and {spare_cpus} CPU beside them," if spare_cpus else ""
        raise UserError(
            f"workers: {replicas} replicas of {needed} each{beside} do not fit into the cluster's "
            f"nodes ({have}): lower workers.replicas, workers.cpus or workers.gpus"
        )


def _fitting(wanted: Mapping[str, float], node: Mapping[str, float]) -> int:
    """How many replicas one node holds."""
    shares = [
        node.get(kind, 0.0) // wanted[key] for kind, key in (("CPU", "num_cpus"), ("GPU", "num_gpus")) if wanted[key]
    ]
    return int(min(shares, default=_ANY_NUMBER))


def _dispatch(
    storage: Storage,
    pending: list[Chunk],
    task: Task,
    engines: Mapping[str, EngineSource],
    workers: WorkersConfig,
    session: _Session,
) -> None:
    import pyarrow as pa
    import ray
    from ray.data import ActorPoolStrategy

    wanted = claim(engines.values(), workers, workers.replicas)
    _quiet_ray_data()
    longest_first = sorted(pending, key=lambda chunk: (-chunk.cost, chunk.number))
    receipts = (
        ray.data.from_arrow(pa.table({"chunk": [chunk.number for chunk in longest_first]}))
        # One receipt a block, so that chunks are handed out one by one: Ray Data would
        # pack small rows together, and give them all to one actor.
        .repartition(target_num_rows_per_block=1)
        .map_batches(
            ChunkWorker,
            fn_constructor_args=(storage, task, dict(engines), uuid.uuid4().hex),
            batch_format="pyarrow",
            batch_size=None,
            compute=ActorPoolStrategy(
                size=min(workers.replicas, len(pending)),
                max_tasks_in_flight_per_actor=2 * OVERLAP,
                max_concurrent_calls_per_actor=OVERLAP,
                enable_true_multi_threading=True,
            ),
            **wanted,
        )
    )
    for batch in receipts.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0):
        for row in batch.to_pylist():
            session.take(row)


class _Session:
    """What this driver sees of the work, for progress and rates."""

    def __init__(self, plan: Plan, pending: list[Chunk], progress: Progress, stage: str, weighed_in: str) -> None:
        self._weights = {chunk.number: chunk.weight for chunk in pending}
        self._total = plan.weight
        self._already = plan.weight - sum(self._weights.values())
        self._progress = progress
        self._stage = stage
        self._weighed_in = weighed_in
        self.done_weight = 0
        self.tokens = 0
        self.failed = 0
        self._began: float | None = None
        self._ended = 0.0
        self.show()

    @property
    def seconds(self) -> float:
        return self._ended - self._began if self._began is not None else 0.0

    def take(self, row: dict[str, Any]) -> None:
        if row["error"]:
            kind = {"UserError": UserError, "EngineError": EngineError}.get(row["error_type"], OSError)
            raise kind(row["error"])
        # A chunk that ran twice (its first actor died after the commit) counts once.
        self.done_weight += self._weights.pop(row["chunk"], 0)
        self.tokens += row["prompt_tokens"] + row["generated_tokens"]
        self.failed += row["failed"]
        self._began = row["began"] if self._began is None else min(self._began, row["began"])
        self._ended = max(self._ended, row["ended"])
        self.show()

    def show(self, finished: bool = False) -> None:
        seconds = self.seconds
        self._progress.update(
            Event(
                self._stage,
                self._already + self.done_weight,
                self._total,
                self._weighed_in,
                failed=self.failed,
                rate=self.done_weight / seconds if seconds else None,
                tokens_per_second=self.tokens / seconds if seconds else None,
                finished=finished,
            )
        )


def finish(run: RunDir, plan: Plan, weighed_in: str) -> Summary:
    """Check that every chunk is committed, and put the totals into the manifest."""
    receipts = read_receipts(run.storage)
    missing = len(plan.chunks) - len(receipts)
    if missing:
        raise EngineError(f"run_dir {run.root}: {missing} chunks were handed out and never committed; run it again")
    summary = summarize(receipts, plan)
    run.note(
        counts={"units": summary.units, "rows": summary.rows, "failed": summary.failed},
        seconds={"engine_startup": round(summary.startup_seconds, 3), "work": round(summary.seconds, 3)},
        tokens={
            "prompt": summary.prompt_tokens,
            "cached_prompt": summary.cached_prompt_tokens,
            "generated": summary.generated_tokens,
        },
        rates={
            f"{weighed_in}_per_second": round(summary.rate, 3),
            "tokens_per_second": round(summary.tokens / summary.seconds, 1),
        }
        if summary.rate
        else {},
    )
    return summary


def summarize(receipts: list[Receipt], plan: Plan) -> Summary:
    """Sum receipts up; pure."""
    seconds = _covered([(receipt.began, receipt.ended) for receipt in receipts])

    def total(name: str) -> int:
        return sum(getattr(receipt, name) for receipt in receipts)

    return Summary(
        units=total("units"),
        rows=total("rows"),
        failed=total("failed"),
        prompt_tokens=total("prompt_tokens"),
        cached_prompt_tokens=total("cached_prompt_tokens"),
        generated_tokens=total("generated_tokens"),
        seconds=seconds,
        startup_seconds=max((receipt.startup_seconds for receipt in receipts), default=0.0),
        rate=plan.weight / seconds if seconds else None,
    )


def _covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of time spans."""
    covered, end = 0.0, float("-inf")
    for began, ended in sorted(spans):
        covered += max(0.0, ended - max(began, end))
        end = max(end, ended)
    return covered


def _quiet_ray_data() -> None:
    from ray.data import DataContext

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
