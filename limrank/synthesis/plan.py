"""The units of synthesis: a seed with the queries to write from it and their cost."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from limrank import retrieval
from limrank.batch.plan import CHARACTERS_A_TOKEN, GENERATED_TOKEN_COST, Unit
from limrank.config import FirstStageConfig, ScoringConfig, SynthesizeJob
from limrank.data import seeds as seed_data
from limrank.data.trec import id_fault
from limrank.errors import UserError
from limrank.parsing import brief
from limrank.records import Difficulty, Document, PassageRole, Persona, Query, QueryBrief, QueryKind, Seed
from limrank.scoring import with_prompt_text
from limrank.synthesis.contamination import Benchmarks
from limrank.synthesis.examples import Examples
from limrank.synthesis.filters import MIN_PASSAGE_WORDS
from limrank.synthesis.passage_queries import draw_passages, query_name
from limrank.synthesis.prompting import judge_tokens, most_written, with_prompt_texts
from limrank.synthesis.quotas import briefs
from limrank.synthesis.synthesizer import SynthesisInputs, escaped
from limrank.text.analyzer import Analyzer
from limrank.text.languages import with_language

_TOKENS_A_PROMPT = 250
"""An estimate: a template with a query and a passage."""


@dataclass(frozen=True)
class Inputs:
    """The inputs that a recipe names.

    ``repeated``: seed id → what its query or passage repeats of a benchmark; nothing is written for
    these seeds. ``queries_a_seed`` are written for each of the others. With ``source: passages`` a seed is a
    passage of ``corpus`` without a query, or with ``writer: none`` a query and its passage there; the ids of all
    documents that are ``judged`` relevant to it are by its id.
    """

    seeds: Sequence[Seed]
    personas: Sequence[Persona]
    queries_a_seed: int
    benchmarks: Benchmarks | None = None
    repeated: Mapping[str, str] = field(default_factory=dict)
    corpus: Sequence[Document] | None = None
    judged: Mapping[str, Collection[str]] = field(default_factory=dict)
    examples: Examples | None = None


def read_inputs(config: SynthesizeJob) -> Inputs:
    """Raises UserError if an input is missing or cannot be read."""
    settings = config.synthesis
    corpus, judged = None, {}
    given = settings.source == "passages" and settings.writer == "none"
    if settings.source == "passages":
        corpus = seed_data.load_corpus(settings.seeds, queries=given)
        if given:
            seeds = seed_data.load_seeds(settings.seeds, settings.max_seeds, seed=config.seed)
            judged = seed_data.load_judged(settings.seeds)
        else:
            seeds = [
                Seed(each.doc_id, "", each.contents) for each in draw_passages(corpus, settings.max_seeds, config.seed)
            ]
        for document in corpus:
            # Checked for the whole corpus: any document may become a candidate.
            if fault := id_fault(document.doc_id) or (not given and id_fault(_longest(document.doc_id))):
                raise UserError(f"synthesis.seeds {settings.seeds}: the document id {brief(document.doc_id)} {fault}")
        for seed in seeds if given else ():
            if fault := id_fault(_longest(seed.seed_id)):
                raise UserError(f"synthesis.seeds {settings.seeds}: the query id {brief(seed.seed_id)} {fault}")
        if not seeds:
            raise UserError(f"synthesis.seeds {settings.seeds}: no passage has {MIN_PASSAGE_WORDS} words or more")
    else:
        seeds = seed_data.load_seeds(settings.seeds, settings.max_seeds, seed=config.seed)
    personas = [] if given else seed_data.load_personas(settings.personas)
    benchmarks = Benchmarks.of(settings.decontaminate) if settings.decontaminate else None
    repeated = {}
    for seed in seeds if benchmarks else ():
        if overlap := benchmarks.overlap(seed.query) or benchmarks.overlap(seed.passage):
            repeated[seed.seed_id] = str(overlap)
    queries_a_seed = min(settings.personas_per_seed, len(personas)) * len(settings.kinds)
    if corpus is not None:
        queries_a_seed = settings.queries_per_passage
    examples = Examples.of(settings.examples, config.seed, benchmarks) if settings.examples else None
    return Inputs(seeds, personas, queries_a_seed, benchmarks, repeated, corpus, judged, examples)


def _longest(unit_id: str) -> str:
    """The id of an example of this unit."""
    return f"{escaped(unit_id)}/0/{PassageRole.POSITIVE}"


def units(config: SynthesizeJob, given: Inputs) -> Iterator[Unit]:
    """One unit for each seed. The same recipe and seeds give the same units on any cluster."""
    settings = config.synthesis
    mined = _mined(config, given.seeds) if settings.source == "seeds" else {}
    written = 0 if settings.writer == "none" else len(given.seeds) - len(given.repeated)
    planned = iter(briefs(settings, written, given.personas, config.seed))
    for seed in given.seeds:
        nothing = seed.seed_id in given.repeated or settings.writer == "none"
        asked = [] if nothing else next(planned)
        if given.examples:
            # A retry asks with the same examples: they are a part of the plan.
            asked = [
                replace(
                    brief,
                    examples=given.examples.drawn(query_name(seed, number), seed.passage, settings.examples_shown),
                )
                for number, brief in enumerate(asked)
            ]
        yield {
            "unit_id": seed.seed_id,
            "cost": sum(_cost(config, brief) for brief in asked),
            "query": seed.query,
            "passage": seed.passage,
            "briefs": [_brief_row(brief) for brief in asked],
            "mined": mined.get(seed.seed_id, []),
            "contaminated": given.repeated.get(seed.seed_id),
        }


def too_few_mined(config: SynthesizeJob, planned: Sequence[Unit]) -> list[str]:
    """A warning if BM25 finds fewer passages than are to be mined."""
    wanted, asked = config.synthesis.mined_negatives, [unit for unit in planned if unit["briefs"]]
    if few := sum(len(unit["mined"]) < wanted for unit in asked):
        return [f"synthesis.mined_negatives: BM25 finds fewer than {wanted} for {few} of {len(asked)} seeds"]
    return []


def most_generated(config: SynthesizeJob, brief: QueryBrief) -> int:
    """The most tokens that writer and judge may generate for one query."""
    if config.synthesis.source == "passages":
        return most_written(config.synthesis, brief)
    return most_written(config.synthesis, brief) + pairs_a_query(config) * judge_tokens(judging(config))


def pairs_a_query(config: SynthesizeJob) -> int:
    """Pairs that the judge sees for a query all of whose passages were written; of a passage's query, its row."""
    if config.synthesis.source == "passages":
        return 1
    return 1 + config.synthesis.negatives + config.synthesis.mined_negatives


def _cost(config: SynthesizeJob, brief: QueryBrief) -> int:
    # Query, chain, descriptions and each passage; each pair takes one request for its chain, one for its label.
    if config.synthesis.source == "passages":
        shown = sum(len(each.passage) + len(each.query) for each in brief.examples) // CHARACTERS_A_TOKEN
        return GENERATED_TOKEN_COST * most_generated(config, brief) + _TOKENS_A_PROMPT + shown
    requests = 3 + config.synthesis.chains + config.synthesis.negatives + 2 * pairs_a_query(config)
    if config.reranker:
        requests += pairs_a_query(config) + (config.synthesis.mined_negatives and config.synthesis.mine_depth)
    return GENERATED_TOKEN_COST * most_generated(config, brief) + _TOKENS_A_PROMPT * requests


def read_brief(row: Mapping[str, Any]) -> QueryBrief:
    return QueryBrief(
        QueryKind(row["kind"]),
        Persona(row["persona_id"], row["persona"]),
        Difficulty(row["difficulty"]),
        row["domain"],
        row["instructed"],
        tuple(Seed(**each) for each in row.get("examples") or ()),  # plans of older runs have none
    )


def unwritten(unit: Unit, rows: Sequence[Mapping[str, Any]], *, reranked: bool, mined: int) -> list[QueryBrief]:
    """The briefs of a seed whose queries are missing or incomplete in ``rows``.

    Args:
        reranked: whether a reranker mines ``mined`` passages for each query and scores what is kept.
    """
    by_query: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_query.setdefault((row["query_kind"], row["persona_id"]), []).append(row)

    def is_complete(found: Sequence[Mapping[str, Any]]) -> bool:
        if not found or any(row["reject_reason"] == "judge_failed" for row in found):
            return False
        if not reranked or found[0]["passage"] is None:
            return True
        taken = sum(row["passage_role"] == PassageRole.MINED_NEGATIVE for row in found)
        return taken >= min(mined, len(unit["mined"])) and not any(
            row["kept"] and row["base_score"] is None for row in found
        )

    briefs = map(read_brief, unit["briefs"])
    return [brief for brief in briefs if not is_complete(by_query.get((brief.kind, brief.persona.persona_id), []))]


def judging(config: SynthesizeJob) -> ScoringConfig:
    """The judge's scoring: the recipe's, with the chain length of its synthesis section."""
    if config.scoring.mode == "direct" or config.scoring.max_think_tokens:
        return config.scoring
    return config.scoring.model_copy(update={"max_think_tokens": config.synthesis.judge_tokens})


def synthesis_inputs(config: SynthesizeJob) -> SynthesisInputs:
    """What each worker gets besides its seeds; prompts are their texts."""
    return SynthesisInputs(with_prompt_texts(config.synthesis), with_prompt_text(judging(config)), config.seed)


def _brief_row(brief: QueryBrief) -> dict[str, Any]:
    return {
        "kind": str(brief.kind),
        "persona_id": brief.persona.persona_id,
        "persona": brief.persona.text,
        "difficulty": str(brief.difficulty),
        "domain": brief.domain,
        "instructed": brief.instructed,
        "examples": [asdict(each) for each in brief.examples],
    }


def _mined(config: SynthesizeJob, seeds: Sequence[Seed]) -> dict[str, list[str]]:
    """For each seed the corpus passages that BM25 ranks highest for its query, without its own: the
    ones to be judged or, with a reranker, the ones it chooses from."""
    count = config.synthesis.mined_negatives
    if not count:
        return {}
    if config.reranker:
        count = max(count, config.synthesis.mine_depth)
    corpus = seed_data.load_corpus(config.synthesis.seeds)
    contents = {document.doc_id: document.contents for document in corpus}
    asked = [Query(seed.seed_id, seed.query) for seed in seeds]
    analyzer = Analyzer(with_language(FirstStageConfig(language="auto"), corpus))
    run = retrieval.bm25(corpus, asked, count + 1, analyzer=analyzer)
    return {
        seed.seed_id: [contents[each] for each in run[seed.seed_id] if contents[each] != seed.passage][:count]
        for seed in seeds
    }
