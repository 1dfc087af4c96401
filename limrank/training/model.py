"""The model that is trained: think tokens, LoRA or full weights, and the merged export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limrank import models
from limrank.config import TrainingConfig
from limrank.config.training import Task
from limrank.errors import UserError, first_line
from limrank.models.tokens import add_special_tokens
from limrank.scoring import LABELS, THINK_CLOSE, THINK_OPEN
from limrank.storage import Storage
from limrank.training import attention

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(model_dir: Path, task: Task = "reranker") -> tuple[PreTrainedTokenizerBase, list[int]]:
    """The model's tokenizer, with ``<think>`` and ``</think>`` as one token each, and the ids of the added ones.
    A writer does not think: its tokenizer stays as it is.

    Raises:
        UserError: a label is not one token after ``</think>``, or there is no end-of-sequence token:
            such a model cannot become this kind of reranker.
    """
    tokenizer = models.tokenizer(model_dir)
    if tokenizer.eos_token_id is None:
        raise UserError(f"model {model_dir}: the tokenizer has no end-of-sequence token")
    if task == "writer":
        return tokenizer, []
    added = add_special_tokens(tokenizer, (THINK_OPEN, THINK_CLOSE))
    close = tokenizer.convert_tokens_to_ids(THINK_CLOSE)
    for label in LABELS:
        ids = tokenizer.encode(THINK_CLOSE + label, add_special_tokens=False)
        if len(ids) != 2 or ids[0] != close:
            raise UserError(f"model {model_dir}: {label!r} after {THINK_CLOSE} is not one token but {ids[1:]}")
    return tokenizer, added


def load_for_training(
    model_dir: Path, training: TrainingConfig, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model that is ready to train (:func:`make_trainable`), and its tokenizer.

    Raises:
        UserError: the directory has no such model, or no safetensors; see also :func:`make_trainable`.
    """
    import torch

    tokenizer, added = load_tokenizer(model_dir, training.task)
    model = _load(model_dir, dtype if training.method == "lora" else torch.float32)
    return make_trainable(model, training, added), tokenizer


def make_trainable(model: PreTrainedModel, training: TrainingConfig, added: list[int]) -> PreTrainedModel:
    """The model with rows for the added tokens, and with its trainable parameters selected.

    ``lora`` puts an adapter on every linear layer (or those of ``lora_targets``). It also trains the
    embeddings of the added tokens, or with ``lora_embeddings=all`` all embeddings. These outweigh the
    adapter (28 M of 33 M parameters for the 135M model, 1.1 of 1.2 G for a 7B one), and the other rows
    have little to learn. ``full`` trains everything.

    Trained parameters are float32 whatever the frozen ones are: at a learning rate of 3e-5 most updates
    are lost in the rounding of bfloat16.

    Raises:
        UserError: the model has no linear layer with a name in ``lora_targets``.
    """
    if added:
        _set_embeddings(model, added)
    if training.method == "lora":
        model = _with_adapter(model, training, added)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    model.config.use_cache = False
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _load(model_dir: Path, dtype: torch.dtype) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    attention.register()
    try:
        return AutoModelForCausalLM.from_pretrained(
            model_dir,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation=attention.PACKED,
        )
    except KeyError as error:
        if error.args != (attention.PACKED,):
            raise
        raise UserError(
            f"model {model_dir}: limrank cannot train models of this kind: they choose their own attention"
        ) from None
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"model {model_dir}: cannot be loaded: {first_line(error)}") from error


def _set_embeddings(model: PreTrainedModel, added: list[int]) -> None:
    """Set the rows of the added tokens in both embeddings to the mean of the learned rows.

    A random or zero output row can have a larger logit than every known token; the mean's logit is
    bounded by theirs (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021).
    The matrix keeps its size if it already has the rows, as padding that was never trained (Qwen2.5 has
    152,064 for 151,665 tokens); they are set all the same.
    """
    import torch

    if max(added) >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(added) + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            learned = layer.weight[: min(added)]
            layer.weight[added] = learned.mean(dim=0, dtype=torch.float32).to(learned.dtype)


def _with_adapter(model: PreTrainedModel, training: TrainingConfig, added: list[int]) -> PreTrainedModel:
    from peft import LoraConfig, get_peft_model
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    embeddings = [model.get_input_embeddings()]
    # Tied embeddings are one matrix: PEFT then trains the output's with the input's.
    if not model.config.tie_word_embeddings:
        embeddings.append(model.get_output_embeddings())
    names = [name.rpartition(".")[2] for name, module in model.named_modules() if module in embeddings]
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not model.get_output_embeddings()
    }
    if unknown := [name for name in training.lora_targets if name not in linear]:
        raise UserError(
            f"training.lora_targets: the model has no linear layer {', '.join(unknown)}; "
            f"it has {', '.join(sorted(linear))}"
        )
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=training.lora_rank,
        lora_alpha=training.lora_alpha,
        target_modules=list(training.lora_targets) or "all-linear",
        **_of_embeddings(training, names, added, tied=model.config.tie_word_embeddings),
    )
    return get_peft_model(model, adapter)


def _of_embeddings(training: TrainingConfig, names: list[str], added: list[int], tied: bool) -> dict[str, Any]:
    if training.lora_embeddings == "all":
        return {"modules_to_save": names, "ensure_weight_tying": tied}
    return {"trainable_token_indices": dict.fromkeys(names, added)} if added else {}


def merge_and_save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    storage: Storage,
    dtype: torch.dtype,
    *,
    base: str | None = None,
    cards: Mapping[str, str] | None = None,
    task: models.ModelTask | None = None,
) -> None:
    """Write ``adapter/`` (LoRA only) and ``model/`` into a run directory.

    ``model/`` is an ordinary model directory in ``dtype``: safetensors, tokenizer and generation config,
    with the adapter merged into the weights. A directory is complete once its config is there.
    ``model`` cannot be used afterwards.

    Args:
        base: the name of the adapter's base model.
        cards: the READMEs, by directory.
        task: what the model is for, if it is no reranker that answers true or false.

    Raises:
        StorageError: a directory could not be written.
    """
    from peft import PeftModel

    def save(name: str, config_name: str, **options: Any) -> None:
        with storage.new_folder(name, last=config_name) as folder:
            model.save_pretrained(folder, **options)
            tokenizer.save_pretrained(folder)
            if cards:
                # This replaces PEFT's unfilled template.
                (folder / "README.md").write_text(cards[name], encoding="utf-8")
            if task:
                (folder / models.TASK_FILE).write_text(task.as_json(), encoding="utf-8")

    if isinstance(model, PeftModel):
        if base:
            model.peft_config["default"].base_model_name_or_path = base
        # The adapter has the trained rows of the embeddings; PEFT would add the whole matrices.
        save("adapter", "adapter_config.json", save_embedding_layers=False)
        model = model.merge_and_unload()
    model.config.use_cache = True
    model.to(dtype)
    save("model", models.MODEL_CONFIG)
