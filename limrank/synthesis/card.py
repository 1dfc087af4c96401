"""``DATASET.md``: the dataset card of a run, with the front matter that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from limrank.html import visible
from limrank.printable import as_markdown, printable
from limrank.synthesis.costs import Step, notes, with_total
from limrank.synthesis.select import Row
from limrank.synthesis.stats import grading, has_writer

if TYPE_CHECKING:
    from huggingface_hub import DatasetCardData

EXAMPLES_SHOWN = 4
_DOMAINS_SHOWN = 12

_HUB_LICENSES = frozenset(
    ["apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "odc-by", "odbl", "pddl", "unlicense"]
    + [f"cc-by{kind}-{version}" for kind in ("", "-sa", "-nc", "-nc-sa", "-nd", "-nc-nd") for version in ("3.0", "4.0")]
)
"""Identifiers of data licenses that the hub knows (huggingface.co/docs/hub/repositories-licenses).
It takes any other license by its name."""

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def render(stats: Mapping[str, Any], rows: Iterable[Row]) -> str:
    """The card as Markdown. Saved as ``README.md`` beside ``train.jsonl`` and ``examples.parquet``,
    it makes them a dataset that ``datasets.load_dataset`` opens.

    Generated text is escaped, so that its Markdown is shown and not rendered.

    Args:
        stats: what ``stats.json`` holds.
        rows: the examples that are trained on; the first few are shown.
    """
    from huggingface_hub import DatasetCard

    # The template's own syntax ends here: the body is data.
    card = DatasetCard.from_template(
        _front_matter(stats), template_str="---\n{{ card_data }}\n---\n\n{{ body }}", body="\n".join(_body(stats, rows))
    )
    return str(card)


def _front_matter(stats: Mapping[str, Any]) -> DatasetCardData:
    from huggingface_hub import DatasetCardData

    exported = stats["selected"]["examples"] if stats["selected"] else stats["kept"]
    named = str(stats["license"] or "").strip()
    known = named.lower() in _HUB_LICENSES
    return DatasetCardData(
        license=(named.lower() if known else "other") if named else None,
        license_name=None if known else printable(named) or None,
        task_categories=["text-ranking"],
        size_categories=next((name for most, name in _SIZES if exported < most), "n>10M"),
        tags=["limrank", "reranking", *(["synthetic"] if has_writer(stats) else [])],
        configs=[
            {"config_name": name, "data_files": [{"split": "train", "path": path}], **default}
            for name, path, default in (
                ("pairs", "train.jsonl", {"default": True}),
                ("examples", "examples.parquet", {}),
                *([("lists", "lists.jsonl", {})] if stats.get("teacher") else []),
            )
        ],
    )


def _body(stats: Mapping[str, Any], rows: Iterable[Row]) -> Iterator[str]:
    kept, examples = stats["kept"], stats["examples"]
    written = has_writer(stats)
    yield f"# {'Synthetic examples' if written else 'Examples'} for a pointwise reasoning reranker\n"
    yield (
        f"{kept} of {examples} examples were kept{_share(kept, examples)}, {stats['kept_positive']} of them relevant, "
        f"from {stats['seeds']} {stats.get('source', 'seeds') if written else 'queries'} ({as_markdown(stats['seed_source'])})"
        f"{' and ' + str(stats['queries']) + ' planned queries' if written else ''}."
    )
    if chosen := stats["selected"]:
        yield f"Selected for training: {chosen['shortfall'] or str(chosen['examples']) + ' examples'}."
    yield from ("", "## Models\n", *_models(stats))
    yield from ("", "## What was kept\n", *_made_of(stats))
    yield from ("", "## Rejected\n", *_rejected(stats["rejected"], examples))
    if steps := stats["steps"]:
        yield from ("", "## Tokens by step\n", *_steps(steps))
    if written:
        yield from ("", "## Prompts\n", "Each prompt's name and the first digits of its text's SHA-256.\n")
    for step, prompt in stats["prompts"].items():
        yield f"- {step}: {as_markdown(prompt['name'])}, {prompt['sha256']}"
    yield from ("", "## Examples\n")
    for row in islice(rows, EXAMPLES_SHOWN):
        yield from (*_example(row), "")
    yield "## License\n"
    yield f"License of the seeds: {as_markdown(stats['license'] or 'unknown (synthesis.license is not set); see their source')}."
    if not written:
        made = "The queries are the seeds' own"
    elif stats.get("source") == "passages":
        made = "The writer made the queries for the passages"
    else:
        made = "The writer made the queries and the written passages from the seeds"
    output = ", and what the models' licenses say about their output" if written else ""
    yield f"{made}; mined passages come from the seeds' own corpus. The seeds' license applies to them{output}.\n"


def _models(stats: Mapping[str, Any]) -> Iterator[str]:
    unreasoned = ", which wrote passages without a chain of thought before them" if "chains" in stats else ""
    yield f"- writer: {as_markdown(stats['writer'])}{unreasoned}"
    if "example_source" in stats:
        yield f"- examples that the writer was shown: {as_markdown(stats['example_source'])}"
    if "judge" in stats:
        yield f"- judge: {as_markdown(stats['judge'])}, agreement by {stats['agreement']}"
    if found := stats.get("round_trip"):
        yield f"- a query has to find its passage again: by {found['retriever']}, in the first {found['k']}"
    if stats.get("teacher"):
        yield f"- teacher, which graded each query's passage and its candidates: {as_markdown(grading(stats))}"
    if "reranker" in stats:
        yield f"- reranker to be improved: {as_markdown(stats['reranker'])}"
    if "embedding" in stats:
        yield f"- embedding of the queries, which were chosen far apart: {as_markdown(stats['embedding'])}"


def _made_of(stats: Mapping[str, Any]) -> Iterator[str]:
    for name in ("query_kind", "difficulty", "passage_role", "domains"):
        listed = list(islice(stats[name].items(), _DOMAINS_SHOWN))
        counts = ", ".join(f"{printable(value)} ({count})" for value, count in listed) or "none"
        more = len(stats[name]) - len(listed)
        # An indented block is not rendered: a domain may be the writer's own words.
        yield f"    {name.replace('_', ' ')}: {counts}" + (f", and {more} more" if more else "")
    for name in ("query", "passage"):
        if lengths := stats[f"{name}_words"]:
            yield f"    words of a {name}: {lengths['min']} to {lengths['max']}, median {lengths['median']}"


def _rejected(counts: Mapping[str, int], examples: int) -> Iterator[str]:
    if not counts:
        yield "- none"
    for reason, count in counts.items():
        yield f"- {as_markdown(reason)}: {count}{_share(count, examples)}"


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
