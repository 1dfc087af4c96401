"""Every recipe key, its type, its default, its description, and the hash of a job's rows: one file a section's owner.

All can be checked, and hashed, without importing Ray, torch or vLLM.
"""

from limrank.config.base import (
    FAULT,
    LONGEST_TEXT,
    Fraction,
    PathMark,
    PathStr,
    Seconds,
    Section,
    element_types,
    fault,
    is_prompt_text,
    is_text,
    known_aliases,
    known_fields,
)
from limrank.config.data import (
    LANGUAGE_CODES,
    LANGUAGES,
    STEMMERS,
    STOPWORDS,
    UNSPACED,
    DataConfig,
    FirstStageConfig,
    Rewriting,
)
from limrank.config.engine import RERANKER, EngineConfig, FaultConfig, ModelConfig, WorkersConfig, as_reranker
from limrank.config.evaluation import EvaluationConfig
from limrank.config.jobs import (
    DEFAULT_SEED,
    JOBS,
    SHIPPED,
    EvaluateJob,
    Job,
    PipelineJob,
    RerankJob,
    Role,
    ServeJob,
    SynthesizeJob,
    TrainJob,
    config_hash,
    dump_config,
)
from limrank.config.mining import RoundTripConfig, TeacherConfig
from limrank.config.scoring import Compatibility, FuseConfig, ScoringConfig
from limrank.config.serving import ServingConfig
from limrank.config.synthesis import Shares, SynthesisConfig, SynthesisPrompts, TokenPrices
from limrank.config.training import DevConfig, Objective, TrainingConfig
from limrank.uris import is_uri

__all__ = [
    "Compatibility",
    "DEFAULT_SEED",
    "DataConfig",
    "DevConfig",
    "EngineConfig",
    "FaultConfig",
    "EvaluateJob",
    "EvaluationConfig",
    "FAULT",
    "FirstStageConfig",
    "FuseConfig",
    "JOBS",
    "Job",
    "LANGUAGES",
    "LANGUAGE_CODES",
    "LONGEST_TEXT",
    "ModelConfig",
    "RERANKER",
    "Objective",
    "PathMark",
    "PathStr",
    "PipelineJob",
    "RerankJob",
    "Rewriting",
    "Role",
    "SHIPPED",
    "STEMMERS",
    "STOPWORDS",
    "ScoringConfig",
    "Seconds",
    "Section",
    "ServeJob",
    "ServingConfig",
    "Shares",
    "SynthesisConfig",
    "SynthesisPrompts",
    "RoundTripConfig",
    "TeacherConfig",
    "SynthesizeJob",
    "TokenPrices",
    "TrainJob",
    "TrainingConfig",
    "UNSPACED",
    "Fraction",
    "WorkersConfig",
    "as_reranker",
    "config_hash",
    "dump_config",
    "element_types",
    "fault",
    "is_prompt_text",
    "is_text",
    "is_uri",
    "known_aliases",
    "known_fields",
]
