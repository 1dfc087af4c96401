import random

import numpy as np
import pytest

from helpers.units import in_other_processes, write_embedder
from limrank.errors import UserError
from limrank.synthesis.embeddings import check_embedder, lexical_embeddings, sentence_embeddings

VOCABULARY = ["heat", "warmth", "light", "sound", "water", "iron", "salt", "##s"]


# ---- lexical embeddings --------------------------------------------------------------


def test_texts_that_share_rare_words_are_close():
    texts = [
        "merge the sorted feeds of the heap",
        "The heap: how do sorted feeds merge?",
        "bake the bread at the altitude of the resort",
        "",
    ]
    vectors = lexical_embeddings(texts)
    assert vectors.shape == (4, 128) and vectors.dtype == np.float32
    assert not vectors[3].any()
    unit = vectors[:3] / np.linalg.norm(vectors[:3], axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.6
    assert abs(unit[0] @ unit[2]) < 0.4


def test_lexical_embeddings_of_a_script_without_spaces():
    near = lexical_embeddings(["为什么天空是蓝色的", "为什么天空是红色的", "怎样烤一个好面包"])
    unit = near / np.linalg.norm(near, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.5 > abs(unit[0] @ unit[2])


def test_lexical_embeddings_are_the_same_in_every_process():
    code = "from limrank.synthesis.embeddings import lexical_embeddings as e; print(e(['a b', 'b c c', 'ümläut']).tobytes().hex())"
    outputs = set(in_other_processes(code))
    assert len(outputs) == 1
    assert lexical_embeddings(["a b", "b c c", "ümläut"]).tobytes().hex() + "\n" in outputs


# ---- sentence embeddings -------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_embedder(tmp_path_factory.mktemp("embedder"), VOCABULARY, ["heat", "warmth"])


def texts_of_many_lengths(count):
    chance = random.Random(1)
    return [" ".join(chance.choices(VOCABULARY[:-1], k=chance.randint(1, 40))) for _ in range(count)]


def mean_of_states(directory, text):
    """As a person would write it: one text, no padding, and a mean in plain Python."""
    import torch
    from transformers import BertModel, BertTokenizer

    ids = BertTokenizer.from_pretrained(directory)(text)["input_ids"]
    with torch.no_grad():
        states = BertModel.from_pretrained(directory)(torch.tensor([ids])).last_hidden_state[0].tolist()
    mean = [sum(column) / len(states) for column in zip(*states, strict=True)]
    length = sum(value**2 for value in mean) ** 0.5
    return [value / length for value in mean]


def test_a_vector_is_the_mean_over_a_text_s_tokens(model):
    texts = ["salt", "heat light waters", "iron sound iron sound iron sound iron", "nobody knows these", ""]
    vectors = sentence_embeddings(model, texts, device="cpu")
    assert vectors.shape == (5, 32) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [mean_of_states(model, text) for text in texts], atol=1e-5)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)


def test_neither_padding_nor_batch_nor_order_counts(model):
    texts = texts_of_many_lengths(150)  # three batches
    vectors = sentence_embeddings(model, texts, device="cpu")
    for place in range(0, 150, 30):
        alone = sentence_embeddings(model, [texts[place]], device="cpu")
        np.testing.assert_allclose(vectors[[place]], alone, atol=1e-5)
    assert (sentence_embeddings(model, texts[::-1], device="cpu") == vectors[::-1]).all()


def test_equal_texts_have_equal_vectors_and_synonyms_are_near(model):
    texts = ["the heat", *texts_of_many_lengths(100), "the heat", "the warmth", "the salt"]
    vectors = sentence_embeddings(model, texts, device="cpu")
    first, again, synonym, other = vectors[[0, -3, -2, -1]]
    assert (first == again).all()
    assert first @ synonym == pytest.approx(1, abs=1e-5)
    assert first @ other < 0.99


def test_of_a_long_text_the_beginning_counts(model):
    # 256 tokens, of which the first and the last are the tokenizer's own.
    begun = " ".join(["salt"] * 254)
    vectors = sentence_embeddings(model, [f"{begun} iron", f"{begun} light light", begun[:-4] + "iron"], device="cpu")
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-6)
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-4


def test_an_embedder_is_checked_before_it_is_needed(model, tmp_path):
    check_embedder(model)
    with pytest.raises(UserError, match="model /no/where: no such directory"):
        check_embedder("/no/where")


def test_weights_that_could_run_code_are_not_loaded(model, tmp_path):
    import torch
    from transformers import BertModel

    write_embedder(tmp_path, VOCABULARY, ["heat", "warmth"])
    torch.save(BertModel.from_pretrained(model).state_dict(), tmp_path / "pytorch_model.bin")
    check_embedder(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"^synthesis\.embedder .*: cannot embed a text: OSError: .*safetensors"):
        check_embedder(str(tmp_path))
