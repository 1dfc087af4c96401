"""The files in cluster/ for Ray's launcher and for SkyPilot: what their schemas say, what they install, and which
recipes fit into their nodes. No cloud is asked."""

import copy
import json
import re
import shlex
import subprocess
import tomllib

import jsonschema
import pytest
import ray
import yaml

from helpers import REPOSITORY
from helpers.planning import why_not
from limrank.config.recipe import load_config

CLUSTER = REPOSITORY / "cluster"
RECIPES = sorted((REPOSITORY / "jobs" / "recipes").glob("*.yaml"))
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
LAUNCHER = ("aws", "gcp")

ACCELERATORS = {"g6e.2xlarge": "L40S", "a2-highgpu-1g": "A100"}
"""Of the instance types in the files, by Ray's names."""


def read(name):
    return yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())


# ---- Ray's launcher ------------------------------------------------------------------


@pytest.mark.parametrize("name", LAUNCHER)
def test_a_file_fits_rays_schema_and_its_launcher(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    jsonschema.Draft7Validator(SCHEMA).validate(read(name))
    validate_config(prepare_config(read(name)))


SCHEMA = json.loads((REPOSITORY / ray.__path__[0] / "autoscaler" / "ray-schema.json").read_text())


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.update(idle_timeout_minuts=10),
        lambda file: file["available_node_types"]["gpu-spot"].pop("resources"),
        lambda file: file["available_node_types"]["gpu-spot"]["resources"].update(GPU="one"),
        lambda file: file.update(head_node_type="gone"),
    ],
)
def test_a_faulty_file_does_not(change):
    from ray.autoscaler._private.util import prepare_config, validate_config

    file = copy.deepcopy(read("aws"))
    change(file)
    with pytest.raises((jsonschema.ValidationError, ValueError, KeyError)):
        validate_config(prepare_config(file))


@pytest.mark.parametrize("name", LAUNCHER)
def test_a_head_without_gpus_and_gpu_nodes_on_spot_first_of_one_kind(name):
    file = read(name)
    types = file["available_node_types"]
    assert file["head_node_type"] == "head" and "GPU" not in types["head"]["resources"]
    spot, on_demand = types["gpu-spot"], types["gpu-on-demand"]
    assert spot["priority"] > on_demand["priority"]  # Ray's autoscaler 2 looks at it, and at what could not be started
    assert any("RAY_enable_autoscaler_v2=1" in line for line in file["head_start_ray_commands"])
    assert spot["resources"] == on_demand["resources"]
    assert spot["min_workers"] == on_demand["min_workers"] == 0
    assert [is_spot(spot["node_config"]), is_spot(on_demand["node_config"])] == [True, False]


def is_spot(node_config):
    market = node_config.get("InstanceMarketOptions", {}).get("MarketType")
    return market == "spot" or node_config.get("scheduling", {}).get("provisioningModel") == "SPOT"


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_s_autoscaler_starts_spot_nodes_and_others_where_there_is_none(name):
    demand = {"GPU": 1, "CPU": 1}
    assert started(name, demand, 4) == {"gpu-spot": 4}
    assert started(name, demand, 4, not_to_be_had=["gpu-spot"]) == {"gpu-on-demand": 4}


def started(name, demand, count, not_to_be_had=()):
    """Node type → nodes that Ray's autoscaler 2 starts for ``count`` actors of a demand."""
    from ray.autoscaler.v2.instance_manager.config import FileConfigReader
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    config = FileConfigReader(str(CLUSTER / f"{name}.yaml")).get_cached_autoscaling_config()
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(demand)] * count),
        recoverable_resource_availabilities=dict.fromkeys(not_to_be_had, 0.0),
    )
    launches = ResourceDemandScheduler().schedule(request).to_launch
    return {launch.instance_type: launch.count for launch in launches}


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_resources_of_every_node_type_are_stated(name):
    for node_type in read(name)["available_node_types"].values():
        stated = node_type["resources"]
        assert {"CPU", "memory"} <= stated.keys() and stated["memory"] > 20 * 2**30
        machine = node_type["node_config"].get("InstanceType") or node_type["node_config"]["machineType"]
        accelerators = {key for key in stated if key.startswith("accelerator_type:")}
        assert accelerators == ({f"accelerator_type:{ACCELERATORS[machine]}"} if machine in ACCELERATORS else set())
        assert ("GPU" in stated) == bool(accelerators)


@pytest.mark.parametrize("name", LAUNCHER)
def test_a_token_is_asked_for_and_the_dashboard_stays_on_loopback(name):
    file = read(name)
    assert file["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("RAY_AUTH_MODE=token" in line for line in file["setup_commands"])
    (start,) = [line for line in file["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in start and "--autoscaling-config=~/ray_bootstrap_config.yaml" in start


@pytest.mark.parametrize("name", LAUNCHER)
def test_models_are_kept_on_a_worker_s_own_disk(name):
    file = read(name)
    (start,) = [line for line in file["worker_start_ray_commands"] if "ray start" in line]
    folder = re.search(r"LIMRANK_CACHE=(\S+)/models", start)[1]
    assert f"HF_HOME={folder}/huggingface" in start
    assert any(folder in line for line in file["worker_setup_commands"])


@pytest.mark.parametrize("name", [*LAUNCHER, "skypilot"])
def test_what_is_installed_is_what_pyproject_says(name):
    """An extra of the checkout that is mounted, and no list of packages."""
    file = read(name)
    commands = file["setup"].splitlines() if "setup" in file else file["setup_commands"]
    (install,) = [line for line in commands if "pip install" in line]
    target = shlex.split(install)[-1]
    folder, extra = re.fullmatch(r"(.+)\[(\w+)\]", target).groups()
    assert folder == "." if name == "skypilot" else file["file_mounts"][folder] == "."
    assert extra in PROJECT["optional-dependencies"]
    assert any(each.startswith("vllm") for each in PROJECT["optional-dependencies"][extra])


@pytest.mark.parametrize("name", LAUNCHER)
def test_what_is_run_parses_as_bash(name):
    for key, lines in read(name).items():
        for line in lines if key.endswith("_commands") else []:
            assert subprocess.run(["bash", "-n", "-c", line], check=False).returncode == 0, line


# ---- what nodes may do ---------------------------------------------------------------


def statements(name):
    return json.loads((CLUSTER / "iam" / f"{name}.json").read_text())["Statement"]


@pytest.mark.parametrize("name", ["aws-head", "aws-worker"])
def test_a_role_names_its_actions_and_one_bucket(name):
    for statement in statements(name):
        actions = statement["Action"]
        assert not any("*" in action for action in actions)
        reading = all(action.startswith("ec2:Describe") for action in actions)
        assert (statement["Resource"] == "*") == reading  # EC2 describes all or nothing
        if actions[0].startswith("s3:"):
            assert all(each.startswith("arn:aws:s3:::BUCKET") for each in statement["Resource"])


def test_a_worker_may_use_the_bucket_only():
    assert {action.partition(":")[0] for each in statements("aws-worker") for action in each["Action"]} == {"s3"}


def test_the_head_starts_and_ends_this_cluster_s_workers_only():
    aws = read("aws")
    by_action = {}
    for each in statements("aws-head"):
        for action in each["Action"]:
            by_action.setdefault(action, []).append(each)
    (ending,) = by_action["ec2:TerminateInstances"]
    assert ending["Condition"]["StringEquals"] == {"aws:ResourceTag/ray-cluster-name": aws["cluster_name"]}
    (passing,) = by_action["iam:PassRole"]
    workers = {
        aws["available_node_types"][name]["node_config"]["IamInstanceProfile"]["Name"]
        for name in ("gpu-spot", "gpu-on-demand")
    }
    assert passing["Resource"] == [f"arn:aws:iam::*:role/{name}" for name in workers]
    (kind,) = [each for each in by_action["ec2:RunInstances"] if "Condition" in each]
    assert (
        kind["Condition"]["StringEquals"]["ec2:InstanceType"]
        == aws["available_node_types"]["gpu-spot"]["node_config"]["InstanceType"]
    )


def test_google_s_workers_have_an_account_of_their_own():
    gcp = read("gcp")
    for name in ("gpu-spot", "gpu-on-demand"):
        (account,) = gcp["available_node_types"][name]["node_config"]["serviceAccounts"]
        assert account["email"].startswith("limrank-worker@")


def test_google_s_disks_are_in_the_zone_of_their_nodes():
    gcp = read("gcp")
    zone = gcp["provider"]["availability_zone"]
    assert zone.startswith(f"{gcp['provider']['region']}-")
    for name in ("gpu-spot", "gpu-on-demand"):
        _, own = gcp["available_node_types"][name]["node_config"]["disks"]
        assert own["initializeParams"]["diskType"] == f"zones/{zone}/diskTypes/local-ssd"


# ---- SkyPilot ------------------------------------------------------------------------

SKYPILOT_KEYS = {
    "": {"name", "num_nodes", "workdir", "resources", "envs", "secrets", "file_mounts", "volumes", "setup", "run", "config"},
    "resources": {"infra", "accelerators", "cpus", "memory", "instance_type", "use_spot", "disk_size", "disk_tier",
                  "network_tier", "image_id", "ports", "labels", "autostop", "any_of", "ordered", "job_recovery"},
    "resources.autostop": {"idle_minutes", "down", "wait_for"},
}  # fmt: skip
"""Of SkyPilot's task YAML, as its reference lists them."""


def test_skypilot_s_keys_are_in_its_reference():
    file = read("skypilot")
    assert file.keys() <= SKYPILOT_KEYS[""]
    assert file["resources"].keys() <= SKYPILOT_KEYS["resources"]
    assert file["resources"]["autostop"].keys() <= SKYPILOT_KEYS["resources.autostop"]
    for choice in file["resources"]["ordered"]:
        assert choice.keys() <= SKYPILOT_KEYS["resources"] - {"any_of", "ordered"}
    assert [choice["use_spot"] for choice in file["resources"]["ordered"]] == [True, True, False, False]
    assert all(isinstance(value, str) for value in file["envs"].values())  # a number is refused there


def test_skypilot_starts_a_ray_of_its_own_and_ends_no_other():
    file = read("skypilot")
    assert "--port=6379" in file["run"] and "--dashboard-host=127.0.0.1" in file["run"]
    assert not re.search(r"^\s*ray stop", file["run"], re.M)
    assert file["envs"]["RAY_AUTH_MODE"] == "token" and "~/.ray/auth_token" in file["file_mounts"]


def skypilot_nodes():
    """The least that SkyPilot gives, as Ray's cluster file: nodes of one kind, all there from the start."""
    file = read("skypilot")
    wanted = file["resources"]
    (gpus,) = {int(choice["accelerators"].partition(":")[2]) for choice in wanted["ordered"]}
    node = {
        "CPU": int(wanted["cpus"].rstrip("+")),
        "GPU": gpus,
        "memory": int(wanted["memory"].rstrip("+")) * 2**30 * 7 // 10,  # Ray keeps the rest for its objects
    }
    workers = file["num_nodes"] - 1
    node_type = {"resources": node, "node_config": {}, "min_workers": workers, "max_workers": workers}
    return {"max_workers": workers, "head_node_type": "node", "available_node_types": {"node": node_type}}


# ---- recipes -------------------------------------------------------------------------

CLUSTERS = {"aws": CLUSTER / "aws.yaml", "gcp": CLUSTER / "gcp.yaml", "skypilot": skypilot_nodes()}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", CLUSTERS)
def test_a_recipe_fits(name, recipe):
    assert why_not(load_config(recipe), CLUSTERS[name]) is None


@pytest.mark.parametrize(
    ("recipe", "changes", "reason"),
    [
        ("paper-rerank-depth100", ["workers.replicas=9"], "9 replicas of 1 CPUs and 1 GPUs each"),
        (
            "paper-rerank-depth100",
            ["workers.tensor_parallel=2", "workers.gpus=null"],
            "4 replicas of 1 CPUs and 2 GPUs",
        ),
        ("paper-rerank-depth100", ["workers.accelerator=H100"], "no node has one; the cluster's are ['L40S']"),
        ("paper-synthesize", ["workers.replicas=9"], "do not fit into the cluster's nodes"),
    ],
)
def test_why_a_recipe_does_not_fit(recipe, changes, reason):
    config = load_config(REPOSITORY / "jobs" / "recipes" / f"{recipe}.yaml", changes)
    assert reason in why_not(config, CLUSTERS["aws"])


def test_an_accelerator_is_found_by_ray_s_name():
    recipe = REPOSITORY / "jobs" / "recipes" / "paper-train.yaml"
    assert why_not(load_config(recipe, ["workers.accelerator=L40S"]), CLUSTERS["aws"]) is None
    assert why_not(load_config(recipe, ["workers.accelerator=A100"]), CLUSTERS["gcp"]) is None
