"""From committed rows to what a trainer, a person or LLaMA-Factory reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from limrank.config import ScoringConfig, SynthesizeJob
from limrank.receipts import Summary
from limrank.records import Query
from limrank.scoring import completion, pair_text, prompt_template
from limrank.storage import Storage


@dataclass(frozen=True)
class Funnel:
    """Counts from examples to kept ones; ``rejected`` by reason, most frequent first."""

    examples: int
    kept: int
    kept_positive: int
    rejected: dict[str, int]


def export(storage: Storage, config: SynthesizeJob, summary: Summary) -> Funnel:
    """Write ``train.jsonl``, ``alpaca.json``, ``stats.json`` and ``DATASET.md``."""
    kept, funnel = _sift(_rows(storage))
    pairs = [training_pair(row, config.scoring.prompt) for row in kept]
    storage.write_text("train.jsonl", "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))
    alpaca = [{"instruction": pair["prompt"], "input": "", "output": pair["completion"]} for pair in pairs]
    storage.write_text("alpaca.json", json.dumps(alpaca, ensure_ascii=False, indent=1) + "\n")
    stats = _stats(kept, funnel, config, summary)
    storage.write_text("stats.json", json.dumps(stats, ensure_ascii=False, indent=2) + "\n")
    storage.write_text("DATASET.md", _card(stats, kept))
    return funnel


def training_pair(row: dict[str, Any], prompt: str = "relevance") -> dict[str, str]:
    """The prompt of the reranker and what it should write: the judge's chain, and the
    intended label (under agreement by verdict the chain's own)."""
    query = Query(row["example_id"], row["query"], row["instruction"] or "")
    text = pair_text(prompt_template(ScoringConfig(prompt=prompt)), query, row["passage"])
    return {"prompt": text, "completion": completion(row["reasoning"], row["label"])}


def _rows(storage: Storage) -> Iterator[dict[str, Any]]:
    for name in storage.names("rows"):
        yield from storage.read_table(f"rows/{name}").to_pylist()


def _sift(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], Funnel]:
    """The kept rows, and the counts of all, in one pass over the files."""
    examples = 0
    kept: list[dict[str, Any]] = []
    rejected: Counter[str] = Counter()
    for row in rows:
        examples += 1
        if row["kept"]:
            kept.append(row)
        if row["reject_reason"]:
            rejected[row["reject_reason"]] += 1
    positive = sum(bool(row["label"]) for row in kept)
    return kept, Funnel(examples, len(kept), positive, dict(rejected.most_common()))


def _stats(kept: list[dict[str, Any]], funnel: Funnel, config: SynthesizeJob, summary: Summary) -> dict[str, Any]:
    def counts(name: str) -> dict[str, int]:
        return dict(Counter(str(row[name]) for row in kept).most_common())

    return {
        "schema_version": 1,
        "seeds": summary.units,
        "examples": funnel.examples,
        "kept": funnel.kept,
        "kept_positive": funnel.kept_positive,
        "rejected": funnel.rejected,
        "failed": summary.failed,
        "query_kind": counts("query_kind"),
        "difficulty": counts("difficulty"),
        "passage_role": counts("passage_role"),
        "domains": counts("domain"),
        "passage_words": _spread([len(row["passage"].split()) for row in kept]),
        "query_words": _spread([len(row["query"].split()) for row in kept]),
        "writer": config.model.id,
        "judge": (config.judge or config.model).id,
        "agreement": config.synthesis.agreement,
        "tokens": {"prompt": summary.prompt_tokens, "generated": summary.generated_tokens},
    }


def _spread(lengths: list[int]) -> dict[str, float] | None:
    if not lengths:
        return None
    ordered = sorted(lengths)
    return {"min": ordered[0], "median": ordered[len(ordered) // 2], "max": ordered[-1]}


def _card(stats: dict[str, Any], kept: list[dict[str, Any]]) -> str:
    rejected = "".join(f"- {reason}: {count}\n" for reason, count in stats["rejected"].items()) or "- none\n"
    lines = [
        "# Synthetic examples for a pointwise reasoning reranker\n",
        f"{stats['kept']} of {stats['examples']} examples were kept, {stats['kept_positive']} of them relevant, "
        f"from {stats['seeds']} seeds. Writer: {stats['writer']}; judge: {stats['judge']}; "
        f"agreement by {stats['agreement']}.\n",
        f"## Rejected\n\n{rejected}",
        "## Examples\n",
    ]
    for row in kept[:4]:
        # Indented: generated text is shown as text, whatever Markdown it holds.
        shown = f"query: {row['query']}\npassage: {row['passage']}\nlabel: {row['label']}"
        lines.append("\n".join("    " + line for line in shown.splitlines()) + "\n")
    lines.append("The passages are written by a model, and mined ones carry the seeds' licence: see there.\n")
    return "\n".join(lines)
