"""Folders that ``datasets`` saved (``save_to_disk``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from limrank.errors import UserError, first_line
from limrank.files import is_file
from limrank.parsing import clipped

if TYPE_CHECKING:
    from datasets import Dataset


def is_saved(folder: Path) -> bool:
    return any(is_file(folder / name) for name in ("dataset_dict.json", "state.json"))


def load(folder: Path, split: str, key: str) -> tuple[Dataset, Path]:
    """A saved dataset, or one split of a saved ``DatasetDict``, and the folder of its files.

    Args:
        key: the recipe's, which says the split, for a person.

    Raises:
        UserError: it cannot be loaded, or has no such split.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder), keep_in_memory=False)
    except Exception as error:  # what datasets raises depends on what is damaged
        raise UserError(f"{folder}: not a dataset that can be loaded: {clipped(first_line(error))}") from None
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded, folder
    if split not in loaded:
        raise UserError(f"{folder}: {key}: it has no split {split!r}; there are: {', '.join(sorted(loaded))}")
    return loaded[split], folder / split
