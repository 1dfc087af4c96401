"""A rerank job of small units as a process, and what it leaves behind."""

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from helpers.processes import alive, below, command_line
from helpers.rundirs import rows_of

PATIENCE_S = 600
ENGINES_GONE_S = 30
ALL_GONE_S = 150
"""Ray's agents on a node first try for a minute to tell the head, which is gone as well."""

ENGINE = ("limrank-fake-engine", "EngineCore")
ACTOR = ("ChunkWorker",)
OF_A_RUN = (*ENGINE, *ACTOR, "VLLM::")
"""Parts of the command lines of what a run starts on a cluster, and has to take away."""


@dataclass(frozen=True)
class Work:
    """A rerank job over queries of ``depth`` candidates each."""

    beir: Path
    queries: int
    depth: int
    engine: dict
    model: dict = field(default_factory=dict)

    @property
    def pairs(self):
        return self.queries * self.depth

    def command(self, run_dir, *, address="local", workers=None, recipe=None, **engine):
        """`limrank rerank` into ``run_dir``; keywords are engine keys. The recipe lies
        beside the run directory, or where it is said."""
        recipe = recipe or run_dir.with_suffix(".yaml")
        recipe.parent.mkdir(parents=True, exist_ok=True)
        recipe.write_text(
            yaml.safe_dump(
                {
                    "job": "rerank",
                    "run_dir": str(run_dir),
                    "data": {"format": "beir", "path": str(self.beir)},
                    "first_stage": {"depth": self.depth},
                    "model": self.model,
                    "engine": self.engine | engine,
                    "workers": workers or {},
                }
            )
        )
        return [sys.executable, "-m", "limrank", "rerank", str(recipe), "--address", address]


KILLED: list[tuple[str, set]] = []
"""For each killed driver: the log of its command, and the processes that have to end by themselves."""


class Run:
    """A command as a process, and all processes that were seen below it; with a cluster,
    also the engines and their actors that were seen on its nodes."""

    def __init__(self, command, *, log, environment=None, cluster=None):
        self.log = log
        self._cluster = cluster
        self._seen = set()
        self._engines = set()
        with log.open("w") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.wait()

    def look(self):
        """The processes of the run as they are now: those of engines and their actors."""
        here = below(self.process.pid)
        nodes = self._cluster.nodes if self._cluster is not None else []
        everywhere = here + [each for node in nodes for each in below(node.process.pid)]
        engines = [each for each in everywhere if named(each, OF_A_RUN)]
        self._engines.update(engines, *(below(each.pid) for each in engines))
        self._seen.update(here)
        return engines

    def seen(self):
        """All processes below the command, as they are now."""
        return below(self.process.pid)

    def ended(self):
        self.look()
        return self.process.poll() is not None

    def wait(self, patience_s=PATIENCE_S):
        """Its exit code."""
        wait_until(self.ended, "the job to end", every_s=0.2, patience_s=patience_s)
        return self.process.returncode

    def engines_left(self):
        """Command lines of engines, their actors and what these started that live on."""
        return _lines_of_living(self._engines, ENGINES_GONE_S)

    def left(self):
        """Command lines of all processes of the run that live on."""
        return _lines_of_living(self._engines | self._seen, ALL_GONE_S)

    def leave(self):
        """Note the processes of a killed driver: :func:`left_by_killed` waits for all of them at once."""
        KILLED.append((str(self.log), self._engines | self._seen))


def left_by_killed():
    """Command lines of the processes of killed drivers that live on, by the log of the command."""
    everything = set().union(*(processes for _, processes in KILLED))
    _lines_of_living(everything, ALL_GONE_S)
    left = {log: [command_line(each) for each in processes if alive(each)] for log, processes in KILLED}
    return {log: lines for log, lines in left.items() if lines}


def _lines_of_living(processes, patience_s):
    deadline = time.monotonic() + patience_s
    while (live := [each for each in processes if alive(each)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [command_line(each) for each in live]


def wait_until(true, what, every_s=0.05, patience_s=PATIENCE_S):
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline, f"waited {patience_s} s for {what}"
        time.sleep(every_s)


def named(process, parts):
    line = command_line(process)
    return any(part in line for part in parts)


def committed(run_dir):
    """Name and time of each committed chunk."""
    found = {}
    for path in (run_dir / "rows").glob("chunk-*.parquet"):
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = path.stat().st_mtime_ns
    return found


def scores(work, run_dir):
    """{(query, document): score} of a run that has every pair exactly once."""
    found = rows_of(run_dir)
    by_pair = {(row["query_id"], row["doc_id"]): row["score"] for row in found}
    assert len(found) == len(by_pair) == work.pairs
    assert {row["status"] for row in found} == {"direct"}
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["counts"] == {"units": work.queries, "rows": work.pairs, "failed": 0}
    assert len((run_dir / "run.trec").read_text().splitlines()) == work.pairs
    return by_pair


def complaint(output):
    """The one line in which a command says what is wrong."""
    assert "Traceback" not in output, output
    lines = [line for line in output.splitlines() if line.startswith("limrank: ")]
    assert len(lines) == 1, output
    return lines[0]


def chunk_units(run_dir):
    """The number of units of each chunk of the plan."""
    return [units for units, _, _ in json.loads((run_dir / "plan.json").read_text())["chunks"]]


def repeated(run_dir):
    """(chunks that were begun again, units in them). A chunk that was begun counts whole,
    however little of it was done, so this is the most that can have been done twice."""
    units = chunk_units(run_dir)
    again = {}
    for folder in (run_dir / "attempts").glob("chunk-*"):
        begun = sum(path.is_file() for path in folder.iterdir())
        again[int(folder.name.removeprefix("chunk-"))] = max(0, begun - 1)
    return sum(again.values()), sum(count * units[number] for number, count in again.items())
