"""Scores through vLLM are transformers' scores of the same token ids, in float32."""

import asyncio
import math
import os

import pytest

from limrank import prompts, scoring
from limrank.config import ScoringConfig
from limrank.data import beir, pydocs
from limrank.errors import RowError
from limrank.records import Candidate, Query, ScoreStatus

LABELS = (scoring.TRUE, scoring.FALSE)
CLOSE_ENOUGH = 1e-3
YEAST = Query("yeast", "why does dough rise")
GAS = "Yeast turns sugar into gas, and the gas lifts the dough. "


@pytest.fixture(scope="module")
def reference(model_dir):
    """log p(label | ids) by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(len(os.sched_getaffinity(0)))  # vLLM leaves one to the process it lives in
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    columns = [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(label)[0]) for label in LABELS]

    @torch.inference_mode()
    def label_logprobs(ids):
        logits = model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1]
        return dict(zip(LABELS, torch.log_softmax(logits, -1)[columns].tolist(), strict=True))

    return label_logprobs


def score_of(logprobs):
    true, false = (math.exp(logprobs[label]) for label in LABELS)
    return true / (true + false)


def judge(live, pairs, scoring_config):
    """Judgments of (query, text) pairs, all in flight at once."""

    async def all_pairs():
        asked = (
            scoring.score_pair(query, Candidate(str(place), text, place, 0.0), live.engine, scoring_config)
            for place, (query, text) in enumerate(pairs, start=1)
        )
        return await asyncio.gather(*asked)

    return live.run(all_pairs(), timeout=300)


def asked_ids(engine, query, text, chain=None, budget=0):
    """The ids after which the label was asked for, rebuilt from what a row tells."""
    close = scoring.encode_template(engine.tokenizer, scoring.CLOSE)
    max_tokens = engine.limits.context - budget - len(close) - 1
    prompt = scoring.encode_pair(engine.tokenizer, prompts.load("relevance"), query, text, max_tokens=max_tokens)
    thought = scoring.encode_text(engine.tokenizer, chain) if chain else []
    return [*prompt.ids, *thought[:budget], *close]


def assert_parity(live, reference, judgments, prompts_ids):
    async def all_labels():
        return await asyncio.gather(*(live.engine.label_logprobs(ids, LABELS) for ids in prompts_ids))

    given = live.run(all_labels(), timeout=300)
    for judgment, ids, logprobs in zip(judgments, prompts_ids, given, strict=True):
        expected = reference(ids)
        assert logprobs == pytest.approx(expected, abs=CLOSE_ENOUGH)
        assert judgment.score == pytest.approx(score_of(expected), abs=CLOSE_ENOUGH)


def assert_direct_parity(live, reference, pairs):
    judgments = judge(live, pairs, ScoringConfig(mode="direct"))
    assert {judgment.status for judgment in judgments} == {ScoreStatus.DIRECT}
    assert not any(judgment.truncated for judgment in judgments)
    assert_parity(live, reference, judgments, [asked_ids(live.engine, query, text) for query, text in pairs])
    # Had every pair the same score, parity would say little.
    assert max(judgment.score for judgment in judgments) - min(judgment.score for judgment in judgments) > 0.01


def relevant_pairs(benchmark):
    """Each query with its judged documents, short documents first."""
    texts = {document.doc_id: document.contents for document in benchmark.documents}
    queries = {query.query_id: query for query in benchmark.queries}
    pairs = [(queries[query_id], texts[doc_id]) for query_id, judged in benchmark.qrels.items() for doc_id in judged]
    return sorted(pairs, key=lambda pair: len(pair[1]))


def test_direct_scores_of_fifty_scifact_pairs(vllm_engine, reference, shared_data):
    pairs = relevant_pairs(beir.load(shared_data / "scifact", "test"))
    assert_direct_parity(vllm_engine, reference, pairs[:50])


def test_direct_scores_of_pydocs_pairs(vllm_engine, reference):
    assert_direct_parity(vllm_engine, reference, relevant_pairs(pydocs.benchmark("dev"))[:40:8])


@pytest.mark.parametrize("mode", ["think", "budget"])
def test_scores_after_a_chain(vllm_engine, reference, mode):
    pairs = relevant_pairs(pydocs.benchmark("dev"))[:24:8]
    judgments = judge(vllm_engine, pairs, ScoringConfig(mode=mode, max_think_tokens=48))
    assert {judgment.status for judgment in judgments} <= {ScoreStatus.COMPLETE, ScoreStatus.FORCED}
    assert all(judgment.reasoning for judgment in judgments)
    asked = [
        asked_ids(vllm_engine.engine, query, text, judgment.reasoning, 48)
        for (query, text), judgment in zip(pairs, judgments, strict=True)
    ]
    assert_parity(vllm_engine, reference, judgments, asked)


def test_a_passage_too_long_loses_its_end_and_is_scored(vllm_engine, reference):
    text = GAS * 200
    (judgment,) = judge(vllm_engine, [(YEAST, text)], ScoringConfig(mode="direct"))
    assert judgment.truncated
    ids = asked_ids(vllm_engine.engine, YEAST, text)
    context = vllm_engine.engine.limits.context
    assert context - 8 <= len(ids) <= context - 1
    assert_parity(vllm_engine, reference, [judgment], [ids])


def test_a_query_too_long_fails_and_its_neighbours_do_not(vllm_engine):
    endless = Query("endless", "why does dough rise " * 600)
    before, failed, after = judge(vllm_engine, [(YEAST, GAS), (endless, GAS), (YEAST, "Salt.")], ScoringConfig())
    assert (failed.status, failed.score) == (ScoreStatus.FAILED, None)
    assert isinstance(failed.error, RowError)
    assert "tokens without a passage" in str(failed.error)
    assert all(judgment.status == ScoreStatus.DIRECT and 0 < judgment.score < 1 for judgment in (before, after))
