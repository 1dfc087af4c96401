"""Texts → vectors whose cosine is the similarity of two texts: lexical, or by a sentence-embedding model."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from limrank import models
from limrank.errors import UserError, first_line
from limrank.text.words import words

if TYPE_CHECKING:
    import numpy as np

_LEXICAL_DIMENSIONS = 128
_BATCH = 64
_MAX_TOKENS = 256
"""A query with its instruction has fewer. Sentence embedders are rarely trained on longer texts."""


def embedder(name: str | None) -> Callable[[Sequence[str]], np.ndarray]:
    """The embedding function of the sentence-embedding model ``name``; None: by words."""
    return lexical_embeddings if name is None else partial(sentence_embeddings, name)


def check_embedder(name: str, key: str = "synthesis.embedder") -> None:
    """Embed one text with a model, so that a model that fails is found before hours of writing.
    It runs on the CPU: the engines, which start next, need the GPU.

    Raises:
        UserError: the model is not available, or cannot embed a text.
    """
    try:
        sentence_embeddings(name, ["a query"], device="cpu")
    except UserError:
        raise
    except Exception as error:  # a model of another kind may raise anything
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{key} {name}: cannot embed a text: {what}") from error


def lexical_embeddings(texts: Sequence[str]) -> np.ndarray:
    """TF-IDF over words, (n, 128) float32: texts are near if they share their rarer words.
    It needs no model and ignores meaning.

    Each word adds a vector of random signs (Achlioptas, JCSS 2003) that is derived from the word's
    hash, so it is the same in every process.
    """
    import numpy as np

    index: dict[str, int] = {}
    seen, counts, ends = array("l"), array("d"), [0]
    for text in texts:
        for word, count in Counter(words(text)).items():
            seen.append(index.setdefault(word, len(index)))
            counts.append(count)
        ends.append(len(seen))
    digests = b"".join(hashlib.blake2b(word.encode(), digest_size=_LEXICAL_DIMENSIONS // 8).digest() for word in index)
    bits = np.unpackbits(np.frombuffer(digests, dtype=np.uint8))
    signs = bits.astype(np.float32).reshape(-1, _LEXICAL_DIMENSIONS) * 2 - 1
    found = np.asarray(seen)
    frequency = np.bincount(found, minlength=len(index))
    rarity = np.log1p((len(texts) - frequency + 0.5) / (frequency + 0.5))
    weights = ((1 + np.log(np.asarray(counts))) * rarity[found]).astype(np.float32)
    vectors = np.empty((len(texts), _LEXICAL_DIMENSIONS), dtype=np.float32)
    for row, (start, end) in enumerate(pairwise(ends)):
        vectors[row] = weights[start:end] @ signs[found[start:end]]
    return vectors


def sentence_embeddings(name: str, texts: Sequence[str], *, device: str | None = None) -> np.ndarray:
    """The mean of a model's last hidden states over a text's tokens (Reimers and Gurevych,
    Sentence-BERT, EMNLP 2019, arXiv 1908.10084), (n, d) float32 of length one.

    Equal texts have equal vectors, and the order of the texts does not matter. Only the first
    256 tokens of a text count.

    Args:
        name: a model that ``limrank.models.resolve`` takes, with safetensors weights.
        texts: one or more.
        device: None: a GPU if this process has one, else the CPU.

    Raises:
        UserError: there is no such model.
    """
    import numpy as np
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    # Sorted by length, a batch has little padding.
    unique = sorted(set(texts), key=lambda text: (len(text), text))
    vectors = _encode(models.resolve(name), unique, device)
    # torch keeps the memory of the dropped model, and another stage's engine may need the whole GPU.
    torch.cuda.empty_cache()
    index = {text: row for row, text in enumerate(unique)}
    return vectors[np.array([index[text] for text in texts])]


def _encode(directory: Path, texts: Sequence[str], device: str) -> np.ndarray:
    import numpy as np
    import torch
    from transformers import AutoModel

    tokenizer = models.tokenizer(directory)
    model = AutoModel.from_pretrained(directory, dtype=torch.float32, trust_remote_code=False, use_safetensors=True)
    model.to(device)
    vectors = []
    for start in range(0, len(texts), _BATCH):
        inputs = tokenizer(
            texts[start : start + _BATCH],
            padding=True,
            padding_side="right",  # positions are counted from the left, and padding must not shift them
            truncation=True,
            max_length=min(_MAX_TOKENS, tokenizer.model_max_length),
            return_tensors="pt",
        ).to(device)
        with torch.inference_mode():
            states = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
        # The sum and the mean have the same direction, and the length is normalized away.
        vectors.append(torch.nn.functional.normalize((states * mask).sum(dim=1), dim=1).cpu().numpy())
    return np.concatenate(vectors)
