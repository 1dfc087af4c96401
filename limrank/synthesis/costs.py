"""Tokens and costs by step, for the report and the card of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

Step = Mapping[str, float]
"""Token counts ``prompt``, ``cached_prompt`` (the part of ``prompt`` that was cached) and
``generated``, and ``cost`` if the step has a price."""


def with_total(steps: Mapping[str, Step]) -> dict[str, Step]:
    """The steps followed by their ``total``; its ``cost`` adds up the steps that have one. Empty if
    there are no steps."""
    if not steps:
        return {}
    total = {name: sum(step[name] for step in steps.values()) for name in ("prompt", "cached_prompt", "generated")}
    costs = [step["cost"] for step in steps.values() if "cost" in step]
    return {**steps, "total": total | ({"cost": sum(costs)} if costs else {})}


def notes(steps: Mapping[str, Step]) -> Iterator[str]:
    """Sentences that explain the table of steps."""
    if "mine" in steps:
        yield "In mine the reranker picks passages of the corpus; in base it scores the kept examples."
    priced = ["cost" in step for step in steps.values()]
    if any(priced):
        yield "Costs are in the currency of the recipe's prices."
        if not all(priced):
            yield "The total leaves out steps without a price."
