"""Put a trained adapter where limrank ships it: its weights in bfloat16, its config, and the card.

python models/smollm2-135m-rerank/ship.py runs/default-model/train/adapter
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
SHIPPED = HERE.parent.parent / "limrank" / "models" / "adapters" / HERE.name


def main(adapter: Path) -> None:
    SHIPPED.mkdir(parents=True, exist_ok=True)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()},
        SHIPPED / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] = sorted(config["target_modules"])  # PEFT has them in a set
    (SHIPPED / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (SHIPPED / "adapter_model.safetensors").chmod(0o644)
    shutil.copy(HERE / "README.md", SHIPPED / "README.md")
    size = sum(file.stat().st_size for file in SHIPPED.iterdir())
    print(f"{SHIPPED.relative_to(HERE.parent.parent)}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
