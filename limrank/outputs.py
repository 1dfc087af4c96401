"""Every name that limrank writes into a run directory. ``--overwrite`` removes these and nothing else."""

from __future__ import annotations

from fnmatch import fnmatchcase

EVALUATION = ("metrics.json", "per_query.parquet", "report.html", "compare.png", "calibration.json")
"""The files that ``limrank evaluate`` writes, into a rerank job's directory or one of its own."""

_ANY_JOB = (
    *("manifest.json", "config.yaml", "lock.json", "plan.json", "allowance.json"),
    *("units/part-[0-9]*.parquet", "rows/chunk-[0-9]*.parquet", "failures/chunk-[0-9]*.parquet"),
    *("attempts/chunk-[0-9]*/*.*", "attempts/chunk-[0-9]*/unit-[0-9]*/*.*"),
)
_MODEL_FILES = (
    *("config.json", "generation_config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja", "README.md", "limrank.json"),
)
_MODEL_FOLDERS = ("adapter", "model", ".adapter.partial", ".model.partial")
_JOB_FILES = {
    "rerank": ("queries.jsonl", "qrels.tsv", "run.trec", "run.json", "run.pure.trec", "run.pure.json", *EVALUATION),
    "synthesize": (
        *(
            "examples.parquet",
            "train.jsonl",
            "alpaca.json",
            "lists.jsonl",
            "grades.parquet",
            "stats.json",
            "DATASET.md",
            "report.html",
        ),
        *("candidates/queries.jsonl", "candidates/corpus.jsonl", "candidates/qrels/train.tsv", "candidates/run.trec"),
    ),
    "train": (
        *("metrics.jsonl", "curves.png", "tensorboard/events.out.tfevents.*"),
        # Ray Train writes these.
        *("checkpoints/checkpoint_*/state.pt", "checkpoints/checkpoint_*/.metadata.json"),
        *("checkpoints/checkpoint_manager_snapshot.json", "checkpoints/.validate_storage_marker"),
        *(f"{folder}/{each}" for folder in _MODEL_FOLDERS for each in _MODEL_FILES),
    ),
    "pipeline": ("report.html",),
    "serve": ("answer.json",),
}
_JOB_OF_STAGE = {
    "synthesize": "synthesize",
    "train": "train",
    "first-stage": "rerank",
    "rerank-base": "rerank",
    "rerank-tuned": "rerank",
    "serve": "serve",
}
"""A pipeline's folders. Each is a run directory."""

_HEX = "[0-9a-f]" * 32
_TEMPORARY = (f".*.{_HEX}", f".seen-{_HEX}")
"""A file that is being written, and the file that tests whether a node sees a folder."""

_SYSTEM_FILES = (".DS_Store", "Thumbs.db", "desktop.ini", ".nfs*", "lost+found", ".directory")


def stages(job: str) -> tuple[str, ...]:
    """The folders of a job's directory that are run directories themselves."""
    return tuple(_JOB_OF_STAGE) if job == "pipeline" else ()


def is_written(name: str, job: str) -> bool:
    """Whether a job writes a file of this name: a path relative to its directory, with ``/``."""
    folder, _, below = name.partition("/")
    if below and folder in stages(job):
        return is_written(below, _JOB_OF_STAGE[folder])
    names = name.split("/")
    if any(fnmatchcase(names[-1], each) for each in _TEMPORARY):
        return len(names) == 1 or _is_folder(names[:-1], job)
    return any(_matches(names, each.split("/")) for each in _patterns(job))


def is_folder(name: str, job: str) -> bool:
    """Whether a job makes a folder of this name: a path relative to its directory, with ``/``."""
    folder, _, below = name.partition("/")
    if folder in stages(job):
        return not below or is_folder(below, _JOB_OF_STAGE[folder])
    return _is_folder(name.split("/"), job)


def is_litter(name: str) -> bool:
    """Whether a file says nothing about whose its directory is: files that file systems and desktops leave anywhere,
    and limrank's temporary files. A directory with nothing else counts as empty."""
    return any(fnmatchcase(name, each) for each in (*_SYSTEM_FILES, *_TEMPORARY))


def _patterns(job: str) -> tuple[str, ...]:
    return (*_ANY_JOB, *_JOB_FILES.get(job, ()))


def _is_folder(names: list[str], job: str) -> bool:
    patterns = [each.split("/")[:-1] for each in _patterns(job)]
    return any(_matches(names, each[: len(names)]) for each in patterns if each)


def _matches(names: list[str], patterns: list[str]) -> bool:
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))
