"""What happens to one chunk on one engine: run its units, commit its rows.

No Ray here. A chunk is finished when ``rows/<chunk>.parquet`` is there; its failures
are published before that, so a finished chunk has told everything. Attempts are on
record before the work starts, because whoever restarts a dead worker does so for ever:
after two deaths a chunk's units run alone, and a unit that dies twice alone is a
failure, with no innocent neighbour. A driver that is killed takes its workers along:
the attempts that this cuts short are nobody's fault, and no unit fails by them.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from limrank.engines.base import Engine, Usage, meter
from limrank.errors import EngineError, UserError
from limrank.plan import Unit, chunk_name, read_chunk
from limrank.records import Failure, failure_schema
from limrank.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

DEATHS_BEFORE_ALONE = 2
DEATHS_ALONE = 2
RECEIPT_KEY = b"limrank.receipt"

Engines = Mapping[str, Engine]


@dataclass(frozen=True)
class Outcome:
    """What a unit became. ``failures`` are of parts of it; the rest is in ``rows``."""

    rows: list[dict[str, Any]]
    failures: list[Failure] = field(default_factory=list)


class Task(Protocol):
    """The work on one unit: a pure async function, with the shapes around it. Picklable."""

    step: str

    @property
    def row_schema(self) -> pa.Schema: ...

    async def run(self, unit: Unit, engines: Engines) -> Outcome:
        """Raises RowError where nothing of the unit could be done."""

    def failed_rows(self, unit: Unit) -> list[dict[str, Any]]:
        """The rows that stand for a unit that could not run at all; [] for none."""


@dataclass(frozen=True)
class Receipt:
    """What a finished chunk cost; kept in its file's metadata, so that sums over the
    committed chunks are right however often the job was killed.

    ``began`` and ``ended`` are Unix times; ``startup_seconds`` is what its worker's
    engines took to start.
    """

    chunk: int
    units: int
    rows: int
    failed: int
    requests: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    began: float
    ended: float
    startup_seconds: float


class ChunkRunner:
    """Runs chunks on open engines; one per worker process.

    ``call`` runs a coroutine on the engines' own loop and waits for its result; it may
    be called from several threads. ``session`` names the driver that the worker belongs to.
    """

    def __init__(
        self,
        storage: Storage,
        task: Task,
        engines: Engines,
        call: Callable[[Awaitable[Any]], Any],
        *,
        session: str,
        startup_seconds: float = 0.0,
    ) -> None:
        self._storage = storage
        self._task = task
        self._engines = engines
        self._call = call
        self._session = session
        self._startup_seconds = startup_seconds

    def deaths(self, number: int) -> int:
        """How often a worker died over this chunk while its driver lived on."""
        return self._deaths(_attempts(number))

    def run(self, number: int, *, alone: bool) -> Receipt:
        """Run and commit a chunk.

        Raises:
            EngineError: the engine died; nothing of the chunk is committed.
            OSError: its files could not be written.
        """
        self._mark(_attempts(number))
        began = time.time()
        units = read_chunk(self._storage, number)
        with meter() as usage:
            outcomes = self._alone(number, units) if alone else self._call(self._together(units))
        return self._commit(number, outcomes, usage, began)

    async def _together(self, units: Sequence[Unit]) -> list[Outcome]:
        return list(await asyncio.gather(*(run_unit(self._task, unit, self._engines) for unit in units)))

    def _alone(self, number: int, units: Sequence[Unit]) -> list[Outcome]:
        outcomes = []
        for index, unit in enumerate(units):
            folder = f"{_attempts(number)}/unit-{index:03d}"
            deaths = self._deaths(folder)
            if deaths >= DEATHS_ALONE:
                error = EngineError(f"the engine died {deaths} times while it worked on this unit alone")
                outcomes.append(unit_failed(self._task, unit, error, attempts=DEATHS_BEFORE_ALONE + deaths))
                continue
            mark = self._mark(folder)
            outcomes.append(self._call(run_unit(self._task, unit, self._engines)))
            self._storage.remove(mark)
        return outcomes

    def _mark(self, folder: str) -> str:
        """Put an attempt on record; the name of its file."""
        name = f"{folder}/{self._session}.{uuid.uuid4().hex}"
        self._storage.write_text(name, "")
        return name

    def _deaths(self, folder: str) -> int:
        attempts = Counter(name.partition(".")[0] for name in self._storage.names(folder))
        # An earlier session's last attempt may have been cut short by that session's end.
        return sum(count - (session != self._session) for session, count in attempts.items())

    def _commit(self, number: int, outcomes: Sequence[Outcome], usage: Usage, began: float) -> Receipt:
        import pyarrow as pa

        rows = [row for outcome in outcomes for row in outcome.rows]
        failures = [asdict(failure) for outcome in outcomes for failure in outcome.failures]
        receipt = Receipt(
            chunk=number,
            units=len(outcomes),
            rows=len(rows),
            failed=len(failures),
            requests=usage.requests,
            prompt_tokens=usage.prompt,
            cached_prompt_tokens=usage.cached_prompt,
            generated_tokens=usage.generated,
            began=began,
            ended=time.time(),
            startup_seconds=self._startup_seconds,
        )
        name = f"{chunk_name(number)}.parquet"
        if failures:
            self._storage.write_table(f"failures/{name}", pa.Table.from_pylist(failures, schema=failure_schema()))
        else:
            self._storage.remove(f"failures/{name}")
        table = pa.Table.from_pylist(rows, schema=self._task.row_schema)
        metadata = {**(table.schema.metadata or {}), RECEIPT_KEY: json.dumps(asdict(receipt)).encode()}
        self._storage.write_table(f"rows/{name}", table.replace_schema_metadata(metadata))
        return receipt


async def run_unit(task: Task, unit: Unit, engines: Engines) -> Outcome:
    """One unit. Whatever is its own fault, a bug in the task included, ends as its
    failure; only a dead engine, or a fault that every unit would have, goes further."""
    try:
        return await task.run(unit, engines)
    except (EngineError, UserError):
        raise
    except Exception as error:
        return unit_failed(task, unit, error)


def unit_failed(task: Task, unit: Unit, error: BaseException, attempts: int = 1) -> Outcome:
    return Outcome(task.failed_rows(unit), [Failure.of(unit["unit_id"], task.step, error, attempts)])


def read_receipts(storage: Storage) -> list[Receipt]:
    """The receipts of all committed chunks."""
    import pyarrow.parquet as pq

    receipts = []
    for name in storage.names("rows"):
        with storage.open_input(f"rows/{name}") as stream:
            metadata = pq.read_schema(stream).metadata
        receipts.append(Receipt(**json.loads(metadata[RECEIPT_KEY])))
    return receipts


def _attempts(number: int) -> str:
    return f"attempts/{chunk_name(number)}"
