"""``data`` and ``first_stage``: queries and documents, and how candidates are found."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveInt,
    model_validator,
)

from limrank.config.base import (
    Fraction,
    PathStr,
    Section,
    fault,
)
from limrank.parsing import brief

Rewriting = Literal["gpt4_reason", "claude-3-opus_reason", "Gemini-1.0_reason", "grit_reason", "llama3-70b_reason"]
"""BRIGHT's rewritten queries: the names of their configs in ``xlangai/BRIGHT``."""


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
        "file, or the name of a prompt in limrank/prompts. The first stage gets only the query. "
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
"""PyStemmer's stemmers (Snowball)."""

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
    """A validator: a word of a list in upper or lower case, its ISO 639 code, or ``none``."""

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
    b: Fraction = Field(default=0.4, description="BM25's b: how much a document's length counts")
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
        """The name of the stemmer; None: words are not stemmed."""
        name = self.stemmer or self.language
        return name if name in STEMMERS else None

    @property
    def word_list(self) -> str | None:
        """The name of the list of stop words; None: every word counts. Languages without blanks take the English
        list, as Lucene's CJKAnalyzer does: their words are pairs of characters, and a pair that a Chinese or Korean
        list names may be a part of any word."""
        name = self.stopwords or ("english" if self.language in UNSPACED else self.language)
        return name if name in STOPWORDS else None

    @model_validator(mode="after")
    def _run_given(self) -> FirstStageConfig:
        if self.kind == "run" and not self.path:
            raise ValueError("first_stage.path is needed for first_stage.kind=run")
        return self


def need_benchmark(data: DataConfig) -> None:
    """Raises ValueError for data without judgements."""
    if data.format == "pairs":
        raise ValueError("data.format: pairs carry no judgements, which this job needs; `limrank rerank` takes them")


def ask_rewritten(data: DataConfig, first_stage: FirstStageConfig, prefix: str = "") -> None:
    """Raises ValueError for rewritten queries that no first stage would use."""
    if not data.first_stage_queries:
        return
    if data.format == "pairs":
        raise ValueError(f"{prefix}data.first_stage_queries: pairs have no first stage to ask")
    if first_stage.kind != "bm25":
        raise ValueError(
            f"{prefix}data.first_stage_queries is what BM25 is asked, which {prefix}first_stage.kind="
            f"{first_stage.kind} does not do: unset one"
        )
