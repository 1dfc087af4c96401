"""The queries and candidates of a rerank job: a benchmark with its first stage, or given pairs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from limrank import retrieval
from limrank.batch.plan import CHARACTERS_A_TOKEN, GENERATED_TOKEN_COST, Unit
from limrank.config import FirstStageConfig, RerankJob, ScoringConfig
from limrank.data import beir, benchmarks, trec
from limrank.data.pairs import Pairs, open_pairs
from limrank.errors import UserError
from limrank.records import Benchmark, Candidate, Query
from limrank.scoring import prompt_query
from limrank.storage import Storage


class Source(Protocol):
    """Queries with their candidates. ``warnings`` are sentences for the user."""

    warnings: list[str]

    def check(self) -> None:
        """Check the data before anything is started or written.

        Raises:
            UserError: naming the file and the line, row or column.
        """

    def queries(self) -> Iterator[tuple[Query, list[Candidate]]]:
        """Each query with its candidates, best first. Every call gives a new iterator."""

    def hash_parts(self) -> dict[str, Any]:
        """Everything that the queries and candidates depend on, for the config hash."""

    def provenance(self) -> dict[str, str | None]:
        """The origin of the data, for the manifest. Empty where the recipe's path is enough."""

    def keep_selection(self, storage: Storage) -> None:
        """Write the selected queries and their judgements into the run directory, for evaluation."""


def open_source(config: RerankJob) -> Source:
    """The source of a config. Raises UserError where the data is missing or cannot be read."""
    if config.data.format == "pairs":
        return PairsSource(config, open_pairs(config.data.path, config.data.split))
    return BenchmarkSource(config, benchmarks.load(config.data))


_OF_BM25 = {"k1", "b", "query_weights", "language", "stemmer", "stopwords"}
"""Keys of a first stage that have no effect on a given run."""


class BenchmarkSource:
    """A benchmark's queries, with candidates of BM25, of a given run, or of the benchmark itself."""

    def __init__(self, config: RerankJob, benchmark: Benchmark) -> None:
        self._config = config
        self._benchmark = benchmark
        self._found: list[tuple[Query, list[Candidate]]] | None = None
        self.warnings = [*benchmark.warnings]

    def check(self) -> None:
        """Refuse a benchmark without any candidate. Loading has checked the files."""
        first_stage = self._config.first_stage
        without = [query.query_id for query, found in self.queries() if not found]
        if not without:
            return
        asked = len(self._benchmark.queries)
        names = {"bm25": "BM25", "run": f"the run {first_stage.path}", "published": "what the benchmark publishes"}
        by = names[first_stage.kind]
        if len(without) == asked:
            hint = "see first_stage.language" if first_stage.kind == "bm25" else "are its query ids the benchmark's?"
            raise UserError(f"first_stage: {by} has no candidate for any of the {asked} queries: {hint}")
        self.warnings.append(
            f"{len(without)} of {asked} queries have no candidate by {by}, such as {without[0]!r}: they count 0 in evaluation"
        )

    def queries(self) -> Iterator[tuple[Query, list[Candidate]]]:
        if self._found is None:
            self._found = list(retrieval.candidates(self._benchmark, self._config.first_stage, self.warnings))
        return iter(self._found)

    def hash_parts(self) -> dict[str, Any]:
        first_stage = self._config.first_stage
        return {
            "data": benchmarks.fingerprint(self._config.data),
            # Judgements select queries and exclude documents, so other judgements may give another run.
            "queries": [[query.query_id, sorted(query.excluded)] for query in self._benchmark.queries],
            "query_template": asked_in(self._config),
            "first_stage": first_stage.model_dump(
                exclude={"path"} | (set() if first_stage.kind == "bm25" else _OF_BM25)
            ),
            "first_stage_run": benchmarks.file_fingerprint(first_stage.path) if first_stage.path else None,
        }

    def provenance(self) -> dict[str, str | None]:
        return benchmarks.provenance(self._config.data)

    def keep_selection(self, storage: Storage) -> None:
        """Write ``queries.jsonl`` and ``qrels.tsv`` of the selected queries, which evaluation covers."""
        with tempfile.TemporaryDirectory() as folder:
            queries, qrels = Path(folder) / "queries.jsonl", Path(folder) / "qrels.tsv"
            beir.write_queries(queries, self._benchmark.queries)
            trec.write_qrels(qrels, self._benchmark.qrels)
            storage.write_bytes("queries.jsonl", queries.read_bytes())
            storage.write_bytes("qrels.tsv", qrels.read_bytes())


class PairsSource:
    """All pairs of the files, or those of the first ``data.max_queries`` queries. They have no first
    stage and no judgements."""

    def __init__(self, config: RerankJob, pairs: Pairs) -> None:
        self._config = config
        self._template = benchmarks.query_template(config.data)
        self._pairs = pairs
        self.warnings = [*pairs.warnings]
        if config.first_stage != FirstStageConfig():
            self.warnings.append("first_stage: has no effect on data.format=pairs: every given pair is scored")

    def check(self) -> None:
        for _ in self.queries():
            pass

    def queries(self) -> Iterator[tuple[Query, list[Candidate]]]:
        for query, candidates in self._pairs.queries(self._config.data.max_queries):
            yield replace(query, template=self._template), candidates

    def hash_parts(self) -> dict[str, Any]:
        return {
            "data": ["pairs", self._pairs.fingerprints, self._config.data.max_queries],
            "query_template": asked_in(self._config),
        }

    def provenance(self) -> dict[str, str | None]:
        return {}

    def keep_selection(self, storage: Storage) -> None:
        """Does nothing: pairs have no judgements."""


def asked_in(config: RerankJob) -> str | None:
    """The template around each query; None where no reranker sees it."""
    return None if config.scoring.mode == "none" else benchmarks.query_template(config.data)


def units(source: Source, scoring: ScoringConfig) -> Iterator[tuple[Unit, int]]:
    """The source's queries as units of rerank_unit_schema(), each with its number of pairs."""
    chains = scoring.chains * scoring.think_tokens * GENERATED_TOKEN_COST
    for query, found in source.queries():
        # A query in a template is one text, which is also sent to a server.
        text, instruction = (prompt_query(query), "") if query.template else (query.text, query.instruction)
        length = len(text) + len(instruction)
        unit = {
            "unit_id": query.query_id,
            "cost": sum((length + len(candidate.text)) // CHARACTERS_A_TOKEN + chains for candidate in found),
            "query": text,
            "instruction": instruction,
            "candidates": [
                {"doc_id": each.doc_id, "text": each.text, "rank": each.rank, "score": each.score} for each in found
            ],
        }
        yield unit, len(found)
