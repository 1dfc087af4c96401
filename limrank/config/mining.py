"""``synthesis.round_trip`` and ``synthesis.teacher``: how queries that were written for passages are filtered, and
how their candidates are graded."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from limrank.config.base import Fraction, PathStr, Section
from limrank.config.engine import EngineConfig


def _without_newer(section: Section, newer: set[str]) -> dict[str, Any]:
    """A section's values without the keys of ``newer`` that have their defaults: these keys are newer than run
    directories, whose hash stays the same."""
    values = section.model_dump()
    unset = {key for key in newer if getattr(section, key) == type(section).model_fields[key].default}
    return {key: value for key, value in values.items() if key not in unset}


class RoundTripConfig(Section):
    """A query that does not find its passage again is rejected (Promptagator, arXiv 2209.11755, §3.2)."""

    retriever: Literal["bm25", "embedder", "both", "none"] = Field(
        default="bm25",
        description="what searches the corpus for a written query. embedder: the cosine of synthesis.embedder. both: "
        "each has to find the passage, and their candidates alternate. none: a query need not find its passage; its "
        "candidates are BM25's",
    )
    k: PositiveInt = Field(default=10, description="the passage has to be among this many first ones")
    filter: bool = Field(
        default=True,
        description="false: a query need not find its passage; what searches only finds its candidates",
    )

    @property
    def retrievers(self) -> tuple[str, ...]:
        """What finds a query's candidates."""
        kinds = {"both": ("bm25", "embedder"), "none": ("bm25",)}
        return kinds.get(self.retriever, (self.retriever,))

    @property
    def filters(self) -> bool:
        return self.retriever != "none" and self.filter

    @property
    def embeds(self) -> bool:
        return "embedder" in self.retrievers

    def hashed(self) -> dict[str, Any]:
        return _without_newer(self, {"filter"})


_OF_LISTWISE = ("engine", "prompt", "window", "passage_words", "answer_tokens")
"""Keys that change nothing with another kind of teacher."""


class TeacherConfig(Section):
    """What grades a query's passage and its candidates."""

    kind: Literal["embedder", "cross_encoder", "run", "listwise"] = Field(
        description="embedder: the cosine of a sentence-embedding model. cross_encoder: the logit of a sequence "
        "classifier. run: the scores of a run file, or of a rerank job's run directory, over the run's candidates/. "
        "listwise: the order that a language model behind an endpoint gives them, as minus the rank (RankGPT, arXiv "
        "2304.09542)"
    )
    model: str | None = Field(
        default=None,
        description="embedder, cross_encoder: a packaged model, a directory or a hub id. listwise: the "
        "model's name at the endpoint",
    )
    path: PathStr | None = Field(
        default=None, description="run: a TREC or JSON run, or the run directory of a finished rerank job"
    )
    engine: EngineConfig | None = Field(
        default=None, description="listwise: the endpoint: kind openai, base_url and api_key_env"
    )
    prompt: str = Field(
        default="listwise",
        description="listwise: asks for the order of numbered passages: the name of a prompt in limrank/prompts, a "
        "file, or the text itself",
    )
    window: Annotated[int, Field(ge=2, le=1000)] = Field(
        default=20,
        description="listwise: number of passages in a request. More are ordered by a window that moves by half its "
        "size, from the last passages to the first ones",
    )
    passage_words: PositiveInt = Field(
        default=300, description="listwise: the model sees this many first words of a passage"
    )
    answer_tokens: PositiveInt = Field(
        default=1024,
        description="listwise: maximum length of an answer in tokens, the chain of a model that thinks included",
    )
    margin: NonNegativeFloat = Field(
        default=1.0,
        description="a candidate counts as a negative if its score is this far below that of the query's passage, in "
        "standard deviations of a query's scores (their mean over all queries). The others may be relevant",
    )
    best: PositiveInt = Field(
        default=2,
        description="a query is rejected unless its passage is among this many that the teacher ranks highest",
    )
    min_score: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        default=None,
        description="a query is rejected if the teacher's own score of its passage is lower. null: none is",
    )
    bm25_weight: Fraction = Field(
        default=0.0,
        description="share of BM25 in a grade: (1 - W) * z(the teacher's score) + W * z(BM25's), where z has mean 0 and "
        "standard deviation 1 over a query's candidates",
    )
    passage_first: bool = Field(
        default=False,
        description="a query's own passage is graded above all candidates, by half a standard deviation or more, whatever "
        "the teacher says, and best rejects no query: for queries of a writer who knows better than the teacher what "
        "answers them",
    )

    @model_validator(mode="after")
    def _is_named(self) -> TeacherConfig:
        needed, other = ("path", "model") if self.kind == "run" else ("model", "path")
        if not getattr(self, needed):
            raise ValueError(f"synthesis.teacher.{needed} is needed with kind={self.kind}")
        if getattr(self, other):
            raise ValueError(f"synthesis.teacher.{other} is not for kind={self.kind}")
        return self

    @model_validator(mode="after")
    def _belongs_to_its_kind(self) -> TeacherConfig:
        if self.kind != "listwise":
            for key in _OF_LISTWISE:
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"synthesis.teacher.{key} is for kind=listwise")
        elif self.engine is None or self.engine.kind != "openai":
            raise ValueError(
                "synthesis.teacher.engine: with kind=listwise it has to be an endpoint: set its kind=openai and base_url"
            )
        return self

    def hashed(self) -> dict[str, Any]:
        """The values for a pipeline's hash. Where the endpoint is, and how fast it is asked, changes no grade."""
        values = _without_newer(self, {"bm25_weight", "passage_first", *_OF_LISTWISE})
        return values | ({"engine": {"kind": self.engine.kind}} if self.engine else {})
