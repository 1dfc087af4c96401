"""What a rerank job scores: a benchmark with its first stage, or pairs as they are given."""

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
    """Queries with their candidates. ``warnings`` are sentences for a person."""

    warnings: list[str]

    def check(self) -> None:
        """Find what is wrong with the data before anything is started or written.

        Raises:
            UserError: naming the file and the line, row or column.
        """

    def queries(self) -> Iterator[tuple[Query, list[Candidate]]]:
        """Each query with its candidates, best first; a new iterator every time."""

    def hash_parts(self) -> dict[str, Any]:
        """All that the queries and candidates depend on, for the config hash."""

    def provenance(self) -> dict[str, str | None]:
        """Where the data is from, for the manifest; empty where the recipe's path says it all."""

    def keep_selection(self, storage: Storage) -> None:
        """Leave in the run directory what evaluation will need."""


def open_source(config: RerankJob) -> Source:
    """Raises UserError: the data is not there, or cannot be read."""
    if config.data.format == "pairs":
        return PairsSource(config, open_pairs(config.data.path, config.data.split))
    return BenchmarkSource(config, benchmarks.load(config.data))


_OF_BM25 = {"k1", "b", "query_weights", "language", "stemmer", "stopwords"}
"""Keys of a first stage that play no part where a run gives it."""


class BenchmarkSource:
    """A benchmark's queries, with the candidates that BM25, a given run or the benchmark itself finds for them."""

    def __init__(self, config: RerankJob, benchmark: Benchmark) -> None:
        self._config = config
        self._benchmark = benchmark
        self._found: list[tuple[Query, list[Candidate]]] | None = None
        self.warnings = [*benchmark.warnings]

    def check(self) -> None:
        """Loading has checked the files. Without a candidate there is nothing to rerank."""
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
            # Judgements select queries, and keep a document that is the query itself: others may make another run.
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
        """``queries.jsonl`` and ``qrels.tsv`` of the selected queries: what evaluation covers."""
        with tempfile.TemporaryDirectory() as folder:
            queries, qrels = Path(folder) / "queries.jsonl", Path(folder) / "qrels.tsv"
            beir.write_queries(queries, self._benchmark.queries)
            trec.write_qrels(qrels, self._benchmark.qrels)
            storage.write_bytes("queries.jsonl", queries.read_bytes())
            storage.write_bytes("qrels.tsv", qrels.read_bytes())


class PairsSource:
    """All pairs of the files, or those of the first ``data.max_queries`` queries. No first
    stage has a say, nor are there judgements to keep."""

    def __init__(self, config: RerankJob, pairs: Pairs) -> None:
        self._config = config
        self._template = benchmarks.query_template(config.data)
        self._pairs = pairs
        self.warnings = [*pairs.warnings]
        if config.first_stage != FirstStageConfig():
            self.warnings.append("first_stage: has no say over data.format=pairs: every pair that is given is scored")

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
        """Pairs carry no judgements: there is nothing to evaluate by."""


def asked_in(config: RerankJob) -> str | None:
    """The text around each query; None where no reranker sees it."""
    return None if config.scoring.mode == "none" else benchmarks.query_template(config.data)


def units(source: Source, scoring: ScoringConfig) -> Iterator[tuple[Unit, int]]:
    """The source's queries as units of rerank_unit_schema(), weighed in pairs."""
    chain = scoring.think_tokens * GENERATED_TOKEN_COST
    for query, found in source.queries():
        # Within its template a query is a text of its own, which a server is sent as well.
        text, instruction = (prompt_query(query), "") if query.template else (query.text, query.instruction)
        length = len(text) + len(instruction)
        unit = {
            "unit_id": query.query_id,
            "cost": sum((length + len(candidate.text)) // CHARACTERS_A_TOKEN + chain for candidate in found),
            "query": text,
            "instruction": instruction,
            "candidates": [
                {"doc_id": each.doc_id, "text": each.text, "rank": each.rank, "score": each.score} for each in found
            ],
        }
        yield unit, len(found)
