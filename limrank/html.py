"""The self-contained HTML pages of the reports: one skeleton, in which all text is escaped.

A page has no scripts and loads no other files, so it can be mailed, printed and archived. A report's template
extends ``page.html.j2``, which ends with the ``facts`` of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from limrank.printable import spell_out
from limrank.uris import without_secrets


def render(template: str, filters: Mapping[str, Callable[..., Any]] | None = None, **fields: Any) -> str:
    """A page from a template of the package (``evaluation/report.html.j2``).

    Every field is escaped and made :func:`visible`. A name that the template uses and ``fields`` lacks is an error.
    ``filters`` are added to :func:`clip` and ``visible``.
    """
    import jinja2

    # Undefined names are errors: a page with gaps would seem complete.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("limrank", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clip": clip, "visible": visible, **(filters or {})}
    return without_secrets(environment.get_template(template).render(**fields))


def clip(text: str, characters: int) -> str:
    """A text truncated to so many characters; a truncated text ends in an ellipsis."""
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"


def visible(text: str) -> str:
    """The text with control and other invisible characters as ``⟨U+202E⟩``."""
    return spell_out(text, lambda character: f"⟨U+{ord(character):04X}⟩", lines=True)


def _finalize(value: Any) -> Any:
    """Plain text made visible; other values, and our own HTML, unchanged."""
    return visible(value) if type(value) is str else value
