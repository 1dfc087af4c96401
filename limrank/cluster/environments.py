"""The packages that a submitted job needs, for Ray to install."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires
from typing import TYPE_CHECKING

from limrank.errors import UserError
from limrank.optional import EXTRA_OF_JOB

if TYPE_CHECKING:
    from limrank.config import Job


def pip_packages(config: Job, *, on_gpus: bool = True) -> list[str]:
    """limrank's requirements for a job, as ``pip install 'limrank[…]'`` would take them, without limrank itself.

    Args:
        on_gpus: which vLLM a job with an engine of its own gets.

    Raises:
        UserError: limrank is not installed here, so that its requirements are not known.
    """
    extras = {EXTRA_OF_JOB[config.job]} - {"all"}
    if config.job == "pipeline":
        extras |= {"batch", "eval", "train", "serve"}
    if any(name.endswith("engine") and value is not None and value.kind == "vllm" for name, value in config):
        extras.add("vllm" if on_gpus else "cpu")
    try:
        declared = requires("limrank") or []
    except PackageNotFoundError:
        raise UserError(
            "--env pip: limrank is not installed here, only imported; install it, or take nodes that have its "
            "dependencies (--env image)"
        ) from None
    return sorted(_required(declared, extras))


def _required(declared: list[str], extras: set[str]) -> set[str]:
    """The requirements of some extras, those of limrank's own extras resolved."""
    from packaging.requirements import Requirement

    found, done = set(), set()
    left = {"", *extras}
    while left:
        extra = left.pop()
        done.add(extra)
        for each in map(Requirement, declared):
            if each.marker and not each.marker.evaluate({"extra": extra}):
                continue
            if each.name == "limrank":
                left |= each.extras - done
            else:
                each.marker = None  # true here, and the nodes have the Python of here: Ray requires it
                found.add(str(each))
    return found
