"""What a job returns to the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class JobResult:
    """The result of a job.

    Args:
        failed: the number of failed units or pairs. Any gives exit code 3, unless ``allow_failures`` is set.
        warnings: sentences for the user.
        messages: lines or rich tables, printed in order.
    """

    failed: int = 0
    warnings: list[str] = field(default_factory=list)
    messages: list[Any] = field(default_factory=list)
