"""Several sampled chains of a pair, and the mean of their probabilities.

The score of K chains is the mean of their p(true), not of their log-odds. A label is drawn after a
chain that is drawn itself, so p(true | pair) is the expectation of p(true | pair, chain), and the
mean estimates it without bias. Chains polarise p(true): nearly all are close to 0 or 1. The mean is
then the share of chains that say true. A mean of log-odds would follow the most extreme chain, as
log-odds have no bounds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from math import fsum
from typing import Any

from limrank.config import ScoringConfig
from limrank.records import Judgment, Query, ScoreStatus
from limrank.scoring.encoding import prompt_query


def chain_sampling(query: Query, passage: str, scoring: ScoringConfig, seed: int) -> list[dict[str, Any]]:
    """The sampling options of each chain of a pair, one mapping a chain; one empty mapping for a greedy chain.

    A chain's seed is derived from the run's seed, the texts of the pair and the number of the chain. A
    retry, another worker and a server thus sample the same.
    """
    temperature = scoring.chain_temperature
    if temperature == 0 or not scoring.chains:
        return [{}]
    texts = [prompt_query(query), passage]
    pair = "".join(f"{len(text)}:{text}" for text in texts).encode(errors="surrogatepass")

    def chain_seed(number: int) -> int:
        digest = hashlib.sha256(f"{seed}/{number}/".encode() + pair).digest()
        return int.from_bytes(digest[:4]) >> 1  # endpoints take 31 bits

    return [{"temperature": temperature, "seed": chain_seed(number)} for number in range(scoring.chains)]


def averaged(judgments: Sequence[Judgment]) -> Judgment:
    """The judgment of a pair from those of its chains: the mean of their scores and the first chain.

    It is ``forced`` if a chain was, and has the generated tokens of all. If a chain failed, the pair has
    failed with its error.
    """
    first, tokens = judgments[0], sum(judgment.generated_tokens for judgment in judgments)
    if failed := [judgment for judgment in judgments if judgment.score is None]:
        return replace(failed[0], reasoning=first.reasoning, generated_tokens=tokens)
    forced = any(judgment.status == ScoreStatus.FORCED for judgment in judgments)
    score = fsum(judgment.score for judgment in judgments) / len(judgments)
    return replace(first, score=score, status=ScoreStatus.FORCED if forced else first.status, generated_tokens=tokens)
