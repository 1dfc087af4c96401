"""What follows from the other sections' lines: memory against its estimates, and the rates of a planner.

python -m gpu.summary memory|rates --out FOLDER
"""

from __future__ import annotations

import json

from gpu.report import arguments, read, section

RATES = "rates.json"
KEYS = {
    "training": {"parameters": "parameters", "tokens_per_s": "train"},
    "bare": {
        "prefill_tokens_per_s": "prefill",
        "decode_tokens_per_s": "decode",
        "decode_at_a_time": "decode_at_a_time",
    },
    "engine": {"parameters": "parameters", "startup_s": "startup_s"},
}
"""By section: the key of its line, and that of the planner."""


def memory(lines: dict[str, dict]) -> dict[str, dict[str, float]]:
    """By section: GiB that were estimated and used, and their ratio."""
    found = {}
    for name in ("training", "engine"):
        line = lines.get(name, {})
        if "memory_used_gib" in line:
            estimated, used = line["memory_estimated_gib"], line["memory_used_gib"]
            found[name] = {
                "estimated_gib": estimated,
                "used_gib": used,
                "used_over_estimated": round(used / estimated, 3),
            }
    return found


def rates(lines: dict[str, dict]) -> list[dict]:
    """What a planner takes, for each shape of a model and dtype on this device: ``prefill``, ``decode`` and ``train`` in
    tokens a second, ``startup_s``; and the pairs a second of each mode."""
    shapes: dict[tuple[str, str, str], dict] = {}
    for name, keys in KEYS.items():
        line = lines.get(name, {})
        found = {to: line[key] for key, to in keys.items() if key in line}
        if found:
            shapes.setdefault((line["device"], line["model"], line["dtype"]), {}).update(found)
    engine, bare = lines.get("engine", {}), lines.get("bare", {})
    for mode in ("direct", "think"):
        if mode in engine:
            figures = shapes[engine["device"], engine["model"], engine["dtype"]]
            figures[f"{mode}_pairs_per_s"] = engine[mode]["pairs_per_s"]
            if mode in bare:
                share = engine[mode]["pairs_per_s"] / bare[mode]["pairs_per_s"]
                figures[f"{mode}_share_of_bare_engine"] = round(share, 3)
    return [
        {"device": device, "model": model, "dtype": dtype, **figures, "source": "benchmarks/gpu/check.sh"}
        for (device, model, dtype), figures in shapes.items()
    ]


def main() -> None:
    given = arguments("what")
    (what,) = given.words
    lines = read(given.out)
    with section(what, given.out) as line:
        found = memory(lines) if what == "memory" else rates(lines)
        if not found:
            raise RuntimeError("no section before this one measured any")
        if what == "memory":
            line |= found
        else:
            (given.out / RATES).write_text(json.dumps(found, indent=2) + "\n")
            line |= {"file": RATES, "shapes": found}


if __name__ == "__main__":
    main()
