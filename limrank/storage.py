"""Files below one root: a local path or, through pyarrow's filesystems, a prefix in an object store.

Writes are atomic. A local file is written under a temporary name and renamed; an object store's put is atomic.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limrank.errors import StorageError, UserError, first_line
from limrank.outputs import is_written
from limrank.uris import credentials_in, is_uri, without_secrets

if TYPE_CHECKING:
    import pyarrow as pa

COPIED_AT_ONCE = 16 << 20
"""Bytes in memory while a file is copied to or from a store."""


@lru_cache
def filesystem(path: str) -> tuple[Any, str]:
    """The pyarrow filesystem of a local path or URI, and the path in it.

    The store's settings are in the URI's query (``s3://bucket/run?endpoint_override=…&scheme=http``) or in the
    environment (``AWS_ENDPOINT_URL``). A process creates one filesystem per path, so that clients keep their
    connections.

    Raises:
        ValueError: pyarrow does not know the URI's scheme, or the URI holds credentials.
        OSError: the store cannot be reached.
    """
    from pyarrow.fs import FileSystem, LocalFileSystem

    if not is_uri(path):
        return LocalFileSystem(), path
    if found := credentials_in(path):
        raise ValueError(f"holds credentials ({found}); put them into the environment (AWS_ACCESS_KEY_ID, …)")
    found, below = FileSystem.from_uri(path)
    return found, below.rstrip("/")


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A temporary path to write to, which replaces the target when the block ends. A symbolic link is replaced itself,
    and not the file that it points to."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


@dataclass(frozen=True)
class Storage:
    """Files below one root, by relative name. It can be pickled."""

    root: str

    def read_bytes(self, name: str) -> bytes:
        """Raises FileNotFoundError; StorageError: the file exists and cannot be read."""
        with self._reading(name):
            files, path = self._at(name)
            with files.open_input_stream(path) as stream:
                return stream.read()

    def write_bytes(self, name: str, data: bytes) -> None:
        """Publish a file atomically. A second writer of the same name replaces the whole file.

        Raises:
            StorageError: it could not be written.
        """
        with self.writing():
            self._write(name, data)

    def _write(self, name: str, data: bytes) -> None:
        files, path = self._at(name)
        if is_uri(self.root):
            with files.open_output_stream(path) as stream:
                stream.write(data)
            return
        with _replacing(Path(path)) as temporary, open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def read_text(self, name: str) -> str:
        return self.read_bytes(name).decode()

    def write_text(self, name: str, text: str) -> None:
        """Like :meth:`write_bytes`, with the secrets of the environment removed."""
        self.write_bytes(name, without_secrets(text).encode())

    def read_table(self, name: str, columns: list[str] | None = None, optional: Sequence[str] = ()) -> pa.Table:
        """A Parquet file, or some of its columns.

        Args:
            columns: None: all.
            optional: columns that are read too where the file has them.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        # Not pq.read_table: its scanner may hold the bytes when the process ends, and then aborts or hangs it
        # (github.com/apache/arrow/issues/50482 and 33975).
        with pq.ParquetFile(pa.BufferReader(self.read_bytes(name))) as file:
            if columns is not None:
                there = file.schema_arrow.names
                columns = [*columns, *(column for column in optional if column in there)]
            return file.read(columns=columns)

    def write_table(self, name: str, table: pa.Table) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def exists(self, name: str) -> bool:
        from pyarrow.fs import FileType

        files, path = self._at(name)
        return files.get_file_info(path).type != FileType.NotFound

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, sorted, without files that are being written; [] if there is no such
        folder."""
        return self._entries(folder, is_file=True)

    def others(self, folder: str) -> list[str]:
        """Names of everything in a folder that is not a file (folders, pipes), sorted; [] if there is no such folder."""
        return self._entries(folder, is_file=False)

    def _entries(self, folder: str, *, is_file: bool) -> list[str]:
        from pyarrow.fs import FileSelector

        with self._reading(folder):
            files, path = self._at(folder)
            found = files.get_file_info(FileSelector(path, allow_not_found=True))
        return sorted(
            entry.base_name for entry in found if entry.is_file == is_file and not entry.base_name.startswith(".")
        )

    def remove(self, name: str) -> None:
        """Delete a file, if it exists.

        Raises:
            StorageError: it could not be deleted.
        """
        files, path = self._at(name)
        with self.writing(), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if is_uri(self.root):
                files.delete_file(path)
            else:
                Path(path).unlink()

    def entries(self) -> list[str]:
        """Names of everything in the root itself, including hidden names; [] if there is no root."""
        if not is_uri(self.root):
            root = Path(self.root)
            return sorted(each.name for each in root.iterdir()) if root.is_dir() else []
        from pyarrow.fs import FileSelector

        files, path = self._at("")
        return sorted(each.base_name for each in files.get_file_info(FileSelector(path, allow_not_found=True)))

    def walk(self) -> tuple[list[str], list[str], list[str]]:
        """Names of all files below the root, of all folders, and of the symbolic links among both, including
        hidden names. Links are not followed."""
        if is_uri(self.root):
            from pyarrow.fs import FileSelector

            files, path = self._at("")
            found = files.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
            return sorted(each.path[len(path) :].lstrip("/") for each in found if each.is_file), [], []
        names: tuple[list[str], list[str], list[str]] = ([], [], [])
        for top, folders, files in os.walk(self.root):
            for kind, found in zip(names, (files, folders), strict=False):
                kind += [(Path(top) / each).relative_to(self.root).as_posix() for each in found]
        names[2].extend(each for each in (*names[0], *names[1]) if self.local(each).is_symlink())
        return sorted(names[0]), sorted(names[1]), sorted(names[2])

    def remove_folder(self, name: str) -> None:
        """Delete a folder, if it exists and is empty."""
        if not is_uri(self.root):
            with contextlib.suppress(OSError):
                self.local(name).rmdir()

    def open_input(self, name: str):
        """A seekable binary stream. Raises the errors of :meth:`read_bytes`."""
        with self._reading(name):
            files, path = self._at(name)
            return files.open_input_file(path)

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            if not is_uri(self.root) and not self._is_plain(name):
                raise StorageError(f"run_dir {self.root}: {name} is neither a file nor a folder: move it away")
            yield
        except (FileNotFoundError, StorageError):
            raise
        except OSError as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise StorageError(f"run_dir {self.root}: {name} cannot be read: {reason}") from error

    def _is_plain(self, name: str) -> bool:
        """Whether a name can be read. Reading a pipe without a writer would never end."""
        with contextlib.suppress(OSError):
            mode = self.local(name).stat().st_mode
            return stat.S_ISREG(mode) or stat.S_ISDIR(mode)
        return True

    @contextlib.contextmanager
    def open_output(self, name: str) -> Iterator[Any]:
        """A binary stream to a file, for output that does not fit in memory. A local file appears when the block
        ends without an error."""
        files, path = self._at(name)
        if is_uri(self.root):
            with files.open_output_stream(path) as stream:
                yield stream
            return
        with _replacing(Path(path)) as temporary, files.open_output_stream(str(temporary)) as stream:
            yield stream

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn OSErrors of the block into a StorageError that names the root."""
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                f"run_dir {self.root}: cannot be written: {getattr(error, 'strerror', None) or error}; "
                "the same command resumes once that is fixed"
            ) from error

    @contextlib.contextmanager
    def new_folder(self, name: str, last: str) -> Iterator[Path]:
        """A local folder for new files, which becomes the root's folder ``name`` when the block ends.

        On a local path it replaces the old folder and keeps the files that the user put there. In an object store,
        which has no folders, the old ``last`` is deleted first and the new one is uploaded last: while it exists,
        the folder is complete.

        Raises:
            StorageError: it could not be written.
        """
        if is_uri(self.root):
            with tempfile.TemporaryDirectory() as work:
                yield Path(work)
                with self.writing():
                    self.remove(f"{name}/{last}")
                    for file in sorted(Path(work).iterdir(), key=lambda each: each.name == last):
                        self._upload(file, f"{name}/{file.name}")
            return
        target = self.local(name)
        work = target.with_name(f".{target.name}.partial")
        with self.writing():
            _drop_written(work, name)
            work.mkdir(parents=True, exist_ok=True)
            yield work
            _drop_written(target, name)
            for kept in target.iterdir() if target.is_dir() else ():
                kept.rename(work / kept.name)
            if target.is_dir():
                target.rmdir()
            work.rename(target)

    def _upload(self, file: Path, name: str) -> None:
        files, path = self._at(name)
        with file.open("rb") as source, files.open_output_stream(path) as target:
            shutil.copyfileobj(source, target, COPIED_AT_ONCE)

    def display_path(self, name: str) -> str:
        """A file's path or URI for messages, without the store's settings."""
        return f"{self.root.partition('?')[0].rstrip('/') if is_uri(self.root) else self.root}/{name}"

    def local(self, name: str = "") -> Path:
        """The file's local path.

        Raises:
            UserError: the root is in an object store, and this needs a file.
        """
        if is_uri(self.root):
            raise UserError(f"run_dir {self.root}: this job writes files that need a local path")
        return Path(self.root) / name

    def _at(self, name: str) -> tuple[Any, str]:
        found, path = filesystem(self.root)
        return found, (f"{path}/{name}" if name else path)


def _drop_written(folder: Path, name: str) -> None:
    """Delete the files that training writes into a folder of this name; the user's files stay."""
    for each in folder.iterdir() if folder.is_dir() else ():
        if is_written(f"{name}/{each.name}", "train"):
            each.unlink()
