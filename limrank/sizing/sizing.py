"""The forecast of a recipe: its workload, the rates of what it runs on, and the two put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from limrank.config import (
    EngineConfig,
    EvaluateJob,
    Job,
    ModelConfig,
    PipelineJob,
    RerankJob,
    ServeJob,
    SynthesizeJob,
    TrainJob,
    WorkersConfig,
)
from limrank.config.stages import stage_configs
from limrank.config.training import OF_TEACHER
from limrank.dtypes import local_device
from limrank.sizing.calibrate import calibrated, calibrated_training
from limrank.sizing.counting import CHAIN_TOKENS
from limrank.sizing.forecast import Forecast, forecast
from limrank.sizing.rates import Rates, device_rates, local_rates, parse_gpus, shared, with_given
from limrank.sizing.workload import Counted, Workload, count, count_training
from limrank.synthesis.plan import read_inputs

_SERVED_PAIR = 250
"""Computed tokens of a pair, where nothing is known of the pairs that a server will get."""


@dataclass(frozen=True)
class Question:
    """What a person wants to know.

    Args:
        gpus: ``H100:8``; None: this machine.
        rates: rates that are given, by name; ``parameters`` is the model's size.
        price: of a GPU, or of a machine without one, for an hour.
        calibrate: measure the rates here, on a sample of the recipe's own work.
    """

    gpus: str | None = None
    rates: Mapping[str, float] | None = None
    price: float | None = None
    calibrate: bool = False


def size(config: Job, question: Question) -> list[Forecast]:
    """The forecast of a job; of a pipeline, one for each stage in their order.

    Raises:
        UserError: the recipe's files are missing, or the size of its model is not known.
    """
    if isinstance(config, PipelineJob):
        return _pipeline(config, question)
    if isinstance(config, TrainJob):
        workload = count_training(config)
        return [_of_training(config, workload, question)]
    if isinstance(config, RerankJob | SynthesizeJob):
        return [_of_engines(config, question)[0]]
    if isinstance(config, ServeJob):
        return [_of_server(config, question)]
    if isinstance(config, EvaluateJob):
        return [_without_engines("evaluate", question, "evaluation takes seconds on any machine")]
    raise TypeError(config.job)


def _of_engines(config: RerankJob | SynthesizeJob, question: Question) -> tuple[Forecast, Counted | None]:
    engines, devices = _engines(config, question)
    on_cpu = question.gpus is None
    counted = count(config, on_cpu=on_cpu, engines=engines, written=_given_chain(config, question))
    if counted is None:
        return _without_engines(config.job, question, "no model is asked"), None
    rates = _rates(config.model, config.engine, question, engines, config.workers.tensor_parallel)
    if question.calibrate:
        measured = calibrated(counted, rates)
        recounted = (
            count(config, on_cpu=on_cpu, engines=engines, written=measured.written) if measured.written else None
        )
        workload = (recounted or counted).workload
        workload = replace(workload, notes=[*workload.notes, *measured.notes])
        rates = measured.rates
        if config.engine.kind == "vllm" and local_device() == "cpu":
            rates = shared(rates, engines)
        rates = with_given(rates, question.rates or {})
    else:
        workload = counted.workload
    return forecast(workload, rates, engines, price=question.price, devices=devices), counted


def _of_training(config: TrainJob, workload: Workload, question: Question) -> Forecast:
    workers = parse_gpus(question.gpus)[1] if question.gpus else config.workers.min_replicas
    rates = _rates(config.model, EngineConfig(), question, workers, lora=config.training.method == "lora")
    if question.calibrate and config.training.train_file:
        rates = with_given(shared(calibrated_training(config, rates), workers), question.rates or {})
    return forecast(workload, rates, workers, price=question.price, devices=workers if question.gpus else 1)


def _of_server(config: ServeJob, question: Question) -> Forecast:
    engines, devices = _engines(config, question)
    rates = _rates(config.model, config.engine, question, engines, config.workers.tensor_parallel)
    found = forecast(Workload("serve", {"engines": engines}), rates, engines, price=question.price, devices=devices)
    note = "how many pairs a second it scores is not known"
    if rates.prefill:
        note = (
            f"about {engines * rates.prefill / _SERVED_PAIR:,.0f} pairs/s, scored directly, of {_SERVED_PAIR} tokens each "
            "that no cache has"
        )
    return replace(found, workload=replace(found.workload, notes=[note]))


def _pipeline(config: PipelineJob, question: Question) -> list[Forecast]:
    """Training waits for its examples, so its tokens are a multiple of a pair's."""
    stages = stage_configs(config)
    found = [_without_engines("rerank", question, "the first stage's order: no model is asked")]
    synthesized = _of_engines(stages.synthesize, question)[0]
    found.append(synthesized)
    base, _ = _of_engines(stages.rerank_base, question)
    found.append(base)
    # A second measurement would be of the same model.
    once = replace(question, calibrate=False)
    pairs = base.workload.counts.get("pairs", 0)
    length = sum(load.usage.prompt for load in base.workload.loads) / pairs if pairs else 0.0
    # Without a writer, every query is given.
    queries = synthesized.workload.counts.get("queries") or len(read_inputs(stages.synthesize).seeds)
    examples = _examples(config, queries)
    tokens = round(config.training.epochs * examples * min(length, config.training.cutoff_tokens))
    train = Workload(
        "train",
        {"examples": examples},
        trained=tokens,
        model=config.model,
        notes=["its examples are not written yet: each is taken to be as long as a pair of the benchmark"],
    )
    found.append(_of_training(stages.train, train, once))
    # The tuned model has the base model's size, and ranks the same pairs.
    found.append(replace(base, workload=replace(base.workload, notes=["by the tuned model, as by the base model"])))
    found.append(_without_engines("evaluate", question, "evaluation takes seconds on any machine"))
    return found


def _examples(config: PipelineJob, queries: int) -> int:
    settings = config.synthesis
    each = settings.list_size if config.training.objective in OF_TEACHER else 1 + settings.negatives
    return min(filter(None, (queries * each, config.training.max_examples)), default=0)


def _without_engines(job: str, question: Question, note: str) -> Forecast:
    rates = Rates("this machine", "no model", True, setup_s=(question.rates or {}).get("setup_s", 5.0))
    return forecast(Workload(job, {}, notes=[note]), rates, 1, price=question.price)


def _engines(config: RerankJob | SynthesizeJob | ServeJob, question: Question) -> tuple[int, int]:
    """How many engines there are, and how many devices are paid for."""
    if question.gpus is None:
        return config.workers.max_replicas, 1
    count = parse_gpus(question.gpus)[1]
    return max(1, count // config.workers.tensor_parallel), count


def _rates(
    model: ModelConfig,
    engine: EngineConfig,
    question: Question,
    engines: int,
    tensor_parallel: int = 1,
    lora: bool = True,
) -> Rates:
    """Those of each of the engines. On this machine they share its cores."""
    given = question.rates or {}
    if engine.kind in ("openai", "serve"):
        rates = Rates(f"{engine.kind} endpoint", "nothing is known of its speed", False, setup_s=10.0)
    elif engine.kind == "fake":
        rates = Rates("the fake engine", "engine.fault.latency_ms", True, startup_s=engine.fault.start_s, setup_s=10.0)
    elif question.gpus:
        rates = device_rates(parse_gpus(question.gpus)[0], model, tensor_parallel, lora, given)
    else:
        rates = shared(local_rates(model, given), engines)
    return with_given(rates, given)


def _given_chain(config: RerankJob | SynthesizeJob, question: Question) -> Mapping[str, float] | None:
    length = (question.rates or {}).get("chain")
    return None if length is None or not config.scoring.think_tokens else {CHAIN_TOKENS: length}


def advice(config: Job, question: Question) -> Sequence[str]:
    """What to type to run with the engines that the forecast is for."""
    if question.gpus is None or isinstance(config, EvaluateJob):
        return []
    workers = getattr(config, "workers", WorkersConfig())
    each = 1 if isinstance(config, TrainJob) else workers.tensor_parallel
    gpus = parse_gpus(question.gpus)[1]
    if isinstance(config, SynthesizeJob) and (pools := _own_pools(config)):
        keys = ", ".join(f"{name}_workers" for name in pools)
        return [
            f"to run so: divide the {gpus} GPUs between workers and {keys}, by replicas × tensor_parallel; the forecast "
            "counts every model's tokens at the writer's rate"
        ]
    replicas = max(1, gpus // each)
    return [f"to run so: -s workers.replicas={replicas} -s workers.gpus={each}"]


def _own_pools(config: SynthesizeJob) -> list[str]:
    """The roles whose models have engines beside the writer's."""
    roles = config.roles()
    writer = roles.pop("writer", None)
    return [name for name, role in roles.items() if role[:2] != writer[:2] and role.engine.kind == "vllm"]
