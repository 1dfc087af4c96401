"""What the check of a GPU makes of its sections' lines: rates for a planner, and memory against its estimates."""

import json

import pytest

from helpers import REPOSITORY

GPU = {"device": "NVIDIA H100 80GB HBM3", "model": "Qwen2.5-7B", "dtype": "bfloat16"}
LINES = {
    "training": GPU
    | {"parameters": 7e9, "tokens_per_s": 9000.0, "memory_estimated_gib": 40.0, "memory_used_gib": 50.0},
    "engine": GPU
    | {"parameters": 7e9, "startup_s": 60.0, "direct": {"pairs_per_s": 98.0}, "think": {"pairs_per_s": 20.0}},
    "bare": GPU
    | {"prefill_tokens_per_s": 30000.0, "decode_tokens_per_s": 9000.0, "decode_at_a_time": 256}
    | {"direct": {"pairs_per_s": 100.0}, "think": {"pairs_per_s": 16.0}},
}


@pytest.fixture
def gpu(monkeypatch):
    """The modules ``report`` and ``summary``."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    from gpu import report, summary

    return report, summary


def test_the_rates_of_one_shape_come_from_three_sections(gpu):
    (shape,) = gpu[1].rates(LINES)
    assert shape == GPU | {
        **{"parameters": 7e9, "prefill": 30000.0, "decode": 9000.0, "decode_at_a_time": 256, "train": 9000.0},
        **{"startup_s": 60.0, "direct_pairs_per_s": 98.0, "direct_share_of_bare_engine": 0.98},
        **{"think_pairs_per_s": 20.0, "think_share_of_bare_engine": 1.25, "source": "benchmarks/gpu/check.sh"},
    }


def test_a_section_that_failed_leaves_its_rates_out(gpu):
    """The bare engine never came up, and the chains of limrank's were not measured."""
    failed = {"bare": {"ok": False, "error": "x"}, "engine": {**LINES["engine"]}, "training": {"ok": False}}
    del failed["engine"]["think"]
    (shape,) = gpu[1].rates(failed)
    assert shape.keys() == GPU.keys() | {"parameters", "startup_s", "direct_pairs_per_s", "source"}
    assert gpu[1].rates({}) == []


def test_memory_is_set_against_its_estimate(gpu):
    found = gpu[1].memory(LINES)
    assert found == {"training": {"estimated_gib": 40.0, "used_gib": 50.0, "used_over_estimated": 1.25}}


def test_a_line_is_written_when_its_section_fails(gpu, tmp_path, capsys):
    """It has what was measured before, and the later of two lines of a section counts."""
    report = gpu[0]
    with pytest.raises(ZeroDivisionError), report.section("engine", tmp_path) as line:
        line["startup_s"] = 60.0
        1 / 0  # noqa: B018
    written = json.loads(capsys.readouterr().out)
    assert written.pop("seconds") >= 0
    error = "ZeroDivisionError: division by zero"
    assert written == {"section": "engine", "ok": False, "startup_s": 60.0, "error": error}
    report.write(tmp_path, {"section": "engine", "ok": True})
    assert report.read(tmp_path) == {"engine": {"section": "engine", "ok": True}}


def test_the_stated_peak_is_that_of_the_named_device(gpu):
    assert gpu[0].stated_peak("NVIDIA H200") == 989e12
    assert gpu[0].stated_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert gpu[0].stated_peak("AMD EPYC") is None
