"""Every name that limrank writes into a run directory: what ``--overwrite`` may remove, and nothing else."""

from __future__ import annotations

from fnmatch import fnmatchcase

EVALUATION = ("metrics.json", "per_query.parquet", "report.html", "compare.png")
"""What ``limrank evaluate`` leaves, in a rerank job's directory or one of its own."""

_OF_ANY = (
    *("manifest.json", "config.yaml", "lock.json", "plan.json", "allowance.json"),
    *("units/part-[0-9]*.parquet", "rows/chunk-[0-9]*.parquet", "failures/chunk-[0-9]*.parquet"),
    *("attempts/chunk-[0-9]*/*.*", "attempts/chunk-[0-9]*/unit-[0-9]*/*.*"),
)
_OF_A_MODEL = (
    *("config.json", "generation_config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja", "README.md"),
)
_MODELS = ("adapter", "model", ".adapter.partial", ".model.partial")
_OF_JOB = {
    "rerank": ("queries.jsonl", "qrels.tsv", "run.trec", "run.json", *EVALUATION),
    "synthesize": ("examples.parquet", "train.jsonl", "alpaca.json", "stats.json", "DATASET.md", "report.html"),
    "train": (
        *("metrics.jsonl", "curves.png", "tensorboard/events.out.tfevents.*"),
        # Ray Train keeps these.
        *("checkpoints/checkpoint_*/state.pt", "checkpoints/checkpoint_*/.metadata.json"),
        *("checkpoints/checkpoint_manager_snapshot.json", "checkpoints/.validate_storage_marker"),
        *(f"{folder}/{each}" for folder in _MODELS for each in _OF_A_MODEL),
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
"""A pipeline's directories, each a run's by itself."""

_HEX = "[0-9a-f]" * 32
_TEMPORARY = (f".*.{_HEX}", f".seen-{_HEX}")
"""A file on its way to its name, and what tells whether a node sees a folder."""

_LITTER = (".DS_Store", "Thumbs.db", "desktop.ini", ".nfs*", "lost+found", ".directory")


def stages(job: str) -> tuple[str, ...]:
    """The folders of a job's directory that are run directories themselves."""
    return tuple(_JOB_OF_STAGE) if job == "pipeline" else ()


def is_written(name: str, job: str) -> bool:
    """Whether a job writes a file of this name, which is relative to its directory, with ``/``."""
    folder, _, below = name.partition("/")
    if below and folder in stages(job):
        return is_written(below, _JOB_OF_STAGE[folder])
    names = name.split("/")
    if any(fnmatchcase(names[-1], each) for each in _TEMPORARY):
        return len(names) == 1 or _is_folder(names[:-1], job)
    return any(_matches(names, each.split("/")) for each in _patterns(job))


def is_folder(name: str, job: str) -> bool:
    """Whether a job makes a folder of this name, which is relative to its directory, with ``/``."""
    folder, _, below = name.partition("/")
    if folder in stages(job):
        return not below or is_folder(below, _JOB_OF_STAGE[folder])
    return _is_folder(name.split("/"), job)


def is_litter(name: str) -> bool:
    """Whether a name in a directory says nothing of whose it is: what file systems and desktops
    leave anywhere, and limrank where it was killed. A directory with nothing else is empty."""
    return any(fnmatchcase(name, each) for each in (*_LITTER, *_TEMPORARY))


def _patterns(job: str) -> tuple[str, ...]:
    return (*_OF_ANY, *_OF_JOB.get(job, ()))


def _is_folder(names: list[str], job: str) -> bool:
    patterns = [each.split("/")[:-1] for each in _patterns(job)]
    return any(_matches(names, each[: len(names)]) for each in patterns if each)


def _matches(names: list[str], patterns: list[str]) -> bool:
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))
