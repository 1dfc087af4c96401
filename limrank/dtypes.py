"""``model.dtype: auto``, decided on the machine that computes, by its processor."""

from __future__ import annotations


def auto_dtype(device: str, *, training: bool = False) -> str:
    """The fastest dtype of this machine without a visible loss of quality.

    A CPU with instructions for bfloat16 (AVX512-BF16, AMX) computes twice as fast as in float32; one
    without them computes bfloat16 thirty times slower. A GPU without bfloat16 (compute capability
    below 8) takes float16. Training there takes float32, as float16 overflows.

    Args:
        device: ``cpu`` or ``cuda``.
        training: the model is trained; otherwise an engine runs it.

    Returns:
        ``bfloat16``, ``float16`` or ``float32``. The machines of a cluster may differ: the workers of
        a training then agree on float32, each engine takes its own dtype, and a run's manifest
        names all of them.
    """
    if device == "cpu":
        return "bfloat16" if cpu_has_bfloat16() else "float32"
    if gpu_has_bfloat16():
        return "bfloat16"
    return "float32" if training else "float16"


def local_device() -> str:
    from torch import cuda

    return "cuda" if cuda.is_available() else "cpu"


def cpu_has_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16 (AVX512-BF16 or AMX)."""
    from torch import cpu

    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def gpu_has_bfloat16() -> bool:
    from torch import cuda

    return cuda.is_bf16_supported(including_emulation=False)
