"""Texts → vectors whose cosine says how near two texts are."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from limrank.synthesis.words import words

if TYPE_CHECKING:
    import numpy as np

_LEXICAL_DIMENSIONS = 128


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
