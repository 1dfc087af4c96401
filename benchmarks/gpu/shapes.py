"""A model directory of Qwen2.5-7B's shape, with Qwen2.5's tokenizer and weights that take no disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

from train_7b import shape
from transformers import Qwen2Config

from helpers.qwen_tokenizer import qwen_tokenizer

DEPTH = 28
WIDTH = 3584


def qwen_shape(dry_run: bool) -> Qwen2Config:
    """Qwen2.5-7B's, or with ``dry_run`` two narrow layers under the same vocabulary."""
    return shape(2, 256) if dry_run else shape(DEPTH, WIDTH)


def shape_name(config: Qwen2Config) -> str:
    whole = (config.num_hidden_layers, config.hidden_size) == (DEPTH, WIDTH)
    return "Qwen2.5-7B" if whole else f"Qwen2, {config.num_hidden_layers} layers of {config.hidden_size}"


def write_model(folder: Path, config: Qwen2Config) -> Path:
    """The directory. Its weights are a file with a hole: limrank reads their shapes from its table, and
    a loader would read zeros. vLLM is told to draw random ones instead (``load_format=dummy``)."""
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures, config.dtype = ["Qwen2ForCausalLM"], "bfloat16"
    config.save_pretrained(folder)
    qwen_tokenizer(marked=True).save_pretrained(folder)
    table, end = {}, 0
    for name, size in _tensors(config).items():
        table[name] = {"dtype": "BF16", "shape": size, "data_offsets": [end, end := end + 2 * math.prod(size)]}
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return folder


def _tensors(config: Qwen2Config) -> dict[str, list[int]]:
    """The shape of each weight, from a model without memory for them."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return {name: list(weight.shape) for name, weight in model.state_dict().items()}
