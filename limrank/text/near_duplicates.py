"""Queries that say again what an earlier one said, over a whole pool.

Two are alike by the Jaccard similarity of their sets of shingles, runs of characters. Pairs to
compare are found by MinHash signatures (datasketch), cut into bands (Leskovec et al., Mining
of Massive Datasets, 3.4). They are compared by their shingles, so that chance loses no query.
"""

from __future__ import annotations

import heapq
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from limrank.errors import UserError
from limrank.text.words import words

if TYPE_CHECKING:
    import numpy as np

NEAR = 0.7
"""Real queries as similar as this differ in an ending or in one word of many. At 0.6 they have
a frame in common and ask for different things ("what is the weather in salem ohio")."""

SHINGLE = 4
"""Characters, spaces too. A query has few words, and a plural would be a different one."""

BANDS, ROWS = 20, 5
"""Two queries of similarity s are compared with probability 1 - (1 - s^5)^20: 0.975 at 0.7,
0.9996 at 0.8, and 0.006 at 0.2."""

COMPARED = 50
"""Earlier queries at most that one is compared with, those first that share most bands: of a
million queries in one frame, each would be compared with most of the others."""

_SEED = 1
_MULTIPLIER = 0x9E3779B97F4A7C15
"""Odd, so that sums of its powers tell one band's rows from another's (modulo 2^64)."""


def find_duplicates(queries: Iterable[tuple[str, str]], threshold: float = NEAR) -> dict[str, str]:
    """For each duplicate its first: the earliest query that stays and is as good as the same.

    A query is a duplicate where an earlier one that stays has the same words
    (:mod:`limrank.text.words`) or a similarity of ``threshold`` or more. The answer is
    the same wherever and whenever it is computed, for queries in the same order.

    Args:
        queries: ``(id, text)``, read once; ids are unique. Of each text that differs the
            words are kept in memory, and some 600 bytes.
        threshold: from ``NEAR``, below which bands miss too many, to 1.

    Raises:
        UserError: ``threshold`` is not in that range.
    """
    if not NEAR <= threshold <= 1:
        raise UserError(f"duplicates are found at a similarity from {NEAR} to 1, not at {threshold}")
    places: dict[str, int] = {}
    ids: list[str] = []
    copies: list[tuple[str, int]] = []
    for query_id, text in queries:
        # What has no words (emoji, formulas) is compared as it is.
        place = places.setdefault(" ".join(words(text)) or text, len(ids))
        if place == len(ids):
            ids.append(query_id)
        else:
            copies.append((query_id, place))
    firsts = _firsts(list(places), threshold)
    near = {ids[place]: ids[first] for place, first in enumerate(firsts) if first != place}
    return near | {query_id: ids[firsts[place]] for query_id, place in copies}


def _firsts(texts: Sequence[str], threshold: float) -> list[int]:
    """For each text the place of its first: its own where it stays."""
    firsts = list(range(len(texts)))
    staying: dict[int, list[int]] = defaultdict(list)
    buckets = _shared_buckets(_band_keys(texts))
    for place, text in enumerate(texts):
        own = [bucket for bucket in buckets[place].tolist() if bucket >= 0]
        if not own:
            continue
        shared = Counter(chain.from_iterable(staying[bucket] for bucket in own))
        likely = heapq.nsmallest(COMPARED, shared, key=lambda other: (-shared[other], other))
        shingles = _shingles(text)
        similar = [other for other in likely if _similarity(shingles, _shingles(texts[other])) >= threshold]
        firsts[place] = min(similar, default=place)
        if not similar:
            for bucket in own:
                staying[bucket].append(place)
    return firsts


def _band_keys(texts: Sequence[str]) -> np.ndarray:
    """One number for each band of each text's signature, of shape (texts, bands)."""
    import numpy as np
    from datasketch import MinHash

    minhash = MinHash(num_perm=BANDS * ROWS, seed=_SEED, hashfunc=_stable_hash)
    powers = np.cumprod(np.full(ROWS, _MULTIPLIER, np.uint64))
    keys = np.empty((len(texts), BANDS), np.uint64)
    for place, text in enumerate(texts):
        minhash.clear()
        minhash.update_batch(_shingles(text))
        keys[place] = minhash.hashvalues.reshape(BANDS, ROWS).astype(np.uint64) @ powers
    return keys


def _shared_buckets(keys: np.ndarray) -> np.ndarray:
    """The same array with the number of a bucket that has several texts for each key, and -1
    for the key that nobody else has."""
    import numpy as np

    buckets = keys.view(np.int64)
    for band in range(BANDS):
        _, number, size = np.unique(keys[:, band], return_inverse=True, return_counts=True)
        buckets[:, band] = np.where(size[number] > 1, number * BANDS + band, -1)
    return buckets


def _shingles(text: str) -> set[str]:
    padded = f" {text} "  # where a word begins and ends is part of it
    return {padded[at : at + SHINGLE] for at in range(max(1, len(padded) - SHINGLE + 1))}


def _similarity(one: set[str], other: set[str]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def _stable_hash(shingle: str) -> int:
    """Of 32 bits; Python's own differs from process to process."""
    return zlib.crc32(shingle.encode("utf-8", "surrogatepass"))
