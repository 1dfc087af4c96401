"""The jobs as functions: ``from limrank import synthesize, train, rerank, evaluate, serve``.

Each takes a config object or keyword arguments in the recipe's shape, runs the job that the command of
the same name runs, and returns a typed result. A call with the same arguments resumes its ``run_dir``.

A job needs a Ray cluster unless it is said otherwise. ``address="local"`` starts one for the call,
``"auto"`` attaches to a running one, and None takes ``auto`` where ``RAY_ADDRESS`` is set, else ``local``.
Where the process is connected to Ray already (``ray.init()``), the call uses that cluster. While a job
runs in the main thread, SIGTERM raises KeyboardInterrupt, as Ctrl-C does, so that it ends cleanly.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, overload

from limrank import signals
from limrank.config import (
    DataConfig,
    DevConfig,
    EngineConfig,
    EvaluateJob,
    EvaluationConfig,
    FirstStageConfig,
    Job,
    ModelConfig,
    RerankJob,
    ScoringConfig,
    ServeJob,
    ServingConfig,
    SynthesisConfig,
    SynthesizeJob,
    TrainingConfig,
    TrainJob,
    WorkersConfig,
    is_uri,
)
from limrank.config.recipe import checked, keyword_config
from limrank.errors import UserError
from limrank.optional import extras_explained
from limrank.parsing import brief, parse_json
from limrank.progress import Progress, SilentRenderer, open_progress
from limrank.records import Qrels, Run
from limrank.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

    from limrank.evaluation.system import Evaluation, Interval

AJob = TypeVar("AJob", bound=Job)
Value = TypeVar("Value", int, float)

PathLike = str | os.PathLike[str]
Keys = Mapping[str, Any]
"""A section of a recipe as a dictionary."""

_MEASURES: tuple[str, ...] = EvaluationConfig.model_fields["measures"].default


# ---- keyword arguments ---------------------------------------------------------------


class JobKeys(TypedDict, total=False):
    """What every job takes (:class:`limrank.config.Job`)."""

    run_dir: PathLike
    seed: int
    allow_failures: bool
    notes: Sequence[str]


class SynthesizeKeys(JobKeys, total=False):
    """The keys of :class:`limrank.SynthesizeJob`."""

    model: ModelConfig | Keys
    judge: ModelConfig | Keys | None
    engine: EngineConfig | Keys
    judge_engine: EngineConfig | Keys | None
    workers: WorkersConfig | Keys
    judge_workers: WorkersConfig | Keys | None
    reranker: ModelConfig | Keys | None
    reranker_engine: EngineConfig | Keys | None
    reranker_workers: WorkersConfig | Keys | None
    scoring: ScoringConfig | Keys
    synthesis: SynthesisConfig | Keys


class TrainKeys(JobKeys, total=False):
    """The keys of :class:`limrank.TrainJob`."""

    model: ModelConfig | Keys
    workers: WorkersConfig | Keys
    training: TrainingConfig | Keys
    dev: DevConfig | Keys | None


class RerankKeys(JobKeys, total=False):
    """The keys of :class:`limrank.RerankJob`."""

    data: DataConfig | Keys
    first_stage: FirstStageConfig | Keys
    model: ModelConfig | Keys
    engine: EngineConfig | Keys
    scoring: ScoringConfig | Keys
    workers: WorkersConfig | Keys


class ServeKeys(JobKeys, total=False):
    """The keys of :class:`limrank.ServeJob`."""

    model: ModelConfig | Keys
    engine: EngineConfig | Keys
    scoring: ScoringConfig | Keys
    workers: WorkersConfig | Keys
    serving: ServingConfig | Keys


# ---- results -------------------------------------------------------------------------


@dataclass(frozen=True)
class JobRun:
    """What a job left in its ``run_dir``, a local directory or a URI. Files are read on first use."""

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
    """Rankings. ``failed`` counts the pairs without a score; ``warnings`` are sentences for a person."""

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

        return pa.concat_tables([rerank_row_schema().empty_table(), *read_rows(self._storage, "rows")])

    @cached_property
    def qrels(self) -> Qrels:
        """The judgements of the reranked queries; empty for pairs, which have none, and for an object
        store's ``run_dir``."""
        from limrank.data.trec import read_qrels

        if is_uri(self.run_dir) or not self._storage.exists("qrels.tsv"):
            return {}
        return read_qrels(self._storage.local("qrels.tsv"))


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
        """What ``stats.json`` holds: counts by reason, kind and difficulty, tokens and costs by step."""
        return self._json("stats.json")

    @property
    def train_file(self) -> str:
        """The selected examples as prompts and completions: ``training.train_file`` of a train job."""
        return self._storage.display_path("train.jsonl")


@dataclass(frozen=True)
class TrainingResult(JobRun):
    """A fine-tuned model.

    ``model_dir`` holds the merged weights of ``exported_step``, and ``adapter_dir`` the LoRA adapter (None
    for a full fine-tuning). Losses are the mean over completion tokens, of the last step and of the
    held-out examples. ``best_step`` and ``best_ndcg`` (nDCG@10 on ``dev``) are None where nothing was held out.
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

    ``measures`` has the mean and its 95 % bootstrap interval, and ``per_query`` the value of each
    query, by the measure's name in ir_measures. FollowIR's ``p-MRR``, which an EvaluateJob of such data
    adds, is by topic. ``missing`` are the judged queries that the run ranks nothing for: each counts 0
    in every mean.
    """

    measures: dict[str, Interval]
    per_query: dict[str, dict[str, float]]
    missing: list[str]
    warnings: list[str] = field(default_factory=list)


# ---- jobs ----------------------------------------------------------------------------


@extras_explained("synthesize")
def synthesize(
    config: SynthesizeJob | None = None,
    /,
    *,
    address: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
    **keys: Unpack[SynthesizeKeys],
) -> SynthesisResult:
    """Seeds and personas → judged training examples in ``run_dir``.

    ::

        result = synthesize(run_dir="runs/examples", synthesis={"seeds": "my/benchmark", "max_seeds": 200})
        print(result.stats["kept"], result.train_file)

    Args:
        config: the whole job, instead of keyword arguments.
        address: the Ray cluster, see this module.
        overwrite: remove another config's run from ``run_dir`` first.
        progress: show how far the job is on stderr: a bar on a terminal, else lines.
        **keys: the recipe's keys (:class:`limrank.SynthesizeJob`): ``model``, ``engine``, ``synthesis``, …

    Raises:
        UserError: a key, a file or the cluster cannot work; the message names it.
        EngineError: an engine did not come up.
    """
    from limrank.synthesis import job

    job_config = keyword_config(SynthesizeJob, config, keys)
    done = _run(job.run, job_config, address, overwrite, progress)
    return SynthesisResult(job_config.run_dir, done.failed, done.warnings)


@extras_explained("train")
def train(
    config: TrainJob | None = None,
    /,
    *,
    address: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
    **keys: Unpack[TrainKeys],
) -> TrainingResult:
    """Examples → a fine-tuned reranker in ``run_dir``.

    ::

        result = train(run_dir="runs/model", training={"train_file": "runs/examples/train.jsonl", "epochs": 2})
        rerank(run_dir="runs/tuned", model={"id": result.model_dir})

    Args:
        config: the whole job, instead of keyword arguments.
        address, overwrite, progress: as in :func:`synthesize`.
        **keys: the recipe's keys (:class:`limrank.TrainJob`): ``training``, ``model``, ``dev``, …

    Raises:
        UserError: the file, the model, the dtype or the number of workers does not do.
        EngineError: workers died repeatedly, the cluster had no room for them, or the loss diverged.
    """
    from limrank.training import job

    job_config = keyword_config(TrainJob, config, keys)
    done = _run(job.train_job, job_config, address, overwrite, progress)
    storage = Storage(job_config.run_dir)
    return TrainingResult(
        job_config.run_dir,
        model_dir=done.model_dir,
        adapter_dir=storage.display_path("adapter") if job_config.training.method == "lora" else None,
        best_step=done.best_step,
        exported_step=done.exported_step,
        final_loss=done.final_loss,
        validation_loss=done.validation_loss,
        best_ndcg=done.best_ndcg,
    )


@extras_explained("rerank")
def rerank(
    config: RerankJob | None = None,
    /,
    *,
    address: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
    **keys: Unpack[RerankKeys],
) -> RerankResult:
    """A benchmark's candidates, or given pairs → rankings in ``run_dir``.

    ``scoring={"mode": "none"}`` keeps the first stage's order and needs no Ray.

    ::

        result = rerank(run_dir="runs/mine", data={"format": "beir", "path": "my/benchmark"}, model={"id": "my/model"})
        print(evaluate(result.run, result.qrels).measures["nDCG@10"].mean)

    Args:
        config: the whole job, instead of keyword arguments.
        address, overwrite, progress: as in :func:`synthesize`.
        **keys: the recipe's keys (:class:`limrank.RerankJob`): ``data``, ``first_stage``, ``model``, ``scoring``, …

    Raises:
        UserError: a key, a file or the cluster cannot work; the message names it.
        EngineError: an engine did not come up.
    """
    from limrank.reranking import job

    job_config = keyword_config(RerankJob, config, keys)
    done = _run(job.run, job_config, address, overwrite, progress)
    return RerankResult(job_config.run_dir, done.failed, done.warnings)


@overload
def evaluate(run: EvaluateJob, /) -> EvaluationResult: ...


@overload
def evaluate(
    run: Run | PathLike,
    qrels: Qrels | PathLike,
    measures: Sequence[str] = ...,
    *,
    bootstrap_samples: int = ...,
    seed: int = ...,
) -> EvaluationResult: ...


@extras_explained("evaluate")
def evaluate(
    run: Run | PathLike | EvaluateJob,
    qrels: Qrels | PathLike | None = None,
    measures: Sequence[str] = _MEASURES,
    *,
    bootstrap_samples: int = 2000,
    seed: int = 12345,
) -> EvaluationResult:
    """A ranking and its judgements → measures. It takes no cluster and writes nothing.

    An :class:`limrank.EvaluateJob` in place of the run evaluates what it names, and writes
    ``metrics.json`` and ``report.html`` into its ``run_dir``, as ``limrank evaluate`` does.

    ::

        result = evaluate({"q1": {"d1": 2.5, "d2": 1.0}}, {"q1": {"d1": 1}}, ["nDCG@10", "RR"])
        mean, low, high = result.measures["nDCG@10"]

    Args:
        run: ``{query_id: {doc_id: score}}``, or a TREC or JSON file.
        qrels: ``{query_id: {doc_id: grade}}``, or a TREC or BEIR file; a grade of 1 or more is relevant.
        measures: names in ir_measures' syntax, such as ``nDCG@10``, ``AP(rel=2)``, ``R@20``.
        bootstrap_samples: resampled sets of queries behind each interval.
        seed: of the bootstrap.

    Raises:
        UserError: a measure is unknown, a file is malformed, a dictionary has another shape, there are no
            judgements, or the run shares no query with them.
    """
    if isinstance(run, EvaluateJob):
        return _evaluate_job(keyword_config(EvaluateJob, run, {}))
    from limrank.data import trec
    from limrank.evaluation.system import evaluate_run

    if qrels is None:
        raise UserError("evaluate(): qrels is needed: a dictionary or a file of judgements")
    scores = _numbers(run, "run", float) if isinstance(run, Mapping) else trec.read_run(os.fspath(run))
    grades = (
        _numbers(qrels, "qrels", operator.index) if isinstance(qrels, Mapping) else trec.read_qrels(os.fspath(qrels))
    )
    if grades and grades.keys().isdisjoint(scores):
        some = brief(next(iter(scores), ""))
        raise UserError(f"evaluate(): the run (query {some}, …) shares no query with the judgements")
    names = [measures] if isinstance(measures, str) else list(measures)
    settings = {"measures": names, "bootstrap_samples": bootstrap_samples}
    asked = checked(EvaluateJob, {"run_dir": ".", "seed": seed, "evaluation": settings}, "evaluate()")
    found = evaluate_run(scores, grades, asked.evaluation.measures, asked.evaluation.bootstrap_samples, asked.seed)
    return _evaluation(found, [])


@contextmanager
def serve(config: ServeJob | None = None, /, *, address: str | None = None, **keys: Unpack[ServeKeys]) -> Iterator[str]:
    """Host a reranker over HTTP while the ``with`` block runs, and give its URL once it answers.

    ::

        with serve(model={"id": "smollm2-135m-instruct"}, serving={"port": 0}) as url:
            httpx.post(f"{url}/v1/rerank", json={"query": "…", "documents": ["…", "…"]})

    Args:
        config: the whole job, instead of keyword arguments.
        address: the Ray cluster, see this module. No Ray Serve may run on it.
        **keys: the recipe's keys (:class:`limrank.ServeJob`): ``model``, ``engine``, ``scoring``, ``serving``, …
            ``serving={"port": 0}`` takes a free port; ``run_dir`` is not needed, for nothing is written.

    Raises:
        UserError: the port is taken, the cluster cannot hold the engines, or one refuses its settings.
        EngineError: an engine did not come up.
    """
    from limrank import cluster

    # A recipe of any job names a run_dir, and this one does not use it.
    job_config = keyword_config(ServeJob, config, keys if config else {"run_dir": "runs/serve", **keys})
    with ExitStack() as stack:
        with extras_explained("serve"):
            from limrank.serving.job import serving

            stack.enter_context(signals.stopping())
            stack.enter_context(cluster.connect(_address(address)))
            url = stack.enter_context(serving(job_config))
        yield url


# ---- what they share -----------------------------------------------------------------


def _run(job: Callable[..., Any], config: Job, address: str | None, overwrite: bool, progress: bool) -> Any:
    from limrank.batch.run_dir_checks import check_run_dir_first

    where = _address(address)
    check_run_dir_first(config)
    shown = open_progress() if progress else Progress(SilentRenderer())
    try:
        with signals.stopping():
            return job(config, address=where, progress=shown, overwrite=overwrite)
    finally:
        shown.close()


def _address(address: str | None) -> str:
    from limrank.cluster import default_address

    if address is None:
        return default_address()
    if address not in ("local", "auto"):
        raise UserError(
            f"address {brief(address)}: is neither local nor auto; the command line submits to http://HOST:8265"
        )
    return address


def _evaluate_job(config: EvaluateJob) -> EvaluationResult:
    from limrank.evaluation.job import evaluate_job

    if config.evaluation.compare:
        raise UserError("evaluation.compare: `limrank evaluate --compare` compares several runs; evaluate() takes one")
    done = evaluate_job(config)
    return _evaluation(done.system, done.warnings)


def _evaluation(found: Evaluation, warnings: list[str]) -> EvaluationResult:
    return EvaluationResult(found.intervals, found.values, found.scores.missing, warnings)


def _numbers(
    values: Mapping[str, Mapping[str, Any]], what: str, number: Callable[[Any], Value]
) -> dict[str, dict[str, Value]]:
    """A run or judgements as plain dictionaries of one type of number."""
    kind = "score" if number is float else "grade"
    found: dict[str, dict[str, Value]] = {}
    for query_id, documents in values.items():
        if not isinstance(query_id, str) or not isinstance(documents, Mapping):
            raise UserError(f"evaluate(): {what}: should be {{query_id: {{doc_id: {kind}}}}}, ids as text")
        found[query_id] = {}
        for doc_id, value in documents.items():
            where = f"evaluate(): {what}, query {brief(query_id)}, document {brief(doc_id)}"
            if not isinstance(doc_id, str):
                raise UserError(f"{where}: an id should be text")
            try:
                found[query_id][doc_id] = number(value)
            except (TypeError, ValueError):
                wanted = "a number" if number is float else "a whole number"
                raise UserError(f"{where}: the {kind} should be {wanted} (got {brief(value)})") from None
            if not math.isfinite(found[query_id][doc_id]):
                raise UserError(f"{where}: the {kind} is not finite")
    return found
