"""The directory of models that were fetched or made."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

MODEL_CONFIG = "config.json"
"""A directory with this file is a model. limrank writes the file last."""


def cache_dir() -> Path:
    """The directory of fetched models: ``$LIMRANK_CACHE``, else the user's cache directory."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("LIMRANK_CACHE") or user_cache_dir("limrank"))


def made_once(target: Path, make: Callable[[Path, Path], None]) -> Path:
    """``target``, made if it is missing. Each process works in a directory of its own, and the first
    one to finish wins.

    Args:
        make: takes a directory to work in, and the directory to make.
    """
    if (target / MODEL_CONFIG).is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as work:
        made = Path(work) / "model"
        make(Path(work), made)
        try:
            made.rename(target)
        except OSError:
            if not (target / MODEL_CONFIG).is_file():
                raise
    return target
