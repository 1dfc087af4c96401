"""Several sampled chains of a pair: their seeds, the mean of their scores, and what they cost."""

import asyncio
import math

import pytest

from limrank.config import EngineConfig, ModelConfig, ScoringConfig
from limrank.engines.base import Generation, Limits
from limrank.engines.fake import ByteTokenizer, FakeEngine
from limrank.errors import EngineError, RowError, UserError
from limrank.records import Candidate, Query, ScoreStatus
from limrank.scoring import FALSE, TRUE, score_pair, score_query
from limrank.scoring.samples import chain_sampling

QUERY = Query("q", "why does dough rise")
CANDIDATE = Candidate("d", "Yeast makes gas.", 1, 0.0)
THREE = ScoringConfig(mode="think", max_think_tokens=50, samples=3)


class Chains:
    """Writes a chain a request and gives it the probability of its place. An exception in place of one is raised."""

    def __init__(self, *probabilities, unclosed=()):
        self.tokenizer = ByteTokenizer()
        self.limits = Limits(4096, 8)
        self.sampled = []
        self._probabilities = probabilities
        self._unclosed = unclosed

    async def generate(self, prompt, *, max_tokens, stop, **sampling):
        number = len(self.sampled)
        self.sampled.append(sampling)
        text = f"\nChain {number}."
        if number in self._unclosed:
            return Generation(text, "length", 9, 0, 10)
        return Generation(text, "stop", 9, 0, 10, stop="</think>")

    async def label_logprobs(self, prompt, labels):
        number = int(self.tokenizer.decode(prompt).partition("Chain ")[2].partition(".")[0])
        found = self._probabilities[number]
        if isinstance(found, Exception):
            raise found
        return {TRUE: math.log(found), FALSE: math.log(1 - found)}


def judged(engine, scoring=THREE, **options):
    return asyncio.run(score_pair(QUERY, CANDIDATE, engine, scoring, **options))


def test_the_score_is_the_mean_of_the_probabilities():
    judgment = judged(Chains(0.9, 0.9, 1e-9))
    # Two chains of three say true. The mean of their log-odds would be negative: (2.2 + 2.2 - 20.7) / 3.
    assert judgment.score == pytest.approx(0.6, abs=1e-8)
    assert (judgment.status, judgment.reasoning) == (ScoreStatus.COMPLETE, "\nChain 0.")
    assert judgment.generated_tokens == 3 * (10 + 1)


def test_a_pair_is_forced_where_a_chain_was():
    assert judged(Chains(0.5, 0.5, 0.5, unclosed=[2])).status == ScoreStatus.FORCED


def test_a_chain_that_fails_fails_its_pair_and_all_tokens_count():
    judgment = judged(Chains(0.9, RowError("no such label"), 0.9))
    assert (judgment.score, judgment.status, judgment.reasoning) == (None, ScoreStatus.FAILED, "\nChain 0.")
    assert str(judgment.error) == "no such label"
    assert judgment.generated_tokens == 3 * 10 + 2


@pytest.mark.parametrize("error", [EngineError("gone"), UserError("no label")])
def test_an_error_of_the_engine_is_not_the_pair_s(error):
    with pytest.raises(type(error)):
        judged(Chains(0.9, error, 0.9))


def test_chains_are_sampled_with_seeds_of_their_own():
    engine = Chains(0.5, 0.5, 0.5)
    judged(engine)
    assert [each["temperature"] for each in engine.sampled] == [0.7] * 3
    seeds = [each["seed"] for each in engine.sampled]
    assert len(set(seeds)) == 3 and all(0 <= seed < 2**31 for seed in seeds)


def test_a_retry_samples_the_same_and_anything_else_something_else():
    base = chain_sampling(QUERY, "text", THREE, 1)
    assert chain_sampling(Query("other id", QUERY.text), "text", THREE, 1) == base  # as a server without ids
    assert chain_sampling(Query("q", "why does", "dough rise"), "text", THREE, 1) == base  # asks the same
    others = [(QUERY, "text", 2), (QUERY, "texts", 1), (Query("q", QUERY.text + "t"), "ext", 1)]
    for query, passage, seed in others:
        assert chain_sampling(query, passage, THREE, seed) != base


@pytest.mark.parametrize("mode", ["direct", "think", "budget", "cascade"])
def test_one_chain_is_greedy(mode):
    assert chain_sampling(QUERY, "text", ScoringConfig(mode=mode), 1) == [{}]


def test_one_chain_may_be_sampled():
    (sampling,) = chain_sampling(QUERY, "text", ScoringConfig(mode="think", temperature=0.3), 1)
    assert sampling["temperature"] == 0.3


def test_a_cascade_keeps_its_allowance_with_several_chains():
    engine = FakeEngine(ModelConfig(max_model_len=2048), EngineConfig(kind="fake"))
    candidates = [Candidate(f"d{rank}", f"text {rank}", rank, 0.0) for rank in range(1, 5)]
    scoring = ScoringConfig(mode="cascade", max_think_tokens=10, samples=2, band=100)

    def thought(allowance):
        judgments = asyncio.run(score_query(QUERY, candidates, engine, scoring, allowance=allowance))
        assert sum(each.generated_tokens for each in judgments) <= allowance
        return sum(each.think_score is not None for each in judgments)

    # Four direct scores, and two chains of 10 tokens with their labels for each pair.
    assert [thought(4 + 21), thought(4 + 22), thought(4 + 44), thought(1000)] == [0, 1, 2, 4]
