"""The training loop: a plain function of a model and examples. It knows nothing of Ray.

It runs alone, or in every process of a ``torch.distributed`` group; the numbers are the
same but for rounding, since a step's loss is one sum over all tokens of all processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from limrank.config import TrainingConfig
from limrank.errors import EngineError
from limrank.training.batches import (
    PackedRow,
    Unit,
    epoch_steps,
    micro_batches,
    pack,
    query_units,
    single_units,
    steps_per_epoch,
)
from limrank.training.objectives import Objective, summed_loss, weight
from limrank.training.sharding import is_sharded, part_of, whole

if TYPE_CHECKING:
    import torch
    from torch import nn

    from limrank.training.dev import DevSet
    from limrank.training.examples import EncodedExample

T = TypeVar("T")

MAX_GRADIENT_NORM = 1.0


@dataclass
class Progress:
    """How far training is, over all processes and resumed runs.

    ``loss`` is the mean over the completion tokens (or queries, see ``objectives``) of the last
    step, ``tokens`` counts prompts and completions, ``seconds`` is time spent in steps.
    ``validation_loss`` and ``ndcg`` are of the last look at held-out data, ``best_score`` of
    the best one: an nDCG, or a loss with its sign turned.
    """

    step: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None
    validation_loss: float | None = None
    ndcg: float | None = None
    best_step: int | None = None
    best_score: float | None = None
    looks_since_best: int = 0

    def look(self, validation_loss: float | None, ndcg: float | None) -> None:
        """Take in what was measured on held-out data: the nDCG says what is best, or where
        there is none the loss."""
        self.validation_loss, self.ndcg = validation_loss, ndcg
        score = ndcg if ndcg is not None else -validation_loss
        self.looks_since_best += 1
        if self.best_score is None or score > self.best_score:
            self.best_step, self.best_score, self.looks_since_best = self.step, score, 0


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
        """Everything that changes, by name: the frozen weights are not in it. All processes
        ask for it at once, and get it whole."""
        return {
            "parameters": self.whole_parameters(),
            "optimizer": whole(self.optimizer.state_dict()),
            "schedule": self.schedule.state_dict(),
            "progress": asdict(self.progress),
        }

    def whole_parameters(self) -> dict[str, torch.Tensor]:
        return {name: whole(each.detach()) for name, each in self.parameters.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["parameters"].keys() != self.parameters.keys():
            raise EngineError("the checkpoint holds other parameters than this model trains")
        self.load_parameters(state["parameters"])
        optimizer = state["optimizer"]
        parts = {
            place: {
                name: part_of(value, parameter) if value.shape == parameter.shape else value
                for name, value in optimizer["state"][place].items()
            }
            for place, parameter in enumerate(self.parameters.values())
            if place in optimizer["state"]
        }
        self.optimizer.load_state_dict(optimizer | {"state": parts})
        self.schedule.load_state_dict(state["schedule"])
        self.progress = Progress(**state["progress"])

    def load_parameters(self, values: dict[str, torch.Tensor]) -> None:
        import torch

        with torch.no_grad():
            for name, each in self.parameters.items():
                each.copy_(part_of(values[name], each))


def total_steps(units: int, training: TrainingConfig, workers: int) -> int:
    """Optimizer steps of a whole run."""
    return training.epochs * steps_per_epoch(units, units_per_step(training, workers))


def units_per_step(training: TrainingConfig, workers: int) -> int:
    return training.batch_size * training.gradient_accumulation * workers


def training_units(examples: Sequence[EncodedExample], objective: Objective) -> list[Unit]:
    """What is looked at together: an example, or a query with its examples of both labels."""
    return single_units(examples) if objective == "label" else query_units(examples)


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
        EngineError: the loss or its gradient is not finite; names step and examples.
    """
    import torch

    rank, workers = _process()
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
        tired = training.patience is not None and progress.looks_since_best >= training.patience
        return tired or progress.step == state.total_steps

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
                held_out = (
                    mean_loss(local_loss, validation, training.objective, training.batch_size, device)
                    if validation
                    else None
                )
                scores = (
                    direct_log_odds(state.model, dev.pairs, labels, training.batch_size, device, mixed_precision)
                    if dev
                    else None
                )
                progress.look(held_out, dev.ndcg(scores) if dev else None)
                measured = {"validation_loss": progress.validation_loss, "ndcg": progress.ndcg}
                metrics |= {name: value for name, value in measured.items() if value is not None}
            on_step(metrics, is_over())
    return progress


def row_loss(
    model: nn.Module, objective: Objective, labels: tuple[int, int], mixed_precision: bool = False
) -> nn.Module:
    """A module: a :class:`~limrank.training.batches.PackedRow` → its summed loss.

    The model computes logits for the completions' tokens only; with a vocabulary of
    49,152 or more, all the prompt's would cost more memory than the rest of the model.
    """
    import torch

    class RowLoss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, row: PackedRow) -> torch.Tensor:
            logits = packed_logits(self.model, row, mixed_precision)
            return summed_loss(objective, logits, row, labels)

    return RowLoss()


def packed_logits(model: nn.Module, row: PackedRow, mixed_precision: bool = False) -> torch.Tensor:
    """(completion tokens, vocabulary): the logits at ``row.kept``."""
    import torch

    with torch.autocast(row.input_ids.device.type, dtype=torch.bfloat16, enabled=mixed_precision):
        return model(
            input_ids=row.input_ids,
            position_ids=row.position_ids,
            segments=row.segments,
            logits_to_keep=row.kept,
            use_cache=False,
        ).logits[0]


def mean_loss(
    loss: nn.Module,
    examples: Sequence[EncodedExample],
    objective: Objective,
    batch_size: int,
    device: torch.device | str,
) -> float:
    """Mean loss of a completion token, or of a query, shared by all processes; no gradient."""
    import torch

    units = training_units(examples, objective)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for batch, row in _shared_rows(loss, examples, units, batch_size, device):
        total += loss(row) * (1 if batch else 0)
    return _sum(total) / weight(objective, _of(examples, units))


def direct_log_odds(
    model: nn.Module,
    pairs: Sequence[EncodedExample],
    labels: tuple[int, int],
    batch_size: int,
    device: torch.device | str,
    mixed_precision: bool = False,
) -> list[float]:
    """logit(true) − logit(false) of each pair, shared by all processes; no gradient."""
    import torch

    odds = torch.zeros(len(pairs), dtype=torch.float64, device=device)
    for batch, row in _shared_rows(model, pairs, single_units(pairs), batch_size, device):
        logits = packed_logits(model, row, mixed_precision).double()
        if batch:
            odds[[index for (index,) in batch]] = logits[:, labels[0]] - logits[:, labels[1]]
    if _process()[1] > 1:
        torch.distributed.all_reduce(odds)
    return odds.tolist()


def _shared_rows(
    module: nn.Module,
    examples: Sequence[EncodedExample],
    units: Sequence[Unit],
    batch_size: int,
    device: torch.device | str,
) -> Iterator[tuple[list[Unit], PackedRow]]:
    """This process's share of the units, with the row of each batch, without gradients and
    in the module's evaluation mode. An empty batch has a row too, of which nothing counts:
    where weights lie in parts, all processes go forward equally often."""
    import torch

    rank, workers = _process()
    batches = micro_batches(units, [len(example.ids) for example in examples], batch_size, rank, workers)
    module.eval()
    with torch.no_grad():
        for batch in batches:
            yield batch, pack(_of(examples, batch or units[:1]), device)
    module.train()


def _of(examples: Sequence[EncodedExample], units: Sequence[Unit]) -> list[list[EncodedExample]]:
    return [[examples[index] for index in unit] for unit in units]


def _step(state, loss, examples, step, batches, objective, device) -> float:
    """One optimizer step; returns the loss, the mean over the whole step."""
    import torch

    workers = _process()[1]
    share = weight(objective, _of(examples, step))
    found: tuple[str, float, list[int]] | None = None
    total = torch.zeros((), dtype=torch.float64, device=device)
    for number, batch in enumerate(batches, 1):
        # A worker that has run out still meets the others, with a unit that counts nothing.
        chosen = _of(examples, batch or step[:1])
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
        told = [each for each in _gathered(found) if each] or [("gradient", norm.item(), _lines(_of(examples, step)))]
        raise EngineError(_diverged(state.progress.step + 1, *told[0]))
    state.optimizer.step()
    state.schedule.step()
    state.optimizer.zero_grad(set_to_none=True)
    return _sum(total) / share


def _synchronized(loss: nn.Module, model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Gradients meet in the last backward pass of a step."""
    if is_sharded(model):
        model.set_requires_gradient_sync(last)
        return nullcontext()
    return nullcontext() if last or _process()[1] == 1 else loss.no_sync()


def _lines(units: Sequence[Sequence[EncodedExample]]) -> list[int]:
    return [example.line for unit in units for example in unit]


def _diverged(step: int, what: str, value: float, lines: Sequence[int]) -> str:
    return (
        f"training stopped at step {step}: the {what} is {value} (lines {', '.join(map(str, lines))} of the "
        "training file); look at these, or lower training.learning_rate"
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


def _gathered(value: T) -> list[T]:
    """What each process has, in the order of their ranks."""
    from torch import distributed

    values = [value] * _process()[1]
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values
