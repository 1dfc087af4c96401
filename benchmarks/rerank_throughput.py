"""Reranking throughput, beside what could be had at most and what others would write.

    python benchmarks/rerank_throughput.py NAME=BEIR_FOLDER … [--modes direct think cascade]
                          [--queries 2] [--depth 50] [--think-tokens 128] [--rounds 3]

The same pairs, model, dtype, prompts and engine arguments for every variant, in one run of
this process; the order of variants is turned by one from round to round, and every round
begins with an empty prefix cache. Pairs a second, medians over rounds:

- ceiling: vLLM's ``LLM.generate``, given every prompt at once; one token, both labels
- padded batches: transformers, batches of 32 in the order they come
- reference loop: a chain with top-20 log-probabilities for every pair, in one batch, then
  a second pass that asks those without an answer
- ours: the rerank job through ``fanout``, from its manifest (``rates.pairs_per_second``:
  while chunks were worked on). Its engine is hosted in an actor of its own, so that it need
  not start anew for each; every request takes one hop more than in ``limrank rerank``.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from limrank import cluster, retrieval
from limrank.config import DataConfig, EngineConfig, FirstStageConfig, ModelConfig, ScoringConfig
from limrank.config.recipe import parse_config
from limrank.data import benchmarks
from limrank.engines import EngineSpec
from limrank.engines.actor import EngineHost, HostedEngineSource
from limrank.engines.vllm import engine_arguments
from limrank.progress import Progress
from limrank.records import Candidate, Query
from limrank.reranking import job as reranking
from limrank.scoring import CLOSE, LABELS, encode_pair, encode_template, prompt_template, truncate_at_sentence
from limrank.storage import Storage

MODEL = ModelConfig(id="smollm2-135m-instruct", max_model_len=2048)
ENGINE = EngineConfig()
BATCH = 32


@dataclass
class Work:
    """One dataset's pairs, as every variant gets them."""

    name: str
    folder: str
    queries: int
    depth: int
    think_tokens: int
    found: list[tuple[Query, list[Candidate]]] = field(default_factory=list)
    context: int = MODEL.max_model_len

    def load(self) -> None:
        benchmark = benchmarks.load(DataConfig(format="beir", path=self.folder, max_queries=self.queries))
        self.found = list(retrieval.candidates(benchmark, FirstStageConfig(depth=self.depth)))

    @property
    def pairs(self) -> int:
        return sum(len(candidates) for _, candidates in self.found)

    def prompts(self, tokenizer, think_tokens: int) -> list[list[int]]:
        """Token ids of every pair's prompt, as the scorer cuts them."""
        template = prompt_template(ScoringConfig())
        max_tokens = self.context - len(encode_template(tokenizer, CLOSE)) - 1 - think_tokens
        return [
            encode_pair(tokenizer, template, query, candidate.text, max_tokens=max_tokens).ids
            for query, candidates in self.found
            for candidate in candidates
        ]


class Baselines:
    """vLLM's own batch interface, and transformers. ``more``: arguments of vLLM beside those of limrank."""

    def __init__(self, model: ModelConfig = MODEL, engine: EngineConfig = ENGINE, **more) -> None:
        arguments = engine_arguments(model, engine) | more
        from vllm import LLM

        self.llm = LLM(**arguments)
        self.path, self.dtype = arguments["model"], arguments["dtype"]
        self.tokenizer = self.llm.get_tokenizer()
        self.close = encode_template(self.tokenizer, CLOSE)
        self.labels = [self.tokenizer.encode(label, add_special_tokens=False)[0] for label in LABELS]

    def ceiling(self, work: Work) -> float:
        prompts = [ids + self.close for ids in work.prompts(self.tokenizer, 0)]
        return work.pairs / self.generate(prompts, self.asking())[0]

    def asking(self):
        """vLLM's parameters of a request for both labels' log-probabilities."""
        from vllm import SamplingParams

        return SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=self.labels, logprobs=2)

    def reference_loop(self, work: Work) -> float:
        from vllm import SamplingParams

        prompts = work.prompts(self.tokenizer, work.think_tokens)
        stop = [f"</think>{label}" for label in LABELS]
        chains = SamplingParams(
            max_tokens=work.think_tokens, temperature=0.0, logprobs=20, stop=stop, skip_special_tokens=False
        )
        first, outputs = self.generate(prompts, chains)
        unfinished = [
            ids
            + self.tokenizer.encode(truncate_at_sentence(output.outputs[0].text), add_special_tokens=False)
            + self.close
            for ids, output in zip(prompts, outputs, strict=True)
            if output.outputs[0].stop_reason not in stop
        ]
        answers = SamplingParams(max_tokens=1, temperature=0.0, logprobs=20)
        second = self.generate(unfinished, answers, keep_cache=True)[0] if unfinished else 0.0
        return work.pairs / (first + second)

    def padded_batches(self, work: Work) -> float:
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.path, dtype=getattr(torch, self.dtype))
        prompts = [ids + self.close for ids in work.prompts(self.tokenizer, 0)]
        began = time.perf_counter()
        with torch.inference_mode():
            for start in range(0, len(prompts), BATCH):
                batch = prompts[start : start + BATCH]
                longest = max(map(len, batch))
                ids = torch.tensor([[0] * (longest - len(each)) + each for each in batch])
                mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in batch])
                model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits[:, -1, self.labels].log_softmax(-1)
        return work.pairs / (time.perf_counter() - began)

    def generate(self, prompts: list[list[int]], params, *, keep_cache: bool = False):
        """Seconds, and vLLM's outputs. The prefix cache is empty at the start unless it is kept."""
        from vllm import TokensPrompt

        if not keep_cache:
            assert self.llm.reset_prefix_cache()
        began = time.perf_counter()
        outputs = self.llm.generate([TokensPrompt(prompt_token_ids=ids) for ids in prompts], params, use_tqdm=False)
        return time.perf_counter() - began, outputs


class Host(EngineHost):
    async def forget(self) -> None:
        assert await self._engine._llm.reset_prefix_cache()


class Ours:
    def __init__(self, host, limits) -> None:
        self.host, self.limits = host, limits
        self.manifests: dict[str, dict] = {}

    def rerank(self, work: Work, mode: str, **scoring) -> float:
        import json

        import ray

        ray.get(self.host.forget.remote())
        with tempfile.TemporaryDirectory() as folder:
            config = parse_config(
                {
                    "job": "rerank",
                    "run_dir": folder,
                    "data": {"format": "beir", "path": work.folder, "max_queries": work.queries},
                    "first_stage": {"depth": work.depth},
                    "model": MODEL.model_dump(),
                    "scoring": {"mode": mode, **scoring},
                }
            )
            engines = {"scorer": HostedEngineSource((self.host,), self.limits, startup_timeout_s=600)}
            result = reranking.run(config, address="local", progress=Progress(_Silent()), engines=engines)
            assert result.failed == 0
            manifest = json.loads(Storage(folder).read_text("manifest.json"))
        assert manifest["counts"]["rows"] == work.pairs
        self.manifests[f"{mode} {scoring}"] = manifest
        return manifest["rates"]["pairs_per_second"]


class _Silent:
    def show(self, event) -> None: ...

    def close(self) -> None: ...


@contextmanager
def our_engine():
    import ray

    spec = EngineSpec(MODEL, ENGINE)
    host = ray.remote(Host).options(max_concurrency=10_000, num_cpus=1).remote(spec)
    limits, _ = ray.get(host.ready.remote())
    yield Ours(host, limits)
    ray.get(host.aclose.remote())
    ray.kill(host)


RATIOS = {
    "direct": [("ours, direct", "ceiling, direct", 0.95), ("ours, direct", "padded batches, direct", 3.0)],
    "think": [("ours, think", "reference loop, think", 1.0)],
    "cascade": [
        ("ours, cascade", "reference loop, think", 3.0),
        ("ours, cascade, a tenth of the tokens", "reference loop, think", 3.0),
    ],
}
"""By mode: a variant, what it is set beside, and what their ratio should reach."""


def variants(work: Work, baselines: Baselines, ours: Ours, modes: list[str]) -> dict[str, Callable[[], float]]:
    chain = {"max_think_tokens": work.think_tokens}
    tenth = work.pairs + work.pairs * work.think_tokens // 10
    every = {
        "ceiling, direct": lambda: baselines.ceiling(work),
        "padded batches, direct": lambda: baselines.padded_batches(work),
        "ours, direct": lambda: ours.rerank(work, "direct"),
        "reference loop, think": lambda: baselines.reference_loop(work),
        "ours, think": lambda: ours.rerank(work, "budget", **chain),
        "ours, cascade": lambda: ours.rerank(work, "cascade", **chain),
        "ours, cascade, a tenth of the tokens": lambda: ours.rerank(work, "cascade", token_budget=tenth, **chain),
    }
    wanted = {name for mode in modes for *pair, _ in RATIOS[mode] for name in pair}
    return {name: run for name, run in every.items() if name in wanted}


def measure(work: Work, baselines: Baselines, ours: Ours, modes: list[str], rounds: int) -> None:
    lengths = [len(ids) for ids in work.prompts(baselines.tokenizer, 0)]
    print(
        f"\n{work.name}: {len(work.found)} queries, {work.pairs} pairs, {statistics.mean(lengths):.0f} tokens a prompt, "
        f"chains of at most {work.think_tokens}",
        flush=True,
    )
    runs = variants(work, baselines, ours, modes)
    names = list(runs)
    seen: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seen[name].append(runs[name]())
            print(f"  round {turn + 1}: {name:<38} {seen[name][-1]:7.2f} pairs/s", flush=True)
    print("medians:")
    for name, rates in seen.items():
        print(
            f"  {name:<38} {statistics.median(rates):7.2f} pairs/s  (of {', '.join(f'{rate:.2f}' for rate in rates)})"
        )
    for mode in modes:
        for pair in RATIOS[mode]:
            ratio(seen, *pair)
    for name, manifest in ours.manifests.items():
        print(f"  manifest of {name}: seconds {manifest['seconds']}, tokens {manifest['tokens']}")
    ours.manifests.clear()


def ratio(seen: dict[str, list[float]], ours: str, other: str, wanted: float) -> None:
    """The median of the rounds' ratios, each of two runs of one round."""
    found = statistics.median(a / b for a, b in zip(seen[ours], seen[other], strict=True))
    print(
        f"  {ours} / {other}: {found:.2f} (aimed at {wanted:g}: {'met' if found >= wanted else 'MISSED'})", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("datasets", nargs="+", metavar="NAME=BEIR_FOLDER")
    parser.add_argument("--modes", nargs="+", choices=list(RATIOS), default=list(RATIOS))
    parser.add_argument("--queries", type=int, default=2)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--think-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    # Ray runs its workers at nice 15: whatever else ran here would count against ours alone.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with cluster.connect("local"), our_engine() as ours:
        import ray
        import torch
        import transformers
        import vllm

        print(
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, vllm {vllm.__version__}, "
            f"ray {ray.__version__}, torch {torch.__version__}, transformers {transformers.__version__}; {MODEL.id}"
        )
        baselines = Baselines()
        for dataset in options.datasets:
            name, _, folder = dataset.partition("=")
            work = Work(name, str(Path(folder).resolve()), options.queries, options.depth, options.think_tokens)
            work.load()
            measure(work, baselines, ours, options.modes, options.rounds)


if __name__ == "__main__":
    main()
