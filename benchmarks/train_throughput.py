"""Training throughput, beside transformers' ``Trainer`` with PEFT and padding.

    python benchmarks/train_throughput.py TRAIN_FILE [--steps 6] [--rounds 3] [--batch 4]
                                          [--accumulation 2] [--target direct] [--model NAME]

The same model, adapter, examples, steps, rate and float32 for both, in one run of this
process; who begins is turned from round to round. Tokens are those of the examples, padding
not counted: a second, while steps run, medians over rounds. The Trainer is given each step's
examples in our order, pads each of its batches to the longest, and computes the logits of all
tokens, as it does; its loss is averaged over the step's completion tokens, as ours.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from functools import partial
from importlib import metadata

import torch
import transformers

from limrank import models
from limrank.config import TrainingConfig
from limrank.engines.base import label_token_ids
from limrank.scoring import LABELS, encode_example
from limrank.training.batches import epoch_steps, single_units
from limrank.training.examples import EncodedExample, encode_examples, set_target
from limrank.training.loop import train
from limrank.training.model import load_for_training
from limrank.training.sources import read_examples
from limrank.training.state import TrainState

SEED = 1


def ours(model_dir, training: TrainingConfig, examples: list[EncodedExample]) -> tuple[float, list[float]]:
    """Seconds in steps, and the loss of each."""
    torch.manual_seed(SEED)
    model, tokenizer = load_for_training(model_dir, training, torch.float32)
    labels = tuple(label_token_ids(tokenizer, LABELS))
    losses: list[float] = []
    state = TrainState(model, training, len(examples) // (training.batch_size * training.gradient_accumulation))
    progress = train(
        state,
        examples,
        training,
        seed=SEED,
        labels=labels,
        on_step=lambda metrics, over: losses.append(metrics["loss"]),
    )
    return progress.seconds, losses


def theirs(model_dir, training: TrainingConfig, examples: list[EncodedExample]) -> tuple[float, list[float]]:
    torch.manual_seed(SEED)
    model, tokenizer = load_for_training(model_dir, training, torch.float32)
    model.set_attn_implementation("sdpa")
    model.enable_input_require_grads()
    per_step = training.batch_size * training.gradient_accumulation
    order = [index for step in epoch_steps(single_units(examples), per_step, SEED, 0) for (index,) in step]
    data = [
        {
            "input_ids": examples[index].ids.tolist(),
            "labels": [-100] * examples[index].prompt_tokens
            + examples[index].ids[examples[index].prompt_tokens :].tolist(),
        }
        for index in order
    ]

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(data)

    class Clock(transformers.TrainerCallback):
        began = ended = 0.0

        def on_train_begin(self, *_, **__):
            self.began = time.perf_counter()

        def on_train_end(self, *_, **__):
            self.ended = time.perf_counter()

    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        trainer = InOrder(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=out,
                per_device_train_batch_size=training.batch_size,
                gradient_accumulation_steps=training.gradient_accumulation,
                num_train_epochs=1,
                learning_rate=training.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=0,
                weight_decay=0.0,
                max_grad_norm=1.0,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                seed=SEED,
            ),
            train_dataset=data,
            data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, padding=True),
            callbacks=[clock],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return clock.ended - clock.began, [line["loss"] for line in trainer.state.log_history if "loss" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train_file")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--target", default="direct")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    given = parser.parse_args()
    training = TrainingConfig(
        target=given.target,
        epochs=1,
        learning_rate=1e-4,
        warmup_ratio=0,
        batch_size=given.batch,
        gradient_accumulation=given.accumulation,
    )
    model_dir = models.resolve(given.model)
    tokenizer = load_for_training(model_dir, training, torch.float32)[1]
    chosen = read_examples(given.train_file)[: given.steps * given.batch * given.accumulation]
    encoding = partial(encode_example, tokenizer)
    examples = encode_examples(
        set_target(chosen, given.target), encoding, tokenizer.eos_token_id, 2500, given.train_file
    )
    lengths = [len(each.ids) for each in examples]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "peft"))
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{versions}\n{given.model}, LoRA {training.lora_rank}, float32; {given.steps} steps of "
        f"{given.accumulation} × {given.batch} examples, {sum(lengths)} tokens, {min(lengths)} to {max(lengths)} each",
        flush=True,
    )
    variants = {"Trainer, PEFT, padding": theirs, "ours": ours}
    rates: dict[str, list[float]] = {name: [] for name in variants}
    losses: dict[str, list[float]] = {}
    for number in range(given.rounds):
        for name in list(variants)[:: -1 if number % 2 else 1]:
            seconds, losses[name] = variants[name](model_dir, training, examples)
            rates[name].append(sum(lengths) / seconds)
            print(f"round {number + 1}, {name}: {rates[name][-1]:.1f} tokens/s", flush=True)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.1f} tokens/s; losses {' '.join(f'{loss:.4f}' for loss in losses[name])}")
    theirs_rate, ours_rate = medians.values()
    difference = max(abs(one - other) for one, other in zip(*losses.values(), strict=True))
    print(f"ours / Trainer: {ours_rate / theirs_rate:.2f}; losses differ by at most {difference:.4f}")


if __name__ == "__main__":
    main()
