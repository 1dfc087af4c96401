"""The training loop: a plain function of a model and examples, without Ray.

It runs in a single process, or in every process of a ``torch.distributed`` group. The numbers are the
same except for rounding, because a step's loss is one sum over all tokens of all processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from limrank.config import TrainingConfig
from limrank.errors import EngineError
from limrank.training.batches import epoch_steps, micro_batches, pack, steps_per_epoch
from limrank.training.forward import direct_log_odds, mean_loss, of_units, row_loss, training_units
from limrank.training.objectives import weight
from limrank.training.processes import gathered, process, summed
from limrank.training.sharding import gather, is_sharded
from limrank.training.state import Progress, TrainState

if TYPE_CHECKING:
    import torch
    from torch import nn

    from limrank.training.dev import DevSet
    from limrank.training.examples import EncodedExample

MAX_GRADIENT_NORM = 1.0


def total_steps(units: int, training: TrainingConfig, workers: int) -> int:
    """Optimizer steps of a whole run."""
    return training.epochs * steps_per_epoch(units, units_per_step(training, workers))


def units_per_step(training: TrainingConfig, workers: int) -> int:
    return training.batch_size * training.gradient_accumulation * workers


def train(
    state: TrainState,
    examples: Sequence[EncodedExample],
    training: TrainingConfig,
    *,
    seed: int,
    labels: tuple[int, int] | None,
    validation: Sequence[EncodedExample] = (),
    dev: DevSet | None = None,
    device: torch.device | str = "cpu",
    mixed_precision: bool = False,
    on_step: Callable[[dict[str, Any], bool], None] = lambda metrics, over: None,
) -> Progress:
    """Train from the step of ``state`` to the end of the last epoch, or until ``patience`` consecutive
    evaluations on held-out data have brought no improvement.

    Every process of a group calls this with the same arguments (except its own device) and takes its
    share of every step.

    Args:
        labels: the tokens of true and false; None for a writer and for graded labels, which have neither log-odds nor a
            dev set.
        mixed_precision: compute in bfloat16 by autocast.
        on_step: called in every process after each optimizer step with the metrics, over all processes,
            and whether training is over. The metrics are ``step`` (1-based), ``epoch`` (a fraction),
            ``loss``, ``learning_rate``, ``tokens_per_second``, ``examples`` (seen so far) and, after an
            evaluation, ``validation_loss`` and ``ndcg``.

    Raises:
        EngineError: the loss, its gradient or a held-out measure is not finite. The message names the
            step and, for the first two, the examples.
    """
    import torch

    rank, workers = process()
    device = torch.device(device)
    loss = local_loss = row_loss(state.model, training.objective, labels, mixed_precision)
    if workers > 1 and not is_sharded(state.model):
        loss = torch.nn.parallel.DistributedDataParallel(loss, device_ids=[device] if device.type == "cuda" else None)
    units = training_units(examples, training.objective)
    per_step = units_per_step(training, workers)
    in_epoch = steps_per_epoch(len(units), per_step)
    lengths = [len(example.ids) for example in examples]
    progress = state.progress
    eval_every = training.eval_steps or in_epoch

    def is_over() -> bool:
        out_of_patience = training.patience is not None and progress.evals_since_best >= training.patience
        return out_of_patience or progress.step == state.total_steps

    state.model.train()
    for epoch in range(progress.step // in_epoch, training.epochs):
        order = epoch_steps(units, per_step, seed, epoch)
        for step in order[progress.step % in_epoch :]:
            if is_over():
                return progress
            started = time.perf_counter()
            # Dropout is seeded by the step, so that a resumed run repeats it.
            torch.manual_seed(seed + 1_000_003 * progress.step + rank)
            batches = micro_batches(step, lengths, training.batch_size, rank, workers)
            rate = state.schedule.get_last_lr()[0]
            progress.loss = _step(state, loss, examples, step, batches, training.objective, device)
            seconds, seen = time.perf_counter() - started, [index for unit in step for index in unit]
            tokens = sum(lengths[index] for index in seen)
            progress.step += 1
            progress.examples += len(seen)
            progress.tokens += tokens
            progress.seconds += seconds
            metrics = {
                "step": progress.step,
                "epoch": round(progress.step / in_epoch, 4),
                "loss": progress.loss,
                "learning_rate": rate,
                "tokens_per_second": round(tokens / seconds, 1),
                "examples": progress.examples,
            }
            if (validation or dev) and (progress.step % eval_every == 0 or progress.step == state.total_steps):
                measured = {}
                if validation:
                    held_out = mean_loss(local_loss, validation, training.objective, training.batch_size, device)
                    measured["validation_loss"] = _finite(progress.step, "held-out loss", held_out)
                if dev:
                    odds = direct_log_odds(state.model, dev.pairs, labels, training.batch_size, device, mixed_precision)
                    _finite(progress.step, "sum of the dev set's log-odds", sum(odds))
                    measured["ndcg"] = dev.ndcg(odds)
                progress.record_evaluation(measured.get("validation_loss"), measured.get("ndcg"))
                metrics |= measured
            on_step(metrics, is_over())
    return progress


def _step(state, loss, examples, step, batches, objective, device) -> float:
    """One optimizer step; returns the mean loss of the step over all processes."""
    import torch

    workers = process()[1]
    share = weight(objective, of_units(examples, step))
    found: tuple[str, float, list[int]] | None = None
    total = torch.zeros((), dtype=torch.float64, device=device)
    for number, batch in enumerate(batches, 1):
        # A worker without units still takes part in the synchronization, with a unit that counts nothing.
        chosen = of_units(examples, batch or step[:1])
        last = number == len(batches)
        with _synchronized(loss, state.model, last):
            batch_loss = loss(pack(chosen, device)) * (1 if batch else 0)
            if found is None and not torch.isfinite(batch_loss):
                found = ("loss", batch_loss.item(), _lines(chosen))
            # The gradients are averaged over the processes, hence × workers.
            (batch_loss * workers / share).backward()
        total += batch_loss.detach()
    norm = gather(torch.nn.utils.clip_grad_norm_(state.parameters.values(), MAX_GRADIENT_NORM))
    if not torch.isfinite(norm):
        # The norm is the same in every process, so all of them stop here, with the most precise error.
        errors = [each for each in gathered(found) if each] or [
            ("gradient", norm.item(), _lines(of_units(examples, step)))
        ]
        raise EngineError(_diverged(state.progress.step + 1, *errors[0]))
    state.optimizer.step()
    state.schedule.step()
    state.optimizer.zero_grad(set_to_none=True)
    return summed(total) / share


def _synchronized(loss: nn.Module, model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Gradients are synchronized in the last backward pass of a step. Those of sharded weights are
    synchronized in every pass: unsynchronized gradients are unsharded."""
    return nullcontext() if last or process()[1] == 1 or is_sharded(model) else loss.no_sync()


def _lines(units: Sequence[Sequence[EncodedExample]]) -> list[int]:
    return [example.line for unit in units for example in unit]


def _finite(step: int, what: str, value: float) -> float:
    """The value, which is the same in every process, so that all of them stop if it is not finite."""
    if not math.isfinite(value):
        raise EngineError(f"training stopped at step {step}: the {what} is {value}; lower training.learning_rate")
    return value


def _diverged(step: int, what: str, value: float, lines: Sequence[int]) -> str:
    return (
        f"training stopped at step {step}: the {what} is {value} (lines {', '.join(map(str, lines))} of the "
        "training file); check these, or lower training.learning_rate"
    )
