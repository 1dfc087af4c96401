"""The state of training: weights, optimizer, schedule and progress."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from limrank.config import TrainingConfig
from limrank.errors import EngineError
from limrank.training.sharding import gather, shard_of

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass
class Progress:
    """The progress of training, over all processes and resumed runs.

    ``loss`` is the mean over the completion tokens (or units, see ``objectives``) of the last step.
    ``tokens`` counts prompts and completions, ``seconds`` the time in steps. ``validation_loss`` is that
    of the last evaluation on held-out data, ``best_score`` that of the best one: an nDCG, or a negated
    loss.
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
        """Record an evaluation on held-out data. The score is the nDCG, or without one the negated loss."""
        self.validation_loss = validation_loss
        score = ndcg if ndcg is not None else -validation_loss
        self.evals_since_best += 1
        if self.best_score is None or score > self.best_score:
            self.best_step, self.best_score, self.evals_since_best = self.step, score, 0


_RENAMED = {"looks_since_best": "evals_since_best"}
"""Old → new names of fields of :class:`Progress`: checkpoints of limrank 0.1 have the old ones."""


class TrainState:
    """A model with its optimizer, schedule and progress: the contents of a checkpoint.

    The optimizer is AdamW without weight decay. The learning rate rises linearly over ``warmup_ratio`` of
    the steps (rounded down, so that the only step of a run has a rate above zero), then falls to zero
    along a cosine.
    """

    def __init__(self, model: nn.Module, training: TrainingConfig, total_steps: int) -> None:
        import torch
        from transformers import get_cosine_schedule_with_warmup

        self.model = model
        self.total_steps = total_steps
        self.parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
        # Fused: one pass over the parameters where the default makes seven, a sixth of a step of the 135M model.
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=training.learning_rate, weight_decay=0.0, fused=True
        )
        self.schedule = get_cosine_schedule_with_warmup(
            self.optimizer, int(training.warmup_ratio * total_steps), total_steps
        )
        self.progress = Progress()

    def state_dict(self, keep: bool = True) -> dict[str, Any]:
        """Everything that training changes, without the frozen weights. All processes call this at the
        same time; those with ``keep`` get it, unsharded."""
        return {
            "parameters": self.gathered_parameters(keep),
            "optimizer": gather(self.optimizer.state_dict(), keep),
            "schedule": self.schedule.state_dict(),
            "progress": asdict(self.progress),
        }

    def gathered_parameters(self, keep: bool = True) -> dict[str, torch.Tensor]:
        return {name: gather(each.detach(), keep) for name, each in self.parameters.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["parameters"].keys() != self.parameters.keys():
            raise EngineError("the checkpoint holds other parameters than this model trains")
        self.load_parameters(state["parameters"])
        optimizer = state["optimizer"]
        shards = {
            index: {
                name: shard_of(value, parameter) if value.shape == parameter.shape else value
                for name, value in optimizer["state"][index].items()
            }
            for index, parameter in enumerate(self.parameters.values())
            if index in optimizer["state"]
        }
        self.optimizer.load_state_dict(optimizer | {"state": shards})
        self.schedule.load_state_dict(state["schedule"])
        self.progress = Progress(**{_RENAMED.get(name, name): value for name, value in state["progress"].items()})

    def load_parameters(self, values: dict[str, torch.Tensor]) -> None:
        import torch

        with torch.no_grad():
            for name, each in self.parameters.items():
                each.copy_(shard_of(values[name], each))
