"""A row of the paper's tables out of one command: reranks each part of a benchmark by a recipe, and evaluates it.

    python benchmarks/paper_rows.py bright|followir|litsearch OUT_FOLDER [--recipe RECIPE.yaml]
                                    [--parts bright/pony …] [-s key=value …] [--dry-run]

``limrank rerank`` and ``limrank evaluate`` run on each part (BRIGHT's twelve subsets, FollowIR's three
collections), each in a directory of its own below OUT_FOLDER; the same command goes on where it was stopped.
``-s`` goes to the rerank recipe: ``-s model.id=jhu-clsp/rank1-7b``, ``-s workers.replicas=1``,
``-s data.path=FOLDER -s data.revision=null`` for a copy of the hub's repository. ``--dry-run`` prints what each
part would do, and its first prompt.

The row, in percent, ends with the mean over the parts, as the paper has it. Below it are the first stage's
(alone with ``-s scoring.mode=none``), and what was published of the whole benchmark.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from limrank.data.hub_benchmarks import BRIGHT_SUBSETS, FOLLOWIR_COLLECTIONS

ROOT = Path(__file__).parents[1]
ROWS_FAILED = 3
"""Exit code of a run that is done, but for some rows."""


@dataclass(frozen=True)
class Benchmark:
    """``published`` are the paper's means in percent, by system, in its own ``measure``."""

    parts: tuple[str, ...]
    recipe: str
    measure: str
    published: dict[str, float]


BENCHMARKS = {
    "bright": Benchmark(
        tuple(f"bright/{subset}" for subset in BRIGHT_SUBSETS),
        "paper-rerank-depth10",
        "nDCG@10",
        {"LimRank-7B": 28.0, "Rank1-7B": 27.5, "BM25 on GPT-4's queries": 27.0},
    ),
    "followir": Benchmark(
        tuple(f"followir/{collection}" for collection in FOLLOWIR_COLLECTIONS),
        "paper-rerank-followir",
        "p-MRR",
        {"LimRank-7B": 1.2, "Rank1-7B": 0.3},
    ),
    "litsearch": Benchmark(("litsearch",), "paper-rerank-litsearch", "R@5", {"LimRank-7B": 60.1, "Rank1-7B": 60.8}),
}


def limrank(command: str, recipe: str | Path, *settings: str, dry_run: bool = False) -> None:
    options = [part for setting in settings for part in ("-s", setting)] + ["--dry-run"] * dry_run
    code = subprocess.run([sys.executable, "-m", "limrank", command, str(recipe), *options]).returncode
    if code == ROWS_FAILED:
        print(f"{command}: some pairs failed (see above); they are ranked last", file=sys.stderr)
    elif code:
        sys.exit(code)


def metrics_of(part: str, recipe: str | Path, out: Path, settings: list[str]) -> dict:
    """``metrics.json`` of a part, reranked into its directory."""
    run_dir = out / part.replace("/", "-")
    limrank("rerank", recipe, *settings, f"data.name={part}", f"run_dir={run_dir}")
    measures = sorted({benchmark.measure for benchmark in BENCHMARKS.values()} - {"p-MRR"} | {"AP", "nDCG@5", "R@20"})
    limrank(
        "evaluate",
        ROOT / "jobs/recipes/evaluate.yaml",
        f"run_dir={run_dir}",
        f"evaluation.measures=[{', '.join(measures)}]",
    )
    return json.loads((run_dir / "metrics.json").read_text())


def table(parts: list[str], rows: dict[str, list[float | None]], measure: str) -> str:
    """Markdown: a row a system, a column a part, and the mean where every part has a value."""
    lines = [f"| {measure} | {' | '.join(parts)} | mean |", "|---" * (len(parts) + 2) + "|"]
    for system, values in rows.items():
        known = [value for value in values if value is not None]
        mean = f"{100 * sum(known) / len(known):.1f}" if len(known) == len(values) else "–"
        cells = ["–" if value is None else f"{100 * value:.1f}" for value in values]
        lines.append(f"| {system} | {' | '.join(cells)} | {mean} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe")
    parser.add_argument("--parts", nargs="+")
    parser.add_argument("-s", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    benchmark = BENCHMARKS[given.benchmark]
    recipe = given.recipe or ROOT / "jobs" / "recipes" / f"{benchmark.recipe}.yaml"
    parts = given.parts or list(benchmark.parts)
    if unknown := set(parts) - set(benchmark.parts):
        parser.error(f"--parts: {', '.join(sorted(unknown))}: {given.benchmark} has {', '.join(benchmark.parts)}")
    if given.dry_run:
        for part in parts:
            limrank("rerank", recipe, *given.settings, f"data.name={part}", dry_run=True)
        return
    found = [metrics_of(part, recipe, given.out, given.settings) for part in parts]

    def values(of: list[dict]) -> list[float | None]:
        return [each[benchmark.measure]["mean"] if benchmark.measure in each else None for each in of]

    if "scoring.mode=none" in given.settings:
        rows = {"first stage": values(found)}
    else:
        rows = {"reranked": values(found), "first stage": values([each.get("first_stage", {}) for each in found])}
    print()
    print(table(parts, rows, benchmark.measure))
    print(f"published, {given.benchmark}: " + ", ".join(f"{name} {each}" for name, each in benchmark.published.items()))
    print(f"run directories: {given.out}")


if __name__ == "__main__":
    main()
