"""What a run left in its directory."""

from limrank.storage import Storage


def rows(storage, folder="rows"):
    """Every row of a folder's files, in the order of their names."""
    return [row for name in storage.names(folder) for row in storage.read_table(f"{folder}/{name}").to_pylist()]


def rows_of(run_dir, folder="rows"):
    return rows(Storage(str(run_dir)), folder)
