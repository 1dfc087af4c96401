"""Put trained adapters where limrank ships them, as one: its weights in bfloat16, its config, and the card.

python models/smollm2-135m-rerank/ship.py runs/default-model/train/adapter runs/default-model/train-long/adapter

Each adapter was trained upon the model that those before it were merged into. Their sum is one adapter: the ranks side by
side.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
SHIPPED = HERE.parent.parent / "limrank" / "models" / "adapters" / HERE.name


def main(adapters: Sequence[Path]) -> None:
    SHIPPED.mkdir(parents=True, exist_ok=True)
    weights = joined([load_file(adapter / "adapter_model.safetensors") for adapter in adapters])
    save_file(
        {name: weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()},
        SHIPPED / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    configs = [json.loads((adapter / "adapter_config.json").read_text()) for adapter in adapters]
    config = configs[0] | {key: sum(each[key] for each in configs) for key in ("r", "lora_alpha")}
    if any(each["lora_alpha"] * config["r"] != each["r"] * config["lora_alpha"] for each in configs):
        raise SystemExit("the adapters have different scales (lora_alpha / r): they cannot be joined")
    config["target_modules"] = sorted(config["target_modules"])  # PEFT has them in a set
    (SHIPPED / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (SHIPPED / "adapter_model.safetensors").chmod(0o644)
    shutil.copy(HERE / "README.md", SHIPPED / "README.md")
    size = sum(file.stat().st_size for file in SHIPPED.iterdir())
    print(f"{SHIPPED.relative_to(HERE.parent.parent)}: {size / 1e6:.1f} MB")


def joined(adapters: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The sum of the adapters. A is (rank, inputs) and B (outputs, rank). Rows of embeddings are whole, not
    differences: the last adapter's hold."""
    along = {"lora_A": 0, "lora_B": 1}
    weights = {}
    for name in adapters[0]:
        axis = next((axis for part, axis in along.items() if f".{part}." in name), None)
        each = [adapter[name] for adapter in adapters if name in adapter]
        weights[name] = each[-1] if axis is None else torch.cat(each, dim=axis)
    return weights


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
