"""limrank: from a few real queries to a trained, evaluated, served reasoning reranker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limrank.version import __version__

if TYPE_CHECKING:
    from limrank.engines import open_engine
    from limrank.recipe import load_config
    from limrank.reranking import Reranker

_PUBLIC = {"Reranker": "limrank.reranking", "open_engine": "limrank.engines", "load_config": "limrank.recipe"}

__all__ = ["Reranker", "__version__", "load_config", "open_engine"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `import limrank` stays instant.
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'limrank' has no attribute {name!r}")
