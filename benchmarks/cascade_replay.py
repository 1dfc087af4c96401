"""Is cascade as good as think, and for how many tokens? Recorded scores, replayed through
the cascade, so that its choices are tried without an engine's noise.

    python benchmarks/cascade_replay.py DIRECT_RUN_DIR THINK_RUN_DIR

Both are finished rerank runs of the same candidates, one direct, one with chains. Every
line is one setting over all queries: nDCG@10, its paired difference from think with a
95 % bootstrap interval, and generated tokens as a share of think's. *Non-inferior* is a
lower end of at least -0.01.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import yaml

from limrank.cascade import cascade
from limrank.data import trec
from limrank.evaluation.metrics import evaluate
from limrank.evaluation.significance import paired_bootstrap
from limrank.records import Candidate, Judgment, ScoreStatus
from limrank.scoring import rank_judgments
from limrank.storage import Storage

MEASURE = "nDCG@10"
MARGIN = -0.01
BANDS = (0.0, 0.25, 0.5, 1.0, 2.0)
BUDGETS = (0.05, 0.1, 0.2, 0.4)
"""As shares of think's tokens, at the default band."""

Rows = dict[str, dict[str, dict]]


def recorded(run_dir: str) -> Rows:
    storage, rows = Storage(run_dir), {}
    for name in storage.names("rows"):
        for row in storage.read_table(f"rows/{name}").to_pylist():
            rows.setdefault(row["query_id"], {})[row["doc_id"]] = row
    return rows


def judgment(row: dict) -> Judgment:
    named = ("doc_id", "score", "reasoning", "prompt_tokens", "generated_tokens", "truncated")
    return Judgment(status=ScoreStatus(row["status"]), **{name: row[name] for name in named})


def ranking(candidates: list[Candidate], judgments: list[Judgment]) -> dict[str, float]:
    order = rank_judgments(candidates, judgments)
    return {candidates[place].doc_id: -float(rank) for rank, place in enumerate(order)}


def replay(direct: Rows, think: Rows, longest: int, **options) -> tuple[dict, int]:
    """The run that a cascade makes of recorded scores, and the tokens that it generates."""
    run, tokens = {}, 0
    for query_id, pairs in direct.items():
        candidates = [
            Candidate(row["doc_id"], "", row["first_stage_rank"], row["first_stage_score"]) for row in pairs.values()
        ]

        async def of(source: Rows, candidate: Candidate, query_id: str = query_id) -> Judgment:
            return judgment(source[query_id][candidate.doc_id])

        judged = asyncio.run(
            cascade(candidates, lambda each: of(direct, each), lambda each: of(think, each), longest=longest, **options)
        )
        run[query_id] = ranking(candidates, judged)
        tokens += sum(each.generated_tokens for each in judged)
    return run, tokens


def main() -> None:
    direct_dir, think_dir = sys.argv[1:]
    direct, think = recorded(direct_dir), recorded(think_dir)
    qrels = trec.read_qrels(Path(direct_dir) / "qrels.tsv")
    recipe = yaml.safe_load((Path(think_dir) / "config.yaml").read_text())
    longest = recipe["scoring"]["max_think_tokens"] + 1
    pairs = sum(len(each) for each in direct.values())
    whole = sum(row["generated_tokens"] for each in think.values() for row in each.values())
    plain = {
        name: {
            query_id: {row["doc_id"]: -float(row["rank"]) for row in each.values()} for query_id, each in rows.items()
        }
        for name, rows in (("direct", direct), ("think", think))
    }
    scores = {name: evaluate(qrels, run, [MEASURE]).per_query[MEASURE] for name, run in plain.items()}
    agreed = json.loads((Path(think_dir) / "manifest.json").read_text())["tokens"]["generated"]
    statuses = {}
    for each in think.values():
        for row in each.values():
            statuses[row["status"]] = statuses.get(row["status"], 0) + 1
    print(f"{recipe['model']['id']}, {len(direct)} queries, {pairs} pairs, chains of at most {longest - 1} tokens")
    print(f"think's pairs by status: {statuses}; tokens in its rows {whole}, in its manifest {agreed}\n")

    def line(name: str, run: dict, tokens: int) -> None:
        values = evaluate(qrels, run, [MEASURE]).per_query[MEASURE]
        found = paired_bootstrap(list(values.values()), [scores["think"][query_id] for query_id in values], seed=12345)
        verdict = "non-inferior" if found.low >= MARGIN else "not shown"
        mean = sum(values.values()) / len(values)
        print(
            f"{name:<24} {mean:.4f}   {found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f})   "
            f"{tokens / whole:6.1%}   {verdict}"
        )

    print(f"{'':<24} {MEASURE}  difference from think     tokens")
    line("direct", plain["direct"], pairs)
    for band in BANDS:
        line(f"cascade, band {band:g}", *replay(direct, think, longest, cutoff=10, band=band))
    for share in BUDGETS:
        budget = int(share * whole)
        if budget < pairs:
            continue
        allowance = budget // len(direct)  # all queries have as many candidates
        found, tokens = replay(direct, think, longest, cutoff=10, band=0.5, allowance=allowance)
        assert tokens <= budget
        line(f"cascade, budget {share:.0%}", found, tokens)
    line("think", plain["think"], whole)


if __name__ == "__main__":
    main()
