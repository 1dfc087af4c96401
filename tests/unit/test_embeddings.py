import os
import subprocess
import sys

import numpy as np

from limrank.synthesis.embeddings import lexical_embeddings

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
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert lexical_embeddings(["a b", "b c c", "ümläut"]).tobytes().hex() + "\n" in outputs
