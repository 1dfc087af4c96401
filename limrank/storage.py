"""Files below one root: a local path, or a prefix in an object store (``stores/``).

Writes are atomic. A local file is written under a temporary name and renamed; an object appears when its upload ends.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limrank.errors import StorageError, UserError, first_line
from limrank.outputs import is_written
from limrank.stores import Stat, Store, Version, store_of
from limrank.stores import filesystem as filesystem
from limrank.uris import is_uri, without_secrets

if TYPE_CHECKING:
    import pyarrow as pa


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

    @property
    def is_remote(self) -> bool:
        """Whether the root is in an object store."""
        return is_uri(self.root)

    def read_bytes(self, name: str) -> bytes:
        """Raises FileNotFoundError; StorageError: the file exists and cannot be read."""
        with self._reading(name):
            if self.is_remote:
                store, path = self._in_store(name)
                return store.read(path)
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
        if self.is_remote:
            store, path = self._in_store(name)
            store.write(path, data)
            return
        with _replacing(self.local(name)) as temporary, open(temporary, "wb") as file:
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
        if self.is_remote:
            store, path = self._in_store(name)
            return store.exists(path)
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
        if self.is_remote:
            with self._reading(folder):
                store, path = self._in_store(folder)
                listed = store.folder(path)
            return [name for name in (listed.files if is_file else listed.folders) if not name.startswith(".")]
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
        with self.writing(), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if self.is_remote:
                store, path = self._in_store(name)
                store.delete(path)
            else:
                self.local(name).unlink()

    def entries(self) -> list[str]:
        """Names of everything in the root itself, including hidden names; [] if there is no root."""
        if self.is_remote:
            store, path = self._in_store("")
            listed = store.folder(path)
            return sorted([*listed.files, *listed.folders])
        root = Path(self.root)
        return sorted(each.name for each in root.iterdir()) if root.is_dir() else []

    def walk(self) -> tuple[list[str], list[str], list[str]]:
        """Names of all files below the root, of all folders, and of the symbolic links among both, including
        hidden names. Links are not followed."""
        if self.is_remote:
            store, path = self._in_store("")
            return store.walk(path), [], []
        names: tuple[list[str], list[str], list[str]] = ([], [], [])
        for top, folders, files in os.walk(self.root):
            for kind, found in zip(names, (files, folders), strict=False):
                kind += [(Path(top) / each).relative_to(self.root).as_posix() for each in found]
        names[2].extend(each for each in (*names[0], *names[1]) if self.local(each).is_symlink())
        return sorted(names[0]), sorted(names[1]), sorted(names[2])

    def remove_folder(self, name: str) -> None:
        """Delete a folder, if it exists and is empty."""
        if not self.is_remote:
            with contextlib.suppress(OSError):
                self.local(name).rmdir()

    def open_input(self, name: str):
        """A seekable binary stream. Raises the errors of :meth:`read_bytes`; from a store, so does each read."""
        with self._reading(name):
            if self.is_remote:
                store, path = self._in_store(name)
                # Readers take any other OSError for a damaged file.
                where = f"run_dir {self.root}: {name} cannot be read"
                return store.open(path, failure=lambda error: StorageError(f"{where}: {error}"))
            files, path = self._at(name)
            return files.open_input_file(path)

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            if not self.is_remote and not self._is_plain(name):
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
        """A binary stream to a file, for output that does not fit in memory. The file appears when the block ends
        without an error. What goes to a store is written to a temporary file on this machine first."""
        if self.is_remote:
            with tempfile.TemporaryDirectory() as work:
                written = Path(work) / "output"
                with open(written, "wb") as stream:
                    yield stream
                store, path = self._in_store(name)
                with self.writing():
                    store.write(path, written)
            return
        files, path = self._at(name)
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
        if self.is_remote:
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
        store, path = self._in_store(name)
        store.write(path, file)

    def create(self, name: str, data: bytes) -> Version | None:
        """In a store: write a file that is not there yet; None where it is. See :meth:`Store.create`."""
        store, path = self._in_store(name)
        with self.writing():
            return store.create(path, data)

    def replace(self, name: str, data: bytes, version: Version) -> Version | None:
        """In a store: write a file that still has this version; None where it has not."""
        store, path = self._in_store(name)
        with self.writing():
            return store.replace(path, data, version)

    def stat(self, name: str) -> Stat:
        """In a store: a file's version and the time of its last change. Raises the errors of :meth:`read_bytes`."""
        with self._reading(name):
            store, path = self._in_store(name)
            return store.stat(path)

    def age(self, name: str) -> float:
        """Seconds since a file was written, by the clock of the store or the file server: a new file beside it says
        what time it is there.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: it cannot be read, or no file can be written.
        """
        written = self._modified(name)
        beside = f".{name}.{uuid.uuid4().hex}"
        self.write_bytes(beside, b"")
        try:
            return self._modified(beside) - written
        finally:
            self.remove(beside)

    def _modified(self, name: str) -> float:
        with self._reading(name):
            return self.stat(name).modified.timestamp() if self.is_remote else self.local(name).stat().st_mtime

    def has_conditional_writes(self) -> bool:
        """Whether the root's store has them (see :meth:`Store.has_conditions`)."""
        store, path = self._in_store(f".lock.json.{uuid.uuid4().hex}")
        with self.writing():
            return store.has_conditions(path)

    def publish_once(self, name: str, text: str) -> None:
        """Like :meth:`write_text`, for a file that nobody else may write. In a store with conditional writes a file that
        is there already is not replaced.

        Raises:
            StorageError: it could not be written, or another process has written another one.
        """
        data = without_secrets(text).encode()
        if not self.is_remote or not self.has_conditional_writes():
            self.write_bytes(name, data)
        elif self.create(name, data) is None and self.read_bytes(name) != data:
            raise StorageError(f"run_dir {self.root}: another driver has written {name} meanwhile, and works in it")

    def display_path(self, name: str) -> str:
        """A file's path or URI for messages, without the store's settings."""
        return f"{self.root.partition('?')[0].rstrip('/') if self.is_remote else self.root}/{name}"

    def local(self, name: str = "") -> Path:
        """The file's local path.

        Raises:
            UserError: the root is in an object store, and this needs a file.
        """
        if self.is_remote:
            raise UserError(f"run_dir {self.root}: this job writes files that need a local path")
        return Path(self.root) / name

    def _at(self, name: str) -> tuple[Any, str]:
        found, path = filesystem(self.root)
        return found, (f"{path}/{name}" if name else path)

    def _in_store(self, name: str) -> tuple[Store, str]:
        store, path = store_of(self.root)
        return store, "/".join(filter(None, (path, name)))


def _drop_written(folder: Path, name: str) -> None:
    """Delete the files that training writes into a folder of this name; the user's files stay."""
    for each in folder.iterdir() if folder.is_dir() else ():
        if is_written(f"{name}/{each.name}", "train"):
            each.unlink()
