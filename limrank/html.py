"""The self-contained HTML pages of the reports: one skeleton, and text that stays text.

No scripts and nothing loaded from elsewhere: a page can be mailed, printed and kept. A
report's template extends ``page.html.j2``, which ends with the ``facts`` of what was run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from limrank.printable import spell_out
from limrank.uris import without_secrets


def render(template: str, filters: Mapping[str, Callable[..., Any]] | None = None, **fields: Any) -> str:
    """A page from a template of the package (``evaluation/report.html.j2``).

    Every field is escaped, and :func:`visible`; a name that the template knows and ``fields`` lacks
    is an error. ``filters`` of the template's own come beside :func:`clip` and ``visible``.
    """
    import jinja2

    # Undefined names are errors: a page with silent gaps would look complete.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("limrank", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_seen,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clip": clip, "visible": visible, **(filters or {})}
    return without_secrets(environment.get_template(template).render(**fields))


def clip(text: str, characters: int) -> str:
    """At most so many characters of a text; an ellipsis marks a cut."""
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"


def visible(text: str) -> str:
    """The text with its control characters, and others that are not seen, spelt out: ``⟨U+202E⟩``."""
    return spell_out(text, lambda character: f"⟨U+{ord(character):04X}⟩", lines=True)


def _seen(value: Any) -> Any:
    """What jinja2 writes for a value: of HTML that is ours, and of what is no text, as it is."""
    return visible(value) if type(value) is str else value
