"""The READMEs of a trained model and its adapter, as the hub reads them."""

import pytest
from huggingface_hub import ModelCard

from limrank.config import ModelConfig, ScoringConfig, TrainingConfig, TrainJob
from limrank.scoring import prompt_template
from limrank.training import card

PLAN = {"examples": 5, "validation_examples": 2, "cut": 1, "units_a_step": 4}
PROGRESS = {"step": 8, "tokens": 900, "loss": 0.25, "best_step": 6, "best_score": -0.5}


def loaded(tmp_path, folder="model", model="owner/base", **training):
    config = TrainJob(
        run_dir=str(tmp_path / "run"),
        model=ModelConfig(id=model),
        training=TrainingConfig(train_file=str(tmp_path / "train.jsonl"), **training),
    )
    path = tmp_path / "README.md"
    path.write_text(card.render(config, PLAN, PROGRESS)[folder], encoding="utf-8")
    return ModelCard.load(path)


@pytest.mark.parametrize(("folder", "library"), [("model", "transformers"), ("adapter", "peft")])
def test_the_front_matter_is_the_hub_s(tmp_path, folder, library):
    found = loaded(tmp_path, folder)
    assert found.data.to_dict() == {
        "base_model": "owner/base",
        "library_name": library,
        "pipeline_tag": "text-ranking",
        "tags": ["limrank", "reranker"],
    }
    assert found.text.startswith("\n# A pointwise reranker from owner/base\n")
    assert ("This is only the adapter" in found.text) == (folder == "adapter")


def test_a_model_that_is_not_of_the_hub_is_no_base_model_there(tmp_path):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    for name in (str(tmp_path / "models" / "mine"), "s3://bucket/models/mine", "smollm2-135m-instruct", "a/b/c"):
        found = loaded(tmp_path, model=name)
        assert "base_model" not in found.data.to_dict()
        assert str(tmp_path) not in found.content


def test_the_card_says_what_was_trained_on_and_measured(tmp_path):
    text = loaded(tmp_path, export="best").text
    assert "- 5 examples of train.jsonl, 2 held out, 1 truncated to 2500 tokens\n- 900 tokens over 8 steps\n" in text
    assert "- lora_targets: all linear layers\n" in text
    assert "- weights of step 6, the best on held-out data: loss 0.5000\n" in text
    last = loaded(tmp_path, export="last").text
    assert "- weights of step 8, the last; not of step 6, the best on held-out data: loss 0.5000\n" in last
    assert "lora_rank" not in loaded(tmp_path, method="full").text


def test_a_writer_s_card_says_what_it_is_and_how_it_is_asked(tmp_path):
    found = loaded(tmp_path, task="writer")
    data = found.data.to_dict()
    assert data["limrank"] == {"task": "writer", "prompt": "Passage: {{ passage }}\nSearch query:"}
    assert (data["pipeline_tag"], data["tags"]) == ("text-generation", ["limrank", "query-generation"])
    assert found.text.startswith("\n# A writer of search queries from owner/base\n")
    assert "```\nPassage: {{ passage }}\nSearch query:\n```\n" in found.text
    assert not any(word in found.text for word in ("rerank", "think", "- target", "- objective"))
    assert "need the\nmerged model" in loaded(tmp_path, "adapter", task="writer").text


def test_a_card_names_the_temperature_of_a_teacher(tmp_path):
    config = TrainJob(run_dir=str(tmp_path), training=TrainingConfig(train_file="t.jsonl"))
    text = card.render(config, PLAN | {"teacher_temperature": 0.125}, PROGRESS)["model"]
    assert "- teacher_temperature: 0.125 (the teacher's scores were divided by it)\n" in text


def test_a_card_names_graded_labels_and_the_scores_that_became_them(tmp_path):
    labels = ("0", "1", "2")
    found = loaded(tmp_path, target="direct", labels=labels)
    assert found.data.to_dict()["limrank"] == {
        "task": "reranker",
        "prompt": prompt_template(ScoringConfig(labels=labels)),
        "labels": ["0", "1", "2"],
    }
    assert found.data.to_dict()["pipeline_tag"] == "text-ranking"
    assert 'with `scoring.mode: direct` and `scoring.labels: ["0", "1", "2"]`, as it was trained.\n' in found.text
    assert "p(true)" not in found.text and "label_ends" not in found.text
    training = TrainingConfig(train_file="t.jsonl", target="direct", labels=labels)
    config = TrainJob(run_dir=str(tmp_path), training=training)
    text = card.render(config, PLAN | {"label_ends": [-2.5, 7.0]}, PROGRESS)["model"]
    assert "- label_ends: -2.5 for 0, 7 for 2 (a teacher's scores became the nearest label)\n" in text
