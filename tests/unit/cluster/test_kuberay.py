"""The manifests in cluster/kuberay, as kustomize renders them: what KubeRay's controllers refuse, and which recipes fit.
No Kubernetes is asked."""

import copy
import shlex

import pytest
import yaml

from helpers import REPOSITORY
from helpers.kuberay import assembled, autoscaling_config, clusters, findings, rendered, renderer
from helpers.planning import why_not
from limrank.config import JOBS
from limrank.config.recipe import load_config

KUBERAY = REPOSITORY / "cluster" / "kuberay"
OVERLAYS = ("gpu", "cpu-try-out")
GPU_RECIPES = sorted(
    path
    for path in (REPOSITORY / "jobs" / "recipes").glob("*.yaml")
    if (load_config(path).model_dump().get("workers") or {}).get("gpus")
)


@pytest.fixture(scope="module")
def manifests():
    """Overlay → its documents."""
    if renderer() is None:
        pytest.skip("neither kubectl nor kustomize is installed")
    return {name: rendered(KUBERAY / "overlays" / name) for name in OVERLAYS}


@pytest.fixture(scope="module")
def base():
    """The documents for GPUs, without kustomize."""
    return assembled(KUBERAY / "base")


def one(documents, kind, name):
    (found,) = [each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


# ---- as they are ---------------------------------------------------------------------


def test_kuberay_takes_the_base(base):
    assert findings(base) == []


def test_the_overlay_for_gpus_is_the_base(manifests, base):
    assert len(base) == 8
    for document in base:
        found = copy.deepcopy(one(manifests["gpu"], document["kind"], document["metadata"]["name"]))
        for _, cluster in clusters(found):
            for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
                for volume in group["template"]["spec"]["volumes"]:
                    if "configMap" in volume:  # its name has its content's hash
                        volume["configMap"]["name"] = volume["configMap"]["name"].rpartition("-")[0]
        assert found == document


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberay_takes_them(manifests, overlay):
    assert findings(manifests[overlay]) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_there_is(manifests, overlay):
    kinds = sorted(each["kind"] for each in manifests[overlay] if each["apiVersion"].startswith("ray.io"))
    batch = sorted(JOBS.keys() - {"serve"})
    assert kinds == sorted(["RayCluster", "RayCronJob", "RayService", *["RayJob"] * len(batch)])
    jobs = {
        each["metadata"]["name"].removeprefix("limrank-"): each["spec"]
        for each in manifests[overlay]
        if each["kind"] == "RayJob"
    }
    assert sorted(jobs) == batch
    for name, spec in jobs.items():
        assert shlex.split(spec["entrypoint"])[1] == f"jobs/{name}.py"
        assert spec["suspend"] and spec["backoffLimit"] > 0  # `kubectl apply -k` starts none; a retry resumes
    for each in manifests[overlay]:
        assert each["metadata"]["labels"]["app.kubernetes.io/component"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_pods_name_is_there(manifests, overlay):
    documents = manifests[overlay]
    there = {(each["kind"], each["metadata"]["name"]) for each in documents}
    (policy,) = [each for each in documents if each["kind"] == "NetworkPolicy"]
    for document in documents:
        for _, cluster in clusters(document):
            for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
                pod = group["template"]
                assert ("ServiceAccount", pod["spec"]["serviceAccountName"]) in there
                assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
                for volume in pod["spec"]["volumes"]:
                    if "configMap" in volume:
                        assert ("ConfigMap", volume["configMap"]["name"]) in there
                    else:
                        assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in there


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_secret_is_in_the_files(manifests, overlay):
    assert not [each for each in manifests[overlay] if each["kind"] == "Secret"]


def test_the_nightly_jobs_and_the_cluster_are_of_one_kind(manifests):
    documents = manifests["gpu"]
    cluster = one(documents, "RayCluster", "limrank")["spec"]
    of_jobs = [spec for each in documents if each["kind"] in ("RayJob", "RayCronJob") for _, spec in clusters(each)]
    assert len(of_jobs) == 6 and all(spec == cluster for spec in of_jobs)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_server_s_recipe_can_be_served_on_its_nodes(manifests, overlay, tmp_path, monkeypatch):
    (settings,) = [each for each in manifests[overlay] if "serve.yaml" in each.get("data", {})]
    recipe = tmp_path / "serve.yaml"
    recipe.write_text(settings["data"]["serve.yaml"])
    config = load_config(recipe, job="serve")
    service = one(manifests[overlay], "RayService", "limrank-serve")
    served = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert config.serving.port == served["http_options"]["port"]
    assert config.serving.host == "0.0.0.0"  # so keys are asked for
    assert why_not(config, autoscaling_config(service)) is None
    assert (config.workers.gpus > 0) == (overlay == "gpu")


def test_a_changed_recipe_is_a_new_cluster(manifests):
    names = {
        volume["configMap"]["name"]
        for overlay in OVERLAYS
        for _, cluster in clusters(one(manifests[overlay], "RayService", "limrank-serve"))
        for volume in cluster["headGroupSpec"]["template"]["spec"]["volumes"]
        if "configMap" in volume
    }
    assert len(names) == 2 and all(name.startswith("limrank-serve-") for name in names)


# ---- recipes -------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", sorted((REPOSITORY / "jobs" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_fits_with_gpus(base, recipe):
    assert why_not(load_config(recipe), autoscaling_config(one(base, "RayCluster", "limrank"))) is None


def test_what_does_not_fit_without_gpus(manifests):
    nodes = autoscaling_config(one(manifests["cpu-try-out"], "RayCluster", "limrank"))
    for recipe in (REPOSITORY / "jobs" / "recipes").glob("*.yaml"):
        reason = why_not(load_config(recipe), nodes)
        if recipe in GPU_RECIPES:
            assert "1 GPUs each" in reason and "do not fit into the cluster's nodes" in reason
        else:
            assert reason is None, recipe.stem
    assert GPU_RECIPES


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_job_fits_into_its_own_cluster(manifests, overlay):
    for document in manifests[overlay]:
        if document["kind"] in ("RayJob", "RayCronJob"):
            spec = document["spec"].get("jobTemplate", document["spec"])
            words = shlex.split(spec["entrypoint"])
            config = load_config(REPOSITORY / words[2], words[4::2])
            assert why_not(config, autoscaling_config(document)) is None, document["metadata"]["name"]


def test_an_accelerator_is_found_by_ray_s_name(manifests):
    config = load_config(REPOSITORY / "jobs" / "recipes" / "paper-train.yaml", ["workers.accelerator=L40S"])
    assert why_not(config, autoscaling_config(one(manifests["gpu"], "RayCluster", "limrank"))) is None


# ---- what would be wrong -------------------------------------------------------------

JOB, CRON, SERVICE, CLUSTER = (
    ("RayJob", "limrank-rerank"),
    ("RayCronJob", "limrank-nightly"),
    ("RayService", "limrank-serve"),
    ("RayCluster", "limrank"),
)


def pod(cluster):
    return cluster["workerGroupSpecs"][0]["template"]["spec"]


def env(spec, name):
    (found,) = [each for each in pod(spec["rayClusterConfig"])["containers"][0]["env"] if each["name"] == name]
    return found


def entrypoint(line):
    return lambda document: document["spec"].update(entrypoint=line)


BROKEN = [
    (CLUSTER, lambda d: d["metadata"].update(name="a" * 54), "more than 53 characters"),
    (JOB, lambda d: d["metadata"].update(name="a" * 48), "more than 47 characters"),
    (SERVICE, lambda d: d["metadata"].update(name="a" * 48), "more than 47 characters"),
    (JOB, lambda d: d["metadata"].update(name="Rerank"), "no DNS label"),
    (JOB, lambda d: d["spec"].update(submissionMode="K8SJobMode"), "submissionMode K8SJobMode is none of"),
    (JOB, lambda d: d["spec"].update(shutdownAfterJobFinish=True), "unknown key shutdownAfterJobFinish"),
    (JOB, lambda d: d["spec"].update(clusterSelector={"ray.io/cluster": "limrank"}), "backoffLimit does not go with clusterSelector"),
    (JOB, lambda d: d["spec"].update(clusterSelector={"ray.io/cluster": "limrank"}), "suspend does not go with clusterSelector"),
    (JOB, lambda d: d["spec"].update(clusterSelector={"cluster": "limrank"}), "does not name a cluster"),
    (JOB, lambda d: d["spec"].update(submissionMode="InteractiveMode"), "does not go with InteractiveMode"),
    (JOB, lambda d: d["spec"].update(shutdownAfterJobFinishes=False), "ttlSecondsAfterFinished needs shutdown"),
    (JOB, lambda d: d["spec"].update(shutdownAfterJobFinishes=False), "suspend needs shutdownAfterJobFinishes"),
    (JOB, lambda d: d["spec"].update(ttlSecondsAfterFinished=-1), "ttlSecondsAfterFinished is negative"),
    (JOB, lambda d: d["spec"].update(backoffLimit=-1), "backoffLimit is negative"),
    (JOB, lambda d: d["spec"].update(activeDeadlineSeconds=0), "activeDeadlineSeconds is not positive"),
    (JOB, lambda d: d["spec"].pop("rayClusterSpec"), "neither rayClusterSpec nor clusterSelector"),
    (JOB, lambda d: d["spec"].update(submissionMode="SidecarMode", submitterConfig={"backoffLimit": 1}), "submitterConfig does not go"),
    (JOB, lambda d: d["spec"].update(deletionStrategy={"deletionRules": [{"policy": "DeleteSelf"}]}), "deletionRules do not go with"),
    (JOB, entrypoint("python jobs/rank.py jobs/recipes/rerank.yaml -s run_dir=s3://b/r"), "there is no jobs/rank.py"),
    (JOB, entrypoint("python jobs/rerank.py jobs/recipes/rank.yaml -s run_dir=s3://b/r"), "there is no jobs/recipes/rank.yaml"),
    (JOB, entrypoint("python jobs/rerank.py jobs/recipes/train.yaml -s run_dir=s3://b/r"), "this recipe is for `limrank train`"),
    (JOB, entrypoint("python jobs/rerank.py jobs/recipes/rerank.yaml -s run_dri=s3://b/r"), "run_dri"),
    (JOB, entrypoint("python jobs/rerank.py jobs/recipes/rerank.yaml"), "is lost with its pod"),
    (JOB, entrypoint("python jobs/rerank.py jobs/recipes/rerank.yaml -s run_dir=$RUNS"), "without a shell's signs"),
    (CRON, lambda d: d["spec"].update(schedule="every night"), "is not five fields of cron"),
    (CRON, lambda d: d["spec"]["jobTemplate"].update(submissionMode="HttpMode"), "submissionMode HttpMode"),
    (CRON, lambda d: d["spec"]["jobTemplate"].update(concurrencyPolicy="Forbid"), "unknown key concurrencyPolicy"),
    (CRON, lambda d: d["spec"].update(timeZone="Etc/UTC"), "unknown key timeZone"),
    (SERVICE, lambda d: d["spec"]["upgradeStrategy"].update(type="IncrementalUpgrade"), "upgradeStrategy.type IncrementalUpgrade is none of"),
    (SERVICE, lambda d: d["spec"]["upgradeStrategy"].update(type="NewCluster"), "clusterUpgradeOptions do not go with NewCluster"),
    (SERVICE, lambda d: d["spec"]["upgradeStrategy"].pop("clusterUpgradeOptions"), "needs clusterUpgradeOptions"),
    (SERVICE, lambda d: d["spec"]["upgradeStrategy"]["clusterUpgradeOptions"].update(stepSizePercent=101), "stepSizePercent is not between"),
    (SERVICE, lambda d: d["spec"]["upgradeStrategy"]["clusterUpgradeOptions"].update(intervalSeconds=0), "intervalSeconds is not above 0"),
    (SERVICE, lambda d: d["spec"]["upgradeStrategy"]["clusterUpgradeOptions"].pop("gatewayClassName"), "gatewayClassName is missing"),
    (SERVICE, lambda d: d["spec"]["rayClusterConfig"].update(enableInTreeAutoscaling=False), "needs enableInTreeAutoscaling"),
    (SERVICE, lambda d: d["spec"].update(serviceUnhealthySecondThreshold=300), "is deprecated"),
    (SERVICE, lambda d: d["spec"].update(serveConfigV2=d["spec"]["serveConfigV2"].replace("name: limrank", "name: app")), "not called limrank"),
    (SERVICE, lambda d: d["spec"].update(serveConfigV2=d["spec"]["serveConfigV2"].replace(":build", ":app")), "its import_path is not"),
    (SERVICE, lambda d: d["spec"].update(serveConfigV2=d["spec"]["serveConfigV2"].replace("8000", "9000")), "port 9000 of Serve is not open"),
    (SERVICE, lambda d: d["spec"].update(serveConfigV2="applications: [{}]"), "serveConfigV2: "),
    (SERVICE, lambda d: env(d["spec"], "LIMRANK_SERVE_RECIPE").update(value="/serve.yaml"), "names no file of a volume"),
    (SERVICE, lambda d: env(d["spec"], "LIMRANK_API_KEYS").update(value="web=abc"), "LIMRANK_API_KEYS is not from a Secret"),
    (
        SERVICE,
        lambda d: env(d["spec"], "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH").update(value="limrank.serving.proxy.middlewares"),
        "its proxy checks no requests",
    ),
    (SERVICE, lambda d: pod(d["spec"]["rayClusterConfig"])["containers"][0].pop("readinessProbe"), "does not ask /readyz"),
    (
        SERVICE,
        lambda d: d["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0].update(
            readinessProbe=pod(d["spec"]["rayClusterConfig"])["containers"][0]["readinessProbe"]
        ),
        "it is never ready",
    ),
    (CLUSTER, lambda d: d["spec"].update(rayVersion="2.51.0"), "token needs rayVersion 2.52 or later"),
    (CLUSTER, lambda d: d["spec"].update(rayVersion="2.61.0"), "rayVersion 2.61.0 is not pyproject's"),
    (CLUSTER, lambda d: d["spec"].pop("authOptions"), "authOptions.mode is not token"),
    (CLUSTER, lambda d: d["spec"]["authOptions"].update(secret="a"), "authOptions: unknown key secret"),
    (CLUSTER, lambda d: d["spec"]["autoscalerOptions"].update(upscalingMode="Fast"), "upscalingMode Fast"),
    (CLUSTER, lambda d: d["spec"]["autoscalerOptions"].update(idleTimeout=600), "unknown key idleTimeout"),
    (CLUSTER, lambda d: d["spec"]["workerGroupSpecs"][0].update(minReplicas=9), "not between minReplicas 9 and maxReplicas 8"),
    (CLUSTER, lambda d: d["spec"]["workerGroupSpecs"].append(d["spec"]["workerGroupSpecs"][0]), "have one name"),
    (CLUSTER, lambda d: d["spec"]["workerGroupSpecs"][0].update(rayStartParams={"num-gpus": "1"}), "are in rayStartParams, too"),
    (CLUSTER, lambda d: d["spec"]["workerGroupSpecs"][0].update(rayStartParams={"labels": "a=b"}), "labels is not supported"),
    (CLUSTER, lambda d: d["spec"]["workerGroupSpecs"][0].update(rayStartParams={"block": True}), "is no text"),
    (CLUSTER, lambda d: d["spec"]["workerGroupSpecs"][0]["resources"].update(GPU="2"), "count 2 GPUs, and the pod has 1"),
    (CLUSTER, lambda d: d["spec"]["workerGroupSpecs"][0]["resources"].update(memory="60Gi"), "count 60Gi of memory"),
    (CLUSTER, lambda d: pod(d["spec"]).update(restartPolicy="Always"), "restartPolicy does not go with the autoscaler"),
    (CLUSTER, lambda d: pod(d["spec"]).pop("tolerations"), "does not tolerate nvidia.com/gpu"),
    (CLUSTER, lambda d: pod(d["spec"]).pop("securityContext"), "may run as root"),
    (CLUSTER, lambda d: pod(d["spec"]).update(containers=[]), "has no container"),
    (CLUSTER, lambda d: pod(d["spec"])["containers"][0]["resources"]["requests"].update(memory="64Gi"), "above the limit 56Gi"),
    (CLUSTER, lambda d: pod(d["spec"])["containers"][0]["resources"].pop("requests"), "do not both have cpu and memory"),
    (CLUSTER, lambda d: pod(d["spec"])["containers"][0].update(image="limrank:0.0.9-cuda"), "image limrank:0.0.9-cuda is not"),
    (CLUSTER, lambda d: pod(d["spec"])["containers"][0].update(image="limrank:0.1.0-cpu"), "has GPUs, and the image is"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "breaks", "finding"), BROKEN, ids=[f"{where[0]}: {text}" for where, _, text in BROKEN]
)
def test_what_is_wrong_is_found(base, where, breaks, finding):
    document = copy.deepcopy(one(base, *where))
    breaks(document)
    assert any(finding in each for each in findings([document])), findings([document])
