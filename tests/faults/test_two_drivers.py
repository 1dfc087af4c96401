"""One driver a run directory: a second is refused, a dead one's place is taken."""

import json
import subprocess
import time

from helpers.runs import Run, committed, complaint, scores, wait_until

TAKEN_OVER_S = 30


def holder(run_dir):
    """The process that has the lock; None where nobody has it."""
    try:
        return json.loads((run_dir / "lock.json").read_text())["pid"]
    except FileNotFoundError:
        return None


def test_a_second_driver_is_refused_and_a_killed_ones_place_is_taken(work, undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    command = work.command(run_dir)
    with Run(command, log=tmp_path / "first.log") as first:
        wait_until(lambda: first.ended() or len(committed(run_dir)) >= 1, "a chunk")
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 2, second.stderr
        said = complaint(second.stderr)
        assert f"process {first.process.pid} " in said and str(run_dir) in said
        assert holder(run_dir) == first.process.pid
        first.process.kill()
        first.process.wait()
        killed = time.monotonic()
    with Run(command, log=tmp_path / "third.log") as third:
        wait_until(lambda: third.ended() or holder(run_dir) == third.process.pid, "the lock")
        assert holder(run_dir) == third.process.pid, third.log.read_text()[-3000:]
        assert time.monotonic() - killed < TAKEN_OVER_S
        assert third.wait() == 0, third.log.read_text()[-3000:]
    assert scores(work, run_dir) == undisturbed[1]
    assert holder(run_dir) is None
