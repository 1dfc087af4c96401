"""The configuration reference, made from the config classes: for a terminal, for the docs, for editors.

``python -m limrank.config.reference`` writes the generated files of the repository:
``docs/configuration.md`` and ``jobs/recipes/schema/<job>.json``. A unit test checks that they
are up to date.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from limrank.config import JOBS, Job, PathMark

if TYPE_CHECKING:
    from rich.table import Table

REQUIRED = "required"
"""In place of the default of a key that has none."""

_NUMBERS = {int: "whole number", float: "number"}

_DESCRIPTIONS = {
    "data": "A benchmark or pairs.",
    "first_stage": "The candidates of each query.",
    "model": "A model.",
    "engine": "What runs a model.",
    "engine.fault": "Delays and faults of the fake engine, for tests. Its keys are also accepted directly in `engine`, "
    "as older recipes have them.",
    "scoring": "How a pair is scored.",
    "scoring.fuse": "Fusion with the first stage. It changes the order of a run and none of its rows, so that the same "
    "command with another weight scores nothing again.",
    "workers": "A pool of engines, or the training workers.",
    "synthesis": "What is written, judged, rejected and chosen.",
    "synthesis.prompts": "The prompts of the steps. Each is the name of a prompt in `limrank/prompts`, a file, or the text.",
    "synthesis.round_trip": "With `source: passages`, a query that does not find its passage again is rejected.",
    "synthesis.teacher": "With `source: passages`, what grades a query's passage and its candidates.",
    "synthesis.prices": "Prices in any one currency, for a million tokens.",
    "training": "Examples, objective and optimizer.",
    "dev": "A small benchmark for a model in training: the model reranks it directly, and nDCG@10 is measured.",
    "serving": "The HTTP server.",
    "evaluation": "The run and its measures.",
}
"""Section → the sentence above its keys in the docs."""


@dataclass(frozen=True)
class Key:
    """One recipe key. ``name`` is dotted; ``section`` is the class of a key that holds keys."""

    name: str
    kind: str
    default: str
    description: str
    section: type[BaseModel] | None = None


def job_keys(job: str) -> list[Key]:
    """Every key of a job's recipe, with the job's own defaults. The keys of a section are listed at its first use.
    A later section of the same class refers to it.

    Args:
        job: a key of ``JOBS``.
    """
    return list(_job_keys(JOBS[job], None, "", {}))


def _job_keys(
    section: type[BaseModel], defaults: BaseModel | None, prefix: str, listed: dict[type[BaseModel], str]
) -> Iterator[Key]:
    for key, default in _keys(section, defaults, prefix):
        below = key.section
        if below is None:
            yield key
        elif below in listed:
            yield Key(key.name, f"keys of {listed[below]}{_or_null(key)}", key.default, key.description, below)
        else:
            listed[below] = key.name
            yield key
            yield from _job_keys(below, default if isinstance(default, below) else None, f"{_below(key)}.", listed)


def section_keys(section: type[BaseModel], prefix: str = "") -> list[Key]:
    """The keys of one section, with the defaults of its class."""
    return [key for key, _ in _keys(section, None, prefix)]


def _keys(section: type[BaseModel], defaults: BaseModel | None, prefix: str) -> Iterator[tuple[Key, Any]]:
    """Each key of a section with its default value. ``defaults`` is an instance whose values replace the class's."""
    for name, field in section.model_fields.items():
        required = field.is_required() and defaults is None
        default = getattr(defaults, name) if defaults is not None else None if required else field.get_default()
        below = _section(field.annotation)
        key = Key(
            prefix + name,
            type_in_words(field.annotation, field.metadata),
            REQUIRED if required else _default(default, below),
            field.description or "",
            below,
        )
        yield key, default


def _below(key: Key) -> str:
    """The prefix of the keys below a section. A mapping has a name of the user's in between."""
    return f"{key.name}.NAME" if key.kind.startswith("mapping") else key.name


def _or_null(key: Key) -> str:
    return ", or null" if key.kind.endswith("or null") else ""


def _section(annotation: Any) -> type[BaseModel] | None:
    """The class of the keys below a key: of a section, or of a mapping to sections."""
    for kind in _alternatives(annotation):
        values = get_args(kind)[1:] if get_origin(kind) is dict else (kind,)
        for value in values:
            if isinstance(value, type) and issubclass(value, BaseModel):
                return value
    return None


def _default(value: Any, section: type[BaseModel] | None) -> str:
    """A default as a recipe has it. A section's default lists the values that differ from its class's."""
    if isinstance(value, BaseModel) and section:
        return ", ".join(
            f"{name}: {_plain(getattr(value, name))}"
            for name, field in section.model_fields.items()
            if not field.is_required() and getattr(value, name) != field.get_default()
        )
    return _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_plain, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_plain(each)}' for name, each in value.items())}}}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


# ---- types in words ------------------------------------------------------------------


def type_in_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A key's type in words: ``whole number from 1, or null``.

    Args:
        metadata: pydantic's annotations of the type, such as bounds.
    """
    if get_origin(annotation) is Annotated:
        kind, *more = get_args(annotation)
        return type_in_words(kind, [*more, *metadata])
    if get_origin(annotation) in (Union, UnionType):
        kinds = get_args(annotation)
        words = [type_in_words(kind, metadata) for kind in kinds if kind is not NoneType]
        return ", or ".join([*dict.fromkeys(words), *(["null"] if NoneType in kinds else [])])
    if get_origin(annotation) is Literal:
        return _listed([_plain(word) for word in get_args(annotation)])
    if get_origin(annotation) is tuple:
        elements = [kind for kind in get_args(annotation) if kind is not Ellipsis]
        if Ellipsis in get_args(annotation):
            return f"list of {_in_a_list(elements[0])}"
        return f"[{', '.join(map(type_in_words, elements))}]"
    if get_origin(annotation) is dict:
        key, value = get_args(annotation)
        return f"mapping of {_in_a_list(key)} to {type_in_words(value)}"
    if annotation is bool:
        return "true or false"
    if annotation is str:
        return "path" if any(isinstance(mark, PathMark) for mark in _flat(metadata)) else "text"
    if annotation in _NUMBERS:
        return " ".join([_NUMBERS[annotation], *_bounds(annotation, _flat(metadata))])
    return "section"


def _in_a_list(annotation: Any) -> str:
    words = type_in_words(annotation)
    return {"path": "paths", "text": "texts"}.get(words, words)


def _listed(words: list[str]) -> str:
    return " or ".join([each for each in (", ".join(words[:-1]), words[-1]) if each])


def _bounds(kind: type, metadata: Sequence[Any]) -> Iterator[str]:
    found = {name: getattr(mark, name) for mark in metadata for name in ("ge", "gt", "le", "lt") if hasattr(mark, name)}
    found = {name: bound for name, bound in found.items() if bound is not None}
    if kind is int and "gt" in found:
        found["ge"] = found.pop("gt") + 1
    words = {"ge": "from", "gt": "above", "le": "up to", "lt": "below"}
    for name in ("ge", "gt", "le", "lt"):
        if name in found:
            yield f"{words[name]} {found[name]:,}"


def _flat(metadata: Sequence[Any]) -> list[Any]:
    """The annotations of a type, those inside a ``Field`` too."""
    return [each for mark in metadata for each in (mark.metadata if isinstance(mark, FieldInfo) else [mark])]


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for each in get_args(annotation) for kind in _alternatives(each)]
    return [annotation]


# ---- for a terminal ------------------------------------------------------------------


def job_table(job: str) -> Table:
    """The keys of a job as a table for a terminal."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"recipe keys of limrank {job}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("key", no_wrap=True, style="bold")
    table.add_column("description")
    for key in job_keys(job):
        table.add_row(key.name, f"{escape(key.description)}\n[dim]{escape(_value(key))}[/dim]")
    return table


def job_lines(job: str) -> list[str]:
    """The keys of a job as text, one line each, for a pipe."""
    return [f"{key.name}  ({_value(key)})  {key.description}" for key in job_keys(job)]


def _value(key: Key) -> str:
    """A key's type and default."""
    if not key.default:
        return key.kind
    return f"{key.kind}; {REQUIRED if key.default == REQUIRED else f'default {key.default}'}"


# ---- for the docs --------------------------------------------------------------------


def markdown() -> str:
    """The page of all jobs and all sections: ``docs/configuration.md``."""
    sections = _documented_sections()
    page = [_HEAD, "## Jobs\n"]
    for name, job in JOBS.items():
        keys = section_keys(job)
        page += [
            f"### {name}\n",
            f"{_first_sentence(job)}Command: `limrank {name} RECIPE.yaml`.\n",
            _table(keys, sections),
        ]
    page.append("## Sections\n")
    for section, (name, *others) in sections.items():
        page.append(f"### {name}\n")
        also = f" Also the keys of {_listed([f'`{each}`' for each in others])}." if others else ""
        page.append(f"{_DESCRIPTIONS[name]}{also}\n")
        prefix = f"{name}.NAME." if name == "synthesis.prices" else f"{name}."
        page.append(_table(section_keys(section, prefix), sections))
    return "\n".join(page).rstrip() + "\n"


_HEAD = """\
<!-- Made by `python -m limrank.config.reference` from limrank/config/: edit the descriptions there. -->

# Configuration reference

A recipe is a YAML file. Its keys are those of its job, and the sections below them. `-s key=value` sets a
key from the command line, with dots between the names: `-s first_stage.depth=50`. `null` unsets a key, so that
its default holds. An unknown key is refused, with the nearest known one. [Recipes](recipes.md) says more.

`limrank config JOB` prints the keys of one job, and `limrank config JOB --schema` its JSON Schema.
"""


def _first_sentence(job: type[Job]) -> str:
    return f"{job.__doc__.strip().replace('``', '`')} " if job.__doc__ else ""


def _documented_sections() -> dict[type[BaseModel], list[str]]:
    """Section class → the keys that hold it, in the order of the jobs."""
    found: dict[type[BaseModel], list[str]] = {}
    for job in JOBS.values():
        for name in _section_names(job, ""):
            key, section = name
            names = found.setdefault(section, [])
            if key not in names:
                names.append(key)
    return {
        section: sorted(names, key=lambda name: (name not in _DESCRIPTIONS, name)) for section, names in found.items()
    }


def _section_names(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    for key in section_keys(section, prefix):
        if key.section:
            yield key.name, key.section
            yield from _section_names(key.section, f"{key.name}.")


def _table(keys: Sequence[Key], sections: dict[type[BaseModel], list[str]]) -> str:
    rows = ["| key | value | default | description |", "|---|---|---|---|"]
    for key in keys:
        kind = _cell(key.kind)
        if key.section:
            name = sections[key.section][0]
            kind = kind.replace("section", f"section [{name}](#{_anchor(name)})", 1)
        default = f"`{key.default}`" if key.default and key.default != REQUIRED else key.default
        rows.append(f"| `{key.name}` | {kind} | {_cell(default)} | {_cell(key.description)} |")
    return "\n".join(rows) + "\n"


def _anchor(name: str) -> str:
    """The anchor that Python-Markdown gives a heading."""
    return name.replace(".", "")


def _cell(text: str) -> str:
    """Text in a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


# ---- for editors ---------------------------------------------------------------------


def schema(job: str) -> str:
    """The JSON Schema of a job's recipe, as ``jobs/recipes/schema/<job>.json`` has it."""
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", **JOBS[job].model_json_schema()}
    made["title"] = f"A recipe of limrank {job}"
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def generated_files() -> dict[str, str]:
    """Every generated file of the repository: its path and its text."""
    schemas = {f"jobs/recipes/schema/{job}.json": schema(job) for job in JOBS}
    return {"docs/configuration.md": markdown(), **schemas}


def write(repository: Path) -> None:
    """Write every generated file below the repository's root."""
    for name, text in generated_files().items():
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(repository))


if __name__ == "__main__":
    write(Path(__file__).parents[2])
