"""Texts → vectors whose cosine says how near two texts are: by their words, or by a model's
sense of what they mean."""

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
"""A query and its instruction have fewer. What sentence embedders are trained on is rarely longer."""


def embedder(name: str | None) -> Callable[[Sequence[str]], np.ndarray]:
    """By the sentence-embedding model of that name, or by words where there is none."""
    return lexical_embeddings if name is None else partial(sentence_embeddings, name)


def check_embedder(name: str) -> None:
    """Embed a text with a model, so that what would make it fail after hours of writing
    is known before. On the CPU: the GPU is for the engines, which are started next.

    Raises:
        UserError: the model is not to be had, or embeds no text.
    """
    try:
        sentence_embeddings(name, ["a query"], device="cpu")
    except UserError:
        raise
    except Exception as error:  # whatever a model that is none of this kind may raise
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"synthesis.embedder {name}: it does not embed a text: {what}") from error


def lexical_embeddings(texts: Sequence[str]) -> np.ndarray:
    """TF-IDF over words, (n, 128) float32: which texts share their rarer words.
    It needs no model and knows nothing of meaning.

    Each word adds a vector of random signs (Achlioptas, JCSS 2003), taken from the word's
    own hash: the same in every process.
    """
    import numpy as np

    places: dict[str, int] = {}
    seen, counts, ends = array("l"), array("d"), [0]
    for text in texts:
        for word, count in Counter(words(text)).items():
            seen.append(places.setdefault(word, len(places)))
            counts.append(count)
        ends.append(len(seen))
    digests = b"".join(hashlib.blake2b(word.encode(), digest_size=_LEXICAL_DIMENSIONS // 8).digest() for word in places)
    bits = np.unpackbits(np.frombuffer(digests, dtype=np.uint8))
    signs = bits.astype(np.float32).reshape(-1, _LEXICAL_DIMENSIONS) * 2 - 1
    found = np.asarray(seen)
    frequency = np.bincount(found, minlength=len(places))
    rarity = np.log1p((len(texts) - frequency + 0.5) / (frequency + 0.5))
    weights = ((1 + np.log(np.asarray(counts))) * rarity[found]).astype(np.float32)
    vectors = np.empty((len(texts), _LEXICAL_DIMENSIONS), dtype=np.float32)
    for place, (start, end) in enumerate(pairwise(ends)):
        vectors[place] = weights[start:end] @ signs[found[start:end]]
    return vectors


def sentence_embeddings(name: str, texts: Sequence[str], *, device: str | None = None) -> np.ndarray:
    """The mean of a model's last hidden states over a text's tokens (Reimers and Gurevych,
    Sentence-BERT, EMNLP 2019, arXiv 1908.10084), (n, d) float32 of length one.

    Equal texts have equal vectors, and the order of the texts does not matter. Of a text
    the first 256 tokens count.

    Args:
        name: what ``limrank.models.resolve`` takes; its weights are safetensors.
        texts: one or more.
        device: None is a GPU where this process has one, else the CPU.

    Raises:
        UserError: there is no such model.
    """
    import numpy as np
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    # Texts of a length share a batch, which then has little padding.
    unique = sorted(set(texts), key=lambda text: (len(text), text))
    vectors = _encode(models.resolve(name), unique, device)
    # The model is gone, but torch keeps its memory, and another stage's engine may want the whole card.
    torch.cuda.empty_cache()
    place = {text: number for number, text in enumerate(unique)}
    return vectors[np.array([place[text] for text in texts])]


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
            padding_side="right",  # where positions are counted from the left, padding must not shift them
            truncation=True,
            max_length=min(_MAX_TOKENS, tokenizer.model_max_length),
            return_tensors="pt",
        ).to(device)
        with torch.inference_mode():
            states = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
        # The sum points where the mean does, and only the direction is left.
        vectors.append(torch.nn.functional.normalize((states * mask).sum(dim=1), dim=1).cpu().numpy())
    return np.concatenate(vectors)
