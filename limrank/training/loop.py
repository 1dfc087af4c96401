"""The training loop: a plain function of a model and examples. It knows nothing of Ray.

It runs alone, or in every process of a ``torch.distributed`` group; the numbers are the
same but for rounding, since a step's loss is one sum over all tokens of all processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from limrank.config import TrainingConfig
from limrank.errors import EngineError
from limrank.training.batches import collate, epoch_steps, micro_batches, steps_per_epoch

if TYPE_CHECKING:
    import torch
    from torch import nn

    from limrank.training.examples import EncodedExample

MAX_GRADIENT_NORM = 1.0


@dataclass
class Progress:
    """How far training is, over all processes and resumed runs.

    ``loss`` is the mean over the completion tokens of the last step, ``tokens`` counts
    prompts and completions without padding, ``seconds`` is time spent in steps.
    """

    step: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None
    validation_loss: float | None = None


class TrainState:
    """A model with its optimizer, schedule and progress: what a checkpoint holds.

    AdamW without weight decay; the rate rises linearly over ``warmup_ratio`` of the
    steps (rounded down: a run of one step must not spend it at a rate of zero), then
    falls to zero along a cosine.
    """

    def __init__(self, model: nn.Module, training: TrainingConfig, total_steps: int) -> None:
        import torch
        from transformers import get_cosine_schedule_with_warmup

        self.model = model
        self.total_steps = total_steps
        self.parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=training.learning_rate, weight_decay=0.0)
        self.schedule = get_cosine_schedule_with_warmup(
            self.optimizer, int(training.warmup_ratio * total_steps), total_steps
        )
        self.progress = Progress()

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, by name: the frozen weights are not in it."""
        return {
            "parameters": {name: each.detach() for name, each in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "progress": asdict(self.progress),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        import torch

        if state["parameters"].keys() != self.parameters.keys():
            raise EngineError("the checkpoint holds other parameters than this model trains")
        with torch.no_grad():
            for name, each in self.parameters.items():
                each.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.progress = Progress(**state["progress"])


def total_steps(examples: int, training: TrainingConfig, workers: int) -> int:
    """Optimizer steps of a whole run."""
    return training.epochs * steps_per_epoch(examples, examples_per_step(training, workers))


def examples_per_step(training: TrainingConfig, workers: int) -> int:
    return training.batch_size * training.gradient_accumulation * workers


def train(
    state: TrainState,
    examples: Sequence[EncodedExample],
    training: TrainingConfig,
    *,
    seed: int,
    pad_id: int,
    validation: Sequence[EncodedExample] = (),
    device: torch.device | str = "cpu",
    mixed_precision: bool = False,
    on_step: Callable[[dict[str, Any]], None] = lambda metrics: None,
) -> Progress:
    """Train from where ``state`` stands to the end of the last epoch.

    Every process of a group calls this with the same arguments (but its own device) and
    takes its share of every step.

    Args:
        mixed_precision: compute in bfloat16 where autocast deems it safe.
        on_step: called in every process after each optimizer step, with ``step``
            (1-based), ``epoch`` (a fraction), ``loss``, ``learning_rate``,
            ``tokens_per_second``, ``examples`` (seen so far), and ``validation_loss``
            at the end of an epoch; all summed over the processes.

    Raises:
        EngineError: the loss or its gradient is not finite; names step and examples.
    """
    import torch

    rank, workers = _process()
    device = torch.device(device)
    loss = local_loss = completion_loss(state.model, mixed_precision)
    if workers > 1:
        loss = torch.nn.parallel.DistributedDataParallel(loss, device_ids=[device] if device.type == "cuda" else None)
    per_step = examples_per_step(training, workers)
    in_epoch = steps_per_epoch(len(examples), per_step)
    lengths = [len(example.ids) for example in examples]
    progress = state.progress

    state.model.train()
    for epoch in range(progress.step // in_epoch, training.epochs):
        order = epoch_steps(len(examples), per_step, seed, epoch)
        for indices in order[progress.step % in_epoch :]:
            started = time.perf_counter()
            # Randomness (dropout) depends on the step, so that a resumed run repeats it.
            torch.manual_seed(seed + 1_000_003 * progress.step + rank)
            batches = micro_batches(indices, lengths, training.batch_size, rank, workers)
            rate = state.schedule.get_last_lr()[0]
            progress.loss = _step(state, loss, examples, indices, batches, pad_id, device)
            seconds, tokens = time.perf_counter() - started, sum(lengths[index] for index in indices)
            progress.step += 1
            progress.examples += len(indices)
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
            if validation and progress.step % in_epoch == 0:
                progress.validation_loss = mean_loss(local_loss, validation, training.batch_size, pad_id, device)
                metrics["validation_loss"] = progress.validation_loss
            on_step(metrics)
    return progress


def completion_loss(model: nn.Module, mixed_precision: bool = False) -> nn.Module:
    """A module: a batch as :func:`collate` makes it → cross-entropy summed over its completions.

    The model computes logits for the completions' positions only; with a vocabulary of
    49,152 or more, all the prompt's would cost more memory than the rest of the model.
    """
    import torch
    from torch.nn import functional

    from limrank.training.batches import NO_LOSS

    class CompletionLoss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, labels: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
            with torch.autocast(labels.device.type, dtype=torch.bfloat16, enabled=mixed_precision):
                logits = self.model(**inputs, use_cache=False, logits_to_keep=labels.shape[1] + 1).logits
            # A token's logits stand one position before it.
            logits = logits[:, :-1]
            return functional.cross_entropy(
                logits.flatten(0, 1).float(), labels.flatten(), ignore_index=NO_LOSS, reduction="sum"
            )

    return CompletionLoss()


def mean_loss(
    loss: nn.Module, examples: Sequence[EncodedExample], batch_size: int, pad_id: int, device: torch.device | str
) -> float:
    """Mean loss of a completion token over ``examples``, shared by all processes; no gradient."""
    import torch

    rank, workers = _process()
    lengths = [len(example.ids) for example in examples]
    batches = micro_batches(range(len(examples)), lengths, batch_size, rank, workers)
    total = torch.zeros((), dtype=torch.float64, device=device)
    loss.eval()
    with torch.no_grad():
        for batch in filter(None, batches):
            total += loss(**collate([examples[index] for index in batch], pad_id, device))
    loss.train()
    return _sum(total) / sum(example.completion_tokens for example in examples)


def _step(state, loss, examples, indices, batches, pad_id, device) -> float:
    """One optimizer step; returns the loss, the mean over the completion tokens of the whole step."""
    import torch

    workers = _process()[1]
    tokens = sum(examples[index].completion_tokens for index in indices)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for number, batch in enumerate(batches, 1):
        chosen = [examples[index] for index in batch]
        # A worker that has run out still meets the others, with an example that counts nothing.
        inputs = collate(chosen or [examples[indices[0]]], pad_id, device)
        last = number == len(batches)
        with nullcontext() if last or workers == 1 else loss.no_sync():
            batch_loss = loss(**inputs) * (1 if chosen else 0)
            if not torch.isfinite(batch_loss):
                raise EngineError(_diverged(state, "loss", batch_loss.item(), chosen))
            # Averaged over the processes by DistributedDataParallel, hence × workers.
            (batch_loss * workers / tokens).backward()
        total += batch_loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(state.parameters.values(), MAX_GRADIENT_NORM)
    if not torch.isfinite(norm):
        raise EngineError(_diverged(state, "gradient", norm.item(), [examples[index] for index in indices]))
    state.optimizer.step()
    state.schedule.step()
    state.optimizer.zero_grad(set_to_none=True)
    return _sum(total) / tokens


def _diverged(state: TrainState, what: str, value: float, examples: Sequence[EncodedExample]) -> str:
    lines = ", ".join(str(example.line) for example in examples)
    return (
        f"training stopped at step {state.progress.step + 1}: the {what} is {value} "
        f"(lines {lines} of the training file); look at these, or lower training.learning_rate"
    )


def _process() -> tuple[int, int]:
    """(rank, processes) of the group that this process is in; (0, 1) where it is alone."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _sum(value: torch.Tensor) -> float:
    """A number summed over all processes."""
    from torch import distributed

    if _process()[1] > 1:
        distributed.all_reduce(value)
    return value.item()
