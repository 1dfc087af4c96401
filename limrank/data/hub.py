"""A dataset repository of the Hugging Face hub, read through ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from limrank.errors import UnavailableError, UserError, first_line
from limrank.parsing import clipped


@dataclass(frozen=True)
class HubRepository:
    """A repository on the hub, or a local directory of its layout.

    Attributes:
        source: ``OWNER/NAME``, or the directory, whose ``README.md`` names the files of each config.
        key: the recipe's key, for messages.
        revision: a git revision on the hub; None: the newest.
    """

    source: str
    key: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.source} at {self.revision}" if self.revision else self.source

    def configs(self) -> list[str]:
        """Raises UserError: the hub cannot be reached, or has no such repository."""
        import datasets

        with self._one_line_errors(self.source):
            return datasets.get_dataset_config_names(self.source, revision=self.revision)

    def splits(self, config: str | None) -> dict[str, Any]:
        """The splits of a config by name; None: of the only config, or of the default.

        Raises:
            UserError: they cannot be loaded.
        """
        import datasets

        with self._one_line_errors(f"{config!r} of {self}" if config else str(self)):
            return datasets.load_dataset(self.source, config, revision=self.revision)

    def rows(self, config: str, split: str) -> Iterator[dict[str, Any]]:
        splits = self.splits(config)
        if split not in splits:
            raise UserError(f"{self.key}: {config!r} of {self} has no split {split!r}; there are: {', '.join(splits)}")
        yield from splits[split]

    def only_split(self, config: str) -> Iterator[dict[str, Any]]:
        """The rows of a config's only split, whose name differs from revision to revision."""
        splits = self.splits(config)
        if len(splits) != 1:
            raise UserError(f"{self.key}: {config!r} of {self} should have one split, not {', '.join(splits)}")
        yield from next(iter(splits.values()))

    @contextmanager
    def _one_line_errors(self, what: str) -> Iterator[None]:
        import datasets

        try:
            yield
        except Exception as error:  # for local files it depends on what is damaged
            # datasets raises ConnectionError (an OSError) if the hub cannot be reached, FileNotFoundError
            # for a missing repository and ValueError for a missing config.
            cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
            reason = clipped(first_line(cause))
            kind = UnavailableError if isinstance(error, ConnectionError) else UserError
            raise kind(f"{self.key}: cannot load {what}: {reason}") from None
