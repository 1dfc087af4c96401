"""What is known of the standing clusters of this user: one file each in the user's state directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from limrank.cluster.processes import Identity, boot_id
from limrank.errors import UserError, first_line

DEFAULT_NAME = "default"

TOKEN = "auth_token"
"""The file of a cluster's token, in its directory."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


@dataclass(frozen=True)
class Member:
    """A process of a node, such as its raylet."""

    node: str
    what: str
    identity: Identity


@dataclass(frozen=True)
class Standing:
    """A cluster that ``limrank cluster up`` started, or is starting.

    Attributes:
        folder: its directory.
        address: its dashboard's.
        gcs: what RAY_ADDRESS takes.
        started_at: ISO 8601.
        is_up: False: its start has not ended.
        members: the processes that have to run while it is up.
        host: the machine, and ``boot`` its boot, for a state directory that several machines share.
    """

    name: str
    folder: Path
    address: str
    gcs: str
    nodes: int
    started_at: str
    is_up: bool = False
    members: tuple[Member, ...] = ()
    host: str = field(default_factory=socket.gethostname)
    boot: str = field(default_factory=boot_id)

    def lost(self) -> list[Member]:
        """The processes that have ended."""
        return [each for each in self.members if not each.identity.is_running()]

    def is_elsewhere(self) -> bool:
        """Whether it is on another machine than this one."""
        return self.host != socket.gethostname() and self.boot != boot_id()


def state_dir() -> Path:
    from platformdirs import user_state_path

    return user_state_path("limrank") / "clusters"


def read(name: str) -> Standing | None:
    """The cluster of this name; None: there is none.

    Raises:
        UserError: it is no name, or its file cannot be read.
    """
    path = _path(name)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        members = tuple(
            Member(each["node"], each["what"], Identity(**each["identity"])) for each in found.pop("members")
        )
        return Standing(**found | {"folder": Path(found["folder"]), "members": members})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: is no state of a cluster ({first_line(error)}); remove it") from None


def write(state: Standing) -> None:
    """Replace the cluster's file. Only this user can read it."""
    path = _path(state.name)
    temporary = path.with_suffix(".new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(asdict(state) | {"folder": str(state.folder)}, file, indent=1)
    os.replace(temporary, path)


def remove(name: str) -> None:
    _path(name).unlink(missing_ok=True)


def names() -> list[str]:
    """The names of the clusters that have a file."""
    folder = state_dir()
    return sorted(each.stem for each in folder.glob("*.json")) if folder.is_dir() else []


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Only one process at a time starts or ends standing clusters.

    Raises:
        UserError: another one does.
    """
    folder = state_dir()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("another `limrank cluster up` or `limrank cluster down` is at work: wait for it") from None
        yield


def meant_by(address: str) -> Standing | None:
    """The running cluster that an address means: the one with this dashboard or head, and for ``auto`` the default
    one, else the only one."""
    found = []
    for name in names():
        with contextlib.suppress(UserError):
            state = read(name)
            if state is not None and state.is_up and not state.is_elsewhere() and not _is_gone(state):
                found.append(state)
    if address == "auto":
        return next((each for each in found if each.name == DEFAULT_NAME), found[0] if len(found) == 1 else None)
    plain = address.rstrip("/").replace("://localhost:", "://127.0.0.1:")
    return next((each for each in found if plain in (each.address, each.gcs)), None)


def _is_gone(state: Standing) -> bool:
    return len(state.lost()) == len(state.members)


def _path(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise UserError(f"--name {name}: takes up to 40 lower-case letters, digits and hyphens")
    return state_dir() / f"{name}.json"
