"""The training loop: a plain function of a model and examples. It knows nothing of Ray.

It runs alone, or in every process of a ``torch.distributed`` group; the numbers are the
same but for rounding, since a step's loss is one sum over all tokens of all processes.
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
from limrank.training.sharding import is_sharded, whole
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
    labels: tuple[int, int],
    validation: Sequence[EncodedExample] = (),
    dev: DevSet | None = None,
    device: torch.device | str = "cpu",
    mixed_precision: bool = False,
    on_step: Callable[[dict[str, Any], bool], None] = lambda metrics, over: None,
) -> Progress:
    """Train from where ``state`` stands to the end of the last epoch, or until ``patience``
    looks at the held-out data in a row found nothing better.

    Every process of a group calls this with the same arguments (but its own device) and
    takes its share of every step.

    Args:
        labels: the tokens of true and false.
        mixed_precision: compute in bfloat16 where autocast deems it safe.
        on_step: called in every process after each optimizer step, with ``step``
            (1-based), ``epoch`` (a fraction), ``loss``, ``learning_rate``,
            ``tokens_per_second``, ``examples`` (seen so far), and where held-out data was
            looked at ``validation_loss`` and ``ndcg``, all of them over all processes; and
            with whether training is over.

    Raises:
        EngineError: the loss or its gradient is not finite, and the message names step and examples; or
            what is measured on held-out data is not.
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
    look_every = training.eval_steps or in_epoch

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
            # Randomness (dropout) depends on the step, so that a resumed run repeats it.
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
            if (validation or dev) and (progress.step % look_every == 0 or progress.step == state.total_steps):
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
    """One optimizer step; returns the loss, the mean over the whole step."""
    import torch

    workers = process()[1]
    share = weight(objective, of_units(examples, step))
    found: tuple[str, float, list[int]] | None = None
    total = torch.zeros((), dtype=torch.float64, device=device)
    for number, batch in enumerate(batches, 1):
        # A worker that has run out still meets the others, with a unit that counts nothing.
        chosen = of_units(examples, batch or step[:1])
        last = number == len(batches)
        with _synchronized(loss, state.model, last):
            batch_loss = loss(pack(chosen, device)) * (1 if batch else 0)
            if found is None and not torch.isfinite(batch_loss):
                found = ("loss", batch_loss.item(), _lines(chosen))
            # Averaged over the processes where gradients meet, hence × workers.
            (batch_loss * workers / share).backward()
        total += batch_loss.detach()
    norm = whole(torch.nn.utils.clip_grad_norm_(state.parameters.values(), MAX_GRADIENT_NORM))
    if not torch.isfinite(norm):
        # So it is in every process, and all of them stop here; one that knows more says so.
        errors = [each for each in gathered(found) if each] or [
            ("gradient", norm.item(), _lines(of_units(examples, step)))
        ]
        raise EngineError(_diverged(state.progress.step + 1, *errors[0]))
    state.optimizer.step()
    state.schedule.step()
    state.optimizer.zero_grad(set_to_none=True)
    return summed(total) / share


def _synchronized(loss: nn.Module, model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Gradients meet in the last backward pass of a step; those of weights in parts in each
    one, since until they meet they are whole."""
    return nullcontext() if last or process()[1] == 1 or is_sharded(model) else loss.no_sync()


def _lines(units: Sequence[Sequence[EncodedExample]]) -> list[int]:
    return [example.line for unit in units for example in unit]


def _finite(step: int, what: str, value: float) -> float:
    """It is the same in every process, and so all of them stop here."""
    if not math.isfinite(value):
        raise EngineError(f"training stopped at step {step}: the {what} is {value}; lower training.learning_rate")
    return value


def _diverged(step: int, what: str, value: float, lines: Sequence[int]) -> str:
    return (
        f"training stopped at step {step}: the {what} is {value} (lines {', '.join(map(str, lines))} of the "
        "training file); look at these, or lower training.learning_rate"
    )
