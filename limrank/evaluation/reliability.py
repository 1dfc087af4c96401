"""Reliability: do scores mean probabilities? The expected calibration error, the Brier score, and the bins of a
reliability diagram.

The pairs are the judged ones of a rerank run; a grade of 1 or more is relevant. Many benchmarks judge relevant
documents only. Where no pair of the run is judged irrelevant, unjudged pairs count as irrelevant, as they do in nDCG.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limrank.batch.rows import is_chunk_file
from limrank.errors import UserError
from limrank.files import AnyPath, listed, opened, path_of
from limrank.records import Qrels

if TYPE_CHECKING:
    import numpy as np

BINS = 15


@dataclass(frozen=True)
class ScoredPairs:
    """The scored pairs of a run with their judgements.

    Attributes:
        scores: of each pair, in [0, 1].
        raw: before calibration; the same where there is none.
        relevant: whether each pair is.
        unjudged: the number of pairs that count as irrelevant without a judgement.
    """

    scores: tuple[float, ...]
    raw: tuple[float, ...]
    relevant: tuple[bool, ...]
    unjudged: int


@dataclass(frozen=True)
class Bin:
    """Pairs of neighbouring scores: their mean score, and the share that is relevant."""

    low: float
    high: float
    pairs: int
    score: float
    relevant: float


@dataclass(frozen=True)
class Reliability:
    """How far scores are from probabilities.

    Attributes:
        ece: the expected calibration error, the mean of |mean score - share of relevant pairs| over the bins,
            weighted by their pairs.
        brier: the mean of (score - relevant)².
    """

    ece: float
    brier: float
    bins: tuple[Bin, ...]


def reliability(scores: Sequence[float], relevant: Sequence[bool], bins: int = BINS) -> Reliability:
    """Measure scores against relevance, in at most ``bins`` bins of about as many pairs each.

    Equal scores are in one bin, so that the order of the pairs does not matter. Bins of equal width would be empty
    but for two: scores after a chain are close to 0 or 1.

    Args:
        scores: in [0, 1], at least one.
        relevant: of the same length.
    """
    import numpy as np

    order = np.argsort(np.asarray(scores, dtype=float), kind="stable")
    ordered, hits = np.asarray(scores, dtype=float)[order], np.asarray(relevant, dtype=float)[order]
    found: list[Bin] = []
    for start, end in _bounds(ordered, bins):
        inside, hit = ordered[start:end], hits[start:end]
        found.append(Bin(float(inside[0]), float(inside[-1]), end - start, float(inside.mean()), float(hit.mean())))
    ece = sum(each.pairs * abs(each.score - each.relevant) for each in found) / len(ordered)
    return Reliability(ece, float(((ordered - hits) ** 2).mean()), tuple(found))


def _bounds(ordered: np.ndarray, bins: int) -> list[tuple[int, int]]:
    """The (start, end) of each bin in scores that rise. An end is moved behind the scores that equal it."""
    import numpy as np

    count = len(ordered)
    ends = {
        int(np.searchsorted(ordered, ordered[max(count * number // bins, 1) - 1], side="right"))
        for number in range(1, bins + 1)
    }
    edges = [0, *sorted(ends)]
    return list(zip(edges, edges[1:], strict=False))


def judged_pairs(directory: str | AnyPath, qrels: Qrels) -> ScoredPairs | None:
    """The scored and judged pairs of a rerank job's directory; None where nothing was scored.

    Raises:
        UserError: a file of rows is damaged.
    """
    found: list[tuple[float, float, int | None]] = []
    for file in listed(path_of(directory) / "rows"):
        if is_chunk_file(file.name):
            for query_id, doc_id, score, raw in _scores(file):
                if score is not None and query_id in qrels:
                    found.append((score, score if raw is None else raw, qrels[query_id].get(doc_id)))
    if any(grade is not None and grade < 1 for *_, grade in found):
        found = [each for each in found if each[2] is not None]
    if not found:
        return None
    scores, raw, grades = zip(*found, strict=True)
    return ScoredPairs(
        scores, raw, tuple((grade or 0) >= 1 for grade in grades), sum(grade is None for grade in grades)
    )


def _scores(file: AnyPath) -> list[tuple[Any, Any, Any, Any]]:
    """``(query_id, doc_id, score, raw_score)`` of one file of rows; none where it has no scores."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    damaged = f"{file}: damaged; delete it, and the same `limrank rerank` command writes its rows"
    try:
        with opened(file) as stream:
            data = pq.ParquetFile(pa.BufferReader(stream.read()))
            if "score" not in data.schema_arrow.names:
                return []
            names = [name for name in ("query_id", "doc_id", "score", "raw_score") if name in data.schema_arrow.names]
            rows = [
                (row["query_id"], row["doc_id"], row["score"], row.get("raw_score"))
                for row in data.read(columns=names).to_pylist()
            ]
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise UserError(f"{damaged} ({type(error).__name__})") from None
    for *ids, score, raw in rows:
        if not all(isinstance(each, str) for each in ids) or not (_is_score(score) and _is_score(raw)):
            raise UserError(damaged)
    return rows


def _is_score(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1)
