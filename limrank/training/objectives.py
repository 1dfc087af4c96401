"""The training objectives, as sums that micro-batches and workers may add up.

==============  ================================================================================
``label``       cross-entropy of the completions' tokens: the paper's
``binary``      −log p of the passage's label, normalized over the two labels, as in the served
                score. It need not first teach, over the whole vocabulary, that a label follows
``softmax``     −log softmax of each relevant passage's log-odds among itself and its query's
                other passages. Cross-encoders are fine-tuned with it (localized contrastive
                estimation, Gao et al., ECIR 2021, arXiv 2101.08751)
``ranknet``     −log sigmoid of the difference of log-odds, for each pair of a relevant and
                another passage of a query (Burges et al., ICML 2005)
``margin_mse``  squared error between the difference of log-odds and the difference of the
                teacher's scores, for each pair of a query's passages with different scores
                (Hofstätter et al., 2020, arXiv 2010.02666, where a pair is a relevant and
                another passage)
``listnet``     cross-entropy between the softmax of the teacher's scores and the softmax of the
                log-odds, over a query's passages (Cao et al., ICML 2007)
==============  ================================================================================

Losses of pairs are averaged over the pairs of a query, then over queries. The teacher's scores are divided
by its temperature.

The log-odds of a passage are logit(true) − logit(false) at its label's position: they order passages
as the served score does. Only ``label`` makes the two labels likely among all tokens. With the other
objectives an endpoint that returns only its few likeliest tokens may return neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from limrank.config import Objective
from limrank.config.training import OF_TEACHER

if TYPE_CHECKING:
    import torch

    from limrank.training.batches import PackedRow
    from limrank.training.examples import EncodedExample


def compares(objective: Objective) -> bool:
    """Whether an objective compares the passages of a query."""
    return objective in ("softmax", "ranknet") or is_taught(objective)


def is_taught(objective: Objective) -> bool:
    """Whether an objective learns a teacher's scores, and not labels."""
    return objective in OF_TEACHER


def weight(objective: Objective, units: Sequence[Sequence[EncodedExample]]) -> float:
    """The divisor of a sum of losses over these units: the weighted number of completion tokens, or the
    number of units."""
    if objective == "label":
        return sum(example.completion_tokens * example.token_weight for unit in units for example in unit)
    return len(units)


def summed_loss(
    objective: Objective, logits: torch.Tensor, row: PackedRow, labels: tuple[int, int] | None
) -> torch.Tensor:
    """The loss of a row, summed over its completion tokens, or over its units.

    Args:
        logits: (completion tokens, vocabulary), at ``row.kept``.
        labels: the tokens of true and false; only ``label`` needs none.
    """
    import torch
    from torch.nn import functional

    logits = logits.float()
    if objective == "label":
        return functional.cross_entropy(logits, row.targets, reduction="none") @ row.weights
    odds = logits[:, labels[0]] - logits[:, labels[1]]
    if objective == "binary":
        return functional.softplus(torch.where(row.positive, -odds, odds)).sum()
    if is_taught(objective):
        imitate = _margin_mse if objective == "margin_mse" else _listnet
        lists = zip(odds.split(row.units), row.scores.split(row.units), strict=True)
        return sum(imitate(each, scores) for each, scores in lists)
    compare = _softmax if objective == "softmax" else _ranknet
    queries = zip(odds.split(row.units), row.positive.split(row.units), strict=True)
    return sum(compare(each[positive], each[~positive]) for each, positive in queries)


def _softmax(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    import torch

    rivals = torch.logsumexp(negative, dim=0)
    return (torch.logaddexp(positive, rivals) - positive).mean()


def _ranknet(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    return functional.softplus(negative[None, :] - positive[:, None]).mean()


def _margin_mse(odds: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    margins = scores[:, None] - scores[None, :]
    errors = (odds[:, None] - odds[None, :] - margins)[margins > 0]
    return errors.square().mean()


def _listnet(odds: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return -(scores.softmax(dim=0) @ odds.log_softmax(dim=0))
