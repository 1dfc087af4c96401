"""Packages that the core of limrank does without, and the extra that brings each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from limrank.errors import UserError

EXTRAS = {
    **dict.fromkeys(("ray", "grpc", "pyarrow", "pandas", "scipy", "datasets"), "batch"),
    **dict.fromkeys(("bm25s", "Stemmer", "regex", "py3langid", "datasketch"), "batch"),
    **dict.fromkeys(("ir_measures", "numpy", "matplotlib"), "eval"),
    **dict.fromkeys(("torch", "peft", "accelerate", "gguf", "tensorboardX"), "train"),
    **dict.fromkeys(("fastapi", "starlette"), "serve"),
    "vllm": "vllm",
}
"""The name that a package is imported by → the extra of ``pip install 'limrank[…]'`` that brings it."""


@contextmanager
def extras_explained() -> Iterator[None]:
    """Turn the failed import of an optional package into one line that names its extra.

    It stands around the entries into limrank (the command line, the jobs as functions, the opening of an
    engine), so that no import needs a handler of its own.

    Raises:
        UserError: an optional package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRAS:
            raise
        without_gpu = "; without a GPU 'limrank[cpu]'" if name == "vllm" else ""
        raise UserError(f"{error.name} is not installed: pip install 'limrank[{EXTRAS[name]}]'{without_gpu}") from error
