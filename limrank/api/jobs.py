"""The job functions."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from limrank import signals
from limrank.api.keywords import PathLike, RerankKeys, ServeKeys, SynthesizeKeys, TrainKeys
from limrank.api.results import EvaluationResult, RerankResult, SynthesisResult, TrainingResult
from limrank.config import EvaluateJob, EvaluationConfig, Job, RerankJob, ServeJob, SynthesizeJob, TrainJob
from limrank.config.recipe import checked, keyword_config
from limrank.errors import UserError
from limrank.optional import extras_explained
from limrank.parsing import brief
from limrank.progress import Progress, SilentRenderer, open_progress
from limrank.records import Qrels, Run
from limrank.storage import Storage

if TYPE_CHECKING:
    from limrank.evaluation.system import Evaluation

Number = TypeVar("Number", int, float)

_MEASURES: tuple[str, ...] = EvaluationConfig.model_fields["measures"].default


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
        address: the Ray cluster, see :mod:`limrank.api`.
        overwrite: remove another config's run from ``run_dir`` first.
        progress: report progress on stderr, as a bar on a terminal, else as lines.
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
        UserError: the file, the model, the dtype or the number of workers cannot work.
        EngineError: workers crashed repeatedly, the cluster had no resources for them, or the loss diverged.
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
    """A ranking and its judgements → measures. Needs no cluster and writes nothing.

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
def serve(
    config: ServeJob | None = None, /, *, address: str | None = None, insecure: bool = False, **keys: Unpack[ServeKeys]
) -> Iterator[str]:
    """Host a reranker over HTTP while the ``with`` block runs. Yields its URL once it answers.

    ::

        with serve(model={"id": "smollm2-135m-rerank"}, serving={"port": 0}) as url:
            httpx.post(f"{url}/v1/rerank", json={"query": "…", "documents": ["…", "…"]})

    Args:
        config: the whole job, instead of keyword arguments.
        address: the Ray cluster, see :mod:`limrank.api`. No Ray Serve may run on it.
        insecure: an address that is not loopback needs no API keys.
        **keys: the recipe's keys (:class:`limrank.ServeJob`): ``model``, ``engine``, ``scoring``, ``serving``, …
            ``serving={"port": 0}`` takes a free port. ``run_dir`` is not needed: nothing is written.

    Raises:
        UserError: the port is taken, API keys are faulty or missing, the cluster cannot hold the engines, or one
            refuses its settings.
        EngineError: an engine did not come up.
    """
    from limrank import cluster

    # A config of any job has a run_dir, and this job does not use it.
    job_config = keyword_config(ServeJob, config, keys if config else {"run_dir": "runs/serve", **keys})
    with ExitStack() as stack:
        with extras_explained("serve"):
            from limrank.serving.job import serving

            stack.enter_context(signals.stopping())
            stack.enter_context(cluster.connect(_address(address)))
            url = stack.enter_context(serving(job_config, insecure=insecure))
        yield url


# ---- shared --------------------------------------------------------------------------


def _run(job: Callable[..., Any], config: Job, address: str | None, overwrite: bool, progress: bool) -> Any:
    from limrank.batch.run_dir_checks import check_run_dir_first

    where = _address(address)
    check_run_dir_first(config)
    reported = open_progress() if progress else Progress(SilentRenderer())
    try:
        with signals.stopping():
            return job(config, address=where, progress=reported, overwrite=overwrite)
    finally:
        reported.close()


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
    values: Mapping[str, Mapping[str, Any]], what: str, number: Callable[[Any], Number]
) -> dict[str, dict[str, Number]]:
    """A run or judgements as plain dictionaries of one type of number."""
    kind = "score" if number is float else "grade"
    found: dict[str, dict[str, Number]] = {}
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
