"""The READMEs of ``model/`` and ``adapter/``: model cards with the front matter that the hub reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from limrank.config import TrainingConfig, TrainJob, is_uri
from limrank.models import ModelTask
from limrank.printable import as_markdown
from limrank.training import writer
from limrank.training.shapes import pair_prompt
from limrank.version import __version__

_SETTINGS = (
    *("method", "target", "objective", "epochs", "learning_rate", "warmup_ratio", "batch_size"),
    *("gradient_accumulation", "cutoff_tokens"),
)
_OF_RERANKER = ("target", "objective")
_OF_LORA = ("lora_rank", "lora_alpha", "lora_targets", "lora_embeddings")

_ADAPTER = """
## This is only the adapter

`AutoPeftModelForCausalLM.from_pretrained(THIS_FOLDER)` loads it with its base model, whose embeddings grow by
the added tokens. vLLM and `limrank rerank` need the merged model, `model/`.
"""
_ADAPTER_OF_WRITER = """
## This is only the adapter

`AutoPeftModelForCausalLM.from_pretrained(THIS_FOLDER)` loads it with its base model. vLLM and limrank need the
merged model, `model/`.
"""


def render(config: TrainJob, plan: Mapping[str, Any], progress: Mapping[str, Any]) -> dict[str, str]:
    """The cards by folder, ``model`` and ``adapter``, as Markdown with front matter.

    Args:
        plan: what ``prepare`` counts of the data.
        progress: the fields of ``loop.Progress`` at the end.
    """
    text = "\n".join(_body(config, plan, progress)) + "\n"
    note = _ADAPTER_OF_WRITER if config.training.task == "writer" else _ADAPTER
    return {"model": _card(config, "transformers", text), "adapter": _card(config, "peft", text + note)}


def task_of(training: TrainingConfig) -> ModelTask | None:
    """What a trained model is for and how it is asked; None for a reranker that answers true or false."""
    if training.task == "writer":
        return writer.task()
    return ModelTask("reranker", pair_prompt(training.labels), training.labels) if training.labels else None


def _card(config: TrainJob, library: str, text: str) -> str:
    from huggingface_hub import ModelCard, ModelCardData

    writes, task = config.training.task == "writer", task_of(config.training)
    data = ModelCardData(
        base_model=config.model.id if _is_hub_id(config.model.id) else None,
        library_name=library,
        pipeline_tag="text-generation" if writes else "text-ranking",
        tags=["limrank", "query-generation" if writes else "reranker"],
        **({"limrank": task.values()} if task else {}),
    )
    # The template's own syntax ends here: the text is data.
    return str(ModelCard.from_template(data, template_str="---\n{{ card_data }}\n---\n\n{{ text }}", text=text))


def _body(config: TrainJob, plan: Mapping[str, Any], progress: Mapping[str, Any]) -> Iterator[str]:
    training = config.training
    lora = training.method == "lora"
    names = _SETTINGS + (_OF_LORA if lora else ())
    settings = training.model_dump(include=set(names))
    if lora:
        settings["lora_targets"] = ", ".join(settings["lora_targets"]) or "all linear layers"
    yield from _about_writer(config) if training.task == "writer" else _about_reranker(config)
    yield "\n## Data\n"
    yield (
        f"- {plan['examples']} examples of {as_markdown(_name(training.train_file))}, "
        f"{plan['validation_examples']} held out, {plan['cut']} truncated to {training.cutoff_tokens} tokens"
    )
    yield f"- {progress['tokens']} tokens over {progress['step']} steps"
    yield "\n## Settings\n"
    for name in (name for name in names if training.task == "reranker" or name not in _OF_RERANKER):
        yield f"- {name}: {as_markdown(settings[name])}"
    if temperature := plan.get("teacher_temperature"):
        yield f"- teacher_temperature: {temperature:g} (the teacher's scores were divided by it)"
    if ends := plan.get("label_ends"):
        labels = training.labels
        yield f"- label_ends: {ends[0]:g} for {labels[0]}, {ends[1]:g} for {labels[-1]} (a teacher's scores became the nearest label)"
    yield f"- examples a step (or queries, where their passages are compared): {plan['units_a_step']}; seed: {config.seed}"
    yield "\n## Measured\n"
    yield f"- loss of the last step: {progress['loss']:.4f}"
    if progress["best_step"] is not None:
        best = f"step {progress['best_step']}, the best on held-out data: {_best(config, progress)}"
        is_best = training.export == "best" or progress["best_step"] == progress["step"]
        yield f"- weights of {best}" if is_best else f"- weights of step {progress['step']}, the last; not of {best}"


def _about_reranker(config: TrainJob) -> Iterator[str]:
    target, labels = config.training.target, config.training.labels
    yield f"# A pointwise reranker from {as_markdown(_name(config.model.id))}\n"
    if labels:
        yield f"It judges one query and one passage by a label after `</think>`: {', '.join(labels)}. The score is the"
        yield "expected value on this scale, from 0 to 1. `limrank.json` holds labels and prompt, too."
        yield f"Trained with limrank {__version__}. To rerank with it: `limrank rerank RECIPE.yaml -s model.id=THIS_FOLDER`,"
        yield f"with `scoring.mode: direct` and `scoring.labels: {json.dumps(labels)}`, as it was trained."
        return
    yield "It judges one query and one passage: p(true) / (p(true) + p(false)) of the token after `</think>` is the score."
    yield f"Trained with limrank {__version__}. To rerank with it: `limrank rerank RECIPE.yaml -s model.id=THIS_FOLDER`,"
    yield f"with `scoring.mode: {'direct' if target == 'direct' else 'think'}`, as it was trained" + (
        " (or `direct`: it learned both)." if target == "mixed" else "."
    )


def _about_writer(config: TrainJob) -> Iterator[str]:
    yield f"# A writer of search queries from {as_markdown(_name(config.model.id))}\n"
    yield "It writes a query that a passage answers. It does not score passages."
    yield f"Trained with limrank {__version__}. It continues this plain prompt, without a chat template, with a space, the"
    yield "query and the end of sequence; `limrank.json` holds the prompt, too:\n"
    yield from ("```", writer.task().prompt, "```")


def _best(config: TrainJob, progress: Mapping[str, Any]) -> str:
    if config.dev is None:
        return f"loss {-progress['best_score']:.4f}"
    data = config.dev.data
    of = _name(data.name or data.path or data.format)
    return f"nDCG@10 {progress['best_score']:.4f}, reranking the top {config.dev.first_stage.depth} of {as_markdown(of)} directly"


def _is_hub_id(model: str) -> bool:
    """Whether a model's name is OWNER/NAME of the hub: it names no path, no URI, no packaged model."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return "/" in model and not Path(model).exists()


def _name(path: str) -> str:
    """A path's last component, so that a card does not tell where a file lay on the machine that
    trained; a URI without the settings of its store."""
    if is_uri(path):
        return path.partition("?")[0]
    return Path(path).name if Path(path).is_absolute() else path
