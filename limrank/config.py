"""Job configurations: every recipe key, its type, its default, and the config hash.

A section is owned by the room that reads it; all are gathered here so that a recipe can
be checked in full, and hashed, without importing Ray, torch or vLLM. ``recipe.py``
reads the files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from ipaddress import ip_address
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from limrank.parsing import brief, is_unicode
from limrank.uris import credentials_in, is_uri

LONGEST_TEXT = 4095
"""Characters of a name, a path (Linux's own limit) or a URL. Prompts may be longer."""

_LONGEST_NAME = 255  # bytes of one part of a path


def is_prompt_text(prompt: str) -> bool:
    """Whether a prompt is given as its text, with places to fill, and not by a name or a file."""
    return "{{" in prompt


class PathMark:
    """Marks a key whose value is a path: made absolute where the command is given."""


def _can_be_path(path: str) -> str:
    if not is_uri(path) and any(len(part.encode()) > _LONGEST_NAME for part in path.split("/")):
        raise fault(f"is no path: a file's name has at most {_LONGEST_NAME} bytes")
    return path


PathStr = Annotated[str, PathMark(), AfterValidator(_can_be_path)]
Unit = Annotated[float, Field(ge=0, le=1)]


Seconds = Annotated[float, Field(gt=0, le=31_622_400)]
"""At most a year: clocks and timers take no number."""


class Section(BaseModel):
    """A part of a recipe. Of any key are refused: text that is empty or no text, numbers that
    are not finite or that no machine counts to, true or false for a number, and credentials."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _can_be_meant(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None  # a field's validator
        annotation = cls.model_fields[info.field_name].annotation
        if not _sections(annotation):  # which look at their own keys
            _check_value(value, takes_bool=_takes_bool(annotation) or is_text(annotation))
        return value


FAULT = "limrank_fault"
"""The type of a fault of one key's value whose message does not show the value."""


def fault(message: str) -> PydanticCustomError:
    """What a validator of one key raises: a sentence that goes on after the key's name."""
    return PydanticCustomError(FAULT, "{message}", {"message": message})


def _check_value(value: Any, *, takes_bool: bool) -> None:
    if isinstance(value, list | tuple):
        for each in value:
            _check_value(each, takes_bool=takes_bool)
    elif isinstance(value, dict):
        for key, each in value.items():
            _check_value(key, takes_bool=False)
            _check_value(each, takes_bool=takes_bool)
    elif isinstance(value, str):
        if not value.strip():
            raise fault("is empty; null unsets a key")
        if "\0" in value or not is_unicode(value):
            raise fault("holds a NUL or half a character, which is no text")
        if is_prompt_text(value):
            return
        if len(value) > LONGEST_TEXT:
            raise fault(f"is too long ({len(value)} characters; at most {LONGEST_TEXT})")
        if found := credentials_in(value):
            raise fault(
                f"holds credentials ({found}), and a recipe is stored and shown; they belong into the environment "
                "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, HF_TOKEN, the variable that engine.api_key_env names)"
            )
    elif isinstance(value, bool):
        if not takes_bool:
            raise fault(f"should not be {str(value).lower()}")
    elif isinstance(value, int) and value.bit_length() > 63:
        raise fault("is too large a number")


def known_fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a section and of the sections below it, by its dotted name."""
    for name, field in section.model_fields.items():
        yield prefix + name, field
        for below in _sections(field.annotation):
            yield from known_fields(below, f"{prefix}{name}.")


def is_text(annotation: Any) -> bool:
    """Whether a key of this type holds text, or one of some words, and nothing else (but null)."""
    kinds = [kind for kind in _alternatives(annotation) if kind is not NoneType]
    return bool(kinds) and all(
        kind is str or (get_origin(kind) is Literal and all(isinstance(word, str) for word in get_args(kind)))
        for kind in kinds
    )


def element_types(annotation: Any) -> list[Any]:
    """The types of the elements of a key that holds a list."""
    tuples = [kind for kind in _alternatives(annotation) if get_origin(kind) is tuple]
    return [each for kind in tuples for each in get_args(kind) if each is not Ellipsis]


def _alternatives(annotation: Any) -> list[Any]:
    """The types of a union, without what is only said of them."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for each in get_args(annotation) for kind in _alternatives(each)]
    return [annotation]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    return [kind for kind in _alternatives(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _takes_bool(annotation: Any) -> bool:
    return any(
        kind is bool or (get_origin(kind) is Literal and False in get_args(kind)) for kind in _alternatives(annotation)
    )


Rewriting = Literal["gpt4_reason", "claude-3-opus_reason", "Gemini-1.0_reason", "grit_reason", "llama3-70b_reason"]
"""BRIGHT's rewritten queries, by the configs of ``xlangai/BRIGHT``."""


class DataConfig(Section):
    format: Literal["beir", "pydocs", "hub", "pairs"] = Field(
        default="pydocs",
        description="where the queries come from. beir: a folder; pydocs: the built-in benchmark; hub: a "
        "benchmark of the Hugging Face hub; pairs: pairs of your own, without judgements",
    )
    path: PathStr | None = Field(
        default=None,
        description="beir: a folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv. pairs: a Parquet "
        "file, a folder of them or a saved dataset, with the columns query_id, query, doc_id and "
        "text. hub: a local copy, read in place of the hub",
    )
    name: str | None = Field(default=None, description="the hub benchmark: bright/biology, followir/core17, litsearch")
    revision: str | None = Field(
        default=None,
        description="git revision of the hub's data set. mteb: the revision that mteb pins for the benchmark; "
        "null: the newest",
    )
    first_stage_queries: Rewriting | PathStr | None = Field(
        default=None,
        description="rewritten queries for BM25: the name of one of BRIGHT's configs, or a JSONL file of _id and "
        "text. The reranker still sees the benchmark's queries. null: BM25 gets these too",
    )
    split: str = Field(
        default="test",
        description="the split whose queries and judgements are used. pydocs has dev and test; the hub's "
        "benchmarks have test",
    )
    query_template: str | None = Field(
        default=None,
        description="a sentence around each query for the reranker, with the placeholder {{ query }}: its text, a "
        "file, or the name of a prompt in limrank/prompts. The first stage gets the query alone. "
        "null: the benchmark's own sentence (BRIGHT's subsets have one); '{{ query }}': none",
    )
    max_queries: PositiveInt | None = Field(
        default=None,
        description="use this many queries: evenly spread over a benchmark's queries, or the first ones of pairs. "
        "null: all",
    )

    @model_validator(mode="after")
    def _source_given(self) -> DataConfig:
        if self.format in ("beir", "pairs") and not self.path:
            raise ValueError(f"data.path is needed for data.format={self.format}")
        if self.format == "hub" and not self.name:
            raise ValueError("data.name is needed for data.format=hub")
        return self

    @model_validator(mode="after")
    def _has_revisions(self) -> DataConfig:
        if self.revision and self.format != "hub":
            raise ValueError(f"data.revision is of a data set on the hub: data.format={self.format} has none")
        if self.revision and self.path:
            raise ValueError("data.revision is of a data set on the hub, and data.path is read in its place: unset one")
        return self


STEMMERS = frozenset(
    [
        "arabic",
        "armenian",
        "basque",
        "catalan",
        "czech",
        "danish",
        "dutch",
        "dutch_porter",
        "english",
        "esperanto",
        "estonian",
        "finnish",
        "french",
        "german",
        "greek",
        "hindi",
        "hungarian",
        "indonesian",
        "irish",
        "italian",
        "lithuanian",
        "nepali",
        "norwegian",
        "persian",
        "polish",
        "porter",
        "portuguese",
        "romanian",
        "russian",
        "serbian",
        "sesotho",
        "spanish",
        "swedish",
        "tamil",
        "turkish",
        "yiddish",
    ]
)
"""PyStemmer's (Snowball's)."""

STOPWORDS = frozenset(
    [
        "chinese",
        "danish",
        "dutch",
        "english",
        "english_plus",
        "french",
        "german",
        "italian",
        "korean",
        "norwegian",
        "portuguese",
        "russian",
        "spanish",
        "swedish",
        "turkish",
    ]
)
"""bm25s's lists; ``english`` is Lucene's."""

UNSPACED = frozenset(["chinese", "japanese", "korean", "thai", "lao", "khmer", "burmese", "tibetan", "cjk"])
"""Languages whose words are pairs of characters (see ``analyzer.py``)."""

LANGUAGES = (STEMMERS | STOPWORDS | UNSPACED) - {"porter", "dutch_porter", "english_plus"}

LANGUAGE_CODES = {
    "ar": "arabic", "ca": "catalan", "cs": "czech", "da": "danish", "de": "german", "el": "greek", "en": "english",
    "es": "spanish", "et": "estonian", "eu": "basque", "fa": "persian", "fi": "finnish", "fr": "french", "ga": "irish",
    "hi": "hindi", "hu": "hungarian", "hy": "armenian", "id": "indonesian", "it": "italian", "ja": "japanese",
    "km": "khmer", "ko": "korean", "lo": "lao", "lt": "lithuanian", "my": "burmese", "ne": "nepali", "nl": "dutch",
    "nb": "norwegian", "nn": "norwegian", "no": "norwegian", "pl": "polish", "pt": "portuguese", "ro": "romanian", "ru": "russian", "sr": "serbian",
    "sv": "swedish", "ta": "tamil", "th": "thai", "tr": "turkish", "yi": "yiddish", "zh": "chinese",
}  # fmt: skip


def _one_of(known: frozenset[str], what: str) -> BeforeValidator:
    """A word of a list, in any case, or the ISO 639 code of one; ``none`` is one of each list."""

    def check(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        word = LANGUAGE_CODES.get(value.lower(), value.lower())
        if word != "none" and word not in known:
            raise fault(f"no {what} {brief(value)}: take one of none, {', '.join(sorted(known))}")
        return word

    return BeforeValidator(check)


class FirstStageConfig(Section):
    kind: Literal["bm25", "run", "published"] = Field(
        default="bm25",
        description="bm25: our BM25. run: the run in path. published: the candidates that the benchmark itself "
        "gives (followir/…)",
    )
    path: PathStr | None = Field(default=None, description="for kind=run: a run in TREC or JSON form")
    depth: PositiveInt = Field(default=100, description="candidates a query")
    k1: NonNegativeFloat = Field(default=0.9, description="BM25's k1: how fast repeated words saturate")
    b: Unit = Field(default=0.4, description="BM25's b: how much a document's length counts")
    query_weights: Literal["count", "bm25"] = Field(
        default="count",
        description="how a query's words weigh. count: by their number in the query, as in Lucene. bm25: by their "
        "BM25 weight in the query, as in BRIGHT's own BM25, which suits queries of several sentences",
    )
    language: Annotated[str, _one_of(LANGUAGES | {"auto"}, "language")] = Field(
        default="english",
        description="language of the documents: BM25 takes its stemmer and stop words. none: neither. auto: "
        "detected from a sample of the documents, english where that fails. Text without blanks "
        "between words (Chinese, Japanese, Thai, …) is recognised by its script and split into pairs "
        "of characters",
    )
    stemmer: Annotated[str, _one_of(STEMMERS, "stemmer")] | None = Field(
        default=None, description="one of PyStemmer's stemmers, or none. null: the language's"
    )
    stopwords: Annotated[str, _one_of(STOPWORDS, "list of stop words")] | None = Field(
        default=None, description="one of bm25s's lists of stop words, or none. null: the language's"
    )

    @property
    def stems(self) -> str | None:
        """The stemmer that words are cut by; None: they stay whole."""
        name = self.stemmer or self.language
        return name if name in STEMMERS else None

    @property
    def word_list(self) -> str | None:
        """The list of stop words; None: every word counts. Pairs of characters take the English one,
        as Lucene's CJKAnalyzer does: a pair of a Chinese or Korean list may be a part of any word."""
        name = self.stopwords or ("english" if self.language in UNSPACED else self.language)
        return name if name in STOPWORDS else None

    @model_validator(mode="after")
    def _run_given(self) -> FirstStageConfig:
        if self.kind == "run" and not self.path:
            raise ValueError("first_stage.path is needed for first_stage.kind=run")
        return self


class ModelConfig(Section):
    id: str = Field(
        default="smollm2-135m-instruct", description="a packaged model, a directory, an s3:// URI of one, or a hub id"
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


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        # Not shown: it may be the key itself.
        raise fault("should be the name of an environment variable (letters, digits and _)")
    return name


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # brackets that are no IPv6 address, or a port out of range
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and port != 0
        and "#" not in url
        and "\\" not in url
        and url.split() == [url]
    )


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
    latency_ms: NonNegativeFloat = Field(
        default=0.0, description="fake engine: time that a request takes, in milliseconds"
    )
    fail_rate: Unit = Field(default=0.0, description="fake engine: share of prompts that raise a RowError")
    poison: str | None = Field(default=None, description="fake engine: a prompt that holds this text kills the engine")
    own_process: bool = Field(
        default=False, description="fake engine: keep a second process, as vLLM does; the engine dies with it"
    )
    start_s: NonNegativeFloat = Field(default=0.0, description="fake engine: time that the start takes, in seconds")
    fail_start: bool = Field(default=False, description="fake engine: fail at the end of the start")

    @model_validator(mode="after")
    def _endpoint_given(self) -> EngineConfig:
        if self.kind != "openai":
            return self
        if not self.base_url:
            raise ValueError("engine.base_url is needed for engine.kind=openai")
        if not _is_http(self.base_url):
            # Not shown: whatever else it may be, it may hold a password.
            raise ValueError("engine.base_url: should be http:// or https:// and a host, as in http://HOST:8000/v1")
        return self


Compatibility = Literal["rank1"]


class ScoringConfig(Section):
    mode: Literal["none", "direct", "think", "budget", "cascade"] = Field(
        default="direct",
        description="what the model writes before its answer. none: no model, the first stage's order. direct: "
        "nothing. think: a chain. budget: a short chain. cascade: a chain only where the order near "
        "the cut-off is in doubt",
    )
    max_think_tokens: PositiveInt | None = Field(
        default=None,
        description="longest chain in tokens. null: 8192 for think (the paper's), 256 for budget and cascade",
    )
    min_think_tokens: NonNegativeInt | None = Field(
        default=None,
        description="tokens that are kept for a chain where a prompt is long, which then loses the end of its passage; "
        "null: half of the context, or max_think_tokens where that is less; 0: none, the prompt keeps its length and "
        "the chain gets what it leaves (the paper's)",
    )
    compatibility: Compatibility | None = Field(
        default=None,
        description="rank1: an unfinished chain is cut as the reference cuts it, at its last . ! or ?, also "
        "inside a number. null: at its last sentence end",
    )
    prompt: str = Field(
        default="relevance", description="name of a prompt in limrank/prompts, a file, or the prompt's text"
    )
    cutoff: PositiveInt = Field(default=10, description="cascade: the order matters down to this rank")
    band: NonNegativeFloat = Field(
        default=0.5,
        description="cascade: two direct scores this near are in doubt, in standard deviations of their query's "
        "log-odds",
    )
    token_budget: PositiveInt | None = Field(
        default=None, description="cascade: generated tokens that the whole run may take. null: no limit"
    )

    @property
    def think_tokens(self) -> int:
        """The longest chain in tokens: 0 where the mode writes none."""
        defaults = {"none": 0, "direct": 0, "think": 8192, "budget": 256, "cascade": 256}
        if self.mode in ("none", "direct"):
            return 0
        return self.max_think_tokens or defaults[self.mode]


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


class SynthesisPrompts(Section):
    """Each is the name of a prompt in limrank/prompts, a file, or the text itself."""

    query: str = Field(default="synth_query", description="asks for a query, from a seed and a persona")
    chain: str = Field(default="synth_chain", description="asks for the reasoning before the passages")
    describe: str = Field(
        default="synth_describe",
        description="asks for a description of each passage. With chains: false the default is "
        "synth_describe_unreasoned",
    )
    passage: str = Field(default="synth_passage", description="asks for one passage by its description")
    judge: str = Field(
        default="synth_judge",
        description="asks the judge, for judge_by: answer. By label tokens the judge gets scoring.prompt",
    )


class TokenPrices(Section):
    """In any one currency, a million tokens."""

    prompt: NonNegativeFloat = Field(description="price of a million prompt tokens")
    generated: NonNegativeFloat = Field(description="price of a million generated tokens")
    cached_prompt: NonNegativeFloat | None = Field(
        default=None, description="price of a million prompt tokens from the prefix cache. null: as prompt"
    )


Shares = dict[Annotated[str, Field(pattern=r"\S")], Annotated[float, Field(ge=0, allow_inf_nan=False)]]
"""Value → weight; the weights need not add up to 1."""


class SynthesisConfig(Section):
    seeds: PathStr | Literal["pydocs"] = Field(
        default="pydocs",
        description="a BEIR folder, a JSONL or Parquet file, hub://OWNER/NAME[/CONFIG] (a dataset of the hub), or "
        "pydocs",
    )
    personas: PathStr | None = Field(
        default=None,
        description="a file with one persona a line, JSONL, or hub://OWNER/NAME/CONFIG. null: the built-in list",
    )
    max_seeds: PositiveInt | None = Field(
        default=None, description="use at most this many seeds, drawn by the run's seed. null: all"
    )
    license: str | None = Field(default=None, description="license of the seeds, for DATASET.md")
    kinds: tuple[Literal["daily", "expert"], ...] = Field(
        default=("daily", "expert"), min_length=1, description="kinds of query; each persona asks one of each kind"
    )
    personas_per_seed: PositiveInt = Field(default=1, description="personas for each seed")
    difficulties: Shares = Field(
        default={"direct": 1.0, "indirect": 1.0, "multi_hop": 1.0}, description="difficulty → share of the queries"
    )
    domains: Shares = Field(
        default={}, description="domain → share of the queries. Empty: the writer names each query's domain"
    )
    instruction_rate: Unit = Field(
        default=0.0, description="share of the queries with an instruction that narrows what is relevant"
    )
    chains: bool = Field(
        default=True,
        description="the writer reasons about what would and would not answer a query before it describes "
        "passages. false: this step is left out (the paper's ablation); the judge still writes chains",
    )
    prompts: SynthesisPrompts = Field(default=SynthesisPrompts(), description="the prompts of the steps")
    constrained: bool = Field(default=True, description="the engine holds structured steps to their JSON schema")
    negatives: NonNegativeInt = Field(default=1, description="hard negatives that are written for each query")
    mined_negatives: NonNegativeInt = Field(
        default=0,
        description="passages of the corpus for each query, judged like the rest: the seed's BM25 neighbours, or "
        "with a reranker the ones that it ranks highest among mine_depth of them",
    )
    mine_depth: PositiveInt = Field(
        default=20, description="number of BM25 neighbours that the reranker chooses the mined negatives from"
    )
    max_tokens: PositiveInt | None = Field(
        default=None,
        description="tokens that the run may take, prompts included. The run stops there and continues once the "
        "limit is raised. null: no limit",
    )
    prices: dict[Literal["writer", "judge", "reranker"], TokenPrices] = Field(
        default={}, description="prices of writer, judge and reranker, for the cost by step"
    )
    decontaminate: tuple[PathStr, ...] = Field(
        default=(),
        description="benchmarks: BEIR folders, or benchmark://NAME (pydocs, bright/biology, …; hub benchmarks "
        "also with ?revision=…). What repeats one of their queries or relevant documents is rejected",
    )
    near_duplicate: Annotated[float, Field(ge=0.7, le=1)] = Field(
        default=0.8,
        description="similarity from which two queries count as one (Jaccard of four-character shingles). 1: only "
        "the same words",
    )
    size: PositiveInt | None = Field(default=None, description="number of kept examples to export. null: all")
    oversample: Annotated[float, Field(ge=1)] | None = Field(
        default=None,
        description="the run ends once oversample × size examples are kept. Raise it and the same command "
        "continues. null: every seed is used",
    )
    select: Literal["coverage", "random"] = Field(
        default="coverage",
        description="how the exported examples are chosen. coverage: spread over kind, difficulty and domain, "
        "hard ones first; random: at random",
    )
    embedder: str | None = Field(
        default=None,
        description="coverage: a sentence-embedding model (a directory or a hub id) that measures how far apart "
        "queries are. null: by their words",
    )
    query_tokens: PositiveInt = Field(
        default=160, description="length of a written query and of its instruction, in tokens of about four characters"
    )
    chain_tokens: PositiveInt = Field(
        default=256, description="length in tokens of the writer's chain, and of the descriptions of passages"
    )
    passage_tokens: PositiveInt = Field(default=256, description="longest passage in tokens")
    judge_tokens: PositiveInt = Field(
        default=256, description="longest chain of the judge in tokens, where scoring.max_think_tokens is not set"
    )
    temperature: NonNegativeFloat = Field(default=0.8, description="the writer's sampling temperature")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.95, description="the writer's nucleus sampling threshold"
    )
    judge_by: Literal["label_tokens", "answer"] = Field(
        default="label_tokens",
        description="how the judge's verdict is read. label_tokens: p(true) of the answer token. answer: the true "
        "or false that the judge writes in a chat, without a probability, for endpoints that give no "
        "log-probabilities",
    )
    agreement: Literal["verdict", "ranking"] = Field(
        default="verdict",
        description="what the judge has to agree with. verdict: its own true or false is the intended label (the "
        "paper's). ranking: it scores a query's positive above the negative, for judges too weak to "
        "be calibrated",
    )
    judge_margin: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.1,
        description="for agreement by verdict: a p(true) this near to one half is unsure, and the example is rejected",
    )

    @property
    def enough(self) -> int | None:
        """How many kept examples end the run, before they are looked over as a pool; None: no number does."""
        return None if self.oversample is None or self.size is None else math.ceil(self.oversample * self.size)

    def prompt_names(self) -> dict[str, str]:
        """The prompt of each step that is asked."""
        names = self.prompts.model_dump()
        if not self.chains:
            del names["chain"]
            if names["describe"] == SynthesisPrompts.model_fields["describe"].default:
                names["describe"] = "synth_describe_unreasoned"
        return names

    def hashed(self, exclude: set[str]) -> dict[str, Any]:
        """The keys that rows depend on, for :func:`config_hash`. One that came after run directories
        were there is left out at its default: their hash stays as it was."""
        newer = {"oversample", "chains"}
        values = self.model_dump(exclude=exclude)
        return {
            key: value
            for key, value in values.items()
            if key not in newer or value != type(self).model_fields[key].default
        }

    @property
    def chooses_by_embedding(self) -> bool:
        return self.size is not None and self.select == "coverage"

    @model_validator(mode="after")
    def _shares_can_be_kept(self) -> SynthesisConfig:
        if unknown := set(self.difficulties) - {"direct", "indirect", "multi_hop"}:
            raise ValueError(f"synthesis.difficulties: {', '.join(sorted(unknown))}: not direct, indirect or multi_hop")
        for key in ("difficulties", "domains"):
            if (shares := getattr(self, key)) and not sum(shares.values()):
                raise ValueError(f"synthesis.{key}: every share is 0")
        if not self.difficulties:
            raise ValueError("synthesis.difficulties is empty")
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError("synthesis.kinds: one is there twice")
        return self

    @model_validator(mode="after")
    def _enough_of_something(self) -> SynthesisConfig:
        if self.oversample is not None and self.size is None:
            raise ValueError("synthesis.oversample is times synthesis.size, which is not set")
        return self

    @model_validator(mode="after")
    def _ranking_has_negatives(self) -> SynthesisConfig:
        if self.agreement == "ranking" and not self.negatives + self.mined_negatives:
            raise ValueError(
                "synthesis.agreement=ranking compares with negatives: negatives or mined_negatives above 0"
            )
        if self.agreement == "ranking" and self.judge_by == "answer":
            raise ValueError("synthesis.agreement=ranking needs probabilities: judge_by=label_tokens")
        return self


Objective = Literal["label", "binary", "softmax", "ranknet"]


class TrainingConfig(Section):
    train_file: PathStr | None = Field(
        default=None,
        description="training examples: prompt and completion, alpaca or pairs, as JSON, Parquet or a saved dataset",
    )
    method: Literal["lora", "full"] = Field(
        default="lora", description="lora: train an adapter and merge it. full: train all weights"
    )
    target: Literal["direct", "think", "mixed"] = Field(
        default="think",
        description="what the model learns to write. direct: the label; think: a chain and the label; mixed: half "
        "of each",
    )
    objective: Objective = Field(
        default="label",
        description="label: cross-entropy of what the model is to write (the paper's). The others need "
        "target=direct and compare the log-odds of the label. binary: one passage at a time; softmax, "
        "ranknet: a query's relevant passage above its others. They do not make labels likely among "
        "all tokens, which an endpoint that returns only its likeliest tokens needs",
    )
    max_examples: PositiveInt | None = Field(
        default=None,
        description="use at most this many examples, drawn by the run's seed, half of each label where there are "
        "enough. null: all",
    )
    epochs: PositiveInt = Field(default=7, description="passes over the examples")
    learning_rate: float = Field(default=3e-5, gt=0, allow_inf_nan=False, description="highest learning rate")
    warmup_ratio: Unit = Field(default=0.03, description="share of the steps in which the learning rate rises")
    batch_size: PositiveInt = Field(
        default=4, description="sequences in a forward pass. With softmax or ranknet: queries, with all their passages"
    )
    gradient_accumulation: PositiveInt = Field(default=8, description="forward passes in a step")
    cutoff_tokens: PositiveInt = Field(
        default=2500,
        description="longest example in tokens. A longer one loses the end of its chain, then of its passage",
    )
    sharding: Literal["none", "full"] = Field(
        default="none",
        description="full: each worker holds a part of the weights, gradients and optimizer state (FSDP2), for "
        "models that are too large for one worker. none: each worker holds all",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations again in the backward pass: less memory, a third more time"
    )
    lora_rank: PositiveInt = Field(default=32, description="rank of the adapter")
    lora_alpha: PositiveInt = Field(default=64, description="the adapter's scale (alpha)")
    lora_targets: tuple[str, ...] = Field(
        default=(),
        description="linear layers that get an adapter, by the last part of their names (q_proj, …). Empty: all",
    )
    lora_embeddings: Literal["added", "all"] = Field(
        default="added",
        description="embeddings that are trained with the adapter. added: the rows of the think tokens, where "
        "these are added. all: the whole matrices (the paper's)",
    )
    validation_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.01, description="share of the examples that is held out, in whole queries"
    )
    save_steps: PositiveInt = Field(default=250, description="steps between checkpoints")
    keep_checkpoints: PositiveInt = Field(
        default=1,
        description="number of best checkpoints that are kept with the last one. Without held-out data: the "
        "checkpoints before the last one",
    )
    eval_steps: PositiveInt | None = Field(
        default=None, description="steps between evaluations on held-out data. null: at the end of each epoch"
    )
    patience: PositiveInt | None = Field(
        default=None,
        description="training stops after this many evaluations in a row without an improvement. null: never",
    )
    export: Literal["best", "last"] = Field(
        default="best",
        description="which weights become the model. best: those of the best evaluation on held-out data; last: "
        "those of the last step (the paper's)",
    )
    tensorboard: bool = Field(default=False, description="also write the metrics to tensorboard/")

    @model_validator(mode="after")
    def _log_odds_are_direct(self) -> TrainingConfig:
        if self.objective != "label" and self.target != "direct":
            raise ValueError(
                f"training.objective={self.objective} looks at labels that no chain gives away: training.target=direct"
            )
        return self

    @model_validator(mode="after")
    def _adapters_are_of_lora(self) -> TrainingConfig:
        if self.lora_targets and self.method != "lora":
            raise ValueError(
                f"training.lora_targets names layers for an adapter: training.method={self.method} has none"
            )
        if self.lora_embeddings == "all" and self.method != "lora":
            raise ValueError(
                f"training.lora_embeddings is said of an adapter: training.method={self.method} trains all"
            )
        return self


class DevConfig(Section):
    """What a model in training is tried on: it reranks directly, and nDCG@10 is measured."""

    data: DataConfig = Field(description="the benchmark")
    first_stage: FirstStageConfig = Field(default=FirstStageConfig(depth=20), description="the candidates")

    @model_validator(mode="after")
    def _rewritten_queries_are_asked(self) -> DevConfig:
        _ask_rewritten(self.data, self.first_stage, "dev.")
        return self


def _host(host: str) -> str:
    try:
        ip_address(host)
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", host):
            raise fault("should be an address or a host's name, without a port: 127.0.0.1, 0.0.0.0, ::1") from None
    return host


def _queue(places: int) -> int:
    if not places:
        raise fault("should be above 0, or -1 for no limit")
    return places


class ServingConfig(Section):
    host: Annotated[str, AfterValidator(_host)] = Field(
        default="127.0.0.1",
        description="address to listen on. There is no authentication: anyone who reaches the address may use the "
        "server",
    )
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=8000, description="port to listen on. 0: any free port")
    max_queued_requests: Annotated[int, AfterValidator(_queue)] = Field(
        default=256,
        ge=-1,
        description="requests that may wait, beyond those that the engines work on; one more is answered with 503 "
        "and Retry-After. -1: no limit",
    )


class EvaluationConfig(Section):
    run: PathStr | None = Field(
        default=None, description="a run in TREC or JSON form, in place of a rerank job's run_dir"
    )
    compare: tuple[PathStr, ...] = Field(
        default=(),
        description="run directories of rerank jobs: quality against generated tokens, in place of one run's "
        "evaluation",
    )
    measures: tuple[str, ...] = Field(
        default=("nDCG@10", "AP", "RR", "R@20", "P@5"), description="measures by ir_measures' names"
    )
    bootstrap_samples: PositiveInt = Field(
        default=2000, le=1_000_000, description="samples for the confidence intervals"
    )


def _role(default: Role, model: ModelConfig | None, engine: EngineConfig | None, workers: WorkersConfig | None) -> Role:
    return Role(model or default.model, engine or default.engine, workers or default.workers)


def _chain_fits(model: ModelConfig, scoring: ScoringConfig, key: str = "scoring") -> None:
    """Raises ValueError where what is kept for a chain is all of the context."""
    kept = min(scoring.min_think_tokens or 0, scoring.think_tokens)
    if model.max_model_len and kept >= model.max_model_len:
        raise ValueError(
            f"{key}.min_think_tokens {kept} leaves no room for a prompt in model.max_model_len {model.max_model_len}"
        )


def _own_engine(engine: EngineConfig | None, key: str = "engine") -> None:
    """Raises ValueError for an engine that is a served reranker: it judges, and writes nothing."""
    if engine is not None and engine.kind == "serve":
        raise ValueError(f"{key}.kind=serve: only a rerank job sends its work to a served reranker")


class Job(Section):
    """What every job has."""

    job: str = Field(description="the job's name")
    run_dir: PathStr = Field(
        description="the run directory: new, empty, or a run of the same config. rerank and train also take s3://…"
    )
    seed: int = Field(default=12345, ge=0, le=2**53, description="seed of everything that is drawn at random")
    allow_failures: bool = Field(default=False, description="end with exit code 0 although rows failed")
    notes: tuple[str, ...] = Field(default=(), description="sentences for readers of the recipe; --dry-run prints them")


class Role(NamedTuple):
    """A model at work: what runs it, and in which pool."""

    model: ModelConfig
    engine: EngineConfig
    workers: WorkersConfig


class SynthesizeJob(Job):
    job: Literal["synthesize"] = Field(default="synthesize", description="the job's name")
    model: ModelConfig = Field(default=ModelConfig(), description="the writer")
    judge: ModelConfig | None = Field(default=None, description="a second model that judges. null: the writer judges")
    engine: EngineConfig = Field(default=EngineConfig(), description="the writer's engine")
    judge_engine: EngineConfig | None = Field(default=None, description="the judge's engine. null: as engine")
    workers: WorkersConfig = Field(default=WorkersConfig(), description="the writer's pool")
    judge_workers: WorkersConfig | None = Field(
        default=None,
        description="the pool of a judge that is a model of its own; of a range it takes the lower bound. null: "
        "as workers",
    )
    reranker: ModelConfig | None = Field(
        default=None,
        description="the reranker that is to be improved. It chooses mined negatives and says which examples are "
        "hard. null: BM25 chooses, and the judge's score says",
    )
    reranker_engine: EngineConfig | None = Field(default=None, description="the reranker's engine. null: as engine")
    reranker_workers: WorkersConfig | None = Field(default=None, description="the reranker's pool, as judge_workers")
    scoring: ScoringConfig = Field(default=ScoringConfig(mode="budget"), description="how the judge scores")
    synthesis: SynthesisConfig = Field(
        default=SynthesisConfig(), description="what is written, judged, rejected and chosen"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_model_is_one_engine(cls, values: Any) -> Any:
        """A judge or reranker that is the writer's model is all of it where the recipe does not say."""
        model = values.get("model", {}) if isinstance(values, dict) else None
        if not isinstance(model, dict):
            return values
        same = {
            role: model | given
            for role in ("judge", "reranker")
            if isinstance(given := values.get(role), dict) and given.get("id", model.get("id")) == model.get("id")
        }
        return values | same

    @model_validator(mode="after")
    def _engines_of_its_own(self) -> SynthesizeJob:
        _own_engine(self.engine)
        _own_engine(self.judge_engine, "judge_engine")
        _own_engine(self.reranker_engine, "reranker_engine")
        if self.reranker is None and (self.reranker_engine or self.reranker_workers):
            raise ValueError("reranker_engine and reranker_workers need a model: reranker.id")
        roles = self.roles()
        _chain_fits(roles["judge"].model, self.scoring)
        for name in ("judge", "reranker"):
            if getattr(self, f"{name}_workers") and roles[name][:2] == roles["writer"][:2]:
                raise ValueError(f"{name}_workers: the {name} is the writer's own model, and works in its pool")
        return self

    def roles(self) -> dict[str, Role]:
        """``writer``, ``judge`` and, where the recipe has one, ``reranker``. What it does not
        say of these is as it is of the writer."""
        writer = Role(self.model, self.engine, self.workers)
        roles = {"writer": writer, "judge": _role(writer, self.judge, self.judge_engine, self.judge_workers)}
        if self.reranker:
            roles["reranker"] = _role(writer, self.reranker, self.reranker_engine, self.reranker_workers)
        return roles


class TrainJob(Job):
    job: Literal["train"] = Field(default="train", description="the job's name")
    model: ModelConfig = Field(default=ModelConfig(), description="the model that training starts from")
    workers: WorkersConfig = Field(default=WorkersConfig(), description="the training workers")
    training: TrainingConfig = Field(description="examples, objective and optimizer")
    dev: DevConfig | None = Field(
        default=None,
        description="a small benchmark that the model in training reranks, separate from the examples and from "
        "the test",
    )

    @model_validator(mode="after")
    def _file_given(self) -> TrainJob:
        if not self.training.train_file:
            raise ValueError("training.train_file is needed")
        if self.training.patience and not (self.dev or self.training.validation_share):
            raise ValueError("training.patience needs held-out data: dev, or training.validation_share")
        if self.dev:
            _need_benchmark(self.dev.data)
        if self.training.tensorboard and is_uri(self.run_dir):
            raise ValueError(f"training.tensorboard: its files need a local run_dir, which {self.run_dir} is not")
        if self.workers.tensor_parallel > 1:
            raise ValueError(
                "workers.tensor_parallel is for engines; training takes workers.replicas and training.sharding"
            )
        return self


class RerankJob(Job):
    job: Literal["rerank"] = Field(default="rerank", description="the job's name")
    data: DataConfig = Field(default=DataConfig(), description="queries and documents")
    first_stage: FirstStageConfig = Field(default=FirstStageConfig(), description="the candidates of each query")
    model: ModelConfig = Field(default=ModelConfig(), description="the reranker")
    engine: EngineConfig = Field(default=EngineConfig(), description="what runs the model")
    scoring: ScoringConfig = Field(default=ScoringConfig(), description="how a pair is scored")
    workers: WorkersConfig = Field(default=WorkersConfig(), description="the pool of engines")

    @model_validator(mode="after")
    def _rewritten_queries_are_asked(self) -> RerankJob:
        _ask_rewritten(self.data, self.first_stage)
        return self

    @model_validator(mode="after")
    def _budget_can_be_kept(self) -> RerankJob:
        _chain_fits(self.model, self.scoring)
        if self.engine.kind == "serve" and self.scoring.mode == "cascade" and self.scoring.token_budget:
            raise ValueError(
                "scoring.token_budget is a whole run's, which a server (engine.kind=serve) knows nothing of"
            )
        return self


class EvaluateJob(Job):
    job: Literal["evaluate"] = Field(default="evaluate", description="the job's name")
    data: DataConfig | None = Field(
        default=None,
        description="the benchmark with the judgements. null: the one that the rerank job's run directory holds",
    )
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="the run and the measures")

    @model_validator(mode="after")
    def _judged(self) -> EvaluateJob:
        if self.data is not None:
            _need_benchmark(self.data)
        return self


class ServeJob(Job):
    job: Literal["serve"] = Field(default="serve", description="the job's name")
    model: ModelConfig = Field(default=ModelConfig(), description="the reranker")
    engine: EngineConfig = Field(default=EngineConfig(), description="what runs the model")
    scoring: ScoringConfig = Field(default=ScoringConfig(), description="how a pair is scored")
    workers: WorkersConfig = Field(default=WorkersConfig(), description="the pool of engines")
    serving: ServingConfig = Field(default=ServingConfig(), description="address and limits of the server")

    @model_validator(mode="after")
    def _engine_of_its_own(self) -> ServeJob:
        _own_engine(self.engine)
        _chain_fits(self.model, self.scoring)
        return self


class PipelineJob(Job):
    """The whole line in one job; each stage has its own directory below ``run_dir``."""

    job: Literal["pipeline"] = Field(default="pipeline", description="the job's name")
    data: DataConfig = Field(default=DataConfig(), description="the benchmark that is reranked and evaluated")
    first_stage: FirstStageConfig = Field(default=FirstStageConfig(), description="the candidates of each query")
    model: ModelConfig = Field(
        default=ModelConfig(), description="writer, judge, base reranker, and the model that training starts from"
    )
    engine: EngineConfig = Field(default=EngineConfig(), description="what runs the models")
    scoring: ScoringConfig = Field(default=ScoringConfig(), description="how the rerankers score")
    judge_scoring: ScoringConfig = Field(default=ScoringConfig(mode="budget"), description="how the judge scores")
    workers: WorkersConfig = Field(default=WorkersConfig(), description="the pool of engines")
    synthesis: SynthesisConfig = Field(default=SynthesisConfig(), description="as in a synthesize job")
    training: TrainingConfig = Field(
        default=TrainingConfig(), description="as in a train job; train_file is the pipeline's own"
    )
    serving: ServingConfig = Field(default=ServingConfig(), description="address and limits of the server")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="the measures")

    @model_validator(mode="after")
    def _judged_and_engine_of_its_own(self) -> PipelineJob:
        _need_benchmark(self.data)
        _ask_rewritten(self.data, self.first_stage)
        _own_engine(self.engine)
        _chain_fits(self.model, self.scoring)
        _chain_fits(self.model, self.judge_scoring, "judge_scoring")
        return self


def _need_benchmark(data: DataConfig) -> None:
    if data.format == "pairs":
        raise ValueError("data.format: pairs carry no judgements, which this job needs; `limrank rerank` takes them")


def _ask_rewritten(data: DataConfig, first_stage: FirstStageConfig, prefix: str = "") -> None:
    """Raises ValueError for rewritten queries that nobody would be asked."""
    if not data.first_stage_queries:
        return
    if data.format == "pairs":
        raise ValueError(f"{prefix}data.first_stage_queries: pairs have no first stage to ask")
    if first_stage.kind != "bm25":
        raise ValueError(
            f"{prefix}data.first_stage_queries is what BM25 is asked, which {prefix}first_stage.kind="
            f"{first_stage.kind} does not do: unset one"
        )


JOBS: dict[str, type[Job]] = {
    "synthesize": SynthesizeJob,
    "train": TrainJob,
    "rerank": RerankJob,
    "evaluate": EvaluateJob,
    "serve": ServeJob,
    "pipeline": PipelineJob,
}


def dump_config(config: Job) -> str:
    """The resolved config as YAML, in the order of the classes above."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_hash(parts: dict[str, Any]) -> str:
    """A short hash of everything that changes a job's rows, as the job lists it."""
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
