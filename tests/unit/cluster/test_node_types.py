"""Ray's cluster files, and the nodes that a cluster of theirs can become."""

import pytest

from limrank.cluster.node_types import NodeType, describe, from_cluster_file, max_workers_of, most_nodes, unknown
from limrank.errors import UserError

FILE = """
max_workers: 3
head_node_type: head
available_node_types:
  head: {resources: {CPU: 2}, node_config: {}}
  gpu: {resources: {CPU: 8, GPU: 1}, node_config: {}, min_workers: 1, max_workers: 8}
  cpu: {resources: {CPU: 16}, node_config: {}}
  cloud: {resources: {}, node_config: {InstanceType: g6e.2xlarge}, max_workers: 2}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(FILE)
    return path


def test_the_types_of_a_file(file):
    assert from_cluster_file(file) == [
        NodeType("head", {"CPU": 2.0}, 0, 0, head=True),
        NodeType("gpu", {"CPU": 8.0, "GPU": 1.0}, 1, 3),  # the file allows three workers
        NodeType("cpu", {"CPU": 16.0}, 0, 3),
        NodeType("cloud", None, 0, 2),
    ]
    assert max_workers_of(file) == 3
    assert unknown(from_cluster_file(str(file))) == ["cloud"]


def test_the_most_nodes_have_the_head_once_and_the_workers_that_are_allowed(file):
    types = from_cluster_file(file)
    head, gpu, cpu = {"CPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 16.0}
    assert most_nodes(types, 3) == [head, gpu, gpu, gpu]
    # The worker that is always there stays, whatever is looked for.
    assert most_nodes(types, 3, lambda node: node["CPU"]) == [head, gpu, cpu, cpu]
    assert most_nodes(types, 1) == [head, gpu]


def test_a_type_without_a_limit_is_bounded():
    assert len(most_nodes([NodeType("gpu", {"GPU": 1.0}, 0, 10**9)], 10**9)) == 2_000


def test_no_maximum_is_ray_s_own_of_two():
    types = {"head": {"resources": {"CPU": 1}}, "more": {"resources": {"CPU": 4}}}
    given = {"head_node_type": "head", "available_node_types": types}
    assert most_nodes(from_cluster_file(given), max_workers_of(given)) == [{"CPU": 1.0}, {"CPU": 4.0}, {"CPU": 4.0}]


def test_a_cluster_in_words(file):
    assert describe(from_cluster_file(file), 3) == (
        "head head 2 CPUs 0 GPUs, 1 to 3 × gpu 8 CPUs 1 GPUs, 0 to 3 × cpu 16 CPUs 0 GPUs, "
        "0 to 2 × cloud (unknown resources), at most 3 workers"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"provider": {"type": "local"}}, "has no available_node_types"),
        ({"available_node_types": {"a": {}}, "head_node_type": "b"}, "head_node_type 'b' is not one of"),
        ({"available_node_types": {"a": {"resources": {"CPU": "many"}}}, "head_node_type": "a"}, "a.resources"),
        ({"available_node_types": {"a": {"min_workers": -1}}, "head_node_type": "a"}, "a.min_workers -1"),
        ({"available_node_types": {"a": {}}, "head_node_type": "a", "max_workers": "4"}, "max_workers '4'"),
    ],
)
def test_a_file_that_says_too_little_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        from_cluster_file(given)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such cluster file"):
        from_cluster_file(tmp_path / "none.yaml")
