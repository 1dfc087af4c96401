"""From a YAML recipe and ``-s key=value`` overrides to a checked config.

An error is one line that names the file and the line or the key.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from limrank.config import (
    FAULT,
    JOBS,
    Job,
    PathMark,
    SynthesisPrompts,
    element_types,
    is_prompt_text,
    is_text,
    is_uri,
    known_aliases,
    known_fields,
)
from limrank.errors import UserError
from limrank.files import AnyPath, is_file, is_folder, opened, path_of, printable_path
from limrank.parsing import LARGEST_YAML, GrammarError, brief, is_unicode, parse_yaml

AJob = TypeVar("AJob", bound=Job)

COMPARE_DIR = "runs/compare"
"""The run_dir of ``limrank evaluate --compare`` by default."""


def load_config(recipe: str | Path, overrides: list[str] | tuple[str, ...] = (), job: str | None = None) -> Job:
    """Read a recipe, apply ``key=value`` overrides, check everything, make paths absolute.

    Args:
        recipe: a YAML file, local or in an object store.
        overrides: as after ``-s``: ``first_stage.depth=10``. The value of a key that takes text is taken as
            it stands (``data.path=my data #1``), any other as YAML. ``null``, here or in the
            file, unsets the key, so that its default holds.
        job: the command that reads it. A recipe of another job is refused.

    Raises:
        UserError: naming the file and the line or key, with the nearest known key.
    """
    path = path_of(recipe)
    return _resolve(_without_nulls(_read_yaml(path)), overrides, job, source=str(path))


def compare_config(directories: list[str], overrides: list[str] | tuple[str, ...] = ()) -> Job:
    """The config of ``limrank evaluate --compare``, which needs no recipe.

    Args:
        directories: the ``run_dir`` of each rerank job.
        overrides: as for :func:`load_config`.

    Raises:
        UserError: as :func:`load_config`.
    """
    values = {"run_dir": COMPARE_DIR, "evaluation": {"compare": directories}}
    return _resolve(values, overrides, "evaluate", source="--compare")


def _resolve(values: dict[str, Any], overrides: list[str] | tuple[str, ...], job: str | None, source: str) -> Job:
    for override in overrides:
        _apply_override(values, override)
    named = values.get("job", job)
    if not isinstance(named, str) or named not in JOBS:
        raise UserError(f"{source}: job: {brief(named)} is none of {', '.join(JOBS)}")
    if job is not None and named != job:
        raise UserError(f"{source}: job: this recipe is for `limrank {named}`, not `limrank {job}`")
    values["job"] = named
    return parse_config(values, source=source)


def parse_config(values: dict[str, Any], source: str = "config") -> Job:
    """A checked config from a plain dictionary with a ``job`` key (see load_config)."""
    return absolute_paths(checked(JOBS[values["job"]], values, source), source)


def keyword_config(job: type[AJob], config: AJob | None, keys: Mapping[str, Any]) -> AJob:
    """The checked config of a call from Python: a config object, or keyword arguments in the recipe's shape.

    Paths may be ``pathlib`` ones and become absolute. A None unsets its key, as ``null`` does in a recipe.

    Raises:
        UserError: as :func:`load_config`; or the config is another job's, or there are both.
    """
    name = job.model_fields["job"].default
    source = f"{name}()"
    if config is None:
        return absolute_paths(checked(job, _plain(keys) | {"job": name}, source), source)
    if not isinstance(config, job):
        raise UserError(f"{source}: takes a {job.__name__} or keyword arguments (got {type(config).__name__})")
    if keys:
        raise UserError(f"{source}: takes a config or keyword arguments, not both (got {', '.join(sorted(keys))})")
    return absolute_paths(config, source)


def _plain(value: Any) -> Any:
    """The values as YAML has them: text for paths, and no key that is None."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def checked(job: type[AJob], values: dict[str, Any], source: str = "config") -> AJob:
    """A checked config, or section of one. Raises UserError as :func:`load_config`."""
    try:
        return job.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, job, source)) from None


def path_values(config: BaseModel, prefix: str = "") -> dict[str, str | tuple[str, ...]]:
    """Every local path in a config: ``{"data.path": "/…"}``. A key with several paths has a tuple."""
    found: dict[str, str | tuple[str, ...]] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            found |= path_values(value, f"{prefix}{name}.")
        elif _is_path(field) and _is_local(value, field):
            found[prefix + name] = value
    return found


_NAME_OR_PATH = (
    ("model.id", is_folder),
    ("judge.id", is_folder),
    ("reranker.id", is_folder),
    ("writer.id", is_folder),
    ("synthesis.embedder", is_folder),
    ("synthesis.teacher.model", is_folder),
    ("synthesis.teacher.prompt", is_file),
    ("data.query_template", is_file),
    ("dev.data.query_template", is_file),
    ("scoring.prompt", is_file),
    ("judge_scoring.prompt", is_file),
    *((f"synthesis.prompts.{step}", is_file) for step in SynthesisPrompts.model_fields),
)
"""Keys whose value is a path if there is such a directory or file, and a name if not."""

_NAME_SCHEMES = ("benchmark://", "hub://")
"""Names with these schemes are accepted where a path is, and are not paths."""


_NO_INPUTS = ("run_dir", "serving.access_log", "serving.keys_file")
"""Paths that are written, and the keys of a server, of which no row is made."""


def model_keys() -> set[str]:
    """The keys whose value may be a model's directory."""
    return {key for key, is_there in _NAME_OR_PATH if is_there is is_folder}


def input_paths(config: Job) -> list[tuple[str, str]]:
    """(recipe key, path or URI) of everything that a job reads."""
    found = {key: value for key, value in _paths(config) if key not in _NO_INPUTS}
    for key, is_there in _NAME_OR_PATH:
        value = value_of(config, key)
        if value and not is_prompt_text(value) and (is_uri(value) or is_there(os.path.expanduser(value))):
            found[key] = value
    listed = [(key, each) for key, value in found.items() for each in ((value,) if isinstance(value, str) else value)]
    return [(key, each) for key, each in listed if not each.startswith(_NAME_SCHEMES)]


def _paths(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a config's path keys, URIs included."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from _paths(value, f"{prefix}{name}.")
        elif _is_path(field) and isinstance(value, str | tuple) and value and value not in _words(field):
            yield prefix + name, value


def _is_local(value: Any, field: Any) -> bool:
    """Whether a path key's value is a local path, or several paths."""
    if isinstance(value, tuple):
        return bool(value)
    return isinstance(value, str) and not is_uri(value) and value not in _words(field)


def _is_path(field: Any) -> bool:
    marks = [*field.metadata]
    for argument in (field.annotation, *get_args(field.annotation)):
        marks += getattr(argument, "__metadata__", ())
    return any(isinstance(mark, PathMark) for mark in marks)


def _words(field: Any) -> set[str]:
    """The words that a path key takes instead of a path: ``pydocs`` for seeds."""
    literals = [each for each in get_args(field.annotation) if get_origin(each) is Literal]
    return {word for each in literals for word in get_args(each)}


def absolute_paths(config: AJob, source: str = "config") -> AJob:
    """The same config with its local paths made absolute. Raises UserError as :func:`load_config`."""
    updates = {key: _absolute(value) for key, value in path_values(config).items()}
    for key, is_there in _NAME_OR_PATH:
        value = value_of(config, key)
        if value is not None and not is_prompt_text(value) and is_there(os.path.expanduser(value)):
            updates[key] = _absolute(value)
    return with_values(config, updates, source)


def value_of(config: BaseModel, key: str) -> Any:
    """The value of a dotted key; None where the config has no such section."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name, None)
    return value


def _absolute(path: str | tuple[str, ...]) -> str | tuple[str, ...]:
    def absolute(path: str) -> str:
        return os.path.abspath(os.path.expanduser(path))

    if isinstance(path, tuple):
        return tuple(each if is_uri(each) else absolute(each) for each in path)
    return absolute(path)


def with_values(config: AJob, updates: dict[str, Any], source: str = "config") -> AJob:
    """A checked copy of a config with dotted keys set. Raises UserError as :func:`load_config`."""
    values = config.model_dump()
    for key, value in updates.items():
        _set(values, key.split("."), value)
    return checked(type(config), values, source)


def _read_yaml(path: AnyPath) -> dict[str, Any]:
    with opened(path, pipe=True, unpack=False, what="recipe") as file:
        # Read no more than is parsed: a character takes four bytes at most.
        text = file.read(4 * LARGEST_YAML + 1)
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values")
    return values


def _without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_nulls(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    source = f"-s {printable_path(override)}"
    if not equals or not key:
        raise UserError(f"{source}: should be key=value")
    if not text.strip():
        raise UserError(f"{source}: has no value; {printable_path(key)}=null unsets the key")
    name = _aliases().get(key, key)
    for old in (old for old, new in _aliases().items() if new == name or new.startswith(f"{name}.")):
        _unset(values, old.split("."))
    keys = name.split(".")
    _set(values, keys, _override_value(keys, text, source), source)


def _override_value(keys: list[str], text: str, source: str) -> Any:
    """The value of ``-s key=text``: as it stands for a key that takes text, else as YAML; None for null."""
    if text.strip() == "null":
        return None
    if _is_text_key(tuple(keys)):
        if not is_unicode(text):
            raise UserError(f"{source}: not UTF-8 text")
        return text
    try:
        value = parse_yaml(text, source, is_text=lambda path: _is_text_key((*keys, *path)))
    except GrammarError:
        raise UserError(f"{source}: the value is not YAML") from None
    return _without_nulls(value) if isinstance(value, dict) else value


def _is_text_key(path: tuple[str | int, ...]) -> bool:
    """Whether a key, or an element of a key's list, is text in any job's config."""
    name = ".".join(key for key in path if isinstance(key, str))
    name = _aliases().get(name, name)
    is_element = isinstance(path[-1], int)
    return any(is_text(annotation) for annotation in _annotations()[is_element].get(name, ()))


@cache
def _annotations() -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """Key → its types over all jobs; and key → the types of its list's elements."""
    values: dict[str, list[Any]] = {}
    elements: dict[str, list[Any]] = {}
    for job in JOBS.values():
        for key, field in known_fields(job):
            values.setdefault(key, []).append(field.annotation)
            elements.setdefault(key, []).extend(element_types(field.annotation))
    return values, elements


@cache
def _aliases() -> dict[str, str]:
    """Older name of a key → its name of today, over all jobs."""
    return dict(alias for job in JOBS.values() for alias in known_aliases(job))


def _unset(values: dict[str, Any], keys: list[str]) -> None:
    *parents, last = keys
    for parent in parents:
        below = values.get(parent)
        if not isinstance(below, dict):
            return
        values = below
    values.pop(last, None)


def _set(values: dict[str, Any], keys: list[str], value: Any, source: str = "") -> None:
    *parents, last = keys
    for parent in parents:
        below = values.get(parent)
        if below is None:
            below = values[parent] = {}
        if not isinstance(below, dict):
            raise UserError(f"{source}: {printable_path(parent)} is not a section")
        values = below
    if value is None:
        values.pop(last, None)
    else:
        values[last] = value


def _explain(error: ValidationError, job: type[Job], source: str) -> str:
    """One line: the first error of a recipe, and how many more there are."""
    by_key: dict[str, Any] = {}
    for fault in error.errors(include_url=False):
        by_key.setdefault(_key(fault["loc"]), fault)
    key, first = next(iter(by_key.items()))
    if first["type"] == "extra_forbidden":
        message = f"{key}: unknown key"
        known = {name: name for name, _ in known_fields(job)} | dict(known_aliases(job))
        nearest = difflib.get_close_matches(key[:200], known, n=1, cutoff=0.5)
        if nearest:
            message += f"; did you mean {known[nearest[0]]}?"
    elif first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        if key.endswith("engine") and message.startswith("engine."):  # of judge_engine or synthesis.teacher.engine
            message = key + message.removeprefix("engine")
    elif first["type"] == FAULT:
        message = f"{key}: {first['msg']}"
    elif first["type"] == "model_type":
        message = f"{key}: should be a section of keys (got {brief(first['input'])})"
    elif first["type"] == "missing":
        message = f"{key}: is needed"
    else:
        what = first["msg"][0].lower() + first["msg"][1:]
        message = f"{key}: {what} (got {brief(first['input'])})"
        if first["type"] == "string_type" and isinstance(first["input"], bool | float):
            message += "; in quotes it is taken as it is written"
    more = f" (and {len(by_key) - 1} more)" if len(by_key) > 1 else ""
    return f"{source}: {message}{more}"


def _key(location: tuple[int | str, ...]) -> str:
    """The recipe key of an error's location, without the branches of unions that pydantic adds."""
    branches = ("function-", "constrained-", "literal[")
    names = [name for name in map(str, location) if name != "str" and not name.startswith(branches)]
    return printable_path(".".join(names))
