"""An engine's processes do not import the script that opens the engine.

Processes that multiprocessing spawns import their parent's main module. A script that opens an
engine outside of ``if __name__ == "__main__"`` would open another engine in each of them. And
vLLM's CPU worker fails where a script has imported numba (as bm25s does): the worker inspects
every loaded module, and llvmlite has every attribute. An engine needs nothing of the script.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

_MAIN_ATTRIBUTES = ("__spec__", "__file__")
"""The attributes by which multiprocessing finds the main module."""


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Processes spawned inside do not import this process's main module."""
    main = sys.modules["__main__"]
    kept = {name: vars(main)[name] for name in _MAIN_ATTRIBUTES if name in vars(main)}
    main.__spec__ = None
    vars(main).pop("__file__", None)
    try:
        yield
    finally:
        vars(main).update(kept)
