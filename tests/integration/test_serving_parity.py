"""What a server says of a pair is what limrank's scoring and a plain forward of transformers say: the packaged
reranker in float32, through Ray Serve and HTTP.

The reference has nothing of limrank's encoding: one text, the model's own tokenizer, and the two labels' logits.
"""

import os

import httpx
import pytest

from limrank import models, prompts, scoring
from limrank.config import RERANKER, ScoringConfig, ServeJob
from limrank.data import pydocs
from limrank.records import Candidate, Query
from limrank.serving import job

SAME = 1e-4
THINK_TOKENS = 24
CONTEXT = 2048
CONFIG = ServeJob(
    run_dir="unused",
    model={"id": RERANKER, "dtype": "float32", "max_model_len": CONTEXT},
    engine={"kv_cache_gib": 1},
    serving={"port": 0, "modes": ["budget"]},
)


@pytest.fixture(scope="module")
def pairs():
    """Four queries, each with two documents that are judged for it and one that is not."""
    benchmark = pydocs.benchmark("dev")
    documents = sorted(benchmark.documents, key=lambda document: (len(document.contents), document.doc_id))
    found = []
    for place, query in enumerate(benchmark.queries[:4]):
        judged = [each.contents for each in documents if each.doc_id in benchmark.qrels[query.query_id]][:2]
        found.append((query.text, [*judged, documents[len(documents) // 2 + place].contents]))
    return found


@pytest.fixture(scope="module")
def served(local_ray, pairs):
    """The server's results for each query and mode, in the order of the documents."""
    answers = {}
    with job.serving(CONFIG) as url, httpx.Client(base_url=url, timeout=300, trust_env=False) as client:
        for query, texts in pairs:
            for mode in ("direct", "budget"):
                body = {"query": query, "documents": texts, "mode": mode, "return_reasoning": True}
                body |= {"max_think_tokens": THINK_TOKENS} if mode == "budget" else {}
                answer = client.post("/v1/rerank", json=body)
                assert answer.status_code == 200, answer.text
                answers[query, mode] = sorted(answer.json()["results"], key=lambda result: result["index"])
            scores = client.post("/v1/score", json={"text_1": query, "text_2": texts}).json()["data"]
            answers[query, "score"] = [entry["score"] for entry in scores]
    return answers


@pytest.fixture(scope="module")
def batch(served, pairs, live_engine):
    """limrank's own scores, of an engine in this process, after the server has ended."""

    async def score(engine, query, texts, recipe):
        found = [Candidate(str(place), text, place, 0.0) for place, text in enumerate(texts, start=1)]
        return await scoring.score_query(Query("", query), found, engine, recipe)

    recipes = {
        "direct": ScoringConfig(mode="direct"),
        "budget": ScoringConfig(mode="budget", max_think_tokens=THINK_TOKENS),
    }
    with live_engine("vllm", RERANKER) as live:
        return {
            (query, mode): live.run(score(live.engine, query, texts, recipe), timeout=300)
            for query, texts in pairs
            for mode, recipe in recipes.items()
        }


@pytest.fixture(scope="module")
def plain():
    """p(true) / (p(true) + p(false)) after a text, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    folder = models.resolve(RERANKER)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    labels = [tokenizer.encode(label, add_special_tokens=False) for label in (" true", " false")]
    assert [len(ids) for ids in labels] == [1, 1]

    @torch.inference_mode()
    def score(query, passage, chain=""):
        prompt = prompts.load("relevance").rstrip("\n")
        prompt = prompt.replace("{{ query }}", query).replace("{{ passage }}", passage)
        ids = tokenizer(f"{prompt}{chain}\n</think>", add_special_tokens=False, return_tensors="pt").input_ids
        true, false = model(ids).logits[0, -1, [labels[0][0], labels[1][0]]].tolist()
        return torch.sigmoid(torch.tensor(true - false, dtype=torch.float64)).item()

    return score


def test_direct_scores(served, batch, plain, pairs):
    spread = []
    for query, texts in pairs:
        server = [result["relevance_score"] for result in served[query, "direct"]]
        assert server == pytest.approx(served[query, "score"], abs=SAME)
        assert server == pytest.approx([judgment.score for judgment in batch[query, "direct"]], abs=SAME)
        assert server == pytest.approx([plain(query, text) for text in texts], abs=SAME)
        spread += server
    # Had every pair the same score, parity would say little.
    assert max(spread) - min(spread) > 0.1


def test_scores_after_a_chain(served, batch, plain, pairs):
    forced = 0
    for query, texts in pairs:
        for text, result, judgment in zip(texts, served[query, "budget"], batch[query, "budget"], strict=True):
            assert (result["status"], result["reasoning"]) == (judgment.status, judgment.reasoning)
            assert result["relevance_score"] == pytest.approx(judgment.score, abs=SAME)
            # The tokens of a chain that the model closed itself may be others than those of its text.
            if result["status"] == "forced":
                forced += 1
                assert result["relevance_score"] == pytest.approx(plain(query, text, result["reasoning"]), abs=SAME)
    assert forced
