"""Every prompt is a template file here, versioned by its name.

A template is plain text with ``{{ field }}`` places (jinja2). A recipe may name a file
of a person's own instead, or hold the text. It is data: of jinja2 it may use places, the few
filters below and ``{% if %}``, none of which reaches into an object, calls or repeats anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING

from limrank.config import is_prompt_text
from limrank.errors import UserError, first_line
from limrank.files import kind_of, opened, printable_path

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes

LONGEST = 1 << 20
"""Bytes of a prompt's file, or characters of its text."""

LONGEST_FILLED = 1 << 26
"""Characters of a prompt that is filled: more than any model reads."""

_FILTERS = frozenset(["trim", "upper", "lower", "title", "capitalize", "default", "d", "length", "wordcount"])
_TESTS = frozenset(["defined", "undefined", "none", "true", "false"])


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
        raise UserError(f"prompt {printable_path(name)}: no such file, and not one of {', '.join(names)}")
    with opened(name, unpack=False) as file:
        data = file.read(LONGEST + 1)
    if len(data) > LONGEST:
        raise UserError(f"prompt {printable_path(name)}: longer than {LONGEST >> 20} MiB, which is no prompt")
    try:
        return data.decode("utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"prompt {printable_path(name)}: cannot be read: {first_line(error)}") from None


def render(name: str, **fields: object) -> str:
    """A prompt with its places filled. What fills them stays text, whatever it holds.

    Raises:
        UserError: there is no such prompt, it is no template, or it cannot be filled: it has
            a place that ``fields`` lacks, or becomes too long.
    """
    parts: list[str] = []
    room = LONGEST_FILLED
    try:
        for part in _template(load(name)).generate(**fields):
            parts.append(part)
            room -= len(part)
            if room < 0:
                raise _PromptError(f"becomes longer than {LONGEST_FILLED} characters")
    except (Exception, RecursionError, MemoryError) as error:
        raise _told(name, error, fields) from None
    return "".join(parts)


def check_places(name: str, needed: set[str]) -> None:
    """Raises UserError where a prompt is no template, or one that leaves out what it is about:
    every answer to it would be the same."""
    from jinja2 import meta

    text = load(name)
    try:
        _template(text)
        used = meta.find_undeclared_variables(_parsed(text))
    except (Exception, RecursionError, MemoryError) as error:
        raise _told(name, error, sorted(needed)) from None
    require_placeholders(used, needed, f"prompt {_called(name)}")


def require_placeholders(found: Collection[str], needed: Iterable[str], where: str) -> None:
    """Raises UserError where a template lacks a placeholder. ``where`` names the template."""
    if missing := sorted(set(needed) - set(found)):
        names = " and ".join(f"{{{{ {name} }}}}" for name in missing)
        raise UserError(f"{where}: has no {names}: every answer would be the same")


class _PromptError(Exception):
    """A prompt asks for what prompts have not."""


def _told(name: str, error: BaseException, places: Iterable[str]) -> UserError:
    from jinja2 import TemplateSyntaxError

    if isinstance(error, UserError):
        return error
    if isinstance(error, RecursionError | MemoryError | SyntaxError):  # jinja2 compiles to Python
        return UserError(f"prompt {_called(name)}: too deeply nested, or no template")
    line = f"line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
    return UserError(f"prompt {_called(name)}: {line}{first_line(error)}; its places are {', '.join(places)}")


def _called(name: str) -> str:
    return f"{first_line(name)[:60]!r}" if is_prompt_text(name) else name


@lru_cache
def _environment() -> jinja2.Environment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # Plain text for a model, not HTML: nothing is escaped. Nothing is computed before it is
    # filled, and no name is known but the fields.
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True, optimized=False
    )
    environment.globals.clear()
    environment.filters = {name: each for name, each in environment.filters.items() if name in _FILTERS}
    environment.tests = {name: each for name, each in environment.tests.items() if name in _TESTS}
    return environment


def _parsed(text: str) -> nodes.Template:
    """Raises _PromptError for what a prompt may not hold, and what jinja2 raises for no template."""
    if len(text) > LONGEST:
        raise _PromptError(f"longer than {LONGEST} characters, which is no prompt")
    parsed = _environment().parse(text)
    waiting: list[nodes.Node] = [parsed]
    count = 0
    while waiting:
        node = waiting.pop()
        count += 1
        if count > _MOST_NODES:
            raise _PromptError("more places and conditions than a prompt needs")
        kind = type(node).__name__
        if kind not in _NODES:
            raise _PromptError(
                f"{_NAMES.get(kind, kind)} is not for prompts, which have {{{{ places }}}} and {{% if %}}"
            )
        waiting += node.iter_child_nodes()
    return parsed


_NODES = frozenset(
    [
        "Template",
        "Output",
        "TemplateData",
        "Name",
        "Const",
        "If",
        "CondExpr",
        "Compare",
        "Operand",
        "Not",
        "And",
        "Or",
        "Filter",
        "Sub",
        "Div",
        "Neg",
        "Test",
    ]
)
"""Of jinja2's grammar what takes a time and a length that the text and the fields bound."""

_MOST_NODES = 5000

_NAMES = {
    "Concat": "~",
    "Getattr": "an attribute (a.b)",
    "Getitem": "an element (a[b])",
    "Call": "a call (a())",
    "For": "a loop ({% for %})",
    "Include": "{% include %}",
    "Import": "{% import %}",
    "FromImport": "{% from … import %}",
    "Extends": "{% extends %}",
    "Block": "{% block %}",
    "Macro": "{% macro %}",
    "CallBlock": "{% call %}",
    "FilterBlock": "{% filter %}",
    "With": "{% with %}",
    "Assign": "{% set %}",
    "AssignBlock": "{% set %}",
    **dict.fromkeys(("Add", "Mul", "FloorDiv", "Mod", "Pow", "Pos"), "arithmetic"),
    **dict.fromkeys(("List", "Tuple", "Dict", "Pair"), "a list or a dictionary"),
}


@lru_cache
def _template(text: str) -> jinja2.Template:
    return _environment().from_string(_parsed(text))
