"""Where a run's directory may be: nowhere that a person has something else in mind for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from limrank.config import is_uri
from limrank.errors import UserError

INSTEAD = "take a directory of its own, such as -s run_dir=runs/mine"


def check_location(run_dir: str, inputs: Iterable[tuple[str, str]] = ()) -> None:
    """Look whether a run may have this directory. Nothing is touched.

    Args:
        inputs: paths and URIs that the job reads, each behind its recipe key.

    Raises:
        UserError: it is no path; the root, a home or the working directory, or one around these;
            or an input, or a directory around one.
    """
    if not run_dir.strip() or "\0" in run_dir:
        raise UserError(f"run_dir: {run_dir!r} is no directory; {INSTEAD}")
    if not is_uri(run_dir):
        _check_own(run_dir)
    for key, path in inputs:
        if contains(run_dir, path):
            raise UserError(f"run_dir {run_dir}: holds {key} ({path}), which a run must not touch; {INSTEAD}")


def _check_own(run_dir: str) -> None:
    # A home may be unknown (`~` stays `~`), and a working directory deleted.
    homes = [os.path.expanduser("~"), *_home_of_account()]
    for what, place in (
        *(("the home directory", each) for each in homes),
        ("the working directory", os.path.abspath(".")),
    ):
        if Path(place).is_absolute() and contains(run_dir, place):
            raise UserError(f"run_dir {run_dir}: is {what}, or a directory around it; {INSTEAD}")


def _home_of_account() -> list[str]:
    """Of who runs this, whatever $HOME says; nothing for an account that the system does not know."""
    import pwd

    try:
        return [pwd.getpwuid(os.getuid()).pw_dir]
    except KeyError:
        return []


def contains(directory: str, path: str) -> bool:
    """Whether a path or URI is a directory, or lies somewhere in it: by the file system's own word,
    whatever links and case lead there; in an object store by its name."""
    if is_uri(directory) or is_uri(path):
        return is_uri(directory) and is_uri(path) and _within(_parts(directory), _parts(path))
    there = os.path.realpath(os.path.expanduser(directory))
    here = Path(os.path.realpath(os.path.expanduser(path)))
    return any(_is_same(there, each) for each in (here, *here.parents))


def _is_same(one: str, other: Path) -> bool:
    try:
        return other.samefile(one)
    except (OSError, ValueError):
        return one == str(other)


def _parts(uri: str) -> tuple[str, ...]:
    split = urlsplit(uri)
    scheme = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}.get(split.scheme.lower(), split.scheme.lower())
    names = [each for each in split.path.split("/") if each not in ("", ".")]
    return (scheme, split.netloc.rpartition("@")[2].lower(), *names)


def _within(around: tuple[str, ...], inner: tuple[str, ...]) -> bool:
    return inner[: len(around)] == around
