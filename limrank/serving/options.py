"""How one request wants to be scored, up to what the server's recipe allows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from limrank.config import DEFAULT_SEED, ScoringConfig
from limrank.engines import Engine
from limrank.engines.base import Tokenizer
from limrank.engines.tokens import first_tokens
from limrank.records import Candidate, Judgment, Query, ScoreStatus
from limrank.scoring import score_query
from limrank.scoring.calibration import Calibration, calibrated
from limrank.scoring.streaming import stream_query
from limrank.serving.errors import chain_too_long, mode_not_allowed

Modes = Mapping[str, int]
"""The scoring modes of a server, its own first, each with its longest chain in tokens."""


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """A request's own scoring. Every default is the recipe's.

    Attributes:
        mode: direct, think, budget or cascade.
        max_think_tokens: the longest chain.
        max_tokens_per_doc: each document is cut to so many tokens.
        deadline_s: seconds from ``asked_at`` after which the best order so far is the answer; None: no deadline.
        asked_at: when the request came, as a Unix time, so that the time in queues counts. The clocks of a cluster
            have to agree.
    """

    mode: str | None = None
    max_think_tokens: int | None = None
    max_tokens_per_doc: int | None = None
    deadline_s: float | None = None
    asked_at: float = field(default_factory=time.time, compare=False)

    def check(self, modes: Modes) -> None:
        """Raises ApiError for a mode that the server does not have, or a longer chain than it writes."""
        own = next(iter(modes))
        mode = self.mode or own
        if mode not in modes:
            raise mode_not_allowed(mode, list(modes))
        longest = modes[mode]
        # A client may send its number with every request; without a chain it has no effect.
        if longest and self.max_think_tokens is not None and self.max_think_tokens > longest:
            raise chain_too_long(self.max_think_tokens, mode, longest)

    def scoring(self, recipe: ScoringConfig) -> ScoringConfig:
        """The recipe's scoring with this request's mode and chain length."""
        update = {"mode": self.mode, "max_think_tokens": self.max_think_tokens}
        return recipe.model_copy(update={name: value for name, value in update.items() if value is not None})

    def seconds_left(self) -> float | None:
        """Seconds until the deadline, at least 0; None: there is no deadline."""
        if self.deadline_s is None:
            return None
        waited = max(0.0, time.time() - self.asked_at)
        return max(0.0, self.deadline_s - waited)


@dataclass(frozen=True, slots=True)
class Update:
    """What is new of a request that is streamed.

    Attributes:
        changed: new judgments, by the index of the text. A pair without a score so far has none.
        chains_finished, chains_wanted: pairs whose chains have ended, and all that get one.
        ranked: whether all direct scores are there.
        final: whether it is the last one; every pair has its judgment then.
    """

    changed: Mapping[int, Judgment]
    chains_finished: int = 0
    chains_wanted: int = 0
    ranked: bool = False
    final: bool = False


_CUT_AT_ONCE = 4
"""Texts that are cut before the engine's loop can do something else. A long one takes milliseconds."""

AS_RECIPE = ScoreOptions()
"""The options of a request that asks for nothing of its own."""


def offered_modes(scoring: ScoringConfig, listed: Sequence[str] | None) -> dict[str, int]:
    """The modes that a request may ask for: the recipe's own, and the ``listed`` ones of ``serving.modes``, or
    direct where it lists none."""
    names = dict.fromkeys([scoring.mode, *(["direct"] if listed is None else listed)])
    return {name: scoring.model_copy(update={"mode": name}).think_tokens for name in names}


def to_candidates(texts: Sequence[str]) -> list[Candidate]:
    """Documents as candidates. Their order breaks ties, as a first stage's rank does."""
    return [Candidate(str(index), text, index + 1, 0.0) for index, text in enumerate(texts)]


async def score_request(
    query: Query,
    texts: Sequence[str],
    options: ScoreOptions,
    engine: Engine,
    recipe: ScoringConfig,
    *,
    seed: int = DEFAULT_SEED,
    calibration: Calibration | None = None,
) -> list[Judgment]:
    """Judgments of a request, in the order of the texts. Cancelling it aborts the engine's requests.

    A calibration holds for the mode and the chain length that it was fitted with, the recipe's. Other scores stay as
    they are read.
    """
    cut, finished = await _prepared(engine.tokenizer, texts, options, recipe, calibration)
    judgments = await score_query(
        query, to_candidates(cut), engine, options.scoring(recipe), seed=seed, deadline_s=options.seconds_left()
    )
    return finished(judgments)


async def stream_request(
    query: Query,
    texts: Sequence[str],
    options: ScoreOptions,
    engine: Engine,
    recipe: ScoringConfig,
    *,
    seed: int = DEFAULT_SEED,
    calibration: Calibration | None = None,
) -> AsyncGenerator[Update, None]:
    """The judgments of :func:`score_request` while they come in. Closing the generator aborts the engine's requests."""
    cut, finished = await _prepared(engine.tokenizer, texts, options, recipe, calibration)
    stages = stream_query(
        query, to_candidates(cut), engine, options.scoring(recipe), seed=seed, deadline_s=options.seconds_left()
    )
    known: dict[int, Judgment] = {}
    async with aclosing(stages):
        async for stage in stages:
            changed = {
                index: judgment
                for index, judgment in enumerate(finished(stage.judgments))
                if judgment != known.get(index) and (stage.final or judgment.status != ScoreStatus.SKIPPED)
            }
            known |= changed
            yield Update(changed, stage.chains_finished, stage.chains_wanted, stage.ranked, stage.final)


async def _prepared(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    options: ScoreOptions,
    recipe: ScoringConfig,
    calibration: Calibration | None,
) -> tuple[Sequence[str], Callable[[Sequence[Judgment]], list[Judgment]]]:
    """The texts that are judged, and what makes their judgments those of the whole texts."""
    longest = options.max_tokens_per_doc
    cut = await _cut(tokenizer, texts, longest) if longest else texts
    scoring = options.scoring(recipe)
    as_fitted = (scoring.mode, scoring.think_tokens) == (recipe.mode, recipe.think_tokens)
    every_pair_thinks = scoring.mode in ("think", "budget")

    def finished(judgments: Sequence[Judgment]) -> list[Judgment]:
        found = []
        for judgment, short, text in zip(judgments, cut, texts, strict=True):
            judgment = replace(judgment, truncated=judgment.truncated or len(short) < len(text))
            # A direct score in these modes waits for its chain, and has no calibration.
            fits = as_fitted and not (every_pair_thinks and judgment.status == ScoreStatus.DIRECT)
            found += calibrated([judgment], calibration if fits else None)
        return found

    return cut, finished


async def _cut(tokenizer: Tokenizer, texts: Sequence[str], longest: int) -> list[str]:
    """Each text cut to ``longest`` tokens."""
    cut = []
    for number, text in enumerate(texts, start=1):
        cut.append(first_tokens(tokenizer, text, longest))
        if number % _CUT_AT_ONCE == 0:
            await asyncio.sleep(0)
    return cut
