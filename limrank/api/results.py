"""What the job functions return: typed views of a run directory, and measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from limrank.errors import UserError
from limrank.files import path_of
from limrank.parsing import parse_json
from limrank.records import Qrels, Run
from limrank.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

    from limrank.evaluation.system import Interval


@dataclass(frozen=True)
class JobRun:
    """The files of a job's ``run_dir``, a local directory or a URI. They are read on first use."""

    run_dir: str

    @cached_property
    def stats(self) -> dict[str, Any]:
        """The run's ``manifest.json``: counts, seconds, tokens, rates, versions."""
        from limrank.batch.manifest import read_manifest

        manifest = read_manifest(self._storage)
        if manifest is None:
            raise UserError(f"run_dir {self.run_dir}: there is no manifest.json in it")
        return manifest.values()

    @property
    def _storage(self) -> Storage:
        return Storage(self.run_dir)

    def _json(self, name: str) -> dict[str, Any]:
        return parse_json(self._storage.read_bytes(name), self._storage.display_path(name), expect=dict)


@dataclass(frozen=True)
class RerankResult(JobRun):
    """Rankings. ``failed`` counts the pairs without a score; ``warnings`` are sentences for the user."""

    failed: int = 0
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def run(self) -> Run:
        """The rankings as ``{query_id: {doc_id: -rank}}``, best document first.

        The score is the negated 1-based rank, as in ``run.trec``, so that every tool reads the same
        order. The model's scores are in :attr:`rows`.
        """
        return self._json("run.json")

    @cached_property
    def rows(self) -> pa.Table:
        """One row a pair, by :func:`limrank.records.rerank_row_schema`: scores, ranks, chains, tokens."""
        import pyarrow as pa

        from limrank.batch.rows import read_rows
        from limrank.records import rerank_row_schema

        tables = [rerank_row_schema().empty_table(), *read_rows(self._storage, "rows")]
        return pa.concat_tables(tables, promote_options="default")  # calibrated rows have a column more

    @cached_property
    def qrels(self) -> Qrels:
        """The judgements of the reranked queries. Empty for pairs, which have none."""
        from limrank.data.trec import read_qrels

        if not self._storage.exists("qrels.tsv"):
            return {}
        return read_qrels(path_of(self.run_dir) / "qrels.tsv")


@dataclass(frozen=True)
class SynthesisResult(JobRun):
    """Synthetic examples. ``failed`` counts the requests that could not run."""

    failed: int = 0
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def rows(self) -> pa.Table:
        """One row an example, rejected ones included (``kept``, ``selected``, ``reject_reason``), by
        :func:`limrank.records.synthesis_example_schema`."""
        return self._storage.read_table("examples.parquet")

    @cached_property
    def stats(self) -> dict[str, Any]:
        """The contents of ``stats.json``: counts by reason, kind and difficulty, tokens and costs by step."""
        return self._json("stats.json")

    @property
    def train_file(self) -> str:
        """The selected examples as prompts and completions: ``training.train_file`` of a train job."""
        return self._storage.display_path("train.jsonl")

    @property
    def lists_file(self) -> str | None:
        """The selected queries' passages with a teacher's scores, for ``training.objective`` margin_mse and listnet;
        None without a teacher."""
        return self._storage.display_path("lists.jsonl") if self.stats.get("teacher") else None


@dataclass(frozen=True)
class TrainingResult(JobRun):
    """A fine-tuned model.

    ``model_dir`` has the merged weights of ``exported_step``, and ``adapter_dir`` the LoRA adapter (None for a
    full fine-tuning). ``final_loss`` is that of the last step, ``validation_loss`` that of the held-out examples;
    both are means over completion tokens. ``best_step`` and ``best_ndcg`` (nDCG@10 on ``dev``) are None where
    nothing was held out.
    """

    model_dir: str
    adapter_dir: str | None
    best_step: int | None
    exported_step: int
    final_loss: float
    validation_loss: float | None
    best_ndcg: float | None

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """One dictionary an optimizer step, as in ``metrics.jsonl``: step, loss, learning_rate, tokens_per_second."""
        from limrank.training.metrics import read_metrics

        return read_metrics(self._storage)


@dataclass(frozen=True)
class EvaluationResult:
    """Effectiveness of one run over every judged query.

    ``measures`` maps a measure's name in ir_measures to its mean and 95 % bootstrap interval, ``per_query`` to
    the value of each query. An EvaluateJob of FollowIR data adds ``p-MRR``, whose values are by topic. ``missing``
    are the judged queries for which the run ranks nothing. Each counts 0 in every mean.
    """

    measures: dict[str, Interval]
    per_query: dict[str, dict[str, float]]
    missing: list[str]
    warnings: list[str] = field(default_factory=list)
