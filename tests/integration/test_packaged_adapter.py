"""Adapters that limrank ships: merged into their base once, and the reranker that one of them makes."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.tiny_model import make_tiny
from helpers.training import perturb
from limrank import models, retrieval
from limrank.config import FirstStageConfig, ModelConfig
from limrank.data import pydocs
from limrank.evaluation.metrics import evaluate
from limrank.models import packaged
from limrank.models.tokens import add_special_tokens
from limrank.reranking.reranker import Reranker


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """A packaged adapter of a tiny base, and what PEFT makes of both."""
    base = make_tiny(tmp_path / "base", tied=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    added = add_special_tokens(tokenizer, ("<think>", "</think>"))
    model.resize_token_embeddings(max(added) + 1, mean_resizing=False)
    config = LoraConfig(r=2, target_modules="all-linear", trainable_token_indices={"embed_tokens": added})
    tuned = get_peft_model(model, config)
    perturb(tuned)
    tuned.save_pretrained(tmp_path / "adapters" / "small-rerank", save_embedding_layers=False)
    shipped = packaged.PackagedAdapter("small-rerank", "small", "for a test")
    monkeypatch.setattr(packaged, "_ADAPTERS", tmp_path / "adapters")
    monkeypatch.setattr(packaged, "PACKAGED", packaged.PACKAGED | {"small-rerank": shipped})
    monkeypatch.setattr(models, "PACKAGED", packaged.PACKAGED)
    fetched = packaged.fetch
    monkeypatch.setattr(packaged, "fetch", lambda name: base if name == "small" else fetched(name))
    monkeypatch.setattr(models, "fetch", packaged.fetch)
    monkeypatch.setenv("LIMRANK_CACHE", str(tmp_path / "cache"))
    return shipped, tuned.eval(), tokenizer


def test_an_adapter_is_merged_into_its_base_once(adapter):
    shipped, tuned, tokenizer = adapter
    assert not models.is_cached("small-rerank")
    folder = models.resolve("small-rerank")
    assert models.is_cached("small-rerank")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert models.resolve("small-rerank") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = "a query <think>\n</think>"
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    assert ids.tolist() == tokenizer(text, return_tensors="pt").input_ids.tolist()
    with torch.no_grad():
        expected, found = tuned(ids).logits, merged(ids).logits
        with tuned.disable_adapter():
            base = tuned(ids).logits
    # The merged weights are rounded to bfloat16.
    rounding = 0.05 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, atol=rounding, rtol=0)
    assert (base - expected).abs().max() > 4 * rounding


def test_another_version_s_adapter_is_another_model(adapter):
    shipped, *_ = adapter
    before, folder = models.fingerprint("small-rerank"), models.resolve("small-rerank")
    weights = shipped.folder / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({name: 2 * weight for name, weight in load_file(weights).items()}, weights)
    assert models.fingerprint("small-rerank") != before and not models.is_cached("small-rerank")
    assert models.resolve("small-rerank") != folder


def test_the_packaged_reranker_ranks_above_bm25():
    """On pydocs' dev queries, whose documents it knows and whose queries it has never seen."""
    benchmark = pydocs.benchmark("dev")
    found = list(retrieval.candidates(benchmark, FirstStageConfig(depth=10)))
    texts = [[each.text for each in candidates] for _, candidates in found]
    with Reranker(ModelConfig(id="smollm2-135m-rerank", max_model_len=256)) as reranker:
        ranked = reranker.rank_many(
            [query.text for query, _ in found],
            texts,
            doc_ids=[[each.doc_id for each in candidates] for _, candidates in found],
        )
    first_stage = {
        query.query_id: {each.doc_id: -float(each.rank) for each in candidates} for query, candidates in found
    }
    reranked = {
        query.query_id: {hit.doc_id: -float(rank) for rank, hit in enumerate(hits)}
        for (query, _), hits in zip(found, ranked, strict=True)
    }
    base, mine = (evaluate(benchmark.qrels, run, ["nDCG@10"]).mean["nDCG@10"] for run in (first_stage, reranked))
    assert mine > base
