"""Tables of rows, read as streams: Parquet files, local or in an object store, and datasets saved by ``datasets``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from limrank.config import is_uri
from limrank.data.benchmarks import file_fingerprint
from limrank.errors import UserError, first_line
from limrank.files import AnyPath, is_file, kind_of, printable_path
from limrank.parsing import clipped
from limrank.storage import filesystem

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

BATCH_ROWS = 1024
"""Rows read at a time."""

_READ_BUFFER = 1 << 20


class Table(NamedTuple):
    """A file or dataset of rows; ``batches(columns)`` yields them in order, about a thousand at a time."""

    name: str
    schema: pa.Schema
    batches: Callable[[list[str]], Iterator[Any]]


def open_tables(path: str, split: str, key: str = "data.split") -> tuple[list[Table], list[Any]]:
    """The tables of a Parquet file, a folder of such files, or a saved dataset, and fingerprints of their contents.

    The fingerprint of a local file is its SHA-256; that of an object is its path, size and time of change.

    Args:
        key: the recipe's key for the split, for messages.

    Raises:
        UserError: there are no such files, or they cannot be read.
    """
    dataset = None if is_uri(path) else _saved_dataset(Path(path), split, key)
    return dataset or _parquet_tables(path)


def _parquet_tables(path: str) -> tuple[list[Table], list[Any]]:
    from pyarrow.fs import FileSelector, FileType

    if not is_uri(path):
        kind_of(path)  # raises if it is neither a file nor a folder: a pipe would block the reader
    try:
        files, root = filesystem(path)
        found = [files.get_file_info(root)]
        if found[0].type == FileType.Directory:
            listed = [each for each in files.get_file_info(FileSelector(root)) if each.is_file]
            found = sorted((each for each in listed if _is_parquet(each.base_name)), key=lambda each: each.base_name)
    except (OSError, ValueError) as error:  # ValueError: a scheme that pyarrow does not know
        raise unreadable(path, error) from None
    if not found:
        raise UserError(f"{path}: no *.parquet in this folder, nor is it a dataset that save_to_disk wrote")
    if found[0].type == FileType.NotFound:
        raise UserError(
            f"{path}: no such file or folder; data.path is Parquet, a folder of *.parquet, or a saved dataset"
        )
    scheme = f"{path.partition('://')[0]}://" if is_uri(path) else ""
    tables = []
    for each in found:
        name = f"{scheme}{each.path}"
        tables.append(Table(name, _parquet_schema(files, each.path, name), partial(_batches, files, each.path, name)))
    if scheme:
        return tables, [[each.path, each.size, each.mtime_ns] for each in found]
    return tables, [file_fingerprint(each.path) for each in found]


def _is_parquet(name: str) -> bool:
    return name.endswith(".parquet") and not name.startswith((".", "_"))


def _parquet_schema(files: Any, path: str, name: str) -> pa.Schema:
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path, filesystem=files)
    except Exception as error:  # what pyarrow raises depends on what is damaged
        raise unreadable(name, error) from None


def _batches(files: Any, path: str, name: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    try:
        # With a buffer, a column is read page by page instead of by row group, which may be the whole file.
        with pq.ParquetFile(path, filesystem=files, buffer_size=_READ_BUFFER, pre_buffer=False) as file:
            yield from file.iter_batches(batch_size=BATCH_ROWS, columns=columns)
    except Exception as error:  # what pyarrow raises depends on what is damaged
        raise unreadable(name, error) from None


def _saved_dataset(folder: Path, split: str, key: str) -> tuple[list[Table], list[Any]] | None:
    """The table of a folder that ``datasets`` saved; None for any other folder."""
    if not is_saved_dataset(folder):
        return None
    loaded, folder = load_saved_dataset(folder, split, key)

    def batches(columns: list[str]) -> Iterator[pa.Table]:
        yield from loaded.select_columns(columns).with_format("arrow").iter(batch_size=BATCH_ROWS)

    contents = [file_fingerprint(file) for file in sorted(folder.glob("*.arrow"))]
    return [Table(str(folder), loaded.features.arrow_schema, batches)], contents


def is_saved_dataset(folder: AnyPath) -> bool:
    return any(is_file(folder / name) for name in ("dataset_dict.json", "state.json"))


def load_saved_dataset(folder: Path, split: str, key: str) -> tuple[Dataset, Path]:
    """A saved dataset, or one split of a saved ``DatasetDict``, and the folder of its files.

    Args:
        key: the recipe's key for the split, for messages.

    Raises:
        UserError: it cannot be loaded, or has no such split.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder), keep_in_memory=False)
    except Exception as error:  # what datasets raises depends on what is damaged
        raise UserError(f"{folder}: not a dataset that can be loaded: {clipped(first_line(error))}") from None
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded, folder
    if split not in loaded:
        raise UserError(f"{folder}: {key}: it has no split {split!r}; there are: {', '.join(sorted(loaded))}")
    return loaded[split], folder / split


def unreadable(name: str, error: Exception) -> UserError:
    """The error to raise if a Parquet file cannot be read."""
    return UserError(f"{printable_path(name)}: cannot be read as Parquet: {clipped(first_line(error))}")
