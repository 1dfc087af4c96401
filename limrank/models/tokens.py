"""Tokens that a model gets besides its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    """Make each of ``tokens`` one token; returns the ids of those that the tokenizer lacked.

    They are *special* tokens, so that ``split_special_tokens`` can encode a person's text that contains them as plain
    text.
    """
    from transformers import AddedToken

    known = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in known]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in missing], special_tokens=True)
    return [tokenizer.convert_tokens_to_ids(token) for token in missing]
