"""Processes that do not import the script that they were started from."""

import subprocess
import sys

SCRIPT = """
import multiprocessing, time
from limrank.engines.spawning import without_main
print("main", flush=True)
with without_main():
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0,))
    child.start()
child.join()
print(child.exitcode, __file__, __spec__)
"""


def test_a_spawned_process_does_not_run_the_script_again(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["main", f"0 {script} None"], done.stderr
