"""A committed file that is damaged, a disk that fills up, a directory that cannot be written."""

import os
import shutil
import subprocess

import pyarrow.parquet as pq
import pytest

from helpers.runs import Run, chunk_units, committed, complaint, scores, wait_until


@pytest.fixture
def mounted(tmp_path):
    """Mounts a file system in memory: ``mounted("size=8m")``; its directory."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "limrank-test", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


def test_a_truncated_chunk_alone_is_run_again(work, undisturbed, tmp_path):
    whole, expected = undisturbed
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    before = committed(run_dir)
    damaged = sorted(before)[3]
    path = run_dir / "rows" / damaged
    os.truncate(path, path.stat().st_size // 2)
    done = subprocess.run(work.command(run_dir), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert scores(work, run_dir) == expected
    after = committed(run_dir)
    assert {name for name in before if after[name] != before[name]} == {damaged}


def test_a_full_disk_ends_the_job_and_room_lets_it_go_on(work, undisturbed, mounted, tmp_path):
    disk = mounted("size=8m")
    run_dir = disk / "run"
    command = work.command(run_dir)
    with Run(command, log=tmp_path / "full.log") as run:
        wait_until(lambda: run.ended() or len(committed(run_dir)) >= 2, "two chunks")
        _fill(disk)
        assert run.wait() == 1
        assert run.left() == []
    said = complaint(run.log.read_text())
    assert str(run_dir) in said and "No space left" in said
    finished = committed(run_dir)
    units = chunk_units(run_dir)
    assert 2 <= len(finished) < len(units)
    for name in finished:  # whole, or not there
        number = int(name.removeprefix("chunk-").removesuffix(".parquet"))
        assert pq.read_table(run_dir / "rows" / name).num_rows == units[number] * work.depth
    subprocess.run(["mount", "-o", "remount,size=32m", str(disk)], check=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert scores(work, run_dir) == undisturbed[1]
    assert committed(run_dir).items() >= finished.items()


def _fill(disk):
    with (disk / "ballast").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


@pytest.mark.parametrize("below", ["run", "."])
def test_a_read_only_directory_is_one_line(below, work, mounted, tmp_path):
    run_dir = mounted("ro") / below
    command = work.command(run_dir, recipe=tmp_path / "rerank.yaml")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    said = complaint(done.stderr)
    assert str(run_dir) in said and "Read-only file system" in said
