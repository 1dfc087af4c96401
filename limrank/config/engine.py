"""``model``, ``engine`` and ``workers``: which model, what runs it, and how many of those."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveInt,
    model_validator,
)

from limrank.config.base import (
    Fraction,
    Seconds,
    Section,
    fault,
)

RERANKER = "smollm2-135m-rerank"
"""The model of a rerank or a serve job whose recipe names none."""


class ModelConfig(Section):
    id: str = Field(
        default="smollm2-135m-instruct",
        description="a packaged model, a directory, an s3:// URI of one, or a hub id. The default of rerank and serve is "
        "smollm2-135m-rerank",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="what the model computes in. auto: bfloat16 where the processor has instructions for it, else "
        "float32",
    )
    max_model_len: PositiveInt | None = Field(default=None, description="context in tokens. null: the model's own")
    trust_remote_code: Literal[False] = Field(
        default=False, description="only false is accepted: limrank runs no code from a model's repository"
    )


def as_reranker(model: ModelConfig) -> ModelConfig:
    """The model, or the packaged reranker with its other keys where it names none."""
    return model if "id" in model.model_fields_set else model.model_copy(update={"id": RERANKER})


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        # The message leaves the value out: it may be the key itself.
        raise fault("should be the name of an environment variable (letters, digits and _)")
    return name


def _is_http(url: str) -> bool:
    try:
        split = urlsplit(url)
        port = split.port
    except ValueError:  # not an IPv6 address in brackets, or a port out of range
        return False
    return (
        split.scheme in ("http", "https")
        and bool(split.hostname)
        and port != 0
        and "#" not in url
        and "\\" not in url
        and url.split() == [url]
    )


class FaultConfig(Section):
    latency_ms: NonNegativeFloat = Field(default=0.0, description="time that a request takes, in milliseconds")
    fail_rate: Fraction = Field(default=0.0, description="share of prompts that raise a RowError")
    poison: str | None = Field(default=None, description="a prompt that holds this text crashes the engine")
    own_process: bool = Field(
        default=False, description="keep a second process, as vLLM does; the engine ends when it crashes"
    )
    start_s: NonNegativeFloat = Field(default=0.0, description="time that the start takes, in seconds")
    fail_start: bool = Field(default=False, description="fail at the end of the start")


def _with_fault_section(values: Mapping[str, Any]) -> dict[str, Any]:
    """An engine's keys with those of ``fault`` in their section, also where they are given without it."""
    flat = {name: values[name] for name in FaultConfig.model_fields if name in values}
    others = {name: value for name, value in values.items() if name not in flat}
    if not flat:
        return others
    nested = others.get("fault", {})
    if isinstance(nested, FaultConfig):
        nested = nested.model_dump(exclude_unset=True)
    if not isinstance(nested, Mapping):  # pydantic refuses it: it is not a section
        return others
    for name, value in flat.items():
        if name in nested and nested[name] != value:
            raise fault(f"has {name} and fault.{name}, two names of one key, with different values")
    return others | {"fault": {**nested, **flat}}


def _describe_aliases(schema: dict[str, Any]) -> None:
    """Adds the names that ``fault``'s keys have without their section to the JSON Schema of an engine."""
    faults = FaultConfig.model_json_schema()["properties"]
    schema["properties"] |= {name: described | {"deprecated": True} for name, described in faults.items()}


class EngineConfig(Section):
    kind: Literal["vllm", "openai", "serve", "fake"] = Field(
        default="vllm",
        description="vllm: vLLM in the worker. openai: an OpenAI-compatible endpoint. serve: a running `limrank "
        "serve`, for rerank jobs. fake: a deterministic engine for tests, without a model",
    )
    base_url: str | None = Field(
        default=None,
        description="openai: the endpoint, ending in /v1. serve: the URL of a running `limrank serve`; null: the "
        "one on this Ray cluster",
    )
    api_key_env: Annotated[str, AfterValidator(_variable)] = Field(
        default="OPENAI_API_KEY", description="openai: name of the environment variable that holds the API key"
    )
    request_timeout_s: Seconds = Field(
        default=600.0,
        description="openai: time limit of one request, in seconds. serve: how long the server may be without an "
        "engine",
    )
    startup_timeout_s: Seconds = Field(
        default=1800.0, description="time until the first engine has to be up, in seconds"
    )
    max_in_flight: PositiveInt | None = Field(
        default=None, description="requests in the engine at a time. null: as many as the engine runs at once"
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.9, description="vllm: share of a GPU's memory that the engine takes"
    )
    kv_cache_gib: PositiveInt = Field(default=2, description="vllm: key-value cache on a CPU, in GiB")
    enforce_eager: bool | None = Field(
        default=None, description="vllm: run without CUDA graphs. null: eager on a CPU, CUDA graphs on a GPU"
    )
    fault: FaultConfig = Field(default=FaultConfig(), description="fake: its delays and faults")

    # Recipes and run directories from before engine.fault have its keys in the engine's own section.
    former_names: ClassVar[dict[str, str]] = {name: f"fault.{name}" for name in FaultConfig.model_fields}
    model_config = ConfigDict(json_schema_extra=_describe_aliases)

    @model_validator(mode="before")
    @classmethod
    def _read_aliases(cls, values: Any) -> Any:
        return _with_fault_section(values) if isinstance(values, Mapping) else values

    def hashed(self, exclude: Collection[str] = ()) -> dict[str, Any]:
        """The values for a config hash. The keys of ``fault`` stand in the engine's own section, as they
        did before ``fault`` was a section, so that older run directories can be resumed.

        Args:
            exclude: keys that change no row.
        """
        values = self.model_dump()
        return {key: value for key, value in (values | values.pop("fault")).items() if key not in exclude}

    @model_validator(mode="after")
    def _endpoint_given(self) -> EngineConfig:
        if self.kind != "openai":
            return self
        if not self.base_url:
            raise ValueError("engine.base_url is needed for engine.kind=openai")
        if not _is_http(self.base_url):
            # The message leaves the value out: it may hold a password.
            raise ValueError("engine.base_url: should be http:// or https:// and a host, as in http://HOST:8000/v1")
        return self


class WorkersConfig(Section):
    replicas: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        default=1,
        description="number of engines. [min, max]: the pool grows and shrinks between the two. Training has a "
        "fixed number of workers and takes min",
    )
    tensor_parallel: PositiveInt = Field(
        default=1, description="GPUs that one engine is spread over (tensor parallelism)"
    )
    cpus: NonNegativeFloat = Field(default=1.0, description="logical CPUs that one replica takes")
    gpus: NonNegativeFloat | None = Field(
        default=None, description="GPUs that one replica takes. null: tensor_parallel where the cluster has GPUs"
    )
    accelerator: str | None = Field(
        default=None, description="use only nodes with this accelerator, by Ray's names: H100, A100, L4"
    )

    @model_validator(mode="after")
    def _range_in_order(self) -> WorkersConfig:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"workers.replicas: [min, max] with min above max: {[self.min_replicas, self.max_replicas]}"
            )
        return self

    @property
    def min_replicas(self) -> int:
        return self.replicas if isinstance(self.replicas, int) else self.replicas[0]

    @property
    def max_replicas(self) -> int:
        return self.replicas if isinstance(self.replicas, int) else self.replicas[1]
