"""``DATASET.md``: what a person who is handed the examples has to know of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from limrank.html import visible
from limrank.printable import as_markdown, printable
from limrank.synthesis.costs import Step, notes, with_total
from limrank.synthesis.select import Row

EXAMPLES_SHOWN = 4
_DOMAINS_SHOWN = 12


def render(stats: Mapping[str, Any], rows: Iterable[Row]) -> str:
    """Markdown, from what ``stats.json`` holds and the examples that are trained on.

    Generated text is shown as text, whatever Markdown it holds.
    """
    kept, examples = stats["kept"], stats["examples"]
    lines = [
        "# Synthetic examples for a pointwise reasoning reranker\n",
        f"{kept} of {examples} examples were kept{_share(kept, examples)}, {stats['kept_positive']} of them relevant, "
        f"from {stats['seeds']} seeds ({as_markdown(stats['seed_source'])}) and {stats['queries']} planned queries.",
    ]
    if chosen := stats["selected"]:
        lines.append(f"Selected for training: {chosen['shortfall'] or str(chosen['examples']) + ' examples'}.")
    lines += ["", "## Models\n", *_models(stats), "", "## What was kept\n", *_made_of(stats), "", "## Rejected\n"]
    lines += [
        f"- {as_markdown(reason)}: {count}{_share(count, examples)}" for reason, count in stats["rejected"].items()
    ]
    lines += [] if stats["rejected"] else ["- none"]
    if steps := stats["steps"]:
        lines += ["", "## Tokens by step\n", *_steps(steps)]
    lines += ["", "## Prompts\n", "By name, and the beginning of the text's SHA-256.\n"]
    lines += [
        f"- {step}: {as_markdown(prompt['name'])}, {prompt['sha256']}" for step, prompt in stats["prompts"].items()
    ]
    lines += ["", "## Examples\n"]
    for row in islice(rows, EXAMPLES_SHOWN):
        lines += [*_example(row), ""]
    lines += [
        "## Licence\n",
        f"Of the seeds: {as_markdown(stats['license'] or 'not told (synthesis.license); see their source')}.",
    ]
    lines.append(
        "Queries and written passages were made from the seeds by the writer, mined passages are the seeds' own "
        "corpus: the seeds' licence, and what the models' licences say of their output, apply to them.\n"
    )
    return "\n".join(lines)


def _models(stats: Mapping[str, Any]) -> Iterator[str]:
    unreasoned = ", which wrote passages without a chain of thought before them" if "chains" in stats else ""
    yield f"- writer: {as_markdown(stats['writer'])}{unreasoned}"
    yield f"- judge: {as_markdown(stats['judge'])}, agreement by {stats['agreement']}"
    if "reranker" in stats:
        yield f"- reranker to be bettered: {as_markdown(stats['reranker'])}"
    if "embedding" in stats:
        yield f"- embedding of the queries, which were chosen far apart: {as_markdown(stats['embedding'])}"


def _made_of(stats: Mapping[str, Any]) -> Iterator[str]:
    for name in ("query_kind", "difficulty", "passage_role", "domains"):
        shown = list(islice(stats[name].items(), _DOMAINS_SHOWN))
        counts = ", ".join(f"{printable(value)} ({count})" for value, count in shown) or "none"
        more = len(stats[name]) - len(shown)
        # Indented, as text: a domain may be the writer's own words.
        yield f"    {name.replace('_', ' ')}: {counts}" + (f", and {more} more" if more else "")
    for name in ("query", "passage"):
        if lengths := stats[f"{name}_words"]:
            yield f"    words of a {name}: {lengths['min']} to {lengths['max']}, median {lengths['median']}"


def _steps(steps: Mapping[str, Step]) -> Iterator[str]:
    for name, step in with_total(steps).items():
        cost = f", cost {step['cost']:,.4f}" if "cost" in step else ""
        yield (
            f"- {name}: {step['prompt']:,} in prompts ({step['cached_prompt']:,} of them cached), "
            f"{step['generated']:,} generated{cost}"
        )
    if how_to_read := " ".join(notes(steps)):
        yield f"\n{how_to_read}"


def _example(row: Row) -> Iterator[str]:
    for name in ("query", "instruction", "passage", "reasoning", "label"):
        if row[name] is not None:
            for line in visible(f"{name}: {row[name]}").splitlines():
                yield f"    {line}"


def _share(part: int, whole: int) -> str:
    if not whole:
        return ""
    return " (< 1%)" if 0 < part / whole < 0.005 else f" ({part / whole:.0%})"
