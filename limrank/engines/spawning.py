"""An engine's processes begin without the script that they were started from.

Processes that multiprocessing spawns import their parent's main module, and with it whatever
that imports. A script that opens an engine outside of ``if __name__ == "__main__"`` would open
another in each; and vLLM's CPU worker fails where a script has imported numba (as bm25s does):
it looks through every loaded module, and llvmlite's answers to any name. An engine needs
nothing of the script.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

_WHERE = ("__spec__", "__file__")
"""Where multiprocessing finds a main module again."""


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Processes spawned inside do not import this process's main module."""
    main = sys.modules["__main__"]
    kept = {name: vars(main)[name] for name in _WHERE if name in vars(main)}
    main.__spec__ = None
    vars(main).pop("__file__", None)
    try:
        yield
    finally:
        vars(main).update(kept)
