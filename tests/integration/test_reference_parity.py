"""Our prompts, token ids and scores are those of the reference's procedure (LimRank's rank1.py).

The procedure, as :class:`Reference` has it: vLLM is given the prompt as text, writes greedily until
``</think> true`` or ``</think> false``, and the last token's log-probabilities are read. Of a chain that
did not close, the text is cut at its last ``.!?``, and the prompt, a line end, that text, a line end
and ``</think>`` are asked for the next token.

Two of its habits are not ours, and no pair here shows them: it tells a closed chain by both labels'
being among the last token's twenty likeliest, whatever that token is, and gives 0.5 where one is not.
"""

import asyncio
import math
from collections import Counter
from dataclasses import dataclass
from itertools import count

import httpx
import pytest
import torch

from helpers.tiny_qwen import make_tiny_qwen
from limrank.config import EngineConfig, FirstStageConfig, ModelConfig, ScoringConfig, ServeJob
from limrank.data import pydocs
from limrank.retrieval import candidates
from limrank.scoring import FALSE, LABELS, TRUE, score_pair
from limrank.serving import job

CLOSE_ENOUGH = 1e-4
PAIRS = 200
TOKENS = 32
"""The most tokens of a chain. The reference's chain may have one more, for the label."""

STOPS = [f"</think>{label}" for label in LABELS]


@dataclass(frozen=True)
class Answer:
    """``asked`` are the ids after which the labels' probabilities are read."""

    prompt: list[int]
    asked: list[int]
    how: str


class Reference:
    """The reference's procedure on an open vLLM engine of ours."""

    def __init__(self, live):
        self._live = live
        self._llm = live.engine._llm
        self._tokenizer = live.engine.tokenizer
        self._numbers = count()
        self._labels = [self._tokenizer.encode(label, add_special_tokens=False)[0] for label in LABELS]

    def answers(self, pairs, tokens):
        async def all_of_them():
            return await asyncio.gather(*(self._answer(*pair, tokens) for pair in pairs))

        return self._live.run(all_of_them(), timeout=1200)

    async def _answer(self, query, passage, tokens):
        from vllm import SamplingParams

        prompt = (
            "Determine if the following passage is relevant to the query. Answer only with 'true' or 'false'.\n"
            f"Query: {query}\nPassage: {passage}\n<think>"
        )
        if not tokens:
            return Answer(self._tokenizer.encode(prompt), self._tokenizer.encode(f"{prompt}\n</think>"), "direct")
        params = SamplingParams(
            temperature=0, max_tokens=tokens + 1, logprobs=20, stop=STOPS, skip_special_tokens=False
        )
        outputs = [each async for each in self._llm.generate(prompt, params, f"reference-{next(self._numbers)}")]
        output, written = outputs[-1], outputs[-1].outputs[0]
        ids = list(output.prompt_token_ids)
        if written.stop_reason in STOPS:
            assert all(label in written.logprobs[-1] for label in self._labels)
            return Answer(ids, [*ids, *written.token_ids[:-1]], "natural")
        # The one token more than ours may write was for the label.
        text = self._tokenizer.decode(written.token_ids[:tokens]) if len(written.token_ids) > tokens else written.text
        text = text.rstrip()
        if not text.endswith((".", "!", "?")) and (last := max(map(text.rfind, ".!?"))) >= 0:
            text = text[: last + 1]
        how = "empty" if not text.strip() else "ended" if written.finish_reason == "stop" else "cut"
        return Answer(ids, self._tokenizer.encode(f"{prompt}\n{text.strip()}\n</think>"), how)


class Recorded:
    """An engine that keeps what it is asked for one pair."""

    def __init__(self, engine):
        self._engine = engine
        self.tokenizer, self.limits = engine.tokenizer, engine.limits
        self.prompt = self.asked = None

    async def generate(self, prompt, **options):
        self.prompt = prompt
        return await self._engine.generate(prompt, **options)

    async def label_logprobs(self, prompt, labels):
        self.asked = prompt
        return await self._engine.label_logprobs(prompt, labels)


def scoring(mode, tokens):
    return ScoringConfig(mode=mode, max_think_tokens=tokens or None, min_think_tokens=0, compatibility="rank1")


def ours(live, found, config):
    """What was asked for each pair, and its judgment."""

    async def one(query, candidate):
        recorded = Recorded(live.engine)
        return recorded, await score_pair(query, candidate, recorded, config)

    async def all_of_them():
        return await asyncio.gather(*(one(query, candidate) for query, candidate in found))

    return live.run(all_of_them(), timeout=1200)


@pytest.fixture(scope="module")
def pairs():
    """200 real pairs: the ten shortest of BM25's first thirty candidates, of the twenty queries with the shortest."""
    found = [
        (query, sorted(ranked, key=lambda candidate: len(candidate.text))[:10])
        for query, ranked in candidates(pydocs.benchmark("test"), FirstStageConfig(depth=30))
        if len(ranked) == 30
    ]
    found.sort(key=lambda each: sum(len(candidate.text) for candidate in each[1]))
    chosen = [(query, candidate) for query, ranked in found[: PAIRS // 10] for candidate in ranked]
    assert len(chosen) == PAIRS
    return chosen


def probabilities(model_dir):
    """p(true) / (p(true) + p(false)) of the next token, by transformers in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    columns = [tokenizer.encode(label, add_special_tokens=False)[0] for label in (TRUE, FALSE)]

    @torch.inference_mode()
    def score(ids):
        true, false = model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1][columns].tolist()
        return 1 / (1 + math.exp(false - true))

    return score


def assert_parity(live, score, pairs, mode, tokens):
    """Ids equal and scores within 1e-4 for every pair; how the chains ended, counted."""
    expected = Reference(live).answers([(query.text, candidate.text) for query, candidate in pairs], tokens)
    for answer, (recorded, judgment) in zip(expected, ours(live, pairs, scoring(mode, tokens)), strict=True):
        assert recorded.asked == answer.asked, answer.how
        assert recorded.prompt in (None, answer.prompt)
        assert judgment.score == pytest.approx(score(answer.asked), abs=CLOSE_ENOUGH), answer.how
        assert str(judgment.status) == {"direct": "direct", "natural": "complete"}.get(answer.how, "forced")
    return Counter(answer.how for answer in expected), expected


@pytest.mark.parametrize(("mode", "tokens"), [("direct", 0), ("think", TOKENS)])
def test_the_packaged_model(vllm_engine, model_dir, pairs, mode, tokens):
    how, _ = assert_parity(vllm_engine, probabilities(model_dir), pairs, mode, tokens)
    assert how.total() == PAIRS


@pytest.fixture(scope="module")
def tiny(qwen_tokenizers, tmp_path_factory):
    return make_tiny_qwen(tmp_path_factory.mktemp("qwen"), qwen_tokenizers["marked"])


@pytest.fixture(scope="module")
def tiny_engine(tiny, live_engine):
    with live_engine("vllm", model=str(tiny)) as live:
        yield live


def test_a_model_with_qwen_s_tokenizer(tiny, tiny_engine, pairs):
    score, tokenizer = probabilities(tiny), tiny_engine.engine.tokenizer
    ends = Counter()
    for mode, tokens in (("direct", 0), ("think", TOKENS), ("budget", 8), ("budget", 1)):
        how, answers = assert_parity(tiny_engine, score, pairs, mode, tokens)
        ends += how
        ends["encoded otherwise"] += sum(
            answer.how == "natural" and tokenizer.encode(tokenizer.decode(answer.asked)) != answer.asked
            for answer in answers
        )
    # Chains of every kind were compared, and closed ones whose tokens no encoder would choose.
    assert min(ends[kind] for kind in ("direct", "natural", "cut", "ended", "empty", "encoded otherwise")) >= 10, ends


def test_through_the_server(tiny, tiny_engine, pairs, local_ray):
    score = probabilities(tiny)
    expected = Reference(tiny_engine).answers([(query.text, candidate.text) for query, candidate in pairs], TOKENS)
    config = ServeJob(
        run_dir="unused",
        model=ModelConfig(id=str(tiny), dtype="float32", max_model_len=2048),
        engine=EngineConfig(kv_cache_gib=1),
        scoring=scoring("think", TOKENS),
        serving={"port": 0},
    )
    with job.serving(config) as url, httpx.Client(base_url=url, timeout=300, trust_env=False) as client:
        for start in range(0, PAIRS, 10):
            query, documents = pairs[start][0], [candidate.text for _, candidate in pairs[start : start + 10]]
            request = {"model": tiny.name, "query": query.text, "documents": documents}
            response = client.post("/v1/rerank", json=request)
            assert response.status_code == 200, response.text
            for result in response.json()["results"]:
                answer = expected[start + result["index"]]
                assert result["relevance_score"] == pytest.approx(score(answer.asked), abs=CLOSE_ENOUGH), answer.how
