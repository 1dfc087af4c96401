"""What training changes: the weights, the optimizer, the schedule, and how far it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from limrank.config import TrainingConfig
from limrank.errors import EngineError
from limrank.training.sharding import part_of, whole

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass
class Progress:
    """How far training is, over all processes and resumed runs.

    ``loss`` is the mean over the completion tokens (or units, see ``objectives``) of the last
    step, ``tokens`` counts prompts and completions, ``seconds`` is time spent in steps.
    ``validation_loss`` is of the last evaluation on held-out data, ``best_score`` of the best one: an
    nDCG, or a loss with its sign turned.
    """

    step: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float | None = None
    validation_loss: float | None = None
    best_step: int | None = None
    best_score: float | None = None
    evals_since_best: int = 0

    def record_evaluation(self, validation_loss: float | None, ndcg: float | None) -> None:
        """Take in what was measured on held-out data: the nDCG says what is best, or where
        there is none the loss."""
        self.validation_loss = validation_loss
        score = ndcg if ndcg is not None else -validation_loss
        self.evals_since_best += 1
        if self.best_score is None or score > self.best_score:
            self.best_step, self.best_score, self.evals_since_best = self.step, score, 0


_RENAMED = {"looks_since_best": "evals_since_best"}
"""Names of :class:`Progress` in checkpoints of limrank 0.1, and what they are called now."""


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

    def state_dict(self, keep: bool = True) -> dict[str, Any]:
        """Everything that changes, by name: the frozen weights are not in it. All processes
        ask for it at once, and those that ``keep`` it get it whole."""
        return {
            "parameters": self.whole_parameters(keep),
            "optimizer": whole(self.optimizer.state_dict(), keep),
            "schedule": self.schedule.state_dict(),
            "progress": asdict(self.progress),
        }

    def whole_parameters(self, keep: bool = True) -> dict[str, torch.Tensor]:
        return {name: whole(each.detach(), keep) for name, each in self.parameters.items()}

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
        self.progress = Progress(**{_RENAMED.get(name, name): value for name, value in state["progress"].items()})

    def load_parameters(self, values: dict[str, torch.Tensor]) -> None:
        import torch

        with torch.no_grad():
            for name, each in self.parameters.items():
                each.copy_(part_of(values[name], each))
