"""The files of this machine that a submitted job needs: which ones travel with it, and which are refused.

Nothing here connects to a cluster.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from limrank.config import SHIPPED, Job, is_uri
from limrank.config.recipe import input_paths, model_keys, value_of, with_values
from limrank.errors import UserError
from limrank.files import kind_of, printable_path, unreadable

SHIP_LIMIT_MIB = 64
"""Inputs that travel with a job by default. Ray keeps them in the head's memory."""

_MIB = 2**20

_ELSEWHERE = "put it into a bucket (s3://…), or where all nodes see it and add --cluster-paths"

AJob = TypeVar("AJob", bound=Job)


@dataclass(frozen=True)
class Input:
    """A local file or folder that the recipe names.

    Attributes:
        key: the recipe's key.
        path: where it is on this machine.
        place: where it lies in the job's working directory.
        files: (path on this machine, path below ``place``, bytes) of each of its files. The path below a file's own
            ``place`` is empty.
    """

    key: str
    path: str
    place: str
    files: list[tuple[Path, str, int]] = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(size for _, _, size in self.files)


def check_paths_of_cluster(config: Job, address: str) -> None:
    """Refuse the local paths that a job on other machines cannot have, whatever travels with it.

    Raises:
        UserError: a ``run_dir``, a model's directory or a file of API keys of this machine.
    """
    if config.job != "serve" and not is_uri(config.run_dir):
        raise UserError(
            f"run_dir {config.run_dir}: the nodes of {address} are not this machine: take -s run_dir=s3://BUCKET/…, or "
            "a path that all nodes see and add --cluster-paths"
        )
    for key, path in input_paths(config):
        if key in model_keys() and not is_uri(path):
            raise UserError(f"{key} {path}: a model's directory does not travel with a job: {_ELSEWHERE}")
    if keys_file := value_of(config, "serving.keys_file"):
        raise UserError(
            f"serving.keys_file {keys_file}: API keys do not travel with a job: set LIMRANK_API_KEYS on the nodes, or "
            "name a file of the nodes and add --cluster-paths"
        )


def find_inputs(config: Job, limit_mib: float = SHIP_LIMIT_MIB) -> list[Input]:
    """The local files and folders that a job reads, except models' directories.

    Args:
        limit_mib: the most MiB of all of them together.

    Raises:
        UserError: a path is not on this machine or cannot be read, or they are too large.
    """
    inputs = []
    for number, (key, path) in enumerate(input_paths(config)):
        if key in model_keys() or is_uri(path):
            continue
        if kind_of(path) == "missing":
            raise UserError(
                f"{key} {printable_path(path)}: no such file or folder on this machine; if it is a path of the "
                "cluster's nodes, add --cluster-paths"
            )
        place = f"{SHIPPED}/{number}-{key}/{Path(path).name}"
        inputs.append(Input(key, path, place, list(_files(Path(path)))))
    total = sum(each.size for each in inputs)
    if total > limit_mib * _MIB:
        largest = max(inputs, key=lambda each: each.size)
        raise UserError(
            f"{largest.key} {printable_path(largest.path)}: {size_text(largest.size)} of {size_text(total)} of inputs, and "
            f"{limit_mib:g} MiB travel with a job (--ship-limit): {_ELSEWHERE}"
        )
    return inputs


def pack(archive: Path, texts: dict[str, str], inputs: list[Input]) -> None:
    """Write a job's working directory as a zip. The same contents give the same bytes.

    Args:
        texts: path in the working directory → contents.

    Raises:
        UserError: an input cannot be read.
    """
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in texts.items():
            packed.writestr(_entry(name), text)
        for each in inputs:
            if not each.files:  # an empty folder
                packed.writestr(_entry(f"{each.place}/"), "")
            for path, below, _ in each.files:
                name = f"{each.place}/{below}" if below else each.place
                try:
                    with path.open("rb") as source, packed.open(_entry(name), "w") as target:
                        shutil.copyfileobj(source, target)
                except OSError as error:
                    raise unreadable(path, error) from None


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)  # of 1980: the time of a file would change the archive
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = (0o755 if name.endswith("/") else 0o644) << 16
    return entry


def with_places(config: AJob, inputs: list[Input]) -> AJob:
    """The config with the inputs' places, relative to the job's working directory."""
    places = {(each.key, each.path): each.place for each in inputs}
    updates: dict[str, str | tuple[str, ...]] = {}
    for key in {each.key for each in inputs}:
        value = value_of(config, key)
        moved = [places.get((key, each), each) for each in ((value,) if isinstance(value, str) else value)]
        updates[key] = moved[0] if isinstance(value, str) else tuple(moved)
    return with_values(config, updates)


def size_text(size: int) -> str:
    """A number of bytes: ``12.3 MiB``, or ``4 KiB``"""
    return f"{size / _MIB:.1f} MiB" if size >= _MIB else f"{-(-size // 1024)} KiB"


def _files(path: Path) -> Iterator[tuple[Path, str, int]]:
    """Every file of a file or folder, in a fixed order. Links are followed; a loop of links is walked once."""
    if kind_of(path) == "file":
        yield path, "", path.stat().st_size
        return
    seen = set()
    for folder, folders, names in os.walk(path, followlinks=True, onerror=_refuse):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            file = Path(folder, name)
            if kind_of(file) == "file":
                yield file, str(file.relative_to(path)), file.stat().st_size


def _refuse(error: OSError) -> None:
    raise unreadable(error.filename, error) from None
