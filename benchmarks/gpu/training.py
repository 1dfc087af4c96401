"""A few steps of LoRA training of Qwen2.5-7B's shape: tokens/s, MFU, peak memory and its estimate."""

from __future__ import annotations

import statistics

import torch
from gpu.machine import device_name
from gpu.report import arguments, section, stated_peak
from gpu.shapes import qwen_shape, shape_name, write_model
from train_7b import (
    LEARNED,
    NOT_COUNTED,
    examples,
    needed_per_token,
    peak_gib,
    product_rate,
    random_model,
    step_rates,
)

from limrank import models
from limrank.config import ModelConfig, TrainingConfig, TrainJob
from limrank.training.loop import units_per_step
from limrank.training.memory import largest_row, training_bytes
from limrank.training.model import make_trainable


def main() -> None:
    given = arguments()
    with section("training", given.out) as line:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        batch, tokens, steps = (1, 64, 3) if given.dry_run else (4, 2500, 6)
        training = TrainingConfig(
            target="think",
            epochs=1,
            batch_size=batch,
            gradient_accumulation=2,
            gradient_checkpointing=True,
            lora_embeddings="all",
            train_file="drawn at random",
        )
        config = qwen_shape(given.dry_run)
        data = examples(steps * units_per_step(training, 1), tokens)
        job = TrainJob(
            run_dir=str(given.out / "run"),
            model=ModelConfig(id=str(write_model(given.out / "shape", config)), dtype="bfloat16"),
            training=training,
        )
        estimate = training_bytes(job, largest_row(job, data)) / 2**30
        line |= {
            "model": shape_name(config),
            "device": device_name(),
            "dtype": "bfloat16",
            "parameters": models.parameters(job.model.id),
            "lora_rank": training.lora_rank,
            "lora_embeddings": training.lora_embeddings,
            "examples_per_pass": batch,
            "tokens_per_example": tokens,
            "memory_estimated_gib": round(estimate, 2),
        }
        model = make_trainable(random_model(config, device), training, added=[LEARNED, LEARNED + 1]).to(device)
        rates = step_rates(model, training, data, device)
        rate = statistics.median(rates[NOT_COUNTED:])
        achieved = rate * needed_per_token(config, tokens, completion_share=0.25, trains_head=True)
        line |= {
            "tokens_per_s": rate,
            "memory_used_gib": round(peak_gib(device), 2),
            "tflops": round(achieved / 1e12, 4),
            "share_of_measured_products": round(achieved / product_rate(device, 256 if given.dry_run else 8192), 4),
        }
        if peak := stated_peak(line["device"]):
            line["mfu_of_stated_peak"] = round(achieved / peak, 4)


if __name__ == "__main__":
    main()
