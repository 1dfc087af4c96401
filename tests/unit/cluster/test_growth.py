"""What a cluster can become: the nodes that are there, and those that its autoscaler may start."""

import subprocess
import sys
import time

import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from limrank.cluster.growth import Growth, monitor_config
from limrank.cluster.node_types import NodeType, from_cluster_file, max_workers_of
from limrank.cluster.resources import check_memory, check_resources, reserve
from limrank.config import EngineConfig, ModelConfig, WorkersConfig
from limrank.engines import EngineSpec
from limrank.errors import UserError

HEAD = {"CPU": 4.0, "memory": 8e9, "node:__internal_head__": 1.0}
GPU = {"CPU": 8.0, "GPU": 1.0}
BIG = {"CPU": 64.0}
ALIVE_GPU = {**GPU, "memory": 3e10, "node:10.0.0.7": 1.0}
TYPES = [
    NodeType("head", {"CPU": 4.0}, 0, 0, head=True),
    NodeType("gpu", GPU, 0, 2),
    NodeType("big", BIG, 0, 2),
]


def test_a_cluster_without_an_autoscaler_is_what_it_is():
    growth = Growth([HEAD, ALIVE_GPU])
    assert growth.is_known and growth.gpus == 1 and growth.describe() == ""
    assert growth.nodes() == growth.all_nodes() == [HEAD, ALIVE_GPU]


def test_nodes_that_are_there_count_among_those_that_may_be_there():
    growth = Growth([HEAD, ALIVE_GPU], True, TYPES, max_workers=2)
    assert growth.nodes() == [HEAD, ALIVE_GPU, GPU]
    assert growth.nodes(lambda node: node["CPU"]) == [HEAD, ALIVE_GPU, BIG, BIG]
    assert growth.all_nodes() == [HEAD, ALIVE_GPU, GPU, BIG, BIG]


def test_a_head_alone_can_have_the_gpus_of_its_node_types():
    assert Growth([HEAD], True, TYPES, max_workers=2).gpus == 2
    # Where the types are not known, nodes that are there count.
    assert Growth([HEAD], True).gpus == 0 and Growth([HEAD, ALIVE_GPU], True).gpus == 1


def test_what_only_the_cloud_knows_is_not_known():
    assert not Growth([HEAD], True).is_known
    assert not Growth([HEAD], True, [*TYPES, NodeType("cloud", None, 0, 1)], 2).is_known
    assert Growth([HEAD], True, [*TYPES, NodeType("cloud", None, 0, 0)], 2).is_known


def test_a_refusal_says_what_the_cluster_can_become():
    growth = Growth([HEAD], True, TYPES, max_workers=2)
    check_resources({"num_cpus": 1, "num_gpus": 1}, 2, growth.nodes())
    with pytest.raises(UserError, match=r"2 × 8 CPUs 1 GPUs\), and the autoscaler may start: .*, at most 2 workers"):
        check_resources({"num_cpus": 1, "num_gpus": 1}, 3, growth.nodes(), becomes=growth.describe())
    with pytest.raises(UserError, match=r"no node has one.*0 to 2 × gpu"):
        check_resources(
            {"num_cpus": 1, "num_gpus": 1, "accelerator_type": "H100"}, 1, growth.nodes(), becomes=growth.describe()
        )


def test_an_accelerator_s_nodes_are_started_before_larger_ones(monkeypatch):
    larger = NodeType("l40s", {"CPU": 64.0, "GPU": 1.0, "accelerator_type:L40S": 1.0}, 0, 2)
    wanted = NodeType("h100", {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H100": 1.0}, 0, 2)
    monkeypatch.setattr("limrank.cluster.growth.look", lambda: Growth([HEAD], True, [larger, wanted], max_workers=2))
    engine = EngineSpec(ModelConfig(), EngineConfig())
    assert reserve([engine], WorkersConfig(accelerator="H100"), 2)["accelerator_type"] == "H100"
    with pytest.raises(UserError, match="3 replicas"):
        reserve([engine], WorkersConfig(accelerator="H100"), 3)


def test_memory_that_a_node_does_not_state_may_be_enough():
    check_memory(10**12, [HEAD, GPU])
    with pytest.raises(UserError, match="no node of the cluster has more than"):
        check_memory(10**12, [HEAD, ALIVE_GPU])


def test_the_autoscaler_s_file_is_that_of_its_process(tmp_path):
    (tmp_path / "monitor.py").write_text("import time\ntime.sleep(60)\n")
    (tmp_path / "types.yaml").write_text("max_workers: 3\n")

    (tmp_path / "log_monitor.py").write_text("import time\nopen('logs', 'w').close()\ntime.sleep(60)\n")

    def started(port, *more, script="monitor.py"):
        command = [sys.executable, "-u", str(tmp_path / script), f"--gcs-address=10.0.0.1:{port}", *more]
        return subprocess.Popen(command, cwd=tmp_path)

    grows, stays = started(70001, "--autoscaling-config=types.yaml"), started(70002)
    logs = started(70003, script="log_monitor.py")  # on the head of a KubeRay cluster it runs without a monitor
    try:
        deadline = time.monotonic() + 20
        while not (monitor_config("70001")[0] and monitor_config("70002")[0] and (tmp_path / "logs").exists()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert monitor_config("70001") == (True, "max_workers: 3\n")
        assert monitor_config("70002") == (True, None)
        assert monitor_config("70003") == (False, None)
        (tmp_path / "types.yaml").unlink()
        assert monitor_config("70001") == (True, "")
    finally:
        for process in (grows, stays, logs):
            process.kill()
            process.wait()


def test_the_types_of_a_raycluster_resource():
    def group(**limits):
        return {"template": {"spec": {"containers": [{"resources": {"limits": limits}}]}}, "rayStartParams": {}}

    workers = {"groupName": "gpu", "minReplicas": 0, "maxReplicas": 4, "replicas": 0}
    resource = {
        "metadata": {"name": "limrank", "namespace": "jobs"},
        "spec": {
            "headGroupSpec": group(cpu="2", memory="8Gi"),
            "workerGroupSpecs": [workers | group(cpu="8", memory="64Gi", **{"nvidia.com/gpu": "1"})],
        },
    }
    config = _derive_autoscaling_config_from_ray_cr(resource)
    head, gpu = from_cluster_file(config)
    assert head.head and head.resources["CPU"] == 2 and head.max_workers == 0
    assert (gpu.name, gpu.min_workers, gpu.max_workers) == ("gpu", 0, 4)
    assert gpu.resources == {"CPU": 8.0, "GPU": 1.0, "memory": 64 * 2**30}
    assert max_workers_of(config) == 4
