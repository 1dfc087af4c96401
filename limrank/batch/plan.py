"""The plan: units of work in Parquet, split into chunks that never change.

A chunk is a row group, and `units/part-<k>.parquet` holds 256 of them. Units are sorted by cost within windows of a
fixed total size. Costly units then start first, and planning needs little memory for any number of units and any
number of pairs in each (``benchmarks/planning.py``). ``plan.json`` is written last: where it exists, the plan is
complete.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from limrank.errors import StorageError, UserError, first_line
from limrank.parsing import parse_json
from limrank.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

Unit = dict[str, Any]
"""One row of the units' schema: at least ``unit_id`` and ``cost`` (estimated tokens)."""

UNITS_PER_CHUNK = 64
SHARES = 128
"""A run, or an engine's part of it, is split into about so many chunks. A kill repeats at most two of them."""

CHARACTERS_A_TOKEN = 4
GENERATED_TOKEN_COST = 4
"""Cost of a generated token, in prompt tokens: each takes a decoding step of its own."""

_WORTH_HANDING_OUT = 1 / 15
"""Of the most that a chunk costs (30 s): two seconds of work, beside which the driver's milliseconds are nothing."""

_ENGINES_SERVED = 200
"""How many engines a driver keeps at work with chunks of two seconds. Of more engines each takes longer ones."""

_CHUNKS_PER_FILE = 256
_WINDOW_SIZE = 8192


@dataclass(frozen=True)
class Chunk:
    """``cost`` is in estimated tokens, ``size`` in the units of progress (pairs, seeds)."""

    number: int
    units: int
    cost: int
    size: int

    @property
    def name(self) -> str:
        return chunk_name(self.number)


def chunk_name(number: int) -> str:
    return f"chunk-{number:06d}"


_Count = Annotated[int, Field(ge=0, strict=True)]


class _PlanFile(BaseModel):
    schema_version: Literal[1]
    chunks: list[tuple[_Count, _Count, _Count]]
    """The number of units, the cost and the size of each."""


@dataclass(frozen=True)
class Plan:
    chunks: list[Chunk]

    @property
    def units(self) -> int:
        return sum(chunk.units for chunk in self.chunks)

    @property
    def size(self) -> int:
        return sum(chunk.size for chunk in self.chunks)


def write_plan(
    storage: Storage,
    units: Iterable[tuple[Unit, int]],
    schema: pa.Schema,
    *,
    chunk_cost: int,
    engines: int | None = None,
) -> Plan:
    """Write units and split them into chunks.

    Args:
        units: any number of (unit, size) pairs.
        chunk_cost: the most that the units of a chunk cost together. A unit that costs more is a chunk of its own.
        engines: how many engines will share the run. It makes the chunks of a short run smaller (see
            :func:`share_cost`); None: all chunks are as large as ``chunk_cost`` lets them be.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    chunks: list[Chunk] = []
    with contextlib.ExitStack() as file:
        for members in split_into_chunks(units, chunk_cost, engines):
            rows = [unit for unit, _ in members]
            with storage.writing():
                if len(chunks) % _CHUNKS_PER_FILE == 0:
                    file.close()
                    stream = file.enter_context(storage.open_output(_file(len(chunks))))
                    writer = file.enter_context(pq.ParquetWriter(stream, schema, compression="zstd"))
                writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=len(rows))
            cost, size = sum(unit["cost"] for unit in rows), sum(size for _, size in members)
            chunks.append(Chunk(len(chunks), len(rows), cost, size))
        with storage.writing():
            file.close()
    listed = [[chunk.units, chunk.cost, chunk.size] for chunk in chunks]
    storage.publish_once("plan.json", json.dumps({"schema_version": 1, "chunks": listed}))
    return Plan(chunks)


def read_plan(storage: Storage) -> Plan | None:
    """The plan of an earlier session; None where planning did not finish.

    Raises:
        StorageError: ``plan.json`` is damaged.
    """
    where = f"run_dir {storage.root}: plan.json"
    try:
        written = _PlanFile.model_validate(parse_json(storage.read_bytes("plan.json"), where))
    except FileNotFoundError:
        return None
    except (UserError, ValidationError) as error:
        raise StorageError(f"{where} is damaged; --overwrite starts over") from error
    return Plan([Chunk(number, *facts) for number, facts in enumerate(written.chunks)])


def read_chunk(storage: Storage, number: int) -> list[Unit]:
    """The units of one chunk. Only its row group is read.

    Raises:
        StorageError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with storage.open_input(_file(number)) as stream:
            units = pq.ParquetFile(stream).read_row_group(number % _CHUNKS_PER_FILE).to_pylist()
        if all(isinstance(unit.get("unit_id"), str) for unit in units):
            return units
        reason = "it holds no units"
    except StorageError:
        raise
    except FileNotFoundError:
        reason = "it is not there"
    except (pa.ArrowException, OSError, IndexError, ValueError) as error:
        reason = first_line(error)
    raise StorageError(f"run_dir {storage.root}: {_file(number)} is damaged ({reason}); --overwrite starts over")


def share_cost(run_cost: int, most: int, engines: int) -> int:
    """The cost of a chunk: small enough that a kill repeats little of the run, and never above ``most``.

    An engine's part of a run is ``SHARES`` chunks, as long as each takes two seconds (more with hundreds of engines, so
    that the driver keeps up: ``benchmarks/scale_sim.py``). A run too short for that is ``SHARES`` chunks in all: what the
    driver spends on so few is a second or two.
    """
    worth = _WORTH_HANDING_OUT * most * max(1.0, engines / _ENGINES_SERVED)
    share = max(run_cost / (SHARES * engines), min(worth, run_cost / SHARES))
    return max(1, min(most, math.ceil(share)))


def split_into_chunks(
    units: Iterable[tuple[Unit, int]], most: int, engines: int | None = None
) -> Iterator[list[tuple[Unit, int]]]:
    """The (unit, size) pairs of each chunk. The arguments are those of :func:`write_plan`."""
    seen, chunk_cost = 0, most
    for window in _windows(units):
        window.sort(key=lambda member: (-member[0]["cost"], member[0]["unit_id"]))
        if engines is not None:
            # The units come as a stream: a run is taken to be as long as what was seen of it.
            seen += sum(unit["cost"] for unit, _ in window)
            chunk_cost = share_cost(seen, most, engines)
        chunk: list[tuple[Unit, int]] = []
        cost = 0
        for member in window:
            if chunk and (len(chunk) == UNITS_PER_CHUNK or cost + member[0]["cost"] > chunk_cost):
                yield chunk
                chunk, cost = [], 0
            chunk.append(member)
            cost += member[0]["cost"]
        if chunk:
            yield chunk


def _windows(units: Iterable[tuple[Unit, int]]) -> Iterator[list[tuple[Unit, int]]]:
    window: list[tuple[Unit, int]] = []
    size = 0
    for member in units:
        window.append(member)
        size += max(member[1], 1)
        if size >= _WINDOW_SIZE:
            yield window
            window, size = [], 0
    if window:
        yield window


def _file(number: int) -> str:
    """The file of a chunk's units."""
    return f"units/part-{number // _CHUNKS_PER_FILE:05d}.parquet"
