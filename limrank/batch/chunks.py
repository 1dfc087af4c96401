"""Runs the units of one chunk on open engines and commits their rows. No Ray here.

A chunk is committed when ``rows/<chunk>.parquet`` exists. Its failures are written before that, so that a committed
chunk is complete.

An attempt is recorded before the work starts, because Ray restarts a crashed worker without end. After two crashes
the units of a chunk run in isolation, one by one. A unit that crashes its engine twice in isolation becomes a
failure, and no other unit does. When a driver ends, its workers end with it: the last attempt of a session is not
counted as a crash.

A later session is handed a committed chunk only if it has failures. It retries the failed units once and keeps the
others as they are.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from limrank.batch.plan import Unit, chunk_name, read_chunk
from limrank.batch.receipts import Receipt, Work, commit_of, count_kept, read_receipt, with_commit
from limrank.batch.rows import read_if_whole
from limrank.engines.base import Engine, Usage, meter
from limrank.errors import EngineError, UserError
from limrank.records import Failure, failure_schema
from limrank.storage import Storage
from limrank.uris import redacted

if TYPE_CHECKING:
    import pyarrow as pa

CRASHES_BEFORE_ISOLATION = 2
CRASHES_IN_ISOLATION = 2

Engines = Mapping[str, Engine]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What a unit became: its rows, and the failures of those parts that could not be done."""

    rows: Rows
    failures: list[Failure] = field(default_factory=list)


class Task(Protocol):
    """The work on one unit: a pure async function, with the schema of its rows. Picklable.

    ``unit_column`` is the column of rows that has the unit's id. The columns of ``row_key`` together identify a row
    over the whole run. The rows of a retry replace all earlier rows with the same values in the columns
    of ``retry_key``.
    """

    step: str
    unit_column: str
    row_key: tuple[str, ...]
    retry_key: tuple[str, ...]

    @property
    def row_schema(self) -> pa.Schema: ...

    async def run(self, unit: Unit, engines: Engines) -> Outcome:
        """Run a unit. Raises RowError where nothing of it could be done."""

    async def retry(self, unit: Unit, rows: Rows, engines: Engines) -> Outcome:
        """Run the failed parts of a unit once more. ``rows`` are the unit's earlier rows."""

    def failed_rows(self, unit: Unit) -> Rows:
        """The rows of a unit that could not run at all; [] for none."""


@dataclass(frozen=True)
class Worker:
    """One worker process of a driver's session. Its engines were up at ``ready`` (Unix time) after ``startup_seconds``."""

    session: str
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    ready: float = field(default_factory=time.time)
    startup_seconds: float = 0.0


@dataclass(frozen=True)
class Opened:
    """A chunk whose attempt is recorded. A chunk with failures to retry has its ``earlier`` rows and its ``receipt``."""

    number: int
    units: list[Unit]
    earlier: Earlier | None
    began: float
    receipt: Receipt | None


@dataclass(frozen=True)
class Earlier:
    """The rows and failures that an earlier session committed, by unit id."""

    rows: dict[str, Rows]
    failures: dict[str, list[Failure]]


class ChunkRunner:
    """Runs chunks on open engines; one for each worker process. Its coroutines run on the engines' event loop, and
    several chunks may run at a time."""

    def __init__(self, storage: Storage, task: Task, engines: Engines, worker: Worker) -> None:
        self._storage = storage
        self._task = task
        self._engines = engines
        self._worker = worker

    async def crashes(self, number: int) -> int:
        """How often a worker crashed on this chunk while its driver ran on."""
        return await asyncio.to_thread(self._crashes, _attempts(number))

    async def open(self, number: int) -> Opened | Receipt:
        """Record an attempt and read the chunk's units. Returns the receipt of a chunk that is committed already:
        by this session (its worker crashed before it could answer), or without failures.

        Raises:
            OSError: the chunk's files could not be read or written.
        """
        return await asyncio.to_thread(self._open, number)

    async def run(self, chunk: Opened, *, isolated: bool) -> Receipt:
        """Run and commit a chunk.

        Args:
            isolated: run one unit at a time.

        Raises:
            EngineError: the engine crashed; nothing of the chunk is committed.
            OSError: the chunk's files could not be written.
        """
        with meter() as usage:
            outcomes = await (self._isolated(chunk) if isolated else self._together(chunk))
        return await asyncio.to_thread(self._commit, chunk, outcomes, usage)

    async def _together(self, chunk: Opened) -> list[Outcome]:
        return list(await asyncio.gather(*(self._unit(unit, chunk.earlier) for unit in chunk.units)))

    async def _isolated(self, chunk: Opened) -> list[Outcome]:
        outcomes = []
        for index, unit in enumerate(chunk.units):
            folder = f"{_attempts(chunk.number)}/unit-{index:03d}"
            crashes = await asyncio.to_thread(self._crashes, folder)
            if crashes >= CRASHES_IN_ISOLATION:
                error = EngineError(f"the engine crashed {crashes} times while it ran this unit in isolation")
                if chunk.earlier:
                    outcomes.append(_still_failed(unit, chunk.earlier, error))
                else:
                    outcomes.append(unit_failed(self._task, unit, error, attempts=CRASHES_BEFORE_ISOLATION + crashes))
                continue
            attempt = await asyncio.to_thread(self._record_attempt, folder)
            outcomes.append(await self._unit(unit, chunk.earlier))
            await asyncio.to_thread(self._storage.remove, attempt)
        return outcomes

    async def _unit(self, unit: Unit, earlier: Earlier | None) -> Outcome:
        if earlier is None:
            return await run_unit(self._task, unit, self._engines)
        name = unit["unit_id"]
        rows, failures = earlier.rows.get(name, []), earlier.failures[name]
        if not failures:
            return Outcome(rows)
        try:
            outcome = await self._task.retry(unit, rows, self._engines)
        except (EngineError, UserError):
            raise
        except Exception as error:
            return _still_failed(unit, earlier, error)
        tried = max(failure.attempts for failure in failures)
        return Outcome(
            self._with_earlier(outcome.rows, rows),
            [replace(each, attempts=each.attempts + tried) for each in outcome.failures],
        )

    def _with_earlier(self, rows: Rows, earlier: Rows) -> Rows:
        """The rows of a retry, and the earlier rows that it did not replace."""

        def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
            return tuple(row[column] for column in self._task.retry_key)

        replaced = {key(row) for row in rows}
        return [*rows, *(row for row in earlier if key(row) not in replaced)]

    def _open(self, number: int) -> Opened | Receipt:
        name = f"{chunk_name(number)}.parquet"
        receipt = read_receipt(self._storage, name) if self._storage.exists(f"rows/{name}") else None
        if receipt is not None and (not receipt.failed or receipt.work[-1].session == self._worker.session):
            return receipt
        self._record_attempt(_attempts(number))
        units = read_chunk(self._storage, number)
        earlier = self._earlier(name, receipt, units) if receipt else None
        return Opened(number, units, earlier, time.time(), receipt)

    def _earlier(self, name: str, receipt: Receipt, units: Sequence[Unit]) -> Earlier | None:
        """What was committed before. None where the two files are damaged or not of one commit: the whole chunk
        then runs once more."""
        failure_table = read_if_whole(self._storage, f"failures/{name}")
        row_table = read_if_whole(self._storage, f"rows/{name}")
        if failure_table is None or row_table is None or commit_of(failure_table) != receipt.commit:
            return None
        if not (row_table.schema.equals(self._task.row_schema) and failure_table.schema.equals(failure_schema())):
            return None
        rows: dict[str, Rows] = {}
        for row in row_table.to_pylist():
            rows.setdefault(row[self._task.unit_column], []).append(row)
        failures = {unit["unit_id"]: [] for unit in units}
        for failure in (Failure(**each) for each in failure_table.to_pylist()):
            if (name := _unit_of(failure, failures)) is None:
                return None
            failures[name].append(failure)
        return Earlier(rows, failures)

    def _record_attempt(self, folder: str) -> str:
        """Record an attempt and return the name of its file."""
        name = f"{folder}/{self._worker.session}.{uuid.uuid4().hex}"
        self._storage.write_text(name, "")
        return name

    def _crashes(self, folder: str) -> int:
        attempts = Counter(name.partition(".")[0] for name in self._storage.names(folder))
        # An earlier session's last attempt may have ended with that session.
        return sum(count - (session != self._worker.session) for session, count in attempts.items())

    def _commit(self, chunk: Opened, outcomes: Sequence[Outcome], usage: Usage) -> Receipt:
        import pyarrow as pa

        table, outcomes = _table(self._task, chunk.units, outcomes)
        failures = [asdict(failure) for outcome in outcomes for failure in outcome.failures]
        before = chunk.receipt
        if before is not None:
            usage.add(before.usage)
        receipt = Receipt(
            chunk=chunk.number,
            units=len(outcomes),
            rows=len(table),
            failed=len(failures),
            requests=usage.requests,
            prompt_tokens=usage.prompt,
            cached_prompt_tokens=usage.cached_prompt,
            generated_tokens=usage.generated,
            work=(*(before.work if before else ()), self._work(chunk.began)),
            commit=uuid.uuid4().hex,
            steps={name: (each.prompt, each.cached_prompt, each.generated) for name, each in usage.steps.items()},
            kept=count_kept(table),
        )
        name = f"{chunk_name(chunk.number)}.parquet"
        if failures:
            failed = pa.Table.from_pylist(failures, schema=failure_schema())
            self._storage.write_table(f"failures/{name}", with_commit(failed, receipt.commit))
        else:
            self._storage.remove(f"failures/{name}")
        self._storage.write_table(f"rows/{name}", receipt.attach(table))
        return receipt

    def _work(self, began: float) -> Work:
        # Roles that share an engine count it once.
        engines = {id(engine): engine for engine in self._engines.values()}.values()
        worker = self._worker
        return Work(
            session=worker.session,
            worker=worker.name,
            began=began,
            ended=time.time(),
            ready=worker.ready,
            startup_seconds=worker.startup_seconds,
            engines=len(engines),
            busy_seconds=sum(engine.limiter.busy_seconds for engine in engines),
            dtypes={role: dtype for role, engine in self._engines.items() if (dtype := getattr(engine, "dtype", None))},
        )


async def run_unit(task: Task, unit: Unit, engines: Engines) -> Outcome:
    """Run one unit. Any error of its own, a bug in the task included, becomes its failure.

    Raises:
        EngineError: the engine crashed.
        UserError: every unit would have this error.
    """
    try:
        return await task.run(unit, engines)
    except (EngineError, UserError):
        raise
    except Exception as error:
        return unit_failed(task, unit, error)


def unit_failed(task: Task, unit: Unit, error: BaseException, attempts: int | None = None) -> Outcome:
    """The outcome of a unit that could not run at all."""
    return Outcome(task.failed_rows(unit), [Failure.of(unit["unit_id"], task.step, error, attempts)])


def _still_failed(unit: Unit, earlier: Earlier, error: BaseException) -> Outcome:
    """The outcome of a unit whose retry failed as a whole: it keeps its rows, and its failures have the new error."""
    name = unit["unit_id"]
    tried = getattr(error, "attempts", 1)
    failures = [
        replace(each, error_type=type(error).__name__, error=redacted(str(error)), attempts=each.attempts + tried)
        for each in earlier.failures[name]
    ]
    return Outcome(earlier.rows.get(name, []), failures)


def _table(task: Task, units: Sequence[Unit], outcomes: Sequence[Outcome]) -> tuple[pa.Table, list[Outcome]]:
    """All rows as a table. A unit whose rows do not fit the schema becomes a failure."""
    import pyarrow as pa

    def built(outcomes: Sequence[Outcome]) -> pa.Table:
        return pa.Table.from_pylist([row for outcome in outcomes for row in outcome.rows], schema=task.row_schema)

    def fitting(unit: Unit, outcome: Outcome) -> Outcome:
        try:
            built([outcome])
        except (pa.ArrowException, OverflowError) as error:
            return unit_failed(task, unit, error)
        return outcome

    try:
        return built(outcomes), list(outcomes)
    except (pa.ArrowException, OverflowError):
        outcomes = [fitting(unit, outcome) for unit, outcome in zip(units, outcomes, strict=True)]
        return built(outcomes), outcomes


def _unit_of(failure: Failure, units: Mapping[str, Any]) -> str | None:
    """The unit of a failure, whose id begins with the unit's; None where there is no such unit."""
    return max((name for name in units if (failure.unit_id or "").startswith(name)), key=len, default=None)


def _attempts(number: int) -> str:
    return f"attempts/{chunk_name(number)}"
