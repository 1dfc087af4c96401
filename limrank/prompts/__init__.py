"""Every prompt is a template file here, versioned by its name.

A template is plain text with ``{{ field }}`` places (jinja2). A recipe may name a file
of a person's own instead, or hold the text.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

from limrank.config import is_prompt_text
from limrank.errors import UserError, first_line
from limrank.files import kind_of, opened, shown

LONGEST = 1 << 20
"""Bytes of a prompt's file."""


@lru_cache
def load(name: str) -> str:
    """The text of a prompt: of a packaged name (``relevance``), of a file, or as it is given.

    Raises:
        UserError: there is no such prompt, and the message lists the packaged ones; or it
            cannot be read.
    """
    if is_prompt_text(name):
        return name.removesuffix("\n")
    names = sorted(
        entry.name.removesuffix(".txt") for entry in resources.files(__name__).iterdir() if entry.name.endswith(".txt")
    )
    if name in names:
        return (resources.files(__name__) / f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n")
    if kind_of(name) != "file":
        raise UserError(f"prompt {shown(name)}: no such file, and not one of {', '.join(names)}")
    with opened(name, unpack=False) as file:
        data = file.read(LONGEST + 1)
    if len(data) > LONGEST:
        raise UserError(f"prompt {shown(name)}: longer than {LONGEST >> 20} MiB, which is no prompt")
    try:
        return data.decode("utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"prompt {shown(name)}: cannot be read: {first_line(error)}") from None


def render(name: str, **fields: object) -> str:
    """A prompt with its places filled.

    Raises:
        UserError: there is no such prompt, it is no template, or it cannot be filled: it has
            a place that ``fields`` lacks.
    """
    try:
        return _template(load(name)).render(**fields)
    except UserError:
        raise
    except Exception as error:  # a template of a person's own may do anything
        raise UserError(f"prompt {_called(name)}: {first_line(error)}; its places are {', '.join(fields)}") from None


def check_places(name: str, needed: set[str]) -> None:
    """Raises UserError where a prompt that can be filled leaves out what it is about: every
    answer to it would be the same."""
    from jinja2 import Environment, meta

    used = meta.find_undeclared_variables(Environment().parse(load(name)))
    if missing := needed - used:
        places = " and ".join(f"{{{{ {each} }}}}" for each in sorted(missing))
        raise UserError(f"prompt {_called(name)}: has no {places}")


def _called(name: str) -> str:
    return f"{first_line(name)[:60]!r}" if is_prompt_text(name) else name


@lru_cache
def _template(text: str):
    from jinja2 import Environment, StrictUndefined

    # Plain text for a model, not HTML: nothing is escaped.
    return Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True).from_string(text)
