"""What ``model.dtype: auto`` is: decided where the work is done, by what the processor there has."""

from __future__ import annotations


def auto_dtype(device: str, *, training: bool = False) -> str:
    """The dtype that is quickest on this machine without loss that shows.

    A CPU without instructions for bfloat16 computes with it by a path that is thirty times
    slower; one that has them (AVX512-BF16, AMX) twice as fast as with float32. A GPU without
    them (compute capability below 8) takes float16, which overflows in training: there float32.

    Args:
        device: ``cpu`` or ``cuda``.
        training: whether the model is to be trained; else it is an engine's.

    Returns:
        ``bfloat16``, ``float16`` or ``float32``. Machines of a cluster may differ: the workers of
        one training agree on float32 then; each engine takes its own, and the manifest of a run
        names all that were used.
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
    """Whether the processor multiplies bfloat16 itself (AVX512-BF16 or AMX)."""
    from torch import cpu

    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def gpu_has_bfloat16() -> bool:
    from torch import cuda

    return cuda.is_bf16_supported(including_emulation=False)
