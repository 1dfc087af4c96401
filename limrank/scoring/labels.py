"""The labels of a pair, and the score that is read from their log-probabilities.

By default the labels are true and false, and the score is p(true) / (p(true) + p(false)). Graded labels
(``scoring.labels``) are a scale from least to most relevant, and the score is the expected value on it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from limrank.engines.base import Engine, Tokenizer, label_token_ids
from limrank.errors import RowError, UserError

TRUE, FALSE = LABELS = (" true", " false")
"""The model's answers, with their leading space. Each must be one token."""


MOST_TOKENS = 4
"""Tokens of a label behind those that all labels share. Each but the last may take a request of its own."""


@dataclass(frozen=True)
class Branch:
    """The tokens that may follow at one place of a label.

    Attributes:
        texts, ids: a token each.
        ends: for each token the index of the label that ends with it, or None.
        below: for each token the branch of the labels that go on after it, or None.
    """

    texts: tuple[str, ...]
    ids: tuple[int, ...]
    ends: tuple[int | None, ...]
    below: tuple[Branch | None, ...]

    @property
    def depth(self) -> int:
        """Tokens of the longest label from here."""
        return 1 + max((branch.depth for branch in self.below if branch), default=0)

    @property
    def requests(self) -> int:
        """Requests that read all labels from here."""
        return 1 + sum(branch.requests for branch in self.below if branch)


class Scale(NamedTuple):
    """Graded labels in a tokenizer.

    Attributes:
        lead: token ids with which all labels start. Many vocabularies have a token for a space and a token for
            each digit, and none for the two together.
        root: the tokens behind them. The labels 1 and 10 share one, which has a branch.
    """

    lead: tuple[int, ...]
    root: Branch


class Answer(NamedTuple):
    """What a model is to write for a graded label.

    Attributes:
        ids: the token ids behind ``</think>``.
        learned: number of tokens at their end that the model is to write itself. The tokens with which all labels
            start precede them, and are part of what a model is asked.
    """

    ids: tuple[int, ...]
    learned: int


def check_labels(tokenizer: Tokenizer, labels: Sequence[str] | None = None, key: str = "scoring.labels") -> None:
    """Raises UserError where the tokenizer has no tokens for a label. None: true and false.

    Args:
        key: the recipe's key, for the message.
    """
    if labels is None:
        label_token_ids(tokenizer, (TRUE, FALSE))
    else:
        label_scale(tokenizer, tuple(labels), key)


def label_answers(tokenizer: Tokenizer, labels: tuple[str, ...], end_id: int) -> dict[str, Answer]:
    """What a model is to write for each graded label, in the very tokens from which :func:`label_score` reads it.

    A label with which another one begins (1 of 10) is followed by ``end_id``. Its score needs the probability that
    the other label does not follow, which is learned there.
    """
    scale = label_scale(tokenizer, labels)
    return {labels[index]: Answer((*scale.lead, *own), len(own)) for index, own in _paths(scale.root, end_id)}


def _paths(branch: Branch, end_id: int, before: tuple[int, ...] = ()) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The index of each label of a branch, and its tokens."""
    for token, end, below in zip(branch.ids, branch.ends, branch.below, strict=True):
        path = (*before, token)
        if end is not None:
            yield end, (*path, end_id) if below else path
        if below:
            yield from _paths(below, end_id, path)


@lru_cache(maxsize=8)
def label_scale(tokenizer: Tokenizer, labels: tuple[str, ...], key: str = "scoring.labels") -> Scale:
    """Graded labels, each with a leading space as in ``</think> true``, in a tokenizer.

    Args:
        key: the recipe's key, for messages.

    Raises:
        UserError: behind the tokens with which all labels start, a label has more than :data:`MOST_TOKENS`, or one
            that cannot be asked for by its text. The message names the label.
    """
    encoded = [tokenizer.encode(f" {label}", add_special_tokens=False) for label in labels]
    shared = len(os.path.commonprefix(encoded))
    lead = encoded[0][: min(shared, *(len(ids) - 1 for ids in encoded))]
    paths = {}
    for index, (label, ids) in enumerate(zip(labels, encoded, strict=True)):
        own = tuple(ids[len(lead) :])
        if len(own) > MOST_TOKENS:
            raise _no_token(key, label, f"is {len(own)} tokens")
        texts = [_text(tokenizer, token, spaced=not lead and not position) for position, token in enumerate(own)]
        if own in paths or [tokenizer.encode(text, add_special_tokens=False) for text in texts] != [
            [each] for each in own
        ]:
            raise _no_token(key, label, "has no tokens of its own")
        paths[own] = index
    return Scale(tuple(lead), _branch(tokenizer, paths, spaced=not lead))


def _text(tokenizer: Tokenizer, token: int, *, spaced: bool) -> str:
    """The text by which an engine is asked for a token; ``spaced``: it begins with the label's space, which some
    tokenizers do not decode."""
    text = tokenizer.decode([token])
    return f" {text.removeprefix(' ')}" if spaced else text


def _branch(tokenizer: Tokenizer, paths: Mapping[tuple[int, ...], int], *, spaced: bool = False) -> Branch:
    """The branch of labels by their tokens from here."""
    ids = tuple(dict.fromkeys(path[0] for path in paths))
    below = [{path[1:]: index for path, index in paths.items() if path[0] == token and path[1:]} for token in ids]
    return Branch(
        tuple(_text(tokenizer, token, spaced=spaced) for token in ids),
        ids,
        tuple(paths.get((token,)) for token in ids),
        tuple(_branch(tokenizer, each) if each else None for each in below),
    )


def lead_tokens(tokenizer: Tokenizer, labels: tuple[str, ...] | None) -> list[int]:
    """The token ids between ``</think>`` and the token at which a label is read. None: true and false."""
    return [] if labels is None else list(label_scale(tokenizer, labels).lead)


def label_depth(tokenizer: Tokenizer, labels: tuple[str, ...] | None) -> int:
    """Tokens of the longest label behind the :func:`lead_tokens`: 1 for true and false."""
    return 1 if labels is None else label_scale(tokenizer, labels).root.depth


def label_requests(tokenizer: Tokenizer, labels: tuple[str, ...] | None) -> int:
    """Requests that a score takes, of a token each: 1 for true and false, and 2 for the labels 0 to 10."""
    return 1 if labels is None else label_scale(tokenizer, labels).root.requests


async def label_score(engine: Engine, ids: list[int], labels: tuple[str, ...] | None = None) -> float:
    """The score in [0, 1] after a closed chain, from the label tokens.

    Without labels it is p(true) / (p(true) + p(false)). With n labels it is the sum of p_i · i / (n - 1) over
    i = 0 … n - 1. The probabilities are those of the labels, normalised over the labels only.

    Args:
        ids: the prompt and its closed chain, and the :func:`lead_tokens` of the labels.

    Raises:
        RowError: the engine has no number for a label, or one that is not finite.
    """
    if labels is None:
        logprobs = await _logprobs(engine, ids, (TRUE, FALSE))
        # exp overflows above 709, where the score is 0 to every digit.
        return 1.0 / (1.0 + math.exp(min(logprobs[1] - logprobs[0], 700.0)))
    found = await _read(engine, ids, label_scale(engine.tokenizer, labels).root)
    values = [found[index] for index in range(len(labels))]
    weights = [math.exp(value - max(values)) for value in values]
    expected = math.fsum(weight * grade for grade, weight in enumerate(weights)) / math.fsum(weights)
    return min(expected / (len(weights) - 1), 1.0)


async def _read(engine: Engine, ids: list[int], branch: Branch) -> dict[int, float]:
    """The log-probability of each label of a branch, by its index.

    A label's is the sum of its tokens'. Where longer labels begin with a label (10 with 1), it is that label only if
    none of their tokens follows.
    """
    logprobs = await _logprobs(engine, ids, branch.texts)
    found: dict[int, float] = {}
    for own, token, end, below in zip(logprobs, branch.ids, branch.ends, branch.below, strict=True):
        if below is None:
            found[end] = own
            continue
        longer = await _read(engine, [*ids, token], below)
        found |= {index: own + value for index, value in longer.items()}
        if end is not None:
            followed = math.fsum(math.exp(value) for value in longer.values())
            found[end] = own + math.log1p(-min(followed, _CERTAIN))
    return found


_CERTAIN = 1 - 1e-9


async def _logprobs(engine: Engine, ids: list[int], texts: Sequence[str]) -> list[float]:
    logprobs = await engine.label_logprobs(ids, texts)
    values = [logprobs[text] for text in texts]
    if not all(map(math.isfinite, values)):
        raise RowError(f"the engine's log-probabilities are not finite: {logprobs}")
    return values


def _no_token(key: str, label: str, why: str) -> UserError:
    return UserError(
        f"{key}: {label!r} {why} after </think> in this model's tokenizer, and a label has at most "
        f"{MOST_TOKENS}: take numbers, letters or common words"
    )
