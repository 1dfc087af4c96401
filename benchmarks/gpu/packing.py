"""Losses of packed rows against those of the same examples alone, with transformers' own attention.

limrank's check of a model is made first; then rows with single examples, and with queries whose passages share
their beginning, in float32 and with bfloat16 products, on the device that would train.
"""

from __future__ import annotations

import numpy as np
import torch
from gpu.report import arguments, section
from torch.nn import functional
from train_7b import LEARNED, random_model, shape

from limrank.training import attention
from limrank.training.batches import pack, query_units, single_units
from limrank.training.examples import EncodedExample
from limrank.training.forward import of_units, row_loss

TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
"""As a share of the loss."""


def queries(count: int, passages: int, tokens: int) -> list[EncodedExample]:
    """Examples of several lengths; those of a query begin alike."""
    draw = np.random.default_rng(1)
    found = []
    for query in range(count):
        start = draw.integers(0, LEARNED, tokens // 3, dtype=np.int32)
        for place in range(passages):
            end = draw.integers(0, LEARNED, tokens // 3 + 7 * (len(found) + 1), dtype=np.int32)
            ids = np.concatenate((start, end))
            found.append(EncodedExample(len(found), ids, len(ids) - tokens // 5, place == 0, (str(query),), False))
    return found


@torch.no_grad()
def alone(model, examples: list[EncodedExample], device: torch.device, mixed: bool) -> float:
    """The summed loss of the completions, one example at a time, without limrank's attention and packing."""
    total = 0.0
    for example in examples:
        ids = torch.from_numpy(example.ids).long().to(device)[None]
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
            logits = model(input_ids=ids, use_cache=False).logits[0]
        first = example.prompt_tokens
        total += functional.cross_entropy(logits[first - 1 : -1].float(), ids[0, first:], reduction="sum").item()
    return total


@torch.no_grad()
def packed(model, examples: list[EncodedExample], units, device: torch.device, mixed: bool) -> float:
    return row_loss(model, "label", None, mixed)(pack(of_units(examples, units), device)).item()


def main() -> None:
    given = arguments()
    with section("packing", given.out) as line:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # What is compared depends on the architecture, and not on the width.
        model = random_model(shape(2, 256 if given.dry_run else 896), device, torch.float32).eval()
        attention.check_packing(model)
        line["check_packing"] = "passed"
        examples = queries(2, 2, 30) if given.dry_run else queries(8, 6, 600)
        line |= {"examples": len(examples), "tokens": sum(len(each.ids) for each in examples)}
        for dtype, tolerance in TOLERANCE.items():
            mixed = dtype == "bfloat16"
            model.set_attn_implementation("sdpa")
            expected = alone(model, examples, device, mixed)
            model.set_attn_implementation(attention.PACKED)
            for name, units in (("examples", single_units(examples)), ("queries", query_units(examples))):
                found = packed(model, examples, units, device, mixed)
                difference = abs(found - expected) / expected
                line[f"{dtype}_{name}_loss_difference"] = float(f"{difference:.3g}")
                line["ok"] &= difference <= tolerance


if __name__ == "__main__":
    main()
