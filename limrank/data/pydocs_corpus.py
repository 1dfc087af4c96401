"""Print the documented public standard library as JSON: rows of id, text and title.

``pydocs`` runs this script in a clean interpreter; it imports only the standard library.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import PurePath
from types import ModuleType
from typing import Any

_MIN_DOCSTRING = 40
"""Characters. A shorter docstring ("Return the name.") says too little to be retrieved by."""

_SKIPPED = {
    # Importing these prints, opens a browser or a window, or takes over the terminal.
    *("this", "antigravity", "turtle", "turtledemo", "tkinter", "idlelib", "readline", "rlcompleter"),
    # Samples and tools that are not a library; setuptools replaces distutils.
    *("xxlimited", "xxlimited_35", "xxsubtype", "lib2to3", "distutils", "ensurepip", "pydoc_data", "encodings"),
    # Other names of what os, os.path and asyncio export on this platform.
    *("posix", "nt", "posixpath", "ntpath", "genericpath", "asyncio.unix_events", "asyncio.windows_events"),
    # Importable on one platform only; on others they raise a plain ImportError.
    *("asyncio.windows_utils", "crypt"),
}

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def rows() -> list[tuple[str, str, str]]:
    """``(id, text, title)``, sorted by id; no id and no text occurs twice."""
    found = sorted(
        (entry for name, module in _modules() for entry in _entries(name, module)),
        key=lambda entry: entry[0],
    )
    by_text: dict[str, tuple[str, str, str]] = {}
    for (*_, doc_id), docstring, thing in found:
        text = _ADDRESS.sub("", inspect.cleandoc(docstring)).strip()
        if len(text) >= _MIN_DOCSTRING and text not in by_text:
            by_text[text] = (doc_id, text, doc_id + _signature(thing))
    return sorted(by_text.values())


def _modules() -> Iterator[tuple[str, ModuleType]]:
    """Import and yield every public module and submodule that this platform has."""
    waiting = [*sorted(sys.stdlib_module_names), "os.path"]
    while waiting:
        name = waiting.pop()
        if name in _SKIPPED or any(part.startswith("_") or part in ("test", "tests") for part in name.split(".")):
            continue
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            # If the missing module is of the standard library, this Python is built for another platform or
            # without a C library (winreg, dbm.gnu). Otherwise it is a real error.
            if error.name and error.name.partition(".")[0] in sys.stdlib_module_names:
                continue
            raise
        yield name, module
        waiting += [f"{name}.{sub.name}" for sub in pkgutil.iter_modules(getattr(module, "__path__", ()))]


def _entries(name: str, module: ModuleType) -> Iterator[tuple[tuple, str, Any]]:
    """Yield ``(rank, docstring, object)`` for the public names of ``module``.

    A rank sorts better names first and ends with the id.
    """
    family = name.partition(".")[0]
    exported = getattr(module, "__all__", None)
    for attribute, thing in sorted(vars(module).items()):
        if attribute.startswith("_") or not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue
        home = (getattr(thing, "__module__", None) or name).partition(".")[0]
        if home not in sys.stdlib_module_names:
            continue  # added by another package: `site` adds to builtins
        # `_heapq` is of the family of `heapq`, its C half; the builtin `open` comes from io.
        foreign = home.lstrip("_") != family != "builtins"
        if attribute not in exported if exported is not None else foreign:
            continue  # a mere import of that module
        doc_id = attribute if family == "builtins" else f"{name}.{attribute}"
        alias = getattr(thing, "__name__", attribute) != attribute
        quality = (alias, family != "builtins", foreign)
        members = _members(thing) if inspect.isclass(thing) else ()
        own = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
        for path, docstring, what in [(doc_id, own, thing), *((f"{doc_id}.{m}", d, w) for m, d, w in members)]:
            if isinstance(docstring, str):
                yield (*quality, path.count("."), path), docstring, what


def _members(cls: type) -> Iterator[tuple[str, Any, Any]]:
    """Yield ``(name, docstring, object)`` for the methods and properties that ``cls`` defines.

    Those of a private base count as the class's own, since the base is not documented.
    """
    owners = [k for k in cls.__mro__ if k is cls or k.__name__.startswith("_") or k.__module__.startswith("_")]
    defined = {name: thing for owner in reversed(owners) for name, thing in vars(owner).items()}
    for name, thing in defined.items():
        thing = thing.__func__ if isinstance(thing, classmethod | staticmethod) else thing
        if not name.startswith("_") and (inspect.isroutine(thing) or isinstance(thing, property)):
            yield name, thing.__doc__, thing


class _Elided:
    def __repr__(self) -> str:
        return "..."


def _signature(thing: Any) -> str:
    """``(iterable, n=1)``; empty if Python does not know the signature.

    A default is written only if it is the same in every process and on every machine: no addresses, no sets,
    no absolute paths, and never ``os.environ``.
    """
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError, AttributeError):  # AttributeError: a default that curses sets up later
        return ""
    parameters = []
    for parameter in signature.parameters.values():
        default = parameter.default
        plain = type(default) in (type(None), bool, int, float, str, bytes)
        absolute = isinstance(default, str) and len(default) > 1 and PurePath(default).is_absolute()
        if default is not parameter.empty and (absolute or not plain):
            default = _Elided()
        parameters.append(parameter.replace(default=default, annotation=parameter.empty))
    return str(inspect.Signature(parameters))


if __name__ == "__main__":
    json.dump(rows(), sys.stdout)
