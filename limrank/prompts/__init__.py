"""The prompts: template files in this folder, versioned by their names.

A template is plain text with ``{{ field }}`` placeholders (jinja2). A recipe may name a person's own
file instead, or contain the text. A template is data: it may use placeholders, the few filters below
and ``{% if %}``, none of which accesses an object's attributes, calls or repeats anything.
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
"""Characters of a filled prompt: more than any model reads."""

_FILTERS = frozenset(["trim", "upper", "lower", "title", "capitalize", "default", "d", "length", "wordcount"])
_TESTS = frozenset(["defined", "undefined", "none", "true", "false"])


@lru_cache
def load(name: str) -> str:
    """The text of a prompt that is given by a packaged name (``relevance``), a file, or as text.

    Raises:
        UserError: there is no such prompt (the message lists the packaged ones), or it cannot be read.
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
    """A prompt with its placeholders filled. The fields are never parsed as a template.

    Raises:
        UserError: there is no such prompt, it is no template, or it cannot be filled: ``fields`` lacks
            one of its placeholders, or it becomes too long.
    """
    pieces: list[str] = []
    length = 0
    try:
        for piece in _template(load(name)).generate(**fields):
            pieces.append(piece)
            length += len(piece)
            if length > LONGEST_FILLED:
                raise _PromptError(f"becomes longer than {LONGEST_FILLED} characters")
    except (Exception, RecursionError, MemoryError) as error:
        raise _refusal(name, error, fields) from None
    return "".join(pieces)


def check_placeholders(name: str, needed: set[str], otherwise: str = "all prompts would be the same") -> None:
    """Raises UserError if a prompt is no template, or lacks a ``needed`` placeholder. ``otherwise`` says what would
    follow."""
    from jinja2 import meta

    text = load(name)
    try:
        _template(text)
        used = meta.find_undeclared_variables(_parsed(text))
    except (Exception, RecursionError, MemoryError) as error:
        raise _refusal(name, error, sorted(needed)) from None
    require_placeholders(used, needed, f"prompt {_called(name)}", otherwise)


def require_placeholders(
    found: Collection[str], needed: Iterable[str], where: str, otherwise: str = "all prompts would be the same"
) -> None:
    """Raises UserError where a template lacks a placeholder. ``where`` names the template."""
    if missing := sorted(set(needed) - set(found)):
        names = " and ".join(f"{{{{ {name} }}}}" for name in missing)
        raise UserError(f"{where}: has no {names}: {otherwise}")


class _PromptError(Exception):
    """A template uses what prompts do not support."""


def _refusal(name: str, error: BaseException, placeholders: Iterable[str]) -> UserError:
    from jinja2 import TemplateSyntaxError

    if isinstance(error, UserError):
        return error
    if isinstance(error, RecursionError | MemoryError | SyntaxError):  # jinja2 compiles to Python
        return UserError(f"prompt {_called(name)}: too deeply nested, or no template")
    line = f"line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
    return UserError(
        f"prompt {_called(name)}: {line}{first_line(error)}; its placeholders are {', '.join(placeholders)}"
    )


def _called(name: str) -> str:
    return f"{first_line(name)[:60]!r}" if is_prompt_text(name) else name


@lru_cache
def _environment() -> jinja2.Environment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # Plain text for a model, not HTML: nothing is escaped. Nothing is computed at compile time
    # (optimized=False), and the fields are the only names.
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True, optimized=False
    )
    environment.globals.clear()
    environment.filters = {name: each for name, each in environment.filters.items() if name in _FILTERS}
    environment.tests = {name: each for name, each in environment.tests.items() if name in _TESTS}
    return environment


def _parsed(text: str) -> nodes.Template:
    """Raises _PromptError for syntax that a prompt may not use, and jinja2's errors for other faults."""
    if len(text) > LONGEST:
        raise _PromptError(f"longer than {LONGEST} characters, which is no prompt")
    parsed = _environment().parse(text)
    waiting: list[nodes.Node] = [parsed]
    count = 0
    while waiting:
        node = waiting.pop()
        count += 1
        if count > _MOST_NODES:
            raise _PromptError("more placeholders and conditions than a prompt needs")
        kind = type(node).__name__
        if kind not in _NODES:
            raise _PromptError(
                f"{_NAMES.get(kind, kind)} is not for prompts, which have {{{{ placeholders }}}} and {{% if %}}"
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
"""The nodes of jinja2's grammar whose time and output are bounded by the text and the fields."""

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
