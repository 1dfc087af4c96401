"""One JSON line for each section of a check, also where the section fails.

The lines are in ``results.jsonl`` of the output folder. Each has ``section``, ``ok``, ``seconds`` and what
was measured, in the units that the names end with, or ``error``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limrank.sizing.rates import DEVICES

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Given:
    """The command line of a section: the output folder, and whether tiny shapes show that all runs."""

    out: Path
    dry_run: bool
    words: list[str]


def arguments(*words: str) -> Given:
    """The section's arguments. ``words``: names of further ones."""
    parser = argparse.ArgumentParser()
    for word in words:
        parser.add_argument(word)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    return Given(given.out, given.dry_run, [getattr(given, word) for word in words])


@contextmanager
def section(name: str, out: Path) -> Iterator[dict[str, Any]]:
    """Fill the dict inside it with what is measured. It is written as the section's line at the end, and what was
    measured before an error is in it, too. ``ok`` is true unless something sets it to false or raises."""
    line: dict[str, Any] = {"section": name, "ok": True}
    began = time.perf_counter()
    try:
        yield line
    except BaseException as error:
        line |= {"ok": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        raise
    finally:
        write(out, line | {"seconds": round(time.perf_counter() - began, 2)})


def write(out: Path, line: dict[str, Any]) -> None:
    text = json.dumps(line, ensure_ascii=False)
    print(text, flush=True)
    with (out / RESULTS).open("a") as file:
        file.write(text + "\n")


def read(out: Path) -> dict[str, dict[str, Any]]:
    """The last line of each section."""
    path = out / RESULTS
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else []
    return {line["section"]: line for line in lines}


def stated_peak(device: str) -> float | None:
    """Stated bfloat16 operations a second of a device; None if its name is not known."""
    return next((stated.flops for name, stated in DEVICES.items() if name in device), None)
