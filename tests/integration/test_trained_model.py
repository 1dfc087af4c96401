"""A trained model's export: transformers and vLLM load it as it is, and mean the same by it."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.training import PROMPT, encode, into, settings
from limrank.engines.base import label_token_ids
from limrank.scoring import LABELS, THINK_CLOSE, THINK_OPEN, encode_template
from limrank.storage import Storage
from limrank.training.loop import train
from limrank.training.model import load_for_training, merge_and_save
from limrank.training.state import TrainState


@pytest.fixture(scope="module")
def exported(model_dir, tmp_path_factory):
    """Fine-tuned for three steps with chains: adapter, embeddings of the added tokens, and merged."""
    folder = tmp_path_factory.mktemp("exported")
    file = folder / "train.jsonl"
    with file.open("w") as stream:
        for place in range(6):
            prompt = PROMPT.format(query="why does dough rise", passage=["Yeast makes gas.", "Salt keeps."][place % 2])
            completion = f"\nIt is about {['gas', 'salt'][place % 2]}.\n</think>{LABELS[place % 2]}"
            stream.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
    training = settings(target="think", epochs=1, batch_size=2, gradient_accumulation=1, learning_rate=1e-3)
    model, tokenizer = load_for_training(model_dir, training, torch.float32)
    before = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    state, lines = TrainState(model, training, 3), []
    labels = tuple(label_token_ids(tokenizer, LABELS))
    train(state, encode(file, tokenizer), training, seed=1, labels=labels, on_step=into(lines))
    assert len(lines) == 3
    # The rows of <think> and </think> were trained too.
    moved = {name for name, value in before.items() if not torch.equal(value, state.parameters[name])}
    assert any("trainable_tokens" in name for name in moved)
    merge_and_save(model, tokenizer, Storage(str(folder)), torch.float32)
    return folder / "model"


def test_vllm_has_the_labels_and_the_logits_of_transformers(exported, live_engine):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    columns = [tokenizer.encode(THINK_CLOSE + label, add_special_tokens=False)[1] for label in LABELS]
    asked = [
        PROMPT.format(query="why does dough rise", passage=passage) + f"\nA chain.\n{THINK_CLOSE}"
        for passage in ("Yeast makes gas.", "Salt keeps.", "Nothing of it.")
    ]
    with live_engine("vllm", model=str(exported)) as live:
        theirs = live.engine.tokenizer
        for token in (THINK_OPEN, THINK_CLOSE):
            assert theirs.encode(token, add_special_tokens=False) == [tokenizer.convert_tokens_to_ids(token)]
        assert list(label_token_ids(theirs, LABELS)) == columns
        given = []
        for text in asked:
            ids = encode_template(theirs, text)
            with torch.inference_mode():
                expected = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], -1)[columns].tolist()
            given.append(live.run(live.engine.label_logprobs(ids, LABELS)))
            assert [given[-1][label] for label in LABELS] == pytest.approx(expected, abs=1e-3)
    assert len({round(each[LABELS[0]], 2) for each in given}) == len(asked)
