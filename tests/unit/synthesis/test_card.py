"""``DATASET.md`` as the hub and ``datasets`` read it."""

import json

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from limrank.synthesis import card
from limrank.synthesis.stats import tally

FACTS = {
    "seeds": 3,
    "seed_source": "seeds.jsonl",
    "license": None,
    "queries": 6,
    "writer": "a/writer",
    "judge": "a/judge",
    "agreement": "verdict",
    "prompts": {},
    "steps": {},
}


def loaded(tmp_path, **changed):
    path = tmp_path / "README.md"
    path.write_text(card.render(tally([]) | FACTS | changed, []), encoding="utf-8")
    return DatasetCard.load(path)


def test_the_front_matter_is_the_hub_s(tmp_path):
    found = loaded(tmp_path, license="CC-BY-4.0", kept=9999)
    assert found.data.to_dict() == {
        "license": "cc-by-4.0",
        "size_categories": "1K<n<10K",
        "task_categories": ["text-ranking"],
        "tags": ["limrank", "reranking", "synthetic"],
        "configs": [
            {"config_name": "pairs", "data_files": [{"split": "train", "path": "train.jsonl"}], "default": True},
            {"config_name": "examples", "data_files": [{"split": "train", "path": "examples.parquet"}]},
        ],
    }
    assert found.text.startswith("\n# Synthetic examples for a pointwise reasoning reranker\n")


@pytest.mark.parametrize(
    ("named", "license", "license_name"),
    [
        (None, None, None),
        ("mit", "mit", None),
        ("MS MARCO: research only\n# {{ card_data }}", "other", "MS MARCO: research only\\n# {{ card_data }}"),
    ],
)
def test_a_license_that_the_hub_does_not_know_is_given_by_name(tmp_path, named, license, license_name):
    data = loaded(tmp_path, license=named).data
    assert (data.license, data.get("license_name")) == (license, license_name)


@pytest.mark.parametrize(
    ("exported", "category"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (20_000, "10K<n<100K")]
)
def test_the_size_is_that_of_what_is_exported(tmp_path, exported, category):
    assert loaded(tmp_path, kept=exported).data.size_categories == category
    chosen = {"examples": exported, "shortfall": None}
    assert loaded(tmp_path, kept=10**6, selected=chosen).data.size_categories == category


def test_a_run_s_files_and_its_card_are_a_dataset(tmp_path):
    pairs = [{"prompt": f"query {number}", "completion": "</think> true"} for number in range(3)]
    loaded(tmp_path, kept=3)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "alpaca.json").write_text("[]")
    dataset = load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset.to_list() == pairs


def test_a_card_shows_generated_text_as_text():
    row = dict.fromkeys(("instruction", "reasoning")) | {"query": "# not a heading\u202e", "passage": "one\n- two"}
    stats = tally([])
    facts = dict.fromkeys(("seeds", "queries"), 0) | dict.fromkeys(
        ("seed_source", "writer", "judge", "agreement", "license")
    )
    text = card.render(stats | facts | {"prompts": {}, "steps": {}}, [row | {"label": True}])
    assert "\n    query: # not a heading⟨U+202E⟩\n    passage: one\n    - two\n    label: True\n" in text
    assert "License of the seeds: unknown" in text
