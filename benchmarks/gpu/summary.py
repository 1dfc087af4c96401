"""What follows from the other sections' lines: memory against its estimates, and the rates of a planner.

python -m gpu.summary memory|rates --out FOLDER
"""

from __future__ import annotations

import json

from gpu.report import arguments, read, section

RATES = "rates.json"


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
    """Tokens a second of one device, for each shape of a model and dtype."""
    shapes: dict[tuple[str, str, str], dict[str, float]] = {}
    for name, keys in {
        "training": {"tokens_per_s": "train_tokens_per_s"},
        "bare": {key: key for key in ("prefill_tokens_per_s", "decode_tokens_per_s", "decode_at_a_time")},
    }.items():
        line = lines.get(name, {})
        found = {to: line[key] for key, to in keys.items() if key in line}
        if found:
            shapes.setdefault((line["device"], line["model"], line["dtype"]), {}).update(found)
    for mode in ("direct", "think"):
        line = lines.get("engine", {})
        if mode in line:
            figures = shapes.setdefault((line["device"], line["model"], line["dtype"]), {})
            figures |= {f"{mode}_{key}": line[mode][key] for key in ("pairs_per_s", "prompt_tokens_per_s")}
            if mode in lines.get("bare", {}):
                share = line[mode]["pairs_per_s"] / lines["bare"][mode]["pairs_per_s"]
                figures[f"{mode}_share_of_bare_engine"] = round(share, 3)
    return [{"device": a, "model": b, "dtype": c, **figures} for (a, b, c), figures in shapes.items()]


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
