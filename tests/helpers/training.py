"""What the tests of training share."""

import torch

from limrank.config import TrainingConfig
from limrank.training.examples import encode_examples, set_target
from limrank.training.forward import row_loss
from limrank.training.sources import read_examples

TRUE_FALSE = (2629, 7065)
"""The tokens of " true" and " false" in SmolLM2's tokenizer."""


PROMPT = (
    "Determine if the following passage is relevant to the query. Answer only with 'true' or 'false'.\n"
    "Query: {query}\nPassage: {passage}\n<think>"
)


def settings(**changes):
    small = {"epochs": 2, "batch_size": 2, "gradient_accumulation": 1, "learning_rate": 1e-2, "lora_rank": 4}
    return TrainingConfig(**(small | {"lora_alpha": 8, "validation_share": 0} | changes))


def encode(train_file, tokenizer, cutoff=2500):
    return encode_examples(
        set_target(read_examples(train_file), "think"),
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        tokenizer.eos_token_id,
        cutoff,
        str(train_file),
    )


def label_loss(model):
    return row_loss(model, "label", TRUE_FALSE)


def into(lines):
    """An ``on_step`` that keeps the metrics."""
    return lambda metrics, over: lines.append(metrics)


def perturb(model):
    """An adapter starts as nothing: give it something to merge."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
