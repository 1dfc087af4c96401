"""Pointwise judgement of (query, passage) pairs. The label strings are defined here, in ``labels.py``."""

from limrank.engines.tokens import encode_template, encode_text
from limrank.scoring.encoding import (
    CLOSE,
    THINK_CLOSE,
    THINK_OPEN,
    PairPrompt,
    close_tokens,
    encode_closed,
    encode_example,
    encode_pair,
    pair_text,
    prompt_query,
)
from limrank.scoring.labels import FALSE, LABELS, TRUE, check_labels, label_score
from limrank.scoring.pointwise import (
    above,
    completion,
    prompt_template,
    rank_judgments,
    score_pair,
    score_query,
    truncate_at_sentence,
    truncate_chain,
    with_prompt_text,
)

__all__ = [
    "CLOSE",
    "FALSE",
    "LABELS",
    "THINK_CLOSE",
    "THINK_OPEN",
    "TRUE",
    "PairPrompt",
    "above",
    "check_labels",
    "close_tokens",
    "completion",
    "truncate_at_sentence",
    "truncate_chain",
    "encode_closed",
    "encode_example",
    "encode_pair",
    "encode_template",
    "encode_text",
    "label_score",
    "pair_text",
    "prompt_query",
    "prompt_template",
    "rank_judgments",
    "score_pair",
    "score_query",
    "with_prompt_text",
]
