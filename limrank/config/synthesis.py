"""``synthesis``: how training examples are written, judged and selected."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from limrank.config.base import (
    Fraction,
    PathStr,
    Section,
)
from limrank.config.mining import RoundTripConfig, TeacherConfig


class SynthesisPrompts(Section):
    """Each prompt is the name of one in limrank/prompts, a file, or the text itself."""

    query: str = Field(default="synth_query", description="asks for a query, from a seed and a persona")
    passage_query: str = Field(
        default="synth_passage_query",
        description="source: passages: asks for a query that a passage answers, for a persona. The default with "
        "writer: tuned is writer, with examples synth_passage_query_examples",
    )
    chain: str = Field(default="synth_chain", description="asks for the reasoning before passages are written")
    describe: str = Field(
        default="synth_describe",
        description="asks for a description of each passage. The default with chains: false is "
        "synth_describe_unreasoned",
    )
    passage: str = Field(default="synth_passage", description="asks for one passage from its description")
    judge: str = Field(
        default="synth_judge",
        description="asks the judge, with judge_by: answer. With label_tokens the judge gets scoring.prompt",
    )


class TokenPrices(Section):
    """Prices of a million tokens, in any one currency."""

    prompt: NonNegativeFloat = Field(description="price of a million prompt tokens")
    generated: NonNegativeFloat = Field(description="price of a million generated tokens")
    cached_prompt: NonNegativeFloat | None = Field(
        default=None, description="price of a million prompt tokens from the prefix cache. null: as prompt"
    )


Shares = dict[Annotated[str, Field(pattern=r"\S")], Annotated[float, Field(ge=0, allow_inf_nan=False)]]
"""Value → weight; the weights need not add up to 1."""


_OF_SEEDS = (
    *("personas_per_seed", "chains", "chain_tokens", "passage_tokens"),
    *("judge_tokens", "judge_by", "agreement", "judge_margin"),
)
"""Keys that change nothing with ``source: passages``."""

_OF_WRITING = (
    *("queries_per_passage", "personas", "kinds", "difficulties", "domains", "instruction_rate", "prompts"),
    *("constrained", "query_tokens", "temperature", "top_p", "oversample", "max_tokens"),
)
"""Keys that change nothing with ``writer: none``."""

_OF_EXAMPLES = ("examples", "examples_shown")

_OF_PASSAGES = ("source", "writer", *_OF_EXAMPLES, "queries_per_passage", "round_trip", "teacher", "list_size")


class SynthesisConfig(Section):
    source: Literal["seeds", "passages"] = Field(
        default="seeds",
        description="seeds: queries and passages are written from seeds (the paper's). passages: queries are written "
        "for the passages of a corpus, and their negatives are mined there",
    )
    seeds: PathStr | Literal["pydocs"] = Field(
        default="pydocs",
        description="a BEIR folder, a JSONL or Parquet file, hub://OWNER/NAME[/CONFIG] (a dataset of the hub), or "
        "pydocs. With source: passages only its passages are read, unless writer is none",
    )
    writer: Literal["prompted", "tuned", "none"] = Field(
        default="prompted",
        description="source: passages: how the writer is asked. prompted: a chat model gets instructions. tuned: the "
        "model of a train job with training.task: writer continues the passage. none: no engine starts, and the "
        "seeds' own queries are taken, to find and grade their candidates",
    )
    examples: PathStr | Literal["pydocs"] | None = Field(
        default=None,
        description="source: passages, writer: prompted: queries with their passages that the writer is shown as "
        "examples; a source as for seeds. null: none",
    )
    examples_shown: Annotated[int, Field(ge=1, le=32)] = Field(
        default=3, description="number of examples in a prompt, drawn for each query by the run's seed"
    )
    queries_per_passage: PositiveInt = Field(
        default=1, description="source: passages: number of queries written for each passage"
    )
    round_trip: RoundTripConfig = Field(
        default=RoundTripConfig(), description="source: passages: a written query has to find its passage again"
    )
    teacher: TeacherConfig | None = Field(
        default=None,
        description="source: passages: grades a query's passage and its candidates, so that negatives that may be "
        "relevant are left out, and lists.jsonl has scores to learn from. null: candidates are not graded",
    )
    list_size: Annotated[int, Field(ge=2)] = Field(
        default=8,
        description="source: passages: number of graded passages in a record of lists.jsonl, the query's own included",
    )
    personas: PathStr | None = Field(
        default=None,
        description="a file with one persona a line, JSONL, or hub://OWNER/NAME/CONFIG. null: the built-in list",
    )
    max_seeds: PositiveInt | None = Field(
        default=None,
        description="use at most this many seeds, drawn by the run's seed; of passages an equal number of each "
        "length and topic. null: all",
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
    instruction_rate: Fraction = Field(
        default=0.0, description="share of the queries with an instruction that narrows what is relevant"
    )
    chains: bool = Field(
        default=True,
        description="the writer reasons about what would and would not answer a query before it describes "
        "passages. false: this step is left out (the paper's ablation); the judge still writes chains",
    )
    prompts: SynthesisPrompts = Field(default=SynthesisPrompts(), description="the prompts of the steps")
    constrained: bool = Field(default=True, description="the engine constrains structured steps to their JSON schema")
    negatives: NonNegativeInt = Field(
        default=1,
        description="number of hard negatives written for each query. With source: passages they are mined: the "
        "highest-graded ones, or without a teacher a draw, of the candidates",
    )
    mined_negatives: NonNegativeInt = Field(
        default=0,
        description="number of corpus passages for each query, judged like the rest: the seed's BM25 neighbours, or "
        "with a reranker the highest-ranked of mine_depth neighbours",
    )
    mine_depth: PositiveInt = Field(
        default=20,
        description="number of BM25 neighbours that the reranker chooses the mined negatives from. With source: "
        "passages the number of candidates of a query",
    )
    max_tokens: PositiveInt | None = Field(
        default=None,
        description="tokens that the run may take, prompts included and a teacher's left out. A run that reaches the limit stops, and "
        "continues once the limit is raised. null: no limit",
    )
    prices: dict[Literal["writer", "judge", "reranker", "teacher"], TokenPrices] = Field(
        default={}, description="prices of writer, judge, reranker and a listwise teacher, for the cost by step"
    )
    decontaminate: tuple[PathStr, ...] = Field(
        default=(),
        description="benchmarks: BEIR folders, or benchmark://NAME (pydocs, bright/biology, …; hub benchmarks "
        "also with ?revision=…). A text that repeats one of their queries or relevant documents is rejected",
    )
    near_duplicate: Annotated[float, Field(ge=0.7, le=1)] = Field(
        default=0.8,
        description="similarity from which two queries are duplicates (Jaccard of four-character shingles). 1: only "
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
        description="how the exported examples are selected. coverage: spread over kind, difficulty and domain, "
        "hard ones first; random: drawn at random",
    )
    embedder: str | None = Field(
        default=None,
        description="a sentence-embedding model (a directory or a hub id) that measures how far apart queries are, for "
        "coverage, and searches for round_trip. null: by their words",
    )
    query_tokens: PositiveInt = Field(
        default=160,
        description="maximum length of a written query, and of its instruction, in tokens of about four characters",
    )
    chain_tokens: PositiveInt = Field(
        default=256, description="maximum length in tokens of the writer's chain, and of the descriptions of passages"
    )
    passage_tokens: PositiveInt = Field(default=256, description="maximum length of a passage in tokens")
    judge_tokens: PositiveInt = Field(
        default=256, description="maximum length of the judge's chain in tokens, if scoring.max_think_tokens is not set"
    )
    temperature: NonNegativeFloat = Field(default=0.8, description="the writer's sampling temperature")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.95, description="the writer's nucleus sampling threshold"
    )
    judge_by: Literal["label_tokens", "answer"] = Field(
        default="label_tokens",
        description="how the judge's verdict is read. label_tokens: p(true) of the answer token. answer: the true "
        "or false that the judge writes in a chat, without a probability; for endpoints without "
        "log-probabilities",
    )
    agreement: Literal["verdict", "ranking"] = Field(
        default="verdict",
        description="how the judge has to agree. verdict: its true or false is the intended label (the "
        "paper's). ranking: it scores a query's positive above the negative; for judges too weak to "
        "be calibrated",
    )
    judge_margin: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.1,
        description="with agreement: verdict, an example is rejected as unsure if p(true) is this near to one half",
    )

    @property
    def enough(self) -> int | None:
        """The number of kept examples, before duplicates are rejected, that ends the run; None: every seed is used.
        A passage's query is one example until its negatives are mined."""
        if self.oversample is None or self.size is None:
            return None
        examples = self.oversample * self.size
        return math.ceil(examples / (1 + self.negatives) if self.source == "passages" else examples)

    def prompt_names(self) -> dict[str, str]:
        """The prompt of each step that the run takes."""
        names = self.prompts.model_dump()
        if self.source == "passages":
            if self.writer == "none":
                return {}
            name = names["passage_query"]
            if name == SynthesisPrompts.model_fields["passage_query"].default:
                if self.writer == "tuned":
                    name = "writer"
                elif self.examples:
                    name = "synth_passage_query_examples"
            return {"passage_query": name}
        del names["passage_query"]
        if not self.chains:
            del names["chain"]
            if names["describe"] == SynthesisPrompts.model_fields["describe"].default:
                names["describe"] = "synth_describe_unreasoned"
        return names

    def hashed(self, exclude: set[str]) -> dict[str, Any]:
        """The keys that rows depend on, for :func:`config_hash`. Keys newer than run directories are
        left out at their defaults, so that the hash of an older run stays the same."""
        newer = {"oversample", "chains", *_OF_PASSAGES}
        values = self.model_dump(exclude=exclude)
        kept = {
            key: value
            for key, value in values.items()
            if key not in newer or getattr(self, key) != type(self).model_fields[key].default
        }
        for key in {"round_trip", "teacher"} & kept.keys():
            kept[key] = getattr(self, key).hashed()
        unused = SynthesisPrompts.model_fields["passage_query"].default
        if "prompts" in kept and self.prompts.passage_query == unused:
            del kept["prompts"]["passage_query"]
        return kept

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
            raise ValueError("synthesis.kinds: a kind is there twice")
        return self

    @model_validator(mode="after")
    def _enough_of_something(self) -> SynthesisConfig:
        if self.oversample is not None and self.size is None:
            raise ValueError("synthesis.oversample is times synthesis.size, which is not set")
        return self

    @model_validator(mode="after")
    def _belongs_to_its_source(self) -> SynthesisConfig:
        if self.source == "seeds":
            for key in _OF_PASSAGES:
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"synthesis.{key} is for synthesis.source=passages")
            return self
        for key in _OF_SEEDS:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"synthesis.{key} is for synthesis.source=seeds")
        if self.writer != "prompted":
            for key in _OF_EXAMPLES:
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"synthesis.{key} is for synthesis.writer=prompted, which reads instructions")
        if self.examples is None and self.examples_shown != type(self).model_fields["examples_shown"].default:
            raise ValueError("synthesis.examples_shown: there are none to show: set synthesis.examples")
        if self.writer == "none":
            for key in _OF_WRITING:
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"synthesis.{key}: with synthesis.writer=none nothing is written: unset it")
        if self.mined_negatives:
            raise ValueError(
                "synthesis.mined_negatives: with synthesis.source=passages every negative is mined: set negatives"
            )
        if self.round_trip.embeds and not self.embedder:
            raise ValueError(
                f"synthesis.round_trip.retriever={self.round_trip.retriever} needs a model: synthesis.embedder"
            )
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
