"""The synthesize job: seeds × personas → judged examples → ``train.jsonl`` and friends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from limrank import cluster, models, prompts
from limrank.batch.budget import Budget
from limrank.batch.fanout import chunk_cost, fanout, is_needed, run_without_engines
from limrank.batch.plan import Unit, read_plan, write_plan
from limrank.batch.rundir import open_run
from limrank.batch.summary import Summary
from limrank.cluster.resources import possible_nodes, remaining, reserve
from limrank.cluster.waiting import wait_for_nodes
from limrank.config import SynthesisConfig, SynthesisPrompts, SynthesizeJob, config_hash, dump_config
from limrank.config.recipe import input_paths
from limrank.data import seeds as seed_data
from limrank.engines import EngineSource, EngineSpec, check_engine, check_scorer, load_tokenizer
from limrank.errors import UserError
from limrank.progress import Progress
from limrank.records import Seed, synthesis_unit_schema
from limrank.result import JobResult
from limrank.scoring import check_labels, prompt_template
from limrank.synthesis.embeddings import check_embedder
from limrank.synthesis.export import export
from limrank.synthesis.plan import (
    Inputs,
    judging,
    most_generated,
    pairs_a_query,
    read_brief,
    read_inputs,
    too_few_mined,
    units,
)
from limrank.synthesis.pool import dedupe_and_select
from limrank.synthesis.preview import preview as show_steps
from limrank.synthesis.prompting import check_prompts, passage_query_prompt, query_prompt, tuned_prompt
from limrank.synthesis.task import task_of
from limrank.synthesis.teachers import check_teacher, check_teacher_files


def run(
    config: SynthesizeJob,
    *,
    address: str,
    progress: Progress,
    overwrite: bool = False,
    engines: Mapping[str, EngineSource] | None = None,
) -> JobResult:
    """Synthesize into ``config.run_dir``; the same call resumes a run.

    Args:
        engines: engines that already run, by role (see ``SynthesizeJob.roles``).

    Raises:
        UserError: the recipe or one of its files cannot work.
        EngineError: an engine did not start.
    """
    config = with_writer_s_prompt(config)
    _check_recipe(config)
    given = read_inputs(config)
    check_choice(config.synthesis)
    if engines is None:
        engines = _checked_sources(config)
    asks = bool(config.roles())
    with (
        open_run(
            config.run_dir,
            job="synthesize",
            config_yaml=dump_config(config),
            config_hash=rows_hash(config, given),
            overwrite=overwrite,
            inputs=input_paths(config),
        ) as run_dir,
        cluster.connect(address, paths=[config.run_dir]) if asks else nullcontext(),
    ):
        planned = read_plan(run_dir.storage) or write_plan(
            run_dir.storage,
            ((unit, 1) for unit in units(config, given)),
            synthesis_unit_schema(),
            chunk_cost=chunk_cost(config.engine.kind, config.synthesis.max_tokens) if asks else _GIVEN_QUERIES,
            engines=config.workers.max_replicas if asks else None,
        )
        task, budget = task_of(config), _budget(config, given)
        if asks:
            with _pools(config, engines, progress, needed=is_needed(run_dir, planned, budget)) as engines:
                summary = fanout(
                    run_dir,
                    planned,
                    task,
                    engines,
                    config.workers,
                    progress=progress,
                    stage="synthesize",
                    progress_unit="seeds",
                    budget=budget,
                )
        else:
            summary = run_without_engines(run_dir, planned, task, "seeds")
        pool = dedupe_and_select(
            run_dir.storage, config.synthesis, given.benchmarks, config.seed, given.corpus, given.judged
        )
        stats = export(run_dir.storage, config, summary, pool, given.queries_a_seed)
        left = len(given.seeds) - summary.units
        enough = budget.kept is not None and (summary.kept or 0) >= budget.kept
        # A run that has enough did what the recipe asks for; one that reached its budget did not.
        run_dir.finish("stopped" if left and not enough else "done")
    return JobResult(
        summary.failed,
        [*(given.benchmarks.warnings if given.benchmarks else ()), *(pool.mined.warnings if pool.mined else ())],
        _messages(config, stats, _ended(config, summary, left, enough)),
    )


_GIVEN_QUERIES = 10_000
"""Queries in a chunk of a run without a writer."""


def _budget(config: SynthesizeJob, given: Inputs) -> Budget:
    settings = config.synthesis
    return Budget(settings.max_tokens, settings.enough, given.queries_a_seed * pairs_a_query(config), config.seed)


def check_choice(settings: SynthesisConfig) -> None:
    """Raises UserError for an embedder or a teacher that would fail after everything is written."""
    if settings.embedder and (settings.chooses_by_embedding or settings.round_trip.embeds):
        check_embedder(settings.embedder)
    if settings.teacher:
        check_teacher(settings.teacher)


def plan(config: SynthesizeJob) -> dict[str, Any]:
    """What a run would do, for ``--dry-run``. Starts and writes nothing."""
    config = with_writer_s_prompt(config)
    _check_recipe(config)
    given = read_inputs(config)
    if config.synthesis.teacher:
        check_teacher_files(config.synthesis.teacher)
    planned = list(units(config, given))
    briefs = [read_brief(brief) for unit in planned for brief in unit["briefs"]]
    first = next((unit for unit in planned if unit["briefs"]), None)
    what, then = "seeds", f"{len(briefs) * pairs_a_query(config)} pairs to judge"
    if given.corpus is not None:
        what, then = "passages", f"{len(given.corpus)} documents to mine"
    if not config.roles():
        return {
            "units": f"{len(planned)} queries, {then}",
            "contaminated": _contaminated(given),
            "first_prompt": None,
            "warnings": [],
        }
    return {
        "units": f"{'at most ' if config.synthesis.enough else ''}{len(planned)} {what}, {len(briefs)} queries, "
        f"{then}, {len(given.personas)} personas to draw from",
        "ends": _ends(config.synthesis),
        "examples": given.examples
        and f"{len(given.examples)} to draw from, at most {config.synthesis.examples_shown} in a prompt",
        "contaminated": _contaminated(given),
        "tokens": f"at most {sum(most_generated(config, brief) for brief in briefs)} to generate",
        "workers": config.workers.model_dump(exclude_none=True),
        "first_prompt": first and _first_prompt(first, config.synthesis),
        "warnings": [] if given.corpus is not None else too_few_mined(config, planned),
    }


def _contaminated(given: Inputs) -> str | None:
    counts = {"seeds": len(given.repeated), "examples": given.examples.repeated if given.examples else 0}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or None


def _first_prompt(unit: Unit, settings: SynthesisConfig) -> str:
    brief = read_brief(unit["briefs"][0])
    if settings.source == "seeds":
        return query_prompt(Seed(unit["unit_id"], unit["query"], unit["passage"]), brief, settings)
    if settings.writer == "tuned":
        return tuned_prompt(unit["passage"], settings)
    return passage_query_prompt(unit["passage"], brief, settings)


def preview(config: SynthesizeJob, count: int, show: Callable[[str], None]) -> int:
    """Run ``count`` seeds in this process and show every step; returns the number of failures.
    See :mod:`limrank.synthesis.preview`."""
    if not config.roles():
        raise UserError("synthesis.writer=none: nothing is written, so there is nothing to preview")
    config = with_writer_s_prompt(config)
    _check_recipe(config)
    return show_steps(config, count, _checked_sources(config), show)


def rows_hash(config: SynthesizeJob, given: Inputs) -> str:
    """The hash of everything that the rows of a synthesize job depend on."""
    roles = config.roles()
    return config_hash(
        {
            "job": "synthesize",
            "seeds": seed_data.fingerprint(given.seeds, given.personas),
            "contaminated": sorted(given.repeated),
            **({"examples": given.examples.fingerprint()} if given.examples else {}),
            "models": {
                role: (
                    each.model.model_dump(),
                    models.fingerprint(each.model.id),
                    each.engine.kind,
                    each.engine.fault.fail_rate,
                )
                for role, each in roles.items()
            },
            **_decides(config),
            "seed": config.seed,
        }
    )


def _decides(config: SynthesizeJob) -> dict[str, Any]:
    """What decides the rows of given seeds and models."""
    settings, names = config.synthesis, [*config.synthesis.prompt_names().values()]
    if settings.source == "passages":
        return {
            "synthesis": settings.hashed(_NOT_OF_ROWS | _OF_MINING),
            "prompts": [prompts.load(each) for each in names],
        }
    return {
        "scoring": judging(config).hashed({"prompt"}),
        "synthesis": settings.hashed(_NOT_OF_ROWS),
        "prompts": [prompts.load(each) for each in (*names, config.scoring.prompt)],
    }


_NOT_OF_ROWS = {
    *("seeds", "examples", "personas", "prompts", "decontaminate"),  # their contents are
    "license",
    *("max_tokens", "prices", "near_duplicate", "size", "oversample", "select", "embedder"),
}
"""Keys that may change while a run directory keeps its rows, so no part of the hash."""

_OF_MINING = {"round_trip", "teacher", "list_size", "negatives", "mine_depth"}
"""The same, of queries that are written for passages."""


def _check_recipe(config: SynthesizeJob) -> None:
    judged = config.synthesis.source == "seeds"
    if judged and config.scoring.mode == "none":
        raise UserError("scoring.mode none judges nothing: take direct, think or budget")
    if judged and config.scoring.mode == "cascade":
        raise UserError(
            "scoring.mode cascade compares a query's candidates, and the judge sees pairs: take think or budget"
        )
    prompt_template(config.scoring)
    check_prompts(config.synthesis)


def with_writer_s_prompt(config: SynthesizeJob) -> SynthesizeJob:
    """The recipe with the prompt that its tuned writer was trained on, unless it names one of its own.

    Raises:
        UserError: the model was trained to write queries for passages, and the recipe asks something else of it.
    """
    settings = config.synthesis
    if not config.roles():
        return config
    if config.engine.kind == "vllm" and (settings.source, settings.writer) == ("passages", "tuned"):
        models.resolve(config.model.id, weights=False)  # a hub's model says what it is once it is here
    task = models.task_of(config.model.id) if config.engine.kind in ("vllm", "fake") else None
    if task is None or task.task != "writer":
        return config
    if (settings.source, settings.writer) != ("passages", "tuned"):
        raise UserError(
            f"model {models.served_name(config.model.id)}: was trained to write queries for passages: set "
            "synthesis.source=passages and synthesis.writer=tuned"
        )
    if settings.prompts.passage_query != SynthesisPrompts.model_fields["passage_query"].default:
        return config
    prompts_given = settings.prompts.model_copy(update={"passage_query": f"{task.prompt}\n"})
    return config.model_copy(update={"synthesis": settings.model_copy(update={"prompts": prompts_given})})


def _checked_sources(config: SynthesizeJob) -> dict[str, EngineSource]:
    """The engines of the recipe by role, checked for what would make them fail."""
    sources = {
        name: EngineSpec(role.model, role.engine, role.workers.tensor_parallel) for name, role in config.roles().items()
    }
    for source in dict.fromkeys(sources.values()):
        check_engine(source.model, source.engine)
    scorers = {"judge", "reranker"} if config.synthesis.judge_by == "label_tokens" else {"reranker"}
    for source in dict.fromkeys(source for name, source in sources.items() if name in scorers):
        check_scorer(source.model, source.engine)
        check_labels(load_tokenizer(source.model, source.engine))
    return sources


@contextmanager
def _pools(
    config: SynthesizeJob, engines: Mapping[str, EngineSource], progress: Progress, *, needed: bool
) -> Iterator[Mapping[str, EngineSource]]:
    """The engines by role, each model other than the writer in a pool of its own.

    The writers' workers call these pools, so that a row continues as soon as its step ends. A model
    that judges and reranks has one pool.
    """
    writer = engines["writer"]
    separate = {
        engines[name]: role.workers
        for name, role in reversed(config.roles().items())  # if both are one model: the judge's pool
        if engines[name] != writer and engines[name].holds_model
    }
    if not separate or not needed:
        yield engines
        return
    from limrank.engines.actor import host_engine

    # Resources are checked for all pools before any starts.
    left, wanted = possible_nodes(), {}
    for source, workers in separate.items():
        wanted[source] = reserve([source], workers, workers.min_replicas, nodes=left)
        left = remaining(wanted[source], workers.min_replicas, left)
    if writer.holds_model:
        reserve([writer], config.workers, config.workers.min_replicas, nodes=left)
    with ExitStack() as stack:
        hosted = {}
        for source, workers in separate.items():
            replicas = workers.min_replicas
            wait_for_nodes(wanted[source], source.startup_timeout_s, replicas, progress=progress)
            hosted[source] = stack.enter_context(host_engine(source, wanted[source], replicas))
        yield {name: hosted.get(source, source) for name, source in engines.items()}


def _ends(settings: SynthesisConfig) -> str | None:
    """A sentence on what ends a run before its last seed; None if nothing does."""
    if settings.enough is None:
        return None
    if settings.source == "passages":
        return f"when {settings.enough} queries are written without a fault, before the round trip and the teacher"
    return f"when {settings.enough} examples are kept (synthesis.size × synthesis.oversample), before some are chosen"


def _ended(config: SynthesizeJob, summary: Summary, left: int, enough: bool) -> str | None:
    """A sentence on why ``left`` seeds were not processed; None if none is left."""
    if not left:
        return None
    seeds = f"{summary.units} of {summary.units + left} seeds"
    if enough:
        return (
            f"enough after {seeds}: {summary.kept} examples to choose from, {config.synthesis.enough} asked for "
            "(synthesis.size × synthesis.oversample); raise either, and the same command continues"
        )
    return f"stopped at synthesis.max_tokens: {summary.tokens} tokens for {seeds}; raise it, and the same command continues"


def _messages(config: SynthesizeJob, stats: Mapping[str, Any], ended: str | None) -> list[str]:
    reasons = ", ".join(f"{reason} {count}" for reason, count in stats["rejected"].items()) or "none"
    kept, positive = stats["kept"], stats["kept_positive"]
    lines = [
        f"{stats['seeds']} seeds, {stats['examples']} examples, {kept} kept "
        f"({positive} true, {kept - positive} false, of {stats['kept_queries']} queries, "
        f"{stats['kept_queries_with_both']} with both); rejected: {reasons}"
    ]
    if ended:
        lines.append(ended)
    if stats["selected"]:
        lines.append(f"selected: {stats['selected']['shortfall'] or str(stats['selected']['examples']) + ' examples'}")
    lines.append(f"train file: {config.run_dir}/train.jsonl; report: {config.run_dir}/report.html")
    return lines
