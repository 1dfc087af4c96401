"""The base of every section of a recipe. It checks the values of keys, and its messages do not repeat them."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from limrank.parsing import is_unicode
from limrank.uris import credentials_in, is_uri

LONGEST_TEXT = 4095
"""Characters of a name, a path (Linux's limit) or a URL. Prompts may be longer."""

_LONGEST_NAME = 255  # bytes of one component of a path


def is_prompt_text(prompt: str) -> bool:
    """Whether a prompt is given as its text, with placeholders, and not by a name or a file."""
    return "{{" in prompt


class PathMark:
    """Marks a key whose value is a path. It is made absolute, from the directory of the command."""


def _can_be_path(path: str) -> str:
    if not is_uri(path) and any(len(name.encode()) > _LONGEST_NAME for name in path.split("/")):
        raise fault(f"is no path: a file's name has at most {_LONGEST_NAME} bytes")
    return path


PathStr = Annotated[str, PathMark(), AfterValidator(_can_be_path)]

Fraction = Annotated[float, Field(ge=0, le=1)]

Seconds = Annotated[float, Field(gt=0, le=31_622_400)]
"""At most a year: clocks and timers overflow at larger numbers."""


class Section(BaseModel):
    """A section of a recipe. Any key refuses empty text, text that is not Unicode, numbers that are not finite or
    need more than 64 bits, true or false for a number, and credentials."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    former_names: ClassVar[dict[str, str]] = {}
    """Older names of keys, each with the (dotted) name of today. Both are accepted."""

    @field_validator("*", mode="before")
    @classmethod
    def _check_any_key(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None  # a field's validator
        annotation = cls.model_fields[info.field_name].annotation
        if not _sections(annotation):  # a section checks its own keys
            _check_value(value, takes_bool=_takes_bool(annotation) or is_text(annotation))
        return value


FAULT = "limrank_fault"
"""The type of a key's error whose message does not repeat the value."""


def fault(message: str) -> PydanticCustomError:
    """The error that a key's validator raises. ``message`` continues a sentence that starts with the key's name."""
    return PydanticCustomError(FAULT, "{message}", {"message": message})


def _check_value(value: Any, *, takes_bool: bool) -> None:
    if isinstance(value, list | tuple):
        for each in value:
            _check_value(each, takes_bool=takes_bool)
    elif isinstance(value, dict):
        for key, each in value.items():
            _check_value(key, takes_bool=False)
            _check_value(each, takes_bool=takes_bool)
    elif isinstance(value, str):
        if not value.strip():
            raise fault("is empty; null unsets a key")
        if "\0" in value or not is_unicode(value):
            raise fault("holds a NUL or half a character, which is no text")
        if is_prompt_text(value):
            return
        if len(value) > LONGEST_TEXT:
            raise fault(f"is too long ({len(value)} characters; at most {LONGEST_TEXT})")
        if found := credentials_in(value):
            raise fault(
                f"holds credentials ({found}), and a recipe is stored and printed; put them into the environment "
                "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, HF_TOKEN, the variable that engine.api_key_env names)"
            )
    elif isinstance(value, bool):
        if not takes_bool:
            raise fault(f"should not be {str(value).lower()}")
    elif isinstance(value, int) and value.bit_length() > 63:
        raise fault("is too large a number")


def known_fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a section and of the sections below it, by its dotted name."""
    for name, field in section.model_fields.items():
        yield prefix + name, field
        for below in _sections(field.annotation):
            yield from known_fields(below, f"{prefix}{name}.")


def known_aliases(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every older name of a key of a section and of the sections below it, with its name of today."""
    for old, new in getattr(section, "former_names", {}).items():
        yield prefix + old, prefix + new
    for name, field in section.model_fields.items():
        for below in _sections(field.annotation):
            yield from known_aliases(below, f"{prefix}{name}.")


def is_text(annotation: Any) -> bool:
    """Whether a key of this type takes only text, or one of a list of words, and maybe null."""
    kinds = [kind for kind in _alternatives(annotation) if kind is not NoneType]
    return bool(kinds) and all(
        kind is str or (get_origin(kind) is Literal and all(isinstance(word, str) for word in get_args(kind)))
        for kind in kinds
    )


def element_types(annotation: Any) -> list[Any]:
    """The types of the elements of a key that holds a list."""
    tuples = [kind for kind in _alternatives(annotation) if get_origin(kind) is tuple]
    return [each for kind in tuples for each in get_args(kind) if each is not Ellipsis]


def _alternatives(annotation: Any) -> list[Any]:
    """The types of a union, without their annotations."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for each in get_args(annotation) for kind in _alternatives(each)]
    return [annotation]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    return [kind for kind in _alternatives(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _takes_bool(annotation: Any) -> bool:
    return any(
        kind is bool or (get_origin(kind) is Literal and False in get_args(kind)) for kind in _alternatives(annotation)
    )
