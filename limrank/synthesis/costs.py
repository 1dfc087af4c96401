"""What the steps of a run took, as its page and its card tell it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

Step = Mapping[str, float]
"""``prompt``, ``cached_prompt`` (the part of ``prompt`` that was cached) and ``generated``
tokens, and the ``cost`` of a step that has a price."""


def with_total(steps: Mapping[str, Step]) -> dict[str, Step]:
    """The steps, and behind them their ``total``, whose ``cost`` is of those that have one;
    empty where no step is known."""
    if not steps:
        return {}
    total = {name: sum(step[name] for step in steps.values()) for name in ("prompt", "cached_prompt", "generated")}
    costs = [step["cost"] for step in steps.values() if "cost" in step]
    return {**steps, "total": total | ({"cost": sum(costs)} if costs else {})}


def notes(steps: Mapping[str, Step]) -> Iterator[str]:
    """Sentences that a person needs to read the steps."""
    if "mine" in steps:
        yield "In mine the reranker picks passages of the corpus, in base it scores what was kept."
    priced = ["cost" in step for step in steps.values()]
    if any(priced):
        yield "Costs are in the currency of the recipe's prices."
        if not all(priced):
            yield "A step without a price is not in their total."
