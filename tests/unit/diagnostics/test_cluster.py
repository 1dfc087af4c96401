"""What the nodes say → findings."""

import copy
import json

import pytest

from helpers.dashboards import Dashboard
from limrank.diagnostics import cluster
from limrank.diagnostics.cluster import examine_cluster, judge
from limrank.diagnostics.probe import MARK
from limrank.errors import EngineError, UserError

GIB = 2**30
NODE = {
    "versions": {
        "python": "3.11.9", "ray": "2.60.0", "torch": "2.13.0", "transformers": "5.19.0", "vllm": "0.32.0",
        "pyarrow": "26.0.0",
    },
    "model": "fetched",
    "torch_gpus": 0,
    "ray_gpus": 0.0,
    "memory": 8 * GIB,
    "disk": {"free": 50 * GIB, "total": 100 * GIB},
    "clock": [0.0, 0.001],
    "unreachable": [],
    "unwritable": "",
    "unseen": [],
}  # fmt: skip


@pytest.fixture
def nodes():
    return {name: copy.deepcopy(NODE) for name in ("head", "node-1", "node-2")}


def broken(nodes, storage="/shared"):
    """The text of each broken finding, by name."""
    return {each.name: str(each) for each in judge(nodes, storage) if each.broken}


def test_a_good_cluster(nodes):
    assert broken(nodes) == {}
    text = "\n".join(map(str, judge(nodes, "/shared")))
    assert "3 answer: head, node-1, node-2" in text
    assert "2.60.0 on all nodes" in text
    assert "/shared: all nodes write, and see what the others wrote" in text
    assert "storage" not in {each.name for each in judge(nodes, None)}


def test_versions_that_differ_are_named_with_their_nodes(nodes):
    nodes["node-1"]["versions"]["ray"] = "2.59.0"
    nodes["node-2"]["versions"]["torch"] = None
    found = broken(nodes)
    assert set(found) == {"ray", "torch"}
    assert "differs: 2.60.0 (head, node-2), 2.59.0 (node-1)" in found["ray"]
    assert "none (node-2)" in found["torch"]


def test_a_package_that_no_node_has(nodes):
    for node in nodes.values():
        node["versions"]["vllm"] = None
    assert "not installed" in broken(nodes)["vllm"]


def test_a_node_that_does_not_answer_leaves_the_others(nodes):
    nodes["node-1"] = {"error": "no answer within 90 s"}
    found = broken(nodes)
    assert set(found) == {"nodes"}
    assert "1 of 3 do not answer: node-1: no answer within 90 s" in found["nodes"]
    assert [each.name for each in judge({"head": {"error": "x"}}, None)] == ["nodes"]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("model", {"model": "ModuleNotFoundError: No module named 'limrank'"}, "node-1: ModuleNotFoundError"),
        ("storage", {"unwritable": "Permission denied"}, "/shared: node-1 cannot write: Permission denied"),
        ("storage", {"unseen": ["head", "node-2"]}, "node-1 does not see what head, node-2 wrote"),
        ("gpus", {"ray_gpus": 2.0, "torch_gpus": 1}, "node-1: Ray counts 2, torch sees 1"),
        ("gpus", {"ray_gpus": 0.0, "torch_gpus": 1}, "node-1: Ray counts 0, torch sees 1"),
        ("gpus", {"ray_gpus": 1.0, "torch_gpus": "no driver"}, "torch sees no driver"),
        ("clock", {"clock": [-7.5, 0.001]}, "differ by 7.500 s at most"),
        (
            "ports",
            {"unreachable": ["the head at 10.0.0.1:6379 (timed out)"]},
            "node-1 does not reach the head at 10.0.0.1",
        ),
        ("memory", {"memory": 3 * GIB}, "3 GiB free, the least of the nodes (node-1)"),
        ("disk", {"disk": {"free": GIB, "total": 10 * GIB}}, "1 GiB free"),
        ("disk", {"disk": {"free": 4 * GIB, "total": 100 * GIB}}, "node-1 is 96% full"),
    ],
)
def test_what_is_wrong_on_one_node(nodes, name, change, said):
    nodes["node-1"] |= change
    found = broken(nodes)
    assert set(found) == {name}
    assert said in found[name] and "→" in found[name]


def test_clocks_are_apart_only_beyond_what_was_measured(nodes):
    nodes["node-1"]["clock"] = [4.0, 3.0]
    assert broken(nodes) == {}


def test_a_model_that_is_not_fetched_is_a_note(nodes):
    nodes["node-2"]["model"] = "not fetched"
    assert broken(nodes) == {}
    assert "not fetched on node-2" in "\n".join(map(str, judge(nodes, None)))


def test_gpus_that_agree_are_counted(nodes):
    for node in nodes.values():
        node |= {"ray_gpus": 4.0, "torch_gpus": 4}
    assert "12; Ray and torch agree" in "\n".join(map(str, judge(nodes, None)))


@pytest.mark.parametrize(
    ("address", "storage", "said"),
    [
        ("local", None, "--address local"),
        ("127.0.0.1:9", None, "no Ray cluster is there"),
        ("http://127.0.0.1:9", None, "no Ray dashboard is there"),
        ("auto", "s3://key:secret@bucket/runs", "--storage: holds credentials"),
    ],
)
def test_what_no_cluster_is_asked_for(address, storage, said):
    with pytest.raises(UserError, match=said):
        examine_cluster(address, storage)


# ---- by a job ------------------------------------------------------------------------


@pytest.fixture
def by_job(monkeypatch):
    """Examines the nodes by a job on a dashboard."""

    def run(dashboard):
        monkeypatch.setattr(cluster, "job_client", lambda address: dashboard)
        return examine_cluster("http://head:8265", None)

    return run


def test_what_the_job_says_of_the_nodes(by_job, nodes):
    dashboard = Dashboard(answers=["SUCCEEDED"], text=f"a warning\n{MARK}{json.dumps({'nodes': nodes})}\n")
    assert not any(finding.broken for finding in by_job(dashboard))


def test_a_job_that_says_nothing_is_one_error(by_job):
    with pytest.raises(EngineError, match="did not look at the nodes: ImportError: no ray"):
        by_job(Dashboard(answers=["FAILED"], text="Traceback\nImportError: no ray\n"))


def test_a_dashboard_that_breaks_off_is_one_error_and_the_job_is_stopped(by_job):
    dashboard = Dashboard(answers=["RUNNING", ConnectionError("connection refused")])
    with pytest.raises(EngineError, match="the dashboard does not answer any more: connection refused"):
        by_job(dashboard)
    assert dashboard.stopped == [dashboard.jobs[0]["submission_id"]]


def test_a_job_that_does_not_end_is_stopped(by_job, monkeypatch):
    monkeypatch.setattr(cluster, "_JOB_S", 0.1)
    dashboard = Dashboard(answers=["RUNNING"])
    with pytest.raises(EngineError, match="`limrank jobs logs doctor-.* --address http://head:8265` shows why"):
        by_job(dashboard)
    assert len(dashboard.stopped) == 1
