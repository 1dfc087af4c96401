"""vLLM's own ``LLM.generate`` with the prompts of the section ``engine``, and its rates of prefill and decode."""

from __future__ import annotations

import os
import random

from gpu.machine import device_name
from gpu.pairs import DUMMY, load, model_and_engine, rates, work
from gpu.report import arguments, section
from rerank_throughput import Baselines, Work
from train_7b import LEARNED


def direct(bare: Baselines, work: Work) -> dict[str, float]:
    """Both labels of every pair, all prompts given at once."""
    prompts = [ids + bare.close for ids in work.prompts(bare.tokenizer, 0)]
    seconds, outputs = bare.generate(prompts, bare.asking())
    return rates(seconds, len(prompts), *tokens(outputs))


def think(bare: Baselines, work: Work) -> dict[str, float]:
    """Every chain, all at once; then both labels behind each."""
    from vllm import SamplingParams

    prompts = work.prompts(bare.tokenizer, work.think_tokens)
    chains = SamplingParams(max_tokens=work.think_tokens, temperature=0.0, stop=["</think>"], skip_special_tokens=False)
    first, written = bare.generate(prompts, chains)
    asked = [ids + list(each.outputs[0].token_ids) + bare.close for ids, each in zip(prompts, written, strict=True)]
    second, answers = bare.generate(asked, bare.asking(), keep_cache=True)
    return rates(first + second, len(prompts), *map(sum, zip(tokens(written), tokens(answers), strict=True)))


def tokens(outputs) -> tuple[int, int, int]:
    """Prompt tokens, those of them from the prefix cache, and generated tokens."""
    return (
        sum(len(each.prompt_token_ids) for each in outputs),
        sum(each.num_cached_tokens or 0 for each in outputs),
        sum(len(each.outputs[0].token_ids) for each in outputs),
    )


def drawn(count: int, length: int) -> list[list[int]]:
    draw = random.Random(2)
    return [[draw.randrange(LEARNED) for _ in range(length)] for _ in range(count)]


def prefill(bare: Baselines, count: int, length: int) -> float:
    """Tokens a second of prompts that share nothing."""
    return count * length / bare.generate(drawn(count, length), bare.asking())[0]


def decode(bare: Baselines, count: int, length: int) -> float:
    """Tokens a second of texts that are written together, without the first of each, which ends the prefill of its
    short prompt."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True)
    return count * (length - 1) / bare.generate(drawn(count, 16), params)[0]


def main() -> None:
    given = arguments()
    with section("bare", given.out) as line:
        size = load(given.dry_run)
        name, model, config = model_and_engine(given.out, size, given.dry_run)
        if given.dry_run:  # one process: a small machine takes long to import vLLM in three
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        bare = Baselines(model, config, **DUMMY)
        line |= {"model": name, "device": device_name(), "dtype": bare.dtype}
        direct(bare, work(size, 1))  # the first requests compile kernels
        line["direct"] = direct(bare, work(size, size.direct_queries))
        line["think"] = think(bare, work(size, size.think_queries))
        line |= {
            "prefill_tokens_per_s": round(prefill(bare, *size.prefill), 1),
            "decode_tokens_per_s": round(decode(bare, *size.decode), 1),
            "decode_at_a_time": size.decode[0],
        }


if __name__ == "__main__":
    main()
