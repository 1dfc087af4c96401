"""Job configurations: a YAML recipe plus ``-s key=value`` overrides → a frozen object.

A section is owned by the room that reads it; all are gathered here so that a recipe can
be checked in full, and hashed, without importing Ray, torch or vLLM.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from limrank.errors import UserError


class _PathMark:
    """Marks a key whose value is a path: made absolute where the command is given."""


PathStr = Annotated[str, _PathMark()]
Unit = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())


class DataConfig(Section):
    format: Literal["beir", "pydocs", "hub"] = "pydocs"
    path: PathStr | None = Field(None, description="BEIR folder: corpus.jsonl, queries.jsonl, qrels/<split>.tsv")
    name: str | None = Field(None, description="hub benchmark, e.g. bright/biology, followir/core17, litsearch")
    split: str = "test"
    max_queries: PositiveInt | None = Field(None, description="select this many queries, evenly over the file")

    @model_validator(mode="after")
    def _source_given(self) -> DataConfig:
        if self.format == "beir" and not self.path:
            raise ValueError("data.path is needed for data.format=beir")
        if self.format == "hub" and not self.name:
            raise ValueError("data.name is needed for data.format=hub")
        return self


class FirstStageConfig(Section):
    kind: Literal["bm25", "run"] = "bm25"
    path: PathStr | None = Field(None, description="a TREC or JSON run, for kind=run")
    depth: PositiveInt = Field(100, description="candidates a query")
    k1: NonNegativeFloat = 0.9
    b: Unit = 0.4

    @model_validator(mode="after")
    def _run_given(self) -> FirstStageConfig:
        if self.kind == "run" and not self.path:
            raise ValueError("first_stage.path is needed for first_stage.kind=run")
        return self


class ModelConfig(Section):
    id: str = Field("smollm2-135m-instruct", description="a packaged model, a directory, or a hub id")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: float32 on a CPU, bfloat16 on a GPU"
    )
    max_model_len: PositiveInt | None = Field(None, description="context in tokens; null: the model's own")
    trust_remote_code: Literal[False] = False


class EngineConfig(Section):
    kind: Literal["vllm", "openai", "fake"] = "vllm"
    base_url: str | None = Field(None, description="for openai: the endpoint, ending in /v1")
    api_key_env: str = Field("OPENAI_API_KEY", description="environment variable that holds the key")
    request_timeout_s: float = Field(600.0, gt=0)
    max_in_flight: PositiveInt = Field(256, description="requests in the engine at a time")
    gpu_memory_utilization: Unit = 0.9
    kv_cache_gib: PositiveInt = Field(2, description="key-value cache on a CPU")
    enforce_eager: bool | None = Field(None, description="null: eager on a CPU, CUDA graphs on a GPU")
    latency_ms: NonNegativeFloat = Field(0.0, description="fake engine: time a request takes")
    fail_rate: Unit = Field(0.0, description="fake engine: share of prompts that raise a RowError")
    poison: str | None = Field(None, description="fake engine: a prompt that holds this text kills the engine")

    @model_validator(mode="after")
    def _endpoint_given(self) -> EngineConfig:
        if self.kind == "openai" and not self.base_url:
            raise ValueError("engine.base_url is needed for engine.kind=openai")
        return self


class ScoringConfig(Section):
    mode: Literal["none", "direct", "think", "budget"] = "direct"
    max_think_tokens: PositiveInt | None = Field(
        None, description="longest chain; null: 8192 for think (the paper's), 256 for budget"
    )
    prompt: str = Field("relevance", description="name of a prompt in limrank/prompts, or a file")

    @property
    def think_tokens(self) -> int:
        """The longest chain in tokens: 0 where the mode writes none."""
        defaults = {"none": 0, "direct": 0, "think": 8192, "budget": 256}
        if self.mode in ("none", "direct"):
            return 0
        return self.max_think_tokens or defaults[self.mode]


class WorkersConfig(Section):
    replicas: PositiveInt = 1
    tensor_parallel: PositiveInt = 1
    cpus: NonNegativeFloat = Field(1.0, description="logical CPUs that one replica takes")
    gpus: NonNegativeFloat | None = Field(
        None, description="GPUs a replica; null: tensor_parallel where there are GPUs"
    )


class SynthesisConfig(Section):
    seeds: PathStr | Literal["pydocs"] = Field("pydocs", description="a BEIR folder, a JSONL/Parquet file, or pydocs")
    personas: PathStr | None = Field(None, description="one a line or JSONL; null: the built-in list")
    max_seeds: PositiveInt | None = None
    kinds: tuple[Literal["daily", "expert"], ...] = ("daily", "expert")
    negatives: NonNegativeInt = Field(1, description="hard negatives written a query")
    mined_negatives: NonNegativeInt = Field(
        0, description="BM25 neighbours of the seed's passage, judged like the rest"
    )
    query_tokens: PositiveInt = 160
    chain_tokens: PositiveInt = 256
    passage_tokens: PositiveInt = 256
    judge_tokens: PositiveInt = 256
    temperature: NonNegativeFloat = 0.8
    top_p: Unit = 0.95
    agreement: Literal["verdict", "ranking"] = Field(
        "verdict",
        description="verdict: the judge's own true or false must be the intended label (the paper's); "
        "ranking: it must score a query's positive above the negative, for judges too weak to be calibrated",
    )

    @model_validator(mode="after")
    def _ranking_has_negatives(self) -> SynthesisConfig:
        if self.agreement == "ranking" and not self.negatives + self.mined_negatives:
            raise ValueError(
                "synthesis.agreement=ranking compares with negatives: negatives or mined_negatives above 0"
            )
        return self


class TrainingConfig(Section):
    train_file: PathStr | None = Field(None, description="train.jsonl: prompt, completion")
    method: Literal["lora", "full"] = "lora"
    target: Literal["direct", "think", "mixed"] = Field(
        "think", description="what the model learns to write: the label alone, chain + label, or both"
    )
    max_examples: PositiveInt | None = None
    epochs: PositiveInt = 7
    learning_rate: float = Field(3e-5, gt=0)
    warmup_ratio: Unit = 0.03
    batch_size: PositiveInt = Field(4, description="sequences a device and step")
    gradient_accumulation: PositiveInt = 8
    cutoff_tokens: PositiveInt = 2500
    lora_rank: PositiveInt = 32
    lora_alpha: PositiveInt = 64
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.01
    save_steps: PositiveInt = 250


class ServingConfig(Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    max_queued_requests: int = Field(256, ge=-1)


class EvaluationConfig(Section):
    run: PathStr | None = Field(None, description="a TREC or JSON run, instead of a rerank job's run_dir")
    measures: tuple[str, ...] = ("nDCG@10", "AP", "RR", "R@20", "P@5")
    bootstrap_samples: PositiveInt = 2000


class Job(Section):
    """What every job has."""

    job: str
    run_dir: PathStr
    seed: int = 12345
    allow_failures: bool = False


class SynthesizeJob(Job):
    job: Literal["synthesize"] = "synthesize"
    model: ModelConfig = ModelConfig()
    judge: ModelConfig | None = Field(None, description="a second model that judges; null: the writer")
    engine: EngineConfig = EngineConfig()
    judge_engine: EngineConfig | None = None
    workers: WorkersConfig = WorkersConfig()
    scoring: ScoringConfig = ScoringConfig(mode="budget")
    synthesis: SynthesisConfig = SynthesisConfig()


class TrainJob(Job):
    job: Literal["train"] = "train"
    model: ModelConfig = ModelConfig()
    workers: WorkersConfig = WorkersConfig()
    training: TrainingConfig

    @model_validator(mode="after")
    def _file_given(self) -> TrainJob:
        if not self.training.train_file:
            raise ValueError("training.train_file is needed")
        return self


class RerankJob(Job):
    job: Literal["rerank"] = "rerank"
    data: DataConfig = DataConfig()
    first_stage: FirstStageConfig = FirstStageConfig()
    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    scoring: ScoringConfig = ScoringConfig()
    workers: WorkersConfig = WorkersConfig()


class EvaluateJob(Job):
    job: Literal["evaluate"] = "evaluate"
    data: DataConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()


class ServeJob(Job):
    job: Literal["serve"] = "serve"
    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    scoring: ScoringConfig = ScoringConfig()
    workers: WorkersConfig = WorkersConfig()
    serving: ServingConfig = ServingConfig()


class PipelineJob(Job):
    """The whole line in one job; each stage has its own directory below ``run_dir``."""

    job: Literal["pipeline"] = "pipeline"
    data: DataConfig = DataConfig()
    first_stage: FirstStageConfig = FirstStageConfig()
    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    scoring: ScoringConfig = ScoringConfig()
    judge_scoring: ScoringConfig = ScoringConfig(mode="budget")
    workers: WorkersConfig = WorkersConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    training: TrainingConfig = TrainingConfig()
    serving: ServingConfig = ServingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


JOBS: dict[str, type[Job]] = {
    "synthesize": SynthesizeJob,
    "train": TrainJob,
    "rerank": RerankJob,
    "evaluate": EvaluateJob,
    "serve": ServeJob,
    "pipeline": PipelineJob,
}


def load_config(recipe: str | Path, overrides: list[str] | tuple[str, ...] = (), job: str | None = None) -> Job:
    """Read a recipe, apply ``key=value`` overrides, check everything, make paths absolute.

    Args:
        recipe: a YAML file.
        overrides: as after ``-s``: ``first_stage.depth=10``; the value is YAML, and
            ``null`` unsets the key, so that its default holds, as it does in the file.
        job: the command that reads it; a recipe that names another job is refused.

    Raises:
        UserError: naming the file and the line or key, with the nearest known key.
    """
    recipe = Path(recipe)
    values = _without_nulls(_read_yaml(recipe))
    for override in overrides:
        _apply_override(values, override)
    named = values.get("job", job)
    if not isinstance(named, str) or named not in JOBS:
        raise UserError(f"{recipe}: job: {named!r} is none of {', '.join(JOBS)}")
    if job is not None and named != job:
        raise UserError(f"{recipe}: job: this recipe is for `limrank {named}`, not `limrank {job}`")
    values["job"] = named
    return parse_config(values, source=str(recipe))


def parse_config(values: dict[str, Any], source: str = "config") -> Job:
    """A checked config from a plain dictionary with a ``job`` key (see load_config)."""
    try:
        config = JOBS[values["job"]].model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, JOBS[values["job"]], source)) from None
    return _absolute_paths(config)


def dump_config(config: Job) -> str:
    """The resolved config as YAML, in the order of the classes above."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_hash(parts: dict[str, Any]) -> str:
    """A short hash of everything that changes a job's rows, as the job lists it."""
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def is_uri(path: str) -> bool:
    """Whether a path names an object store (``s3://…``) instead of a local file."""
    return "://" in path


def path_values(config: BaseModel, prefix: str = "") -> dict[str, str]:
    """Every local path in a config: ``{"data.path": "/…"}``."""
    found = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            found |= path_values(value, f"{prefix}{name}.")
        elif isinstance(value, str) and _is_path(field) and not is_uri(value) and value not in _words(field):
            found[prefix + name] = value
    return found


def _is_path(field: Any) -> bool:
    marks = [*field.metadata]
    for argument in (field.annotation, *get_args(field.annotation)):
        marks += getattr(argument, "__metadata__", ())
    return any(isinstance(mark, _PathMark) for mark in marks)


def _words(field: Any) -> set[str]:
    """The words that stand for themselves where a path could: ``pydocs`` for seeds."""
    literals = [each for each in get_args(field.annotation) if get_origin(each) is Literal]
    return {word for each in literals for word in get_args(each)}


def _absolute_paths(config: Job) -> Job:
    updates = {key: _absolute(value) for key, value in path_values(config).items()}
    # These are a name or a path: a path where there is such a directory or file.
    for key, is_there in (
        ("model.id", Path.is_dir),
        ("judge.id", Path.is_dir),
        ("scoring.prompt", Path.is_file),
        ("judge_scoring.prompt", Path.is_file),
    ):
        section, name = key.split(".")
        value = getattr(getattr(config, section, None), name, None)
        if value is not None and is_there(Path(value).expanduser()):
            updates[key] = _absolute(value)
    return with_values(config, updates)


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def with_values(config: Job, updates: dict[str, Any]) -> Job:
    """A copy of a config with dotted keys set, checked again."""
    values = config.model_dump()
    for key, value in updates.items():
        _set(values, key.split("."), value)
    return type(config).model_validate(values)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{where}: not YAML: {problem}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values")
    return values


def _without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_nulls(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"-s {override}: should be key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"-s {override}: the value is not YAML") from None
    _set(values, key.split("."), value, source=f"-s {override}")


def _set(values: dict[str, Any], keys: list[str], value: Any, source: str = "") -> None:
    *parents, last = keys
    for parent in parents:
        below = values.get(parent)
        if below is None:
            below = values[parent] = {}
        if not isinstance(below, dict):
            raise UserError(f"{source}: {parent} is not a section")
        values = below
    if value is None:
        values.pop(last, None)
    else:
        values[last] = value


def _explain(error: ValidationError, job: type[Job], source: str) -> str:
    """One line for the first fault of a recipe, and how many more there are."""
    by_key: dict[str, Any] = {}
    for fault in error.errors(include_url=False):
        by_key.setdefault(_key(fault["loc"]), fault)
    key, first = next(iter(by_key.items()))
    if first["type"] == "extra_forbidden":
        message = f"{key}: unknown key"
        nearest = difflib.get_close_matches(key, _known_keys(job), n=1, cutoff=0.5)
        if nearest:
            message += f"; did you mean {nearest[0]}?"
    elif first["type"] == "value_error":
        message = str(first["ctx"]["error"])
    elif first["type"] == "model_type":
        message = f"{key}: should be a section of keys (got {first['input']!r})"
    elif first["type"] == "missing":
        message = f"{key}: is needed"
    else:
        what = first["msg"][0].lower() + first["msg"][1:]
        message = f"{key}: {what} (got {first['input']!r})"
    more = f" (and {len(by_key) - 1} more)" if len(by_key) > 1 else ""
    return f"{source}: {message}{more}"


def _key(location: tuple[int | str, ...]) -> str:
    """A fault's place as the recipe's key; pydantic also names the branch of a union."""
    parts = [str(part) for part in location]
    return ".".join(
        part for part in parts if part != "str" and not part.startswith(("function-", "constrained-", "literal["))
    )


def _known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for argument in (field.annotation, *get_args(field.annotation)):
            if isinstance(argument, type) and issubclass(argument, BaseModel):
                keys += _known_keys(argument, f"{prefix}{name}.")
    return keys
