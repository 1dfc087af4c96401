"""From a training recipe to token ids and the plan of a run, without the model's weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from limrank import models
from limrank.config import TrainingConfig, TrainJob
from limrank.errors import UserError
from limrank.scoring import check_labels
from limrank.training.attention import check_length
from limrank.training.dev import DevSet, read_dev_set
from limrank.training.encoding import encode_here
from limrank.training.examples import EncodedExample, balanced, set_target
from limrank.training.forward import training_units
from limrank.training.loop import total_steps, units_per_step
from limrank.training.memory import largest_row, training_bytes
from limrank.training.model import load_tokenizer
from limrank.training.objectives import compares, is_taught
from limrank.training.sampling import select, select_queries, split
from limrank.training.shapes import pair_prompt
from limrank.training.sources import Example, read_examples
from limrank.training.teacher import graded, taught
from limrank.training.writer import Pair, draw, read_pairs

RESUMED_BY = ("examples", "validation_examples", "tokens", "steps", "units_a_step")
"""Keys of the plan that a checkpoint has to agree with, so that its step means the same."""

Encode = Callable[[TrainJob, Sequence[Example] | Sequence[Pair]], list[EncodedExample]]


@dataclass(frozen=True)
class Prepared:
    """The encoded examples for training and evaluation, and the ``plan``: the numbers of a run, and
    ``warnings``, sentences about what may not be intended."""

    training: list[EncodedExample]
    validation: list[EncodedExample]
    dev: DevSet | None
    plan: dict[str, Any]


@dataclass(frozen=True)
class Chosen:
    """The examples to train on, the held-out ones, and the dev set.

    ``temperature`` is what the teacher's scores were divided by, None if none are learned. ``ends`` are the scores
    that became the least and the most relevant graded label, None if none became labels.
    """

    training: list[Example] | list[Pair]
    validation: list[Example] | list[Pair]
    dev: DevSet | None
    warnings: list[str]
    temperature: float | None = None
    ends: tuple[float, float] | None = None


def choose(config: TrainJob) -> Chosen:
    """Read and check everything that a run needs, before anything starts and before a hub's weights are
    downloaded.

    Raises:
        UserError: the file, the model, the dtype, the dev set or the number of workers is unsuitable.
    """
    if config.model.dtype == "float16":
        raise UserError("model.dtype: float16 overflows in training: use bfloat16, float32 or auto")
    training = config.training
    drawn = _drawn_pairs(config) if training.task == "writer" else _drawn_examples(config)
    examples, warnings = drawn.examples, drawn.warnings
    tokenizer, _ = load_tokenizer(models.resolve(config.model.id, weights=False), training.task)
    if training.labels:
        check_labels(tokenizer, training.labels, "training.labels")
    dev = config.dev and read_dev_set(config.dev, tokenizer, pair_prompt(), training.cutoff_tokens)
    warnings += [f"dev: {warning}" for warning in dev.warnings] if dev else []
    if dev and (without := len(dev.qrels) - len({query_id for query_id, _ in dev.documents})):
        warnings.append(f"dev: {without} of {len(dev.qrels)} queries have no candidate: they count 0")
    if dev and training.target == "think":
        warnings.append("dev: the model reranks directly, which training.target=think does not teach it")
    kept, held_out = split(examples, training.validation_share, config.seed)
    units = len(training_units(kept, training.objective))
    if units < config.workers.min_replicas:
        raise UserError(
            f"workers.replicas: {config.workers.min_replicas} workers for {units} training "
            f"{'queries' if compares(training.objective) else 'examples'} of {training.train_file}: take fewer workers"
        )
    warnings = warnings + _of_labels(config, kept, held_out)
    return Chosen(kept, held_out, dev, warnings, drawn.temperature, drawn.ends)


def prepare(config: TrainJob, chosen: Chosen | None = None, encode: Encode = encode_here) -> Prepared:
    """Encode the chosen examples, and plan the run.

    Raises:
        UserError: as :func:`choose`; or an example does not fit into the cut-off, or the model's context.
    """
    chosen = chosen or choose(config)
    encoded = encode(config, [*chosen.training, *chosen.validation])
    if config.training.target == "mixed":
        encoded = balanced(encoded)
    count = len(chosen.training)
    training, validation = encoded[:count], encoded[count:]
    longest = max(len(each.ids) for each in (*encoded, *(chosen.dev.pairs if chosen.dev else ())))
    check_length(models.text_config(config.model.id), longest)
    return Prepared(training, validation, chosen.dev, _plan(config, chosen, training, validation))


class _Drawn(NamedTuple):
    """The examples of a run; the other fields are those of :class:`Chosen`."""

    examples: list[Example] | list[Pair]
    warnings: list[str]
    temperature: float | None = None
    ends: tuple[float, float] | None = None


def _drawn_examples(config: TrainJob) -> _Drawn:
    training, temperature, ends = config.training, None, None
    found = read_examples(str(training.train_file), scored=is_taught(training.objective), labels=training.labels)
    if training.labels:
        grades = graded(found, training)
        examples = select(grades.examples, training.max_examples, config.seed, training.labels)
        warnings, ends = grades.warnings, grades.ends
    elif is_taught(training.objective):
        lists = taught(found, training, config.seed)
        examples, warnings, temperature = lists.examples, lists.warnings, lists.temperature
    elif compares(training.objective):
        examples, warnings = _compared(found, training, config.seed)
    else:
        examples, warnings = select(found, training.max_examples, config.seed), []
    warnings = warnings + _of_chains(config, examples)
    return _Drawn(set_target(examples, training.target), warnings, temperature, ends)


def _drawn_pairs(config: TrainJob) -> _Drawn:
    pairs, warnings = read_pairs(str(config.training.train_file))
    return _Drawn(draw(pairs, config.training.max_examples, config.seed), warnings)


def _compared(found: list[Example], training: TrainingConfig, seed: int) -> tuple[list[Example], list[str]]:
    """The examples for an objective that compares a query's passages, and warnings about the others.

    Raises:
        UserError: no query has both labels, or every one has more passages than are to be drawn.
    """
    usable = select_queries(found, None, seed)
    if not usable:
        raise UserError(
            f"{training.train_file}: no query has a relevant and another passage, which "
            f"training.objective={training.objective} compares: take objective=binary, or more negatives"
        )
    examples = select_queries(found, training.max_examples, seed)
    if not examples:
        raise UserError(
            f"training.max_examples={training.max_examples}: every query of {training.train_file} that "
            f"training.objective={training.objective} can compare has more passages: raise it"
        )
    if len(usable) == len(found):
        return examples, []
    return examples, [
        f"{training.train_file}: {len(found) - len(usable)} of {len(found)} examples are left out: their query has "
        f"passages of one label only, and training.objective={training.objective} compares both"
    ]


def _of_chains(config: TrainJob, examples: Sequence[Example]) -> list[str]:
    """Warnings about missing chains. Raises UserError if chains are to be learned and there are none."""
    training = config.training
    lacking = sum(not example.chain.strip() for example in examples)
    if training.target == "direct" or not lacking:
        return []
    if lacking == len(examples):
        raise UserError(
            f"{training.train_file}: no example has a chain, which training.target={training.target} is to learn: "
            "take training.target=direct"
        )
    return [f"{training.train_file}: {lacking} of {len(examples)} examples have no chain, and are learned directly"]


def _of_labels(config: TrainJob, kept: Sequence[Example], held_out: Sequence[Example]) -> list[str]:
    """Warnings about labels and held-out data. Raises UserError if ``patience`` needs held-out data and
    there is none."""
    training, found = config.training, []
    learns_labels = training.task == "reranker" and not is_taught(training.objective)
    learned = {example.label for example in kept} if learns_labels else set()
    if learns_labels and len(learned) < 2:
        found.append(
            f"{training.train_file}: all {len(kept)} training examples have one label: a model cannot "
            "learn from them to tell passages apart"
        )
    elif missing := [label for label in training.labels or () if label not in learned]:
        found.append(
            f"{training.train_file}: no training example has the label {', '.join(missing)}: the model does not learn "
            "to answer it"
        )
    if training.validation_share and not held_out and not config.dev:
        nothing = (
            f"training.validation_share={training.validation_share:g} of {len(kept)} examples is not one whole query: "
            "nothing is held out"
        )
        if training.patience:
            raise UserError(f"{nothing}, and training.patience={training.patience} waits for it: raise the share")
        found.append(nothing)
    return found


def _counts(training: TrainingConfig, examples: Sequence[Example]) -> dict[str, int]:
    """The number of examples of each graded label that there are examples of, in the order of the labels."""
    found = Counter(example.label for example in examples)
    return {label: found[label] for label in training.labels or () if found[label]}


def _plan(
    config: TrainJob, chosen: Chosen, training: list[EncodedExample], validation: list[EncodedExample]
) -> dict[str, Any]:
    replicas = config.workers.min_replicas
    lengths = [len(example.ids) for example in training]
    units = training_units(training, config.training.objective)
    row = largest_row(config, training)
    return {
        "model": config.model.id,
        "task": config.training.task,
        "method": config.training.method,
        "target": None if config.training.task == "writer" else config.training.target,
        "objective": config.training.objective,
        "teacher_temperature": chosen.temperature,
        "labels": _counts(config.training, chosen.training) if config.training.labels else None,
        "label_ends": list(chosen.ends) if chosen.ends else None,
        "examples": len(training),
        "validation_examples": len(validation),
        "dev_pairs": len(chosen.dev.pairs) if chosen.dev else 0,
        "cut": sum(example.truncated for example in training + validation),
        "longest_tokens": max(lengths),
        "largest_row_tokens": row.tokens,
        "bytes_a_worker": training_bytes(config, row),
        "warnings": chosen.warnings,
        "tokens": config.training.epochs * sum(lengths),
        "epochs": config.training.epochs,
        "units": len(units),
        "units_a_step": units_per_step(config.training, replicas),
        "steps": total_steps(len(units), config.training, replicas),
        "workers": replicas,
        "cpus_a_worker": config.workers.cpus,
        "gpus_a_worker": config.workers.gpus if config.workers.gpus is not None else "1 where there are GPUs",
    }
