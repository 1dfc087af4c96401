"""Every prompt is a template file here, versioned by its name.

A template is plain text with ``{{ field }}`` places (jinja2). A recipe may name a file
of a person's own instead.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from pathlib import Path

from limrank.errors import UserError, first_line


@lru_cache
def load(name: str) -> str:
    """The text of a prompt: a packaged name (``relevance``) or a file's path.

    Raises:
        UserError: there is no such prompt; the message lists the packaged ones.
    """
    packaged = resources.files(__name__) / f"{name}.txt"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8").removesuffix("\n")
    path = Path(name)
    if path.is_file():
        return path.read_text(encoding="utf-8").removesuffix("\n")
    names = sorted(
        entry.name.removesuffix(".txt") for entry in resources.files(__name__).iterdir() if entry.name.endswith(".txt")
    )
    raise UserError(f"prompt {name}: no such file, and not one of {', '.join(names)}")


def render(name: str, **fields: object) -> str:
    """A prompt with its places filled.

    Raises:
        UserError: there is no such prompt, it is no template, or it has a place that ``fields`` lacks.
    """
    from jinja2 import TemplateError

    try:
        return _template(load(name)).render(**fields)
    except TemplateError as error:
        raise UserError(f"prompt {name}: {first_line(error)}; its places are {', '.join(fields)}") from None


@lru_cache
def _template(text: str):
    from jinja2 import Environment, StrictUndefined

    # Plain text for a model, not HTML: nothing is escaped.
    return Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True).from_string(text)
