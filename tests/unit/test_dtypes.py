"""``model.dtype: auto`` on processors that are not here."""

import pytest
import torch

from limrank import dtypes
from limrank.dtypes import auto_dtype


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "expected"),
    [(False, False, "float32"), (True, False, "bfloat16"), (False, True, "bfloat16"), (True, True, "bfloat16")],
)
@pytest.mark.parametrize("training", [False, True])
def test_a_cpu_takes_bfloat16_where_it_has_instructions_for_it(avx512_bf16, amx, expected, training, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert auto_dtype("cpu", training=training) == expected


@pytest.mark.parametrize(
    ("native", "training", "expected"),
    [(True, False, "bfloat16"), (True, True, "bfloat16"), (False, False, "float16"), (False, True, "float32")],
)
def test_a_gpu_without_bfloat16_takes_what_does_not_overflow(native, training, expected, monkeypatch):
    # Emulated it would do, slowly.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert auto_dtype("cuda", training=training) == expected


def test_this_processor_is_judged_by_its_flags():
    with open("/proc/cpuinfo") as file:
        flags = next((line.split() for line in file if line.startswith("flags")), [])
    assert dtypes.cpu_has_bfloat16() == bool({"avx512_bf16", "amx_tile"} & set(flags))
