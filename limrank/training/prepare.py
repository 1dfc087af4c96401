"""From a training recipe to token ids, and what a run would do with them: no Ray, no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from limrank import models, prompts
from limrank.config import TrainJob
from limrank.errors import UserError
from limrank.scoring import encode_example
from limrank.training.dev import DevSet, read_dev_set
from limrank.training.examples import EncodedExample, aim, encode_examples
from limrank.training.forward import training_units
from limrank.training.loop import total_steps, units_per_step
from limrank.training.model import load_tokenizer
from limrank.training.sampling import select, select_queries, split
from limrank.training.sources import PAIR_PROMPT, read_examples

RESUMED_BY = ("examples", "validation_examples", "tokens", "steps", "units_a_step")
"""What of the plan has to be as it was, for a checkpoint's step to mean the same."""


@dataclass(frozen=True)
class Prepared:
    """Where the model is, and all that it is trained and tried on, encoded."""

    model_dir: Path
    training: list[EncodedExample]
    validation: list[EncodedExample]
    dev: DevSet | None


def prepare(config: TrainJob, *, weights: bool = True) -> Prepared:
    """Read and encode all that a run needs.

    Args:
        weights: False where config and tokenizer are enough; a hub's weights then stay there.

    Raises:
        UserError: the file, the model, the dtype or the dev set does not do.
    """
    if config.model.dtype == "float16":
        raise UserError("model.dtype: float16 overflows in training: use bfloat16, float32 or auto")
    training = config.training
    choose = select if training.objective == "label" else select_queries
    examples = choose(read_examples(training.train_file), training.max_examples, config.seed)
    if not examples:
        raise UserError(
            f"{training.train_file}: no query has a relevant and another passage, which "
            f"training.objective={training.objective} compares: take objective=label, or more negatives"
        )
    model_dir = models.resolve(config.model.id, weights=weights)
    tokenizer, _ = load_tokenizer(model_dir)
    encoded = encode_examples(
        aim(examples, training.target),
        encode=partial(encode_example, tokenizer),
        end_id=tokenizer.eos_token_id,
        cutoff=training.cutoff_tokens,
        source=training.train_file,
    )
    dev = config.dev and read_dev_set(config.dev, tokenizer, prompts.load(PAIR_PROMPT), training.cutoff_tokens)
    return Prepared(model_dir, *split(encoded, training.validation_share, config.seed), dev)


def describe(config: TrainJob, prepared: Prepared) -> dict[str, Any]:
    """What a run would do, in numbers.

    Raises:
        UserError: there are fewer examples than workers, or nothing that the objective compares.
    """
    training = prepared.training
    replicas = config.workers.min_replicas
    lengths = [len(example.ids) for example in training]
    units = training_units(training, config.training.objective)
    if len(training) < replicas:
        raise UserError(
            f"workers.replicas: {replicas} workers for {len(training)} training examples of "
            f"{config.training.train_file}: take fewer workers"
        )
    return {
        "model": config.model.id,
        "method": config.training.method,
        "target": config.training.target,
        "objective": config.training.objective,
        "examples": len(training),
        "validation_examples": len(prepared.validation),
        "dev_pairs": len(prepared.dev.pairs) if prepared.dev else 0,
        "cut": sum(example.cut for example in training + prepared.validation),
        "longest_tokens": max(lengths),
        "warnings": _warnings(config, training),
        "tokens": config.training.epochs * sum(lengths),
        "epochs": config.training.epochs,
        "units": len(units),
        "units_a_step": units_per_step(config.training, replicas),
        "steps": total_steps(len(units), config.training, replicas),
        "workers": replicas,
        "cpus_a_worker": config.workers.cpus,
        "gpus_a_worker": config.workers.gpus if config.workers.gpus is not None else "1 where there are GPUs",
    }


def _warnings(config: TrainJob, training: Sequence[EncodedExample]) -> list[str]:
    """What a run would do that its person may not have meant."""
    found = []
    if len({example.label for example in training}) < 2:
        found.append(
            f"{config.training.train_file}: all {len(training)} training examples have one label: a model cannot "
            "learn from them to tell passages apart"
        )
    if (
        config.training.validation_share
        and not int(len(training) * config.training.validation_share)
        and not config.dev
    ):
        found.append(
            f"training.validation_share={config.training.validation_share:g} of {len(training)} examples is none: "
            "nothing is held out"
        )
    return found
