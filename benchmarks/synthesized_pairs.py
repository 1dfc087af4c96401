"""(query, passage, label) pairs of a synthesis run: a training file for `limrank train`.

    python benchmarks/synthesized_pairs.py RUN_DIR OUT.jsonl [--rejected]

Those that the filters kept or, with ``--rejected``, all that have a passage, under the label that
they were written for: what training makes of them says what the filters are worth.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

COLUMNS = ["query", "instruction", "passage", "label", "kept"]


def written(run_dir: Path, rejected: bool) -> Iterator[dict[str, Any]]:
    for row in pq.read_table(run_dir / "examples.parquet", columns=COLUMNS).to_pylist():
        if row.pop("kept") or (rejected and row["passage"]):
            yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rejected", action="store_true")
    given = parser.parse_args()
    with given.out.open("w") as file:
        for row in written(given.run_dir, given.rejected):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
