"""What the kill tests share: one undisturbed run, one cluster, and the table of repeated work."""

import subprocess

import pytest

from helpers.beir import write_common
from helpers.killing import SEED
from helpers.runs import Work, chunk_units, committed, left_by_killed, scores
from limrank.cluster.local import local_cluster

NODES, NODE_CPUS = 3, 3

REPEATED = "work begun again"


@pytest.fixture(scope="session", autouse=True)
def nothing_left():
    """What killed drivers left behind has ended by the end: Ray's agents take a minute to find out."""
    yield
    assert left_by_killed() == {}


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    """2,048 pairs in more than a hundred chunks, some eight seconds of the fake engine's time."""
    beir = write_common(tmp_path_factory.mktemp("data") / "beir", queries=1024, documents=4)
    fake = {"kind": "fake", "own_process": True, "latency_ms": 30, "max_in_flight": 8}
    return Work(beir, queries=1024, depth=2, engine=fake)


@pytest.fixture(scope="session")
def undisturbed(work, tmp_path_factory):
    """The run directory of a run that nothing happened to, and its scores."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    done = subprocess.run(work.command(run_dir, latency_ms=0), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(committed(run_dir)) == len(chunk_units(run_dir)) > 100
    return run_dir, scores(work, run_dir)


@pytest.fixture(scope="session")
def _raylets():
    with local_cluster(NODE_CPUS, nodes=NODES) as cluster:
        yield cluster


@pytest.fixture
def cluster(_raylets):
    """A cluster of three raylets; one that an earlier test killed is replaced."""
    _raylets.add_nodes(NODES - len(_raylets.alive()), NODE_CPUS)
    return _raylets


@pytest.fixture
def place(request):
    """The cluster where a raylet is to be killed; else the job has a Ray of its own."""

    def chosen(victim):
        return request.getfixturevalue("cluster") if victim == "raylet" else None

    return chosen


@pytest.fixture
def note_repeated(record_property):
    """Puts a line of the table at the end of the test session."""
    return lambda line: record_property(REPEATED, line)


def pytest_terminal_summary(terminalreporter):
    ended = [each for each in terminalreporter.getreports("passed") if each.when == "call"]
    lines = [line for report in ended for name, line in report.user_properties if name == REPEATED]
    if not lines:
        return
    terminalreporter.section(f"work begun again after a kill (LIMRANK_FAULT_SEED={SEED})")
    form = "{:<14} {:>9} {:>7} {:>8} {:>8} {:>8} {:>6}"
    terminalreporter.write_line(form.format("killed", "at chunk", "+ s", "chunks", "units", "of", "share"))
    for line in sorted(lines, key=lambda line: (line["killed"], line["at_chunk"])):
        share = f"{line['units'] / line['of']:.0%}"
        terminalreporter.write_line(
            form.format(
                line["killed"], line["at_chunk"], f"{line['delay_s']:.1f}", line["chunks"], line["units"],
                line["of"], share,
            )
        )  # fmt: skip
    units, whole = sum(line["units"] for line in lines), sum(line["of"] for line in lines)
    terminalreporter.write_line(f"{len(lines)} kills: {units} of {whole} units begun again, {units / whole:.1%}")
