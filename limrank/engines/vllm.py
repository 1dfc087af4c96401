"""vLLM's AsyncLLM, in this process, on a GPU or on the CPU build.

The only module that imports vLLM.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from limrank import models
from limrank.config import EngineConfig, ModelConfig
from limrank.dtypes import auto_dtype
from limrank.engines.base import (
    Generation,
    Limits,
    Prompt,
    RequestLimiter,
    Sampling,
    SamplingOptions,
    Tokenizer,
    label_token_ids,
    matched_stop,
    record_usage,
)
from limrank.engines.reaper import reap_with_parent
from limrank.engines.spawning import without_main
from limrank.engines.tokens import encode_chat, tokens_before
from limrank.errors import EngineError, RowError, UserError, first_line

_CPU_BLOCK = 32
"""Tokens in a block of the prefix cache. The CPU build's default, 128, is longer than most
queries: a query's candidates would share no block."""

_CPU_STEP_TOKENS = 4096
"""Prompt tokens that the CPU build computes in one step, unless a prompt may be longer."""


class VllmEngine:
    def __init__(self, model: ModelConfig, engine: EngineConfig, *, tensor_parallel: int = 1) -> None:
        arguments = engine_arguments(model, engine, tensor_parallel)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(**arguments)
        try:
            with reap_with_parent(), without_main():
                # This usage context gives the batch sizes of vLLM's offline work.
                self._llm = AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
        except ValueError as error:
            raise UserError(f"model {model.id}: vLLM refuses these settings: {first_line(error)}") from error
        except Exception as error:
            raise EngineError(f"model {model.id}: vLLM did not start: {first_line(error)}") from error
        self.dtype = arguments.dtype
        runs = self._llm.vllm_config.scheduler_config.max_num_seqs
        self._limits = Limits(self._llm.model_config.max_model_len, runs)
        # With twice as many requests as run, the engine never waits for us and memory stays bounded.
        self.limiter = RequestLimiter(2 * runs)
        self._requests = 0

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self._llm.get_tokenizer()

    @property
    def limits(self) -> Limits:
        return self._limits

    async def generate(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> Generation:
        sampling = Sampling(**options)
        output = await self._last(prompt, self._parameters(sampling))
        completion = output.outputs[0]
        generation = Generation(
            text=completion.text,
            finish_reason=completion.finish_reason or "stop",
            prompt_tokens=len(output.prompt_token_ids),
            cached_tokens=output.num_cached_tokens or 0,
            generated_tokens=len(completion.token_ids),
            stop=matched_stop(completion.stop_reason, sampling.stop, self.tokenizer.get_added_vocab),
            ids=tuple(completion.token_ids),
        )
        record_usage(generation.prompt_tokens, generation.cached_tokens, generation.generated_tokens)
        return generation

    async def stream(self, prompt: Prompt, **options: Unpack[SamplingOptions]) -> AsyncIterator[str]:
        from vllm.sampling_params import RequestOutputKind

        params = self._parameters(Sampling(**options), output_kind=RequestOutputKind.DELTA)
        generated = 0
        # Python closes an open generator some time later; the request must end now.
        async with aclosing(self._outputs(prompt, params)) as outputs:
            async for output in outputs:
                generated += len(output.outputs[0].token_ids)
                if output.outputs[0].text:
                    yield output.outputs[0].text
        record_usage(len(output.prompt_token_ids), output.num_cached_tokens or 0, generated)

    async def label_logprobs(self, prompt: Prompt, labels: Sequence[str]) -> dict[str, float]:
        from vllm import SamplingParams

        ids = label_token_ids(self.tokenizer, labels)
        # The labels' log-probabilities come back whatever is sampled. They are raw: neither a
        # temperature nor a mask is applied.
        params = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=ids, logprobs=len(ids))
        output = await self._last(prompt, params)
        record_usage(len(output.prompt_token_ids), output.num_cached_tokens or 0, 1)
        logprobs = (output.outputs[0].logprobs or [{}])[0]
        missing = [label for label, token in zip(labels, ids, strict=True) if token not in logprobs]
        if missing:
            raise RowError(f"the engine gave no log-probability for {missing}")
        return {label: logprobs[token].logprob for label, token in zip(labels, ids, strict=True)}

    async def aclose(self) -> None:
        # No reference may stay: its finaliser would shut it down a second time when Python ends.
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.shutdown(timeout=10)

    def _parameters(self, sampling: Sampling, **more: Any) -> Any:
        """vLLM's ``SamplingParams``."""
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        # A stop that is a special token of this model is matched as a token, which is exact.
        added = self.tokenizer.get_added_vocab()
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            structured_outputs=StructuredOutputsParams(json=sampling.schema) if sampling.schema else None,
            stop=[text for text in sampling.stop if text not in added],
            stop_token_ids=[added[text] for text in sampling.stop if text in added],
            skip_special_tokens=False,
            **more,
        )

    async def _last(self, prompt: Prompt, params: Any) -> Any:
        last = None
        async for output in self._outputs(prompt, params):
            last = output
        if last is None:
            raise EngineError("vLLM ended a request without an output")
        return last

    async def _outputs(self, prompt: Prompt, params: Any) -> AsyncGenerator[Any]:
        from vllm import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        async with self.limiter:
            self._requests += 1
            try:
                prompt = TokensPrompt(prompt_token_ids=self._encoded(prompt, params.max_tokens))
                async with aclosing(self._llm.generate(prompt, params, str(self._requests))) as outputs:
                    async for output in outputs:
                        yield output
            except EngineDeadError as error:
                raise EngineError(f"vLLM's engine process crashed: {first_line(error)}") from error
            except EngineGenerateError as error:  # has no message of its own
                raise RowError(f"vLLM failed the request: {first_line(error.__cause__ or error)}") from error
            except _refusals() as error:
                raise RowError(f"vLLM refused the request: {first_line(error)}") from error

    def _encoded(self, prompt: Prompt, max_tokens: int) -> list[int]:
        if isinstance(prompt, str):
            ids = [*tokens_before(self.tokenizer), *self.tokenizer.encode(prompt, add_special_tokens=False)]
        elif prompt and isinstance(prompt[0], dict):
            ids = encode_chat(self.tokenizer, prompt, max_tokens=self._limits.context - max_tokens)
        else:
            ids = list(prompt)
        # vLLM would generate fewer tokens without an error.
        if len(ids) + max_tokens > self._limits.context:
            raise RowError(
                f"{len(ids)} prompt tokens and {max_tokens} more exceed the context of {self._limits.context}"
            )
        return ids


def _refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises for a request that it refuses: a ValueError in 0.25, in 0.32 mostly an exception with a base
    class that 0.25 lacks."""
    from vllm import exceptions

    own = getattr(exceptions, "VLLMClientError", None)
    return (ValueError, own) if own else (ValueError,)


def engine_arguments(model: ModelConfig, engine: EngineConfig, tensor_parallel: int = 1) -> dict[str, Any]:
    """vLLM's engine arguments for a recipe, on this device. Sets the environment variables that vLLM
    reads when it is imported.

    Raises:
        UserError: the model is unknown.
    """
    path = models.resolve(model.id)
    _environment(engine)
    from vllm.config import StructuredOutputsConfig
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    dtype = auto_dtype("cpu" if on_cpu else "cuda") if model.dtype == "auto" else model.dtype
    return {
        "model": str(path),
        "dtype": dtype,
        "max_model_len": model.max_model_len,
        "tensor_parallel_size": tensor_parallel,
        "max_num_seqs": engine.max_in_flight,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "enforce_eager": on_cpu if engine.enforce_eager is None else engine.enforce_eager,
        "enable_prefix_caching": True,
        "trust_remote_code": False,
        "load_format": "safetensors",
        "disable_log_stats": True,
        # A weak model that may write blanks between JSON's tokens writes nothing else.
        "structured_outputs_config": StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True),
        **(_cpu_arguments(model, path) if on_cpu else {}),
    }


def _cpu_arguments(model: ModelConfig, path: Path) -> dict[str, Any]:
    """Arguments for the CPU build only.

    A seeded request whose prompt is computed in chunks crashes the CPU build's sampler, and the
    engine with it: "CPU Generator does not use offset", vLLM 0.32. So prompts are computed whole, and a step must hold
    the longest prompt.
    """
    context = model.max_model_len or models.text_config(str(path)).max_position_embeddings
    return {
        "block_size": _CPU_BLOCK,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(context, _CPU_STEP_TOKENS),
    }


def _environment(engine: EngineConfig) -> None:
    """Set the environment variables that vLLM reads, except those that the user has set."""
    cores = sorted(os.sched_getaffinity(0))
    defaults = {
        "VLLM_CPU_KVCACHE_SPACE": str(engine.kv_cache_gib),
        # All cores: by default vLLM leaves one free.
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
