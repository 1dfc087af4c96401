"""The labels of a pair, and the score that is read from their log-probabilities.

By default the labels are true and false, and the score is p(true) / (p(true) + p(false)). Graded labels
(``scoring.labels``) are a scale from least to most relevant, and the score is the expected value on it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from limrank.engines.base import Engine, Tokenizer, label_token_ids
from limrank.errors import RowError, UserError

TRUE, FALSE = LABELS = (" true", " false")
"""The model's answers, with their leading space. Each must be one token."""


class Scale(NamedTuple):
    """Graded labels in a tokenizer.

    Attributes:
        lead: token ids with which all labels start. Many vocabularies have a token for a space and a token for
            each digit, and none for the two together.
        texts: the text of each label's token behind them.
    """

    lead: tuple[int, ...]
    texts: tuple[str, ...]


def check_labels(tokenizer: Tokenizer, labels: Sequence[str] | None = None) -> None:
    """Raises UserError where a label is not one token of the tokenizer. None: true and false."""
    if labels is None:
        label_token_ids(tokenizer, (TRUE, FALSE))
    else:
        label_scale(tokenizer, tuple(labels))


@lru_cache(maxsize=8)
def label_scale(tokenizer: Tokenizer, labels: tuple[str, ...]) -> Scale:
    """Graded labels, each with a leading space as in ``</think> true``, in a tokenizer.

    Raises:
        UserError: behind the tokens with which all labels start, a label is not one token of its own. The
            message names the label.
    """
    encoded = [tokenizer.encode(f" {label}", add_special_tokens=False) for label in labels]
    shared = len(os.path.commonprefix(encoded))
    lead = encoded[0][: min(shared, *(len(ids) - 1 for ids in encoded))]
    texts: list[str] = []
    for label, ids in zip(labels, encoded, strict=True):
        own = ids[len(lead) :]
        if len(own) != 1:
            raise _no_token(label, f"is {len(own)} tokens")
        text = tokenizer.decode(own) if lead else f" {label}"
        if tokenizer.encode(text, add_special_tokens=False) != own or text in texts:
            raise _no_token(label, "has no token of its own")
        texts.append(text)
    return Scale(tuple(lead), tuple(texts))


def lead_tokens(tokenizer: Tokenizer, labels: tuple[str, ...] | None) -> list[int]:
    """The token ids between ``</think>`` and the token at which a label is read. None: true and false."""
    return [] if labels is None else list(label_scale(tokenizer, labels).lead)


async def label_score(engine: Engine, ids: list[int], labels: tuple[str, ...] | None = None) -> float:
    """The score in [0, 1] after a closed chain, from the label tokens.

    Without labels it is p(true) / (p(true) + p(false)). With n labels it is the sum of p_i · i / (n - 1) over
    i = 0 … n - 1. The probabilities are those of the labels, normalised over the labels only.

    Args:
        ids: the prompt and its closed chain, and the :func:`lead_tokens` of the labels.

    Raises:
        RowError: the engine has no number for a label, or one that is not finite.
    """
    texts = (TRUE, FALSE) if labels is None else label_scale(engine.tokenizer, labels).texts
    logprobs = await engine.label_logprobs(ids, texts)
    if labels is None:
        difference = logprobs[FALSE] - logprobs[TRUE]
        if not math.isfinite(difference):
            raise RowError(f"the engine's log-probabilities are not finite: {logprobs}")
        # exp overflows above 709, where the score is 0 to every digit.
        return 1.0 / (1.0 + math.exp(min(difference, 700.0)))
    values = [logprobs[text] for text in texts]
    if not all(map(math.isfinite, values)):
        raise RowError(f"the engine's log-probabilities are not finite: {logprobs}")
    weights = [math.exp(value - max(values)) for value in values]
    expected = math.fsum(weight * grade for grade, weight in enumerate(weights)) / math.fsum(weights)
    return min(expected / (len(weights) - 1), 1.0)


def _no_token(label: str, why: str) -> UserError:
    return UserError(
        f"scoring.labels: {label!r} {why} after </think> in this model's tokenizer, and a label must be one token: "
        "take digits, letters or common words"
    )
