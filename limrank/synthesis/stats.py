"""Counts of a pool of examples, for ``stats.json`` and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from limrank.synthesis.select import Row, Selection, domain_name
from limrank.text.words import count, words

_SCORE_BINS = 10
_WORD_BINS = {"query": (10, 100), "passage": (25, 250)}
"""(words in a bin, start of the last bin, which is open-ended)."""


def tally(rows: Iterable[Row], selection: Selection | None = None) -> dict[str, Any]:
    """Counts of all rows of a run, as plain values for JSON. The rows are read once and not held.

    ==================================================  ================================================
    ``examples, judged, kept, kept_positive``           numbers of rows; ``judged``: with a verdict
    ``kept_queries, kept_queries_with_both``            queries of kept rows; those with both labels
    ``contaminated_seeds``                              seeds for which nothing was written
    ``rejected``                                        by reason, most frequent first
    ``judge_score``                                     ``{"true": bins, "false": bins}`` by intended label
    ``query_kind, difficulty, passage_role, domains``   of kept rows, most frequent first
    ``query_words, passage_words``                      of kept rows: ``min, median, max, bins`` or None
    ``selected``                                        None, or ``examples, asked, shortfall`` and the two
                                                        lines above, of selected rows
    ==================================================  ================================================

    Bins are ``{range: count}`` in order.
    """
    chosen = frozenset(() if selection is None else selection.example_ids)
    examples, judged, positive, contaminated_seeds = 0, 0, 0, 0
    rejected: Counter[str] = Counter()
    scores = {True: [0] * _SCORE_BINS, False: [0] * _SCORE_BINS}
    kept, selected = _Makeup(), _Makeup()
    labels: dict[tuple[str | None, ...], set[bool]] = {}
    for row in rows:
        examples += 1
        judged += row["verdict"] is not None
        if row["judge_score"] is not None:
            scores[row["label"]][min(int(row["judge_score"] * _SCORE_BINS), _SCORE_BINS - 1)] += 1
        contaminated_seeds += row["reject_reason"] == "contaminated" and row["passage"] is None
        if row["reject_reason"]:
            rejected[row["reject_reason"]] += 1
        if row["kept"]:
            kept.add(row)
            positive += row["label"]
            query = (row["seed_id"], row["query_kind"], row["persona_id"], row["query"])
            labels.setdefault(query, set()).add(row["label"])
        if row["example_id"] in chosen:
            selected.add(row)
    return {
        "examples": examples,
        "judged": judged,
        "kept": kept.examples,
        "kept_positive": positive,
        "kept_queries": len(labels),
        "kept_queries_with_both": sum(len(each) == 2 for each in labels.values()),
        "contaminated_seeds": contaminated_seeds,
        "rejected": _by_frequency(rejected),
        "judge_score": {name: _score_bins(scores[label]) for name, label in (("true", True), ("false", False))},
        **kept.counts(),
        "selected": None
        if selection is None
        else {
            "examples": selected.examples,
            "asked": selection.size,
            "shortfall": selection.shortfall,
            **selected.counts(),
        },
    }


def has_writer(stats: Mapping[str, Any]) -> bool:
    """Whether a run wrote anything (``stats.json``)."""
    return stats.get("writer_kind") != "none"


def grading(stats: Mapping[str, Any]) -> str | None:
    """The teacher and what its grades are besides its own scores; None without a teacher."""
    if not stats.get("teacher"):
        return None
    weight = f", with a share of {stats['bm25_weight']:g} of BM25" if "bm25_weight" in stats else ""
    first = "; a query's own passage is graded above its candidates" if stats.get("passage_first") else ""
    return f"{stats['teacher']}{weight}{first}"


class _Makeup:
    """Running counts of a set of examples."""

    def __init__(self) -> None:
        self.examples = 0
        self._values = {name: Counter() for name in ("query_kind", "difficulty", "passage_role", "domains")}
        self._words = {name: Counter() for name in _WORD_BINS}

    def add(self, row: Row) -> None:
        self.examples += 1
        for name in ("query_kind", "difficulty", "passage_role"):
            if row[name] is not None:  # a tuned writer's query has no kind
                self._values[name][str(row[name])] += 1
        self._values["domains"][domain_name(row["domain"])] += 1
        for name, lengths in self._words.items():
            lengths[count(words(row[name]))] += 1

    def counts(self) -> dict[str, Any]:
        return {name: _by_frequency(counter) for name, counter in self._values.items()} | {
            f"{name}_words": _lengths(lengths, *_WORD_BINS[name]) for name, lengths in self._words.items()
        }


def _by_frequency(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _lengths(lengths: Counter[int], width: int, last: int) -> dict[str, Any] | None:
    if not lengths:
        return None
    ordered = sorted(lengths.elements())
    bins = Counter(min(length, last) // width for length in ordered)
    return {
        "min": ordered[0],
        "median": ordered[len(ordered) // 2],
        "max": ordered[-1],
        "bins": {
            f"{last}+" if each * width == last else f"{each * width}–{(each + 1) * width - 1}": bins[each]
            for each in range(min(bins), max(bins) + 1)
        },
    }


def _score_bins(counts: list[int]) -> dict[str, int]:
    return {f"{each / _SCORE_BINS}–{(each + 1) / _SCORE_BINS}": count for each, count in enumerate(counts)}
