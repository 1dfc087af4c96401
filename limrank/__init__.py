"""limrank: from a few real queries to a trained, evaluated, served reasoning reranker.

``Reranker`` ranks a list of documents in this process. ``synthesize``, ``train``, ``rerank``, ``evaluate``
and ``serve`` are the jobs; their configs are ``RerankJob`` and so on. Every name is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from limrank.api import (
        EvaluationResult,
        RerankResult,
        SynthesisResult,
        TrainingResult,
        evaluate,
        rerank,
        serve,
        synthesize,
        train,
    )
    from limrank.engines import open_engine
    from limrank.recipe import load_config
    from limrank.reranking import RankedDocument, Reranker

_API = (
    *("synthesize", "train", "rerank", "evaluate", "serve"),
    *("SynthesisResult", "TrainingResult", "RerankResult", "EvaluationResult"),
)
_PUBLIC = {
    **dict.fromkeys(_API, "limrank.api"),
    **dict.fromkeys(("Reranker", "RankedDocument"), "limrank.reranking"),
    "open_engine": "limrank.engines",
    "load_config": "limrank.recipe",
}

__all__ = [
    "EvaluationResult",
    "RankedDocument",
    "RerankResult",
    "Reranker",
    "SynthesisResult",
    "TrainingResult",
    "__version__",
    "evaluate",
    "load_config",
    "open_engine",
    "rerank",
    "serve",
    "synthesize",
    "train",
]


def __getattr__(name: str) -> Any:
    # `import limrank` stays instant.
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'limrank' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
