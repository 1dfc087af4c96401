"""No package imports one above it: the layers of pyproject.toml, by import-linter."""

import os
import subprocess
import sys

from helpers import REPOSITORY


def test_no_import_goes_up():
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0 and "1 kept, 0 broken" in run.stdout, run.stdout + run.stderr
