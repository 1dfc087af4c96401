"""Text → plain values: JSON and YAML from a user, a file or an endpoint.

Every fault of a text is a :class:`~limrank.errors.UserError` of one line that says where it is. Values consist of
None, bool, int, float, str, list and dict. Strings can be written as UTF-8, numbers fit a double, keys are unique
strings, and there are at most :data:`DEEPEST` levels.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from yaml.reader import ReaderError

from limrank.errors import UserError, first_line
from limrank.uris import credentials_in, redacted

DEEPEST = 100
"""Levels of nested lists and mappings. json, pydantic and yaml recurse into values, and Python's stack ends at
about a thousand calls."""

LARGEST_YAML = 1 << 20
"""Characters. YAML is for text written by hand, and is slow to read."""

MOST_YAML_VALUES = 200_000
"""Values of a YAML text. Those behind an alias count each time: ten short lines can expand to billions."""

_BRIEF = 120
_REDACTED = 5000
"""Characters of a long text from which credentials are removed before it is truncated."""
_BLANK = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class GrammarError(UserError):
    """A text is not JSON, or not YAML, at all."""


class _MalformedError(Exception):
    """A fault of a text; the caller, which knows the location, turns it into a UserError."""


# ---- text ----------------------------------------------------------------------------


def decode(data: bytes, where: str) -> str:
    """UTF-8 as text, without the byte order mark that some editors write.

    Raises:
        UserError: it is not UTF-8; the message names the line.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{where}: not UTF-8 text, but UTF-16: save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        location = f"{where}:{line}" if b"\n" in data.rstrip() else where
        raise UserError(f"{location}: not UTF-8 text") from None


def brief(value: Any, limit: int = _BRIEF) -> str:
    """The ``repr`` of a value for a message, truncated to ``limit`` characters."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return "a number of very many digits"  # Python refuses to write those of more than 4,300
    try:
        # Credentials are removed before the text is truncated, since a truncated one might not be recognized.
        text = redacted(repr(value[:_REDACTED] if isinstance(value, str | bytes) else value))
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= limit + 2 else f"{text[:limit]}…"


def clipped(text: str, limit: int = _BRIEF) -> str:
    """A text truncated to ``limit`` characters."""
    text = text if len(text) <= limit else redacted(text[:_REDACTED])
    return text if len(text) <= limit else f"{text[:limit]}…"


# ---- JSON ----------------------------------------------------------------------------


def parse_json(
    text: str | bytes, where: str, *, line: int | None = None, expect: type | None = None, finite: bool = True
) -> Any:
    """The value of a JSON text.

    Args:
        where: the source of the text, for messages: a file, a key, an endpoint.
        line: the line number of a text that is one line of a file. For a text of several lines, a grammar error
            is located as ``where:line``.
        expect: ``dict`` or ``list``, if only that type is accepted.
        finite: whether NaN, Infinity and numbers that do not fit a double are refused.

    Raises:
        UserError: the text is not UTF-8 or not JSON, is deeper than :data:`DEEPEST`, has a key twice, half a
            surrogate pair or a number that is not finite, or is not of the expected type.
    """
    if line is not None:
        where = f"{where}:{line}"
    if isinstance(text, bytes):
        text = decode(text, where)
    elif not is_unicode(text):
        raise UserError(f"{where}: not UTF-8 text")
    text = text.removeprefix("\ufeff")
    try:
        value, end = _decode_at(text, _after_blanks(text, 0), where, finite=finite, unicode=True)
        if rest := text[end:].strip(" \t\r\n"):
            raise json.JSONDecodeError("Extra data", text, text.index(rest[0], end))
    except json.JSONDecodeError as error:
        location = f"{where}:{error.lineno}" if line is None and "\n" in text.strip() else where
        raise GrammarError(f"{location}: not JSON: {error.msg} (column {error.colno})") from None
    if expect is not None and not isinstance(value, expect):
        raise UserError(f"{where}: not a JSON {'object' if expect is dict else 'array'}, but {_type_name(value)}")
    return value


def parse_json_array(data: bytes, where: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield ``(1-based number, "where: element number", object)`` of a text that is one JSON array of objects.

    Elements are parsed one by one, so that a message can name the element and only the text is in memory
    as a whole. Strings may hold half a surrogate pair.

    Raises:
        UserError: the text is not UTF-8, not an array, or goes on after it; or, naming the element, one is not
            JSON, not an object, deeper than :data:`DEEPEST`, or has a key twice or a number that is not finite.
    """
    text = decode(data, where)
    del data  # the text alone is needed from here on
    at = _after_blanks(text, 0)
    if not text.startswith("[", at):
        raise UserError(f"{where}: not a JSON array, but {_character(text, at)}")
    at = _after_blanks(text, at + 1)
    number, closed = 0, text.startswith("]", at)
    while not closed:
        number += 1
        element = f"{where}: element {number}"
        if not text.startswith("{", at):
            raise UserError(f"{element}: not a JSON object, but {_character(text, at)}")
        try:
            value, at = _decode_at(text, at, element)
        except json.JSONDecodeError as error:
            raise GrammarError(
                f"{element}: not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
            ) from None
        yield number, element, value
        at = _after_blanks(text, at)
        if not text.startswith((",", "]"), at):
            raise UserError(f"{element}: after it there should be , or the array's ], not {_character(text, at)}")
        closed = text[at] == "]"
        at = at if closed else _after_blanks(text, at + 1)
    at = _after_blanks(text, at + 1)
    if at < len(text):
        raise UserError(f"{where}: {text[at]!r} after the end of the array: one array is the whole file")


def _after_blanks(text: str, at: int) -> int:
    return _BLANK.match(text, at).end()


def _character(text: str, at: int) -> str:
    return repr(text[at]) if at < len(text) else "the end of the file"


def _decode_at(text: str, at: int, where: str, *, finite: bool = True, unicode: bool = False) -> tuple[Any, int]:
    """The JSON value that begins at index ``at`` of a text, and the index after it. Half a surrogate pair
    is refused if ``unicode`` is set.

    Raises:
        json.JSONDecodeError: it is not JSON, or is truncated.
        UserError: as :func:`parse_json` raises it for what is JSON.
    """
    try:
        value, end = _json.raw_decode(text, at)
        # In a valid Unicode text, only an escape can make half a pair.
        escapes = unicode and "\\u" in text and bool(_SURROGATE.search(text, at, end))
        check_plain(value, finite=finite, unicode=escapes)
    except RecursionError:
        raise UserError(f"{where}: more than {DEEPEST} levels deep") from None
    except _MalformedError as fault:
        raise UserError(f"{where}: {fault}") from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # raised by int(): Python refuses so many digits
        raise UserError(f"{where}: a number of very many digits") from None
    return value, end


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _MalformedError(f"the key {brief(key)} is there twice")
            seen.add(key)
    return found


_json = json.JSONDecoder(object_pairs_hook=_with_unique_keys)


def check_plain(value: Any, *, finite: bool = True, unicode: bool = True) -> None:
    """Check a value without recursion. Raises _MalformedError, with the keys that lead to the fault."""
    # Most values are of types that need no check; they are skipped as early as possible.
    unchecked = {bool, type(None)} if unicode else {bool, type(None), str}
    level: list[tuple[Any, Any]] = [(value, None)]
    for _ in range(DEEPEST + 1):
        below: list[tuple[Any, Any]] = []
        for each, path in level:
            kind = type(each)
            if kind is dict:
                if unicode and not all(map(is_unicode, each)):
                    raise _MalformedError(f"half a surrogate pair, which is no character{_in(path, 'a key')}")
                below += [(inner, (path, key)) for key, inner in each.items() if type(inner) not in unchecked]
            elif kind is list:
                below += [(inner, (path, index)) for index, inner in enumerate(each) if type(inner) not in unchecked]
            elif kind is str:
                if unicode and not is_unicode(each):
                    raise _MalformedError(f"half a surrogate pair, which is no character{_in(path)}")
            elif finite and kind is float and not math.isfinite(each):
                raise _MalformedError(f"{each} is not a finite number{_in(path)}")
            elif finite and kind is int and each.bit_length() > 1023:
                raise _MalformedError(f"a number of very many digits{_in(path)}")
        if not below:
            return
        level = below
    raise _MalformedError(f"more than {DEEPEST} levels deep")


def _in(path: Any, *last: str) -> str:
    """`` (in data.path)`` of ``((None, "data"), "path")``."""
    keys: list[str] = [*last]
    while path is not None:
        path, key = path
        keys.insert(0, f"{key:.40}" if isinstance(key, str) else str(key))
    return f" (in {clipped('.'.join(keys))})" if keys else ""


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8, without half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _type_name(value: Any) -> str:
    return "null" if value is None else type(value).__name__


# ---- YAML ----------------------------------------------------------------------------

_TAG = "tag:yaml.org,2002:"
_AS_TEXT = {_TAG + name for name in ("str", "timestamp", "value")}
_MERGE = _TAG + "merge"
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)")
"""Without YAML 1.1's octal numbers (``010`` is 8) and times (``8:00`` is 480), which users do not mean."""

_KeyPath = tuple[str | int, ...]
"""The keys and list indexes that lead to a value."""


def parse_yaml(
    text: str | bytes,
    where: str,
    *,
    expect: type | None = None,
    is_text: Callable[[tuple[str | int, ...]], bool] = lambda path: False,
) -> Any:
    """The value of a YAML text of one document, of the types that JSON has.

    Anchors, aliases and merge keys are resolved. Dates stay text, keys are always text, and no tag creates an
    object.

    Args:
        where: the source of the text, for messages: a file, a key.
        expect: ``dict`` or ``list``, if only that type is accepted.
        is_text: whether the scalar at the given keys is text: it is then taken as written (``2024``, ``0123``,
            ``yes``), except null.

    Raises:
        UserError: the text is not UTF-8 or not YAML; has a tag that is not plain, a key twice or one that is not
            text, an alias within itself, or too many values or levels; or has a number or text that
            :func:`parse_json` refuses. The message begins with ``where:line`` if there are several lines.
    """
    if isinstance(text, bytes):
        text = decode(text, where)
    if len(text) > LARGEST_YAML:
        raise UserError(f"{where}: longer than {LARGEST_YAML} characters, which is not read as YAML")
    if not is_unicode(text):
        raise UserError(f"{where}: not UTF-8 text")
    lines = "\n" in text.strip()
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        value = None if node is None else _Plain(loader, is_text).value(node, ())
    except ReaderError as error:
        location = f"{where}:{text.count(chr(10), 0, error.position) + 1}" if lines else where
        raise GrammarError(
            f"{location}: not YAML: the character U+{ord(text[error.position]):04X} is not allowed there"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or first_line(error)
        raise GrammarError(f"{_at(where, mark, lines)}: not YAML: {clipped(problem)}") from None
    except _YamlError as fault:
        raise UserError(f"{_at(where, fault.node.start_mark, lines)}: {fault}") from None
    except RecursionError:
        raise UserError(f"{where}: more than {DEEPEST} levels deep") from None
    if expect is not None and not isinstance(value, expect):
        wanted = "mapping of keys to values" if expect is dict else "list"
        raise UserError(f"{where}: should be a {wanted}, not {_type_name(value)}")
    return value


def _at(where: str, mark: yaml.Mark | None, lines: bool) -> str:
    return f"{where}:{mark.line + 1}" if mark and lines else where


class _YamlError(_MalformedError):
    def __init__(self, message: str, node: yaml.Node) -> None:
        super().__init__(message)
        self.node = node


class _Plain:
    """Nodes of a document → values. A value behind an alias is counted each time."""

    def __init__(self, loader: yaml.SafeLoader, is_text: Callable[[_KeyPath], bool]) -> None:
        self._loader = loader
        self._is_text = is_text
        self._count = 0

    def value(self, node: yaml.Node, path: _KeyPath) -> Any:
        self._count_one(node, path)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(each, (*path, index)) for index, each in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return {key: self.value(each, (*path, key)) for key, each in self._items(node, path).items()}
        raise _YamlError(f"the tag {brief(node.tag)} is not known here", node)

    def _count_one(self, node: yaml.Node, path: _KeyPath) -> None:
        self._count += 1
        if self._count > MOST_YAML_VALUES:
            raise _YamlError(
                f"more than {MOST_YAML_VALUES} values, with a value behind an alias counted each time", node
            )
        if len(path) > DEEPEST:
            raise _YamlError(f"more than {DEEPEST} levels deep, or an alias within itself", node)

    def _items(self, node: yaml.MappingNode, path: _KeyPath) -> dict[str, yaml.Node]:
        """The items that a mapping merges (``<<``), then its own, which override them."""
        own: dict[str, yaml.Node] = {}
        merged: dict[str, yaml.Node] = {}
        self._count += len(node.value)
        for key_node, each in node.value:
            if key_node.tag == _MERGE:
                for other in each.value if isinstance(each, yaml.SequenceNode) else [each]:
                    if not isinstance(other, yaml.MappingNode):
                        raise _YamlError("<< takes in a mapping, or a list of them", key_node)
                    self._count_one(other, (*path, "<<"))
                    for key, value in self._items(other, (*path, "<<")).items():
                        merged.setdefault(key, value)
                continue
            key = self._key(key_node)
            if key in own:
                raise _YamlError(f"the key {brief(key)} is there twice", key_node)
            own[key] = each
        return merged | own

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise _YamlError("a key should be text, not a list or a mapping", node)
        return self._text(node)

    def _text(self, node: yaml.ScalarNode) -> str:
        if not is_unicode(node.value):
            raise _YamlError("half a surrogate pair, which is no character", node)
        return node.value

    def _scalar(self, node: yaml.ScalarNode, path: _KeyPath) -> Any:
        is_null = node.tag == _TAG + "null"
        if node.tag in _AS_TEXT or node.tag == _MERGE or (not is_null and self._written(node) and self._is_text(path)):
            return self._text(node)
        kind = node.tag.removeprefix(_TAG)
        if kind not in ("null", "bool", "int", "float"):
            raise _YamlError(f"the tag {brief(node.tag)} is not known here", node)
        if kind == "int" and self._written(node) and not _WHOLE.fullmatch(node.value):
            return self._text(node)
        try:
            value = self._loader.construct_object(node)
            if isinstance(value, int | float):
                check_plain(value)
        except (ArithmeticError, AttributeError, LookupError, ValueError, yaml.YAMLError):
            raise _YamlError(f"{brief(node.value)} is not of the tag !!{kind}, or too large", node) from None
        except _MalformedError as fault:
            named = f" (in {clipped('.'.join(map(str, path)))})" if path else ""
            raise _YamlError(f"{fault}{named}", node) from None
        return value

    def _written(self, node: yaml.ScalarNode) -> bool:
        """Whether the tag was inferred from the plain text, and not written."""
        return self._loader.resolve(yaml.ScalarNode, node.value, (True, False)) == node.tag


# ---- numbers -------------------------------------------------------------------------


def finite_number(value: Any, where: str) -> float:
    """A number, or a text of one, as a float. Raises UserError: it is not a finite number."""
    number = math.nan
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number or (isinstance(value, str) and "_" not in value):  # Python reads 1_000 as a number
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise UserError(f"{where} {brief(value)} is not a finite number")
    return number


def whole_number(text: str, where: str) -> int:
    """A text as a whole number of at most 18 digits. Raises UserError: it is not one."""
    if not re.fullmatch(r"\s*[-+]?[0-9]{1,18}\s*", text, re.ASCII):
        raise UserError(f"{where} {brief(text)} is not a whole number")
    return int(text)


def without_credentials(value: str | None, name: str) -> str | None:
    """The value of an option or a variable, unchanged. Raises UserError: it holds credentials; the message names it."""
    if value and (found := credentials_in(value)):
        raise UserError(f"{name}: holds credentials ({found}), which would be displayed; take them out")
    return value
