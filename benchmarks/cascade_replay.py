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
import sys
from collections import Counter
from pathlib import Path

import yaml

from limrank.config import ScoringConfig
from limrank.data import trec
from limrank.evaluation.metrics import evaluate
from limrank.evaluation.significance import paired_bootstrap
from limrank.records import Candidate, Judgment, ScoreStatus
from limrank.scoring import rank_judgments
from limrank.scoring.cascade import cascade
from limrank.storage import Storage

MEASURE = "nDCG@10"
MARGIN = -0.01
BANDS = (0.0, 0.25, 0.5, 1.0, 2.0)
BUDGETS = (0.05, 0.1, 0.2, 0.4)
"""As shares of think's tokens, at the default band."""
DEFAULT_BAND = ScoringConfig().band

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


def replay(direct: Rows, think: Rows, longest: int, **options) -> tuple[dict, int, int]:
    """The run that a cascade makes of recorded scores, its generated tokens and its chains."""
    run, tokens, chains = {}, 0, 0
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
        chains += sum(each.think_score is not None for each in judged)
    return run, tokens, chains


def plain(rows: Rows) -> dict:
    return {
        query_id: {row["doc_id"]: -float(row["rank"]) for row in pairs.values()} for query_id, pairs in rows.items()
    }


def table(first: Rows, second: Rows, names: tuple[str, str], qrels: dict, longest: int) -> None:
    """Every setting of a cascade that asks ``first`` for all pairs and ``second`` where in doubt."""

    def values(run: dict) -> dict[str, float]:
        return evaluate(qrels, run, [MEASURE]).per_query[MEASURE]

    def tokens_of(rows: Rows) -> int:
        return sum(row["generated_tokens"] for pairs in rows.values() for row in pairs.values())

    whole, pairs, reference = tokens_of(second), sum(len(each) for each in first.values()), values(plain(second))

    def line(name: str, run: dict, tokens: int, chains: int) -> None:
        found = values(run)
        gap = paired_bootstrap(list(found.values()), [reference[query_id] for query_id in found], seed=12345)
        verdict = "non-inferior" if gap.low >= MARGIN else "not shown"
        print(
            f"{name:<22} {sum(found.values()) / len(found):.4f}   {gap.difference:+.4f} ({gap.low:+.4f} to "
            f"{gap.high:+.4f})   {chains / pairs:6.1%} {tokens / whole:8.1%}   {verdict}"
        )

    print(f"\n{'':<22} {MEASURE}  difference from {names[1]:<16} chains   tokens")
    line(names[0], plain(first), tokens_of(first), 0)
    for band in BANDS:
        line(f"cascade, band {band:g}", *replay(first, second, longest, cutoff=10, band=band))
    for share in BUDGETS:
        budget = int(share * whole)
        if budget < tokens_of(first):
            continue
        allowance = budget // len(first)  # all queries have as many candidates
        run, tokens, chains = replay(first, second, longest, cutoff=10, band=DEFAULT_BAND, allowance=allowance)
        assert tokens <= budget
        line(f"cascade, budget {share:.0%}", run, tokens, chains)
    line(names[1], plain(second), whole, pairs)


def main() -> None:
    direct_dir, think_dir = sys.argv[1:]
    direct, think = recorded(direct_dir), recorded(think_dir)
    qrels = trec.read_qrels(Path(direct_dir) / "qrels.tsv")
    recipe = yaml.safe_load((Path(think_dir) / "config.yaml").read_text())
    chain = recipe["scoring"]["max_think_tokens"]
    statuses = Counter(row["status"] for pairs in think.values() for row in pairs.values())
    pairs = sum(statuses.values())
    print(
        f"{recipe['model']['id']}, {len(direct)} queries, {pairs} pairs, chains of at most {chain} tokens: {statuses}"
    )
    table(direct, think, ("direct", "think"), qrels, chain + 1)
    # The same scores with the roles changed: what a cascade does where the chain is the
    # better scorer. Only the shares of chains mean something there.
    table(think, direct, ("(think)", "(direct)"), qrels, 2)


if __name__ == "__main__":
    main()
