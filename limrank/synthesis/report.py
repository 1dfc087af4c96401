"""``report.html`` of a synthesis run: what became of the seeds, and examples in full."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from limrank import html
from limrank.synthesis.costs import notes, with_total
from limrank.synthesis.select import Row
from limrank.synthesis.stats import grading, has_writer
from limrank.version import __version__

DOMAINS_SHOWN = 15
QUERIES_SHOWN = 3
REJECTED_SHOWN = 4
"""Rejected examples in full; each reason also has a short example."""

CHARACTERS = 4000
"""Characters of a text that is shown in full."""


def render(title: str, stats: Mapping[str, Any], rows: Iterable[Row]) -> str:
    """The page as a string.

    Args:
        stats: ``stats.json``: the counts of ``tally``, and ``seeds``, ``queries`` (planned),
            ``failed`` (requests), ``writer``, ``tokens``, ``steps``; where they apply ``judge``, ``agreement``,
            ``reranker``, ``embedding``, ``chains`` (False), ``source``, ``writer_kind``, ``round_trip``, ``teacher``,
            ``bm25_weight``, ``passage_first``.
        rows: the counted rows, read once and not held; only examples are taken from them. Which
            ones does not depend on the order.
    """
    kept, rejected = _examples(rows)
    readable = filter(None, (_to_read(rejected[reason]) for reason in stats["rejected"]))
    return html.render(
        "synthesis/report.html.j2",
        filters={"whole": "{:,}".format, "score": "{:.3f}".format, "cost": "{:,.4f}".format},
        title=title,
        summary=_summary(stats),
        funnel=_funnel(stats),
        reasons=[(reason, count, rejected[reason][0]) for reason, count in stats["rejected"].items()],
        made_of=_made_of(stats),
        selected=stats["selected"] is not None,
        scores=_scores(stats["judge_score"]),
        by_ranking=stats.get("agreement") == "ranking",
        steps=with_total(stats["steps"]),
        step_notes=" ".join(notes(stats["steps"])),
        priced=any("cost" in step for step in stats["steps"].values()),
        kept=kept,
        rejected=list(islice(readable, REJECTED_SHOWN)),
        characters=CHARACTERS,
        facts={
            "writer": stats["writer"],
            **({"chain of thought before the passages": "none"} if "chains" in stats else {}),
            **({"judge": f"{stats['judge']}, agreement by {stats['agreement']}"} if "judge" in stats else {}),
            **(
                {"round trip": "{retriever}, first {k}".format(**stats["round_trip"])}
                if stats.get("round_trip")
                else {}
            ),
            **({"teacher": grading(stats)} if stats.get("teacher") else {}),
            **({"reranker": stats["reranker"]} if "reranker" in stats else {}),
            **({"embedding of the queries": stats["embedding"]} if "embedding" in stats else {}),
            "tokens": "{prompt:,} in prompts, {generated:,} generated".format(**stats["tokens"]),
            "requests that could not run": f"{stats['failed']:,}",
            "written with": f"limrank {__version__}",
        },
    )


def _summary(stats: Mapping[str, Any]) -> str:
    """The page's first paragraph."""
    examples, kept, positive = stats["examples"], stats["kept"], stats["kept_positive"]
    if not examples:
        return "There are no examples: nothing was written."
    if not kept:
        return f"Nothing was kept: all {examples:,} examples were rejected, for the reasons below."
    sentences = [f"{kept:,} of {examples:,} examples were kept, {positive:,} of them relevant."]
    if positive in (0, kept):
        sentences.append("They all have one label: a model cannot learn from them to tell passages apart.")
    if selected := stats["selected"]:
        chosen = selected["shortfall"] or f"{selected['examples']:,} examples"
        sentences.append(f"Selected for training: {chosen}.")
    return " ".join(sentences)


def _funnel(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages from seeds or passages to selected examples, each with its share of the stage before."""
    source = stats.get("source", "seeds")
    seeds, queries, examples, judged, kept = (
        stats[name] for name in ("seeds", "queries", "examples", "judged", "kept")
    )
    stages = [
        (source, seeds, ""),
        ("queries planned", queries, f"{queries / seeds:.1f} a {source[:-1]}" if seeds else ""),
        ("examples", examples, f"{examples / queries:.1f} a planned query" if queries else ""),
    ]
    if not has_writer(stats):
        stages = [
            ("queries", seeds, ""),
            ("examples", examples, f"{examples / seeds:.1f} a query" if seeds else ""),
        ]
    if source == "seeds":
        stages += [
            ("judged", judged, _share(judged, examples, "examples")),
            ("kept", kept, _share(kept, judged, "judged")),
        ]
    else:
        stages.append(("kept", kept, _share(kept, examples, "examples")))
    if stats["selected"]:
        selected = stats["selected"]["examples"]
        stages.append(("selected", selected, _share(selected, kept, "kept")))
    widths = _widths([count for _, count, _ in stages])
    return [
        {"name": name, "count": count, "note": note, "width": width}
        for (name, count, note), width in zip(stages, widths, strict=True)
    ]


def _share(part: int, whole: int, name: str) -> str:
    if not whole:
        return ""
    # A small share is not shown as 0.
    percent = "< 1" if 0 < part / whole < 0.005 else f"{100 * part / whole:.0f}"
    return f"{percent} % of the {name}"


def _made_of(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The distributions of the kept examples, and of the selected ones among them."""
    if not stats["kept"]:
        return []
    selected = stats["selected"] or {}
    charts = [
        {"heading": heading, "bars": _bars(stats[name], selected.get(name, {}), DOMAINS_SHOWN)}
        for name, heading in (
            ("query_kind", "Query kind"),
            ("difficulty", "Difficulty"),
            ("passage_role", "Passage role"),
            ("domains", "Domain"),
        )
        if stats[name]  # queries that were not planned have no kind and no difficulty
    ]
    for name, heading in (("query_words", "Words of the query"), ("passage_words", "Words of the passage")):
        bins = stats[name]["bins"]
        of_selected = selected[name]["bins"] if selected.get(name) else {}
        charts.append(
            {"heading": f"{heading}, median {stats[name]['median']:,}", "bars": _bars(bins, of_selected, len(bins))}
        )
    return charts


def _bars(counts: Mapping[str, int], selected: Mapping[str, int], most: int) -> list[dict[str, Any]]:
    """One bar for each count, in their order; one for all after the first ``most``. Widths are in
    percent of the longest bar, those of the selected part in percent of its own bar."""
    names = list(counts)
    bars = [(name, counts[name], selected.get(name, 0)) for name in names[:most]]
    if rest := names[most:]:
        bars.append(
            (f"{len(rest):,} more", sum(counts[name] for name in rest), sum(selected.get(name, 0) for name in rest))
        )
    widths = _widths([count for _, count, _ in bars])
    return [
        {
            "name": name,
            "count": count,
            "width": width,
            "selected": of_selected,
            "selected_width": round(100 * of_selected / count, 2) if count else 0,
        }
        for (name, count, of_selected), width in zip(bars, widths, strict=True)
    ]


def _scores(bins: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """The histogram of the judge's scores by intended label; empty if it gave none."""
    positive, negative = bins["true"], bins["false"]
    if not any((*positive.values(), *negative.values())):
        return []
    widths = _widths([*positive.values(), *negative.values()])
    return [
        {
            "name": name,
            "positive": positive[name],
            "positive_width": widths[index],
            "negative": negative[name],
            "negative_width": widths[index + len(positive)],
        }
        for index, name in enumerate(positive)
    ]


def _widths(counts: list[int]) -> list[float]:
    """Lengths of bars in percent of the longest."""
    most = max(counts, default=0) or 1
    return [round(100 * count / most, 2) for count in counts]


def _examples(rows: Iterable[Row]) -> tuple[list[list[Row]], dict[str, list[Row]]]:
    """Some kept queries with all their kept examples, and up to two rejected examples for each
    reason. Hashes of their ids draw them; the second of two has a passage if any other has one."""
    kept: dict[tuple[int, str], list[Row]] = {}
    rejected: dict[str, list[Row]] = {}
    for row in rows:
        if row["kept"]:
            group = f"{row['seed_id']}/{row['query_kind']}/{row['query']}/{row['instruction'] or ''}"
            kept.setdefault((zlib.crc32(group.encode()), group), []).append(row)
            if len(kept) > QUERIES_SHOWN:
                del kept[max(kept)]
        elif row["reject_reason"]:
            drawn = rejected.setdefault(row["reject_reason"], [])
            first, *others = sorted([*drawn, row], key=_draw)
            # An example that was rejected for its query has no passage to read.
            others.sort(key=lambda other: not other["passage"])
            drawn[:] = [first, *others[:1]]
    groups = [sorted(kept[key], key=lambda row: row["example_id"]) for key in sorted(kept)]
    return groups, rejected


def _to_read(drawn: list[Row]) -> Row | None:
    """The last of the drawn examples that has a passage: the first is shown in short."""
    return next((row for row in reversed(drawn) if row["passage"]), None)


def _draw(row: Row) -> tuple[int, str]:
    return zlib.crc32(row["example_id"].encode()), row["example_id"]
