"""The committed tables of a run: one file a chunk in ``rows/`` and in ``failures/``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from limrank.errors import StorageError, first_line
from limrank.storage import Storage

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

READERS = 8
"""Files that are read at a time: an object store answers each request slowly, and many at once."""

_CHUNK_FILE = re.compile(r"chunk-\d+\.parquet")
_SEPARATOR = "\x1f"


def is_chunk_file(name: str) -> bool:
    """Whether a chunk's file may have this name. Other files in ``rows`` and ``failures`` are the user's."""
    return _CHUNK_FILE.fullmatch(name) is not None


def chunk_files(storage: Storage, folder: str) -> list[str]:
    """The names of the chunks' files in ``rows`` or ``failures``, sorted.

    Raises:
        StorageError: the folder cannot be read, or something that is not a file has a chunk's name.
    """
    if others := [name for name in storage.others(folder) if is_chunk_file(name)]:
        raise StorageError(
            f"run_dir {storage.root}: {folder}/{others[0]} is not a file: move it away, and the same command goes on"
        )
    return [name for name in storage.names(folder) if is_chunk_file(name)]


def read_rows(
    storage: Storage, folder: str, columns: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """The tables of all chunks in ``rows`` or ``failures``, or only some of their columns.

    Args:
        columns: None: all.
        optional: columns that are read too where a file has them.

    Raises:
        StorageError: a file cannot be read, or lacks a column.
    """
    import pyarrow as pa

    for name in chunk_files(storage, folder):
        try:
            table = storage.read_table(f"{folder}/{name}", list(columns) if columns else None, optional)
        except StorageError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise _damaged(storage, f"{folder}/{name}", first_line(error)) from error
        if lacking := [column for column in columns or () if column not in table.column_names]:
            raise _damaged(storage, f"{folder}/{name}", f"there is no {lacking[0]} in it")
        yield table


def read_if_whole(storage: Storage, name: str) -> pa.Table | None:
    """A Parquet file; None where it is damaged or missing.

    Raises:
        StorageError: the storage cannot be read.
    """
    import pyarrow as pa

    try:
        return storage.read_table(name)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError):
        storage.read_bytes(name)  # raises StorageError where the bytes cannot be read at all
        return None


def check_unique(storage: Storage, key: Sequence[str]) -> None:
    """Check that no two committed rows have the same key. Takes eight bytes of memory a row.

    Args:
        key: the columns that name a row.

    Raises:
        StorageError: two rows have the same key; the message has an example.
    """
    import numpy as np

    hashes = np.concatenate([np.empty(0, np.uint64), *(part for _, part in _hashed_keys(storage, key))])
    hashes.sort()
    suspects = np.unique(hashes[:-1][hashes[:-1] == hashes[1:]])
    if not len(suspects):
        return
    # Different keys may share a hash.
    seen = Counter(name for keys, part in _hashed_keys(storage, key) for name in keys[np.isin(part, suspects)])
    twice = [name for name, count in seen.items() if count > 1]
    if twice:
        raise StorageError(
            f"run_dir {storage.root}: {len(twice)} of {len(hashes)} rows are there twice, such as {'/'.join(key)} "
            f"{twice[0].replace(_SEPARATOR, '/')!r}: are two units of the input the same?"
        )


def _hashed_keys(storage: Storage, key: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each file's keys, and a 64-bit hash of each key."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from pandas.util import hash_array

    def read(name: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            with storage.open_input(f"rows/{name}") as stream:
                table = pq.ParquetFile(stream).read(columns=list(key))
            columns = [table[name].combine_chunks() for name in key]
            joined = pc.binary_join_element_wise(*columns, _SEPARATOR, null_handling="replace")
        except StorageError:
            raise
        except (pa.ArrowException, KeyError, OSError) as error:
            raise _damaged(storage, f"rows/{name}", first_line(error)) from error
        keys = joined.to_numpy(zero_copy_only=False)
        return keys, hash_array(keys, categorize=False)

    with ThreadPoolExecutor(READERS) as readers:
        yield from readers.map(read, chunk_files(storage, "rows"))


def _damaged(storage: Storage, name: str, reason: str) -> StorageError:
    return StorageError(
        f"run_dir {storage.root}: {name} is damaged ({reason}): delete it, and the same command writes it once more"
    )
