"""Near-duplicates among the queries of a pool.

The similarity of two queries is the Jaccard similarity of their sets of shingles (character n-grams).
MinHash signatures (datasketch), split into bands, find the pairs to compare (Leskovec et al., Mining of
Massive Datasets, 3.4). The pairs are then compared by their shingles, so no query is dropped by chance.

The bands are our own, since datasketch's MinHashLSH needs 11 times the memory and 2.3 times the CPU time for
300,000 queries (1,881 instead of 164 MiB, 52 instead of 22 s; ``benchmarks/near_duplicates.txt``), and does not
say how many bands two queries share.
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
"""Real queries of this similarity differ in an ending or in one word of many. At 0.6 they share a frame
and ask for different things ("what is the weather in salem ohio")."""

SHINGLE = 4
"""Characters, including spaces. Shingles of words would not do: a query has few, and a plural is another word."""

BANDS, ROWS = 20, 5
"""Two queries of similarity s are compared with probability 1 - (1 - s^5)^20: 0.975 at 0.7,
0.9996 at 0.8, and 0.006 at 0.2."""

COMPARED = 50
"""The most earlier queries that one is compared with; those that share most bands come first. Without a
limit, each of a million queries of one frame would be compared with most of the others."""

_SEED = 1
_MULTIPLIER = 0x9E3779B97F4A7C15
"""Odd, so that a band's key, a sum of its powers modulo 2^64, depends on every row."""


def find_duplicates(queries: Iterable[tuple[str, str]], threshold: float = NEAR) -> dict[str, str]:
    """The ids of duplicates, each with the id of the earliest kept query that it duplicates.

    A query is a duplicate if an earlier query that is kept has the same words
    (:mod:`limrank.text.words`) or a similarity of at least ``threshold``. The result depends on the
    queries and their order only.

    Args:
        queries: ``(id, text)``, read once; ids are unique. Memory holds the words of each distinct
            text and some 600 bytes more.
        threshold: from ``NEAR``, below which the bands miss too many pairs, to 1.

    Raises:
        UserError: ``threshold`` is not in that range.
    """
    if not NEAR <= threshold <= 1:
        raise UserError(f"duplicates are found at a similarity from {NEAR} to 1, not at {threshold}")
    indexes: dict[str, int] = {}
    ids: list[str] = []
    copies: list[tuple[str, int]] = []
    for query_id, text in queries:
        # A text without words (emoji, formulas) is compared as it is.
        index = indexes.setdefault(" ".join(words(text)) or text, len(ids))
        if index == len(ids):
            ids.append(query_id)
        else:
            copies.append((query_id, index))
    firsts = _firsts(list(indexes), threshold)
    near = {ids[index]: ids[first] for index, first in enumerate(firsts) if first != index}
    return near | {query_id: ids[firsts[index]] for query_id, index in copies}


def _firsts(texts: Sequence[str], threshold: float) -> list[int]:
    """For each text the index of the earliest kept text that it duplicates; its own index if it is kept."""
    firsts = list(range(len(texts)))
    kept: dict[int, list[int]] = defaultdict(list)
    buckets = _shared_buckets(_band_keys(texts))
    for index, text in enumerate(texts):
        own = [bucket for bucket in buckets[index].tolist() if bucket >= 0]
        if not own:
            continue
        shared = Counter(chain.from_iterable(kept[bucket] for bucket in own))
        likely = heapq.nsmallest(COMPARED, shared, key=lambda other: (-shared[other], other))
        shingles = _shingles(text)
        similar = [other for other in likely if _similarity(shingles, _shingles(texts[other])) >= threshold]
        firsts[index] = min(similar, default=index)
        if not similar:
            for bucket in own:
                kept[bucket].append(index)
    return firsts


def _band_keys(texts: Sequence[str]) -> np.ndarray:
    """A number for each band of each text's signature, of shape (texts, bands)."""
    import numpy as np
    from datasketch import MinHash

    minhash = MinHash(num_perm=BANDS * ROWS, seed=_SEED, hashfunc=_stable_hash)
    powers = np.cumprod(np.full(ROWS, _MULTIPLIER, np.uint64))
    keys = np.empty((len(texts), BANDS), np.uint64)
    for index, text in enumerate(texts):
        minhash.clear()
        minhash.update_batch(_shingles(text))
        keys[index] = minhash.hashvalues.reshape(BANDS, ROWS).astype(np.uint64) @ powers
    return keys


def _shared_buckets(keys: np.ndarray) -> np.ndarray:
    """The keys replaced, in place, by the numbers of their buckets; -1 for a key of one text only."""
    import numpy as np

    buckets = keys.view(np.int64)
    for band in range(BANDS):
        _, number, size = np.unique(keys[:, band], return_inverse=True, return_counts=True)
        buckets[:, band] = np.where(size[number] > 1, number * BANDS + band, -1)
    return buckets


def _shingles(text: str) -> set[str]:
    padded = f" {text} "  # so that shingles hold the beginnings and ends of words
    return {padded[at : at + SHINGLE] for at in range(max(1, len(padded) - SHINGLE + 1))}


def _similarity(one: set[str], other: set[str]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def _stable_hash(shingle: str) -> int:
    """A hash of 32 bits; Python's own differs between processes."""
    return zlib.crc32(shingle.encode("utf-8", "surrogatepass"))
