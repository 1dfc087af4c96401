"""What a job hands back to the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class JobResult:
    """``failed`` units or pairs decide exit code 3; ``warnings`` are sentences for a
    person; ``messages`` are lines or rich tables, printed in order."""

    failed: int = 0
    warnings: list[str] = field(default_factory=list)
    messages: list[Any] = field(default_factory=list)
