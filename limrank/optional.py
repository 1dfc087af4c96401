"""Packages that the core of limrank does without, and the extras that bring them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from limrank.errors import UserError

_EVAL = frozenset({"ir_measures", "numpy", "pyarrow", "obstore", "matplotlib"})
_BATCH = frozenset(
    {"ray", "grpc", "pyarrow", "obstore", "pandas", "numpy", "scipy", "datasets"}
    | {"bm25s", "Stemmer", "regex", "py3langid", "datasketch", "rapidfuzz"}
)
_SERVE = frozenset({"ray", "fastapi", "starlette", "uvicorn", "prometheus_client", "opentelemetry"})
_TRAIN = _BATCH | _EVAL | {"torch", "peft", "accelerate", "gguf", "tensorboardX"}
_VLLM = frozenset({"vllm", "torch", "peft", "accelerate", "gguf"})

EXTRAS: dict[str, frozenset[str]] = {
    "eval": _EVAL,
    "batch": _BATCH,
    "serve": _SERVE,
    "train": _TRAIN,
    "vllm": _VLLM,
    "all": _EVAL | _BATCH | _SERVE | _TRAIN | _VLLM,
}
"""An extra of ``pip install 'limrank[…]'`` → the packages that it brings, by the names they are imported by.
The smaller ones come first."""

EXTRA_OF_JOB = {
    "synthesize": "batch",
    "train": "train",
    "rerank": "batch",
    "evaluate": "eval",
    "serve": "serve",
    "pipeline": "all",
}


@contextmanager
def extras_explained(job: str | None = None) -> Iterator[None]:
    """Turn the failed import of an optional package into one line that names its extra.

    It stands around the entries into limrank (the command line, the jobs as functions, the opening of an
    engine), so that no import needs a handler of its own.

    Args:
        job: what runs; its extra is named where that brings the package.

    Raises:
        UserError: an optional package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRAS["all"]:
            raise
        extra = EXTRA_OF_JOB.get(job or "")
        if extra is None or name not in EXTRAS[extra]:
            extra = next(extra for extra, packages in EXTRAS.items() if name in packages)
        without_gpu = "; without a GPU 'limrank[cpu]'" if "vllm" in EXTRAS[extra] else ""
        raise UserError(f"{error.name} is not installed: pip install 'limrank[{extra}]'{without_gpu}") from error
