"""The READMEs of ``model/`` and ``adapter/``: what a person who is handed one has to know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from limrank.config import TrainJob, is_uri
from limrank.printable import as_markdown
from limrank.version import __version__

_SETTINGS = (
    *("method", "target", "objective", "epochs", "learning_rate", "warmup_ratio", "batch_size"),
    *("gradient_accumulation", "cutoff_tokens"),
)
_OF_LORA = ("lora_rank", "lora_alpha", "lora_targets", "lora_embeddings")

_ADAPTER = """
## This is the adapter alone

`AutoPeftModelForCausalLM.from_pretrained(THIS_FOLDER)` loads it with its base model, whose embeddings it
makes room for the added tokens. For vLLM and `limrank rerank` take the merged model beside it.
"""


def render(config: TrainJob, plan: Mapping[str, Any], progress: Mapping[str, Any]) -> dict[str, str]:
    """``{"model": …, "adapter": …}``, Markdown with the hub's front matter.

    Args:
        plan: what ``prepare`` counts of the data.
        progress: the fields of ``loop.Progress`` at the end.
    """
    base, lora = _name(config.model.id), config.training.method == "lora"
    names = _SETTINGS + (_OF_LORA if lora else ())
    settings = config.training.model_dump(include=set(names))
    if lora:
        settings["lora_targets"] = ", ".join(settings["lora_targets"]) or "all linear layers"
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-ranking",
        "tags: [limrank, reranker]",
        *([yaml.safe_dump({"base_model": base}, allow_unicode=True, width=10**6).strip()] if "/" in base else []),
        "---",
        "",
        f"# A pointwise reranker from {as_markdown(base)}",
        "",
        "It judges one query and one passage: p(true) / (p(true) + p(false)) of the token after `</think>` is the score.",
        f"Trained with limrank {__version__}. To rerank with it: `limrank rerank RECIPE.yaml -s model.id=THIS_FOLDER`,",
        f"with `scoring.mode: {'direct' if config.training.target == 'direct' else 'think'}`, as it was trained"
        + (" (or `direct`: it learned both)." if config.training.target == "mixed" else "."),
        "",
        "## Data",
        "",
        f"- {plan['examples']} examples of {as_markdown(_name(config.training.train_file))}, {plan['validation_examples']} held out, "
        f"{plan['cut']} cut to {config.training.cutoff_tokens} tokens",
        f"- {progress['tokens']} tokens over {progress['step']} steps",
        "",
        "## Settings",
        "",
        *(f"- {name}: {as_markdown(settings[name])}" for name in names),
        f"- examples a step (or queries, where their passages are compared): {plan['units_a_step']}; seed: {config.seed}",
        "",
        "## Measured",
        "",
        f"- loss of the last step: {progress['loss']:.4f}",
    ]
    if progress["best_step"] is not None:
        best = f"step {progress['best_step']}, the best on held-out data: {_best(config, progress)}"
        is_best = config.training.export == "best" or progress["best_step"] == progress["step"]
        lines.append(
            f"- weights of {best}" if is_best else f"- weights of step {progress['step']}, the last; not of {best}"
        )
    text = "\n".join(lines) + "\n"
    return {"model": text, "adapter": text + _ADAPTER}


def _best(config: TrainJob, progress: Mapping[str, Any]) -> str:
    if config.dev is None:
        return f"loss {-progress['best_score']:.4f}"
    data = config.dev.data
    of = _name(data.name or data.path or data.format)
    return f"nDCG@10 {progress['best_score']:.4f}, reranking the top {config.dev.first_stage.depth} of {as_markdown(of)} directly"


def _name(path: str) -> str:
    """Of a path its last part: not where it lay on the machine that trained. Of a URI what
    is not a store's settings."""
    if is_uri(path):
        return path.partition("?")[0]
    return Path(path).name if Path(path).is_absolute() else path
