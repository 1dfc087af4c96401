"""limrank: from a few real queries to a trained, evaluated, served reasoning reranker.

``Reranker`` ranks a list of documents in this process, ``Client`` on a running server. ``synthesize``, ``train``,
``rerank``, ``evaluate`` and ``serve`` are the jobs; their configs are ``RerankJob`` and so on. Every name is imported
on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limrank.version import __version__

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
    from limrank.config import (
        DataConfig,
        DevConfig,
        EngineConfig,
        EvaluateJob,
        EvaluationConfig,
        FaultConfig,
        FirstStageConfig,
        FuseConfig,
        ModelConfig,
        PipelineJob,
        RerankJob,
        RoundTripConfig,
        ScoringConfig,
        ServeJob,
        ServingConfig,
        SynthesisConfig,
        SynthesisPrompts,
        SynthesizeJob,
        TeacherConfig,
        TokenPrices,
        TrainingConfig,
        TrainJob,
        WorkersConfig,
    )
    from limrank.config.recipe import load_config
    from limrank.engines import open_engine
    from limrank.errors import ApiStatusError, EndpointError, EngineError, LimrankError, UserError
    from limrank.records import Document
    from limrank.reranking import RankedDocument, Reranker
    from limrank.serving.answers import RerankResponse, ScoredDocument
    from limrank.serving.http_client import AsyncClient, Client
    from limrank.serving.updates import RerankUpdate

_API = (
    *("synthesize", "train", "rerank", "evaluate", "serve"),
    *("SynthesisResult", "TrainingResult", "RerankResult", "EvaluationResult"),
)
_CONFIGS = (
    *("SynthesizeJob", "TrainJob", "RerankJob", "EvaluateJob", "ServeJob", "PipelineJob"),
    *("DataConfig", "DevConfig", "EngineConfig", "EvaluationConfig", "FaultConfig"),
    *("FirstStageConfig", "FuseConfig", "ModelConfig", "ScoringConfig", "ServingConfig", "SynthesisConfig"),
    *("SynthesisPrompts", "RoundTripConfig", "TeacherConfig", "TokenPrices"),
    *("TrainingConfig", "WorkersConfig"),
)
_PUBLIC = {
    **dict.fromkeys(_API, "limrank.api"),
    **dict.fromkeys(_CONFIGS, "limrank.config"),
    **dict.fromkeys(("LimrankError", "UserError", "EngineError", "EndpointError", "ApiStatusError"), "limrank.errors"),
    "Document": "limrank.records",
    **dict.fromkeys(("Reranker", "RankedDocument"), "limrank.reranking"),
    **dict.fromkeys(("Client", "AsyncClient"), "limrank.serving.http_client"),
    **dict.fromkeys(("RerankResponse", "ScoredDocument"), "limrank.serving.answers"),
    "RerankUpdate": "limrank.serving.updates",
    "open_engine": "limrank.engines",
    "load_config": "limrank.config.recipe",
}

__all__ = [
    "ApiStatusError",
    "AsyncClient",
    "Client",
    "DataConfig",
    "DevConfig",
    "Document",
    "EndpointError",
    "EngineConfig",
    "EngineError",
    "EvaluateJob",
    "EvaluationConfig",
    "EvaluationResult",
    "FaultConfig",
    "FirstStageConfig",
    "FuseConfig",
    "LimrankError",
    "ModelConfig",
    "PipelineJob",
    "RankedDocument",
    "RerankJob",
    "RerankResponse",
    "RerankResult",
    "RerankUpdate",
    "Reranker",
    "RoundTripConfig",
    "ScoredDocument",
    "ScoringConfig",
    "ServeJob",
    "ServingConfig",
    "SynthesisConfig",
    "SynthesisPrompts",
    "SynthesisResult",
    "SynthesizeJob",
    "TeacherConfig",
    "TokenPrices",
    "TrainJob",
    "TrainingConfig",
    "TrainingResult",
    "UserError",
    "WorkersConfig",
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
