"""What KubeRay 1.7 refuses, and its CRDs do not: :func:`findings` of rendered manifests.

The rules are those of its controllers (``ray-operator/controllers/ray/utils/validation.go``) and of its types
(``ray-operator/apis/ray/v1``). The CRDs take any text for ``submissionMode`` and ``upgradeStrategy.type``, and Kubernetes
drops a key that it does not know.
"""

import copy
import re
import shlex
import subprocess
import tomllib
from shutil import which

import yaml

import limrank
from helpers import REPOSITORY
from limrank.config.recipe import load_config
from limrank.errors import UserError

OPERATOR_RAY = (2, 52)
"""The first Ray with a token."""

NAMES = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "RayCronJob": 47}
"""The longest name of a kind. KubeRay adds to it."""

SUBMISSION_MODES = {"K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"}
UPGRADES = {"NewCluster", "NewClusterWithIncrementalUpgrade", "None"}
DEPRECATED = {"serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold"}

KEYS = {
    "RayCluster": "upgradeStrategy authOptions suspend managedBy autoscalerOptions headServiceAnnotations "
    "enableInTreeAutoscaling gcsFaultToleranceOptions historyServerOptions networkPolicy tlsOptions headGroupSpec "
    "rayVersion workerGroupSpecs",
    "RayJob": "activeDeadlineSeconds backoffLimit rayClusterSpec submitterPodTemplate metadata clusterSelector "
    "submitterConfig managedBy deletionStrategy entrypoint runtimeEnvYAML jobId submissionMode entrypointResources "
    "entrypointNumCpus entrypointNumGpus ttlSecondsAfterFinished shutdownAfterJobFinishes suspend "
    "preRunningDeadlineSeconds",
    "RayCronJob": "jobTemplate schedule suspend",
    "RayService": "rayClusterDeletionDelaySeconds serviceUnhealthySecondThreshold deploymentUnhealthySecondThreshold "
    "serveService upgradeStrategy serveConfigV2 rayClusterConfig excludeHeadPodFromServeSvc",
    "head": "template headService enableIngress ingressOptions resources labels rayStartParams serviceType",
    "workers": "suspend groupName replicas minReplicas maxReplicas idleTimeoutSeconds priority resources labels "
    "rayStartParams template scaleStrategy numOfHosts",
    "autoscalerOptions": "resources image imagePullPolicy securityContext idleTimeoutSeconds upscalingMode version env "
    "envFrom volumeMounts command args",
    "authOptions": "mode secretName enableK8sTokenAuth",
    "upgradeStrategy": "type clusterUpgradeOptions",
    "clusterUpgradeOptions": "maxSurgePercent stepSizePercent intervalSeconds gatewayClassName",
}
"""The fields of KubeRay's types."""

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
RAY = next(re.search(r"==([\d.]+)\.\*", each)[1] for each in PROJECT["batch"] if each.startswith("ray["))
"""The Ray of pyproject.toml, as in 2.60."""


def renderer():
    """The command that renders a kustomization; None where there is none."""
    return next((command for command in (["kubectl", "kustomize"], ["kustomize", "build"]) if which(command[0])), None)


def rendered(folder):
    done = subprocess.run([*renderer(), str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def assembled(base):
    """The documents of a folder of manifests, as the overlay for GPUs has them: a job's cluster is the RayCluster. It needs
    no kustomize."""
    documents = [
        document
        for path in sorted(base.rglob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
        if document.get("apiVersion", "").startswith("ray.io")
    ]
    (cluster,) = [each["spec"] for each in documents if each["kind"] == "RayCluster"]
    for document in documents:
        if document["kind"] in ("RayJob", "RayCronJob"):
            document["spec"].get("jobTemplate", document["spec"])["rayClusterSpec"] = copy.deepcopy(cluster)
    return documents


def clusters(document):
    """(place, RayCluster's spec) in a manifest."""
    kind, spec = document["kind"], document.get("spec", {})
    inner = {
        "RayCluster": spec,
        "RayJob": spec.get("rayClusterSpec"),
        "RayCronJob": (spec.get("jobTemplate") or {}).get("rayClusterSpec"),
        "RayService": spec.get("rayClusterConfig"),
    }.get(kind)
    return [(f"{kind} {document['metadata']['name']}", inner)] if inner else []


def groups(cluster):
    return [("head", cluster["headGroupSpec"])] + [
        (f"workers {group.get('groupName')}", group) for group in cluster.get("workerGroupSpecs", [])
    ]


def findings(documents):
    """What is wrong with manifests, each in one line that begins with its place."""
    found = []
    for document in documents:
        kind, name = document["kind"], document["metadata"]["name"]
        if kind not in NAMES:
            continue
        where, spec = f"{kind} {name}", document["spec"]
        if len(name) > NAMES[kind]:
            found.append(f"{where}: its name has more than {NAMES[kind]} characters")
        if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
            found.append(f"{where}: its name is no DNS label")
        found += [
            f"{where}: {each}"
            for each in {"RayJob": _job, "RayCronJob": _cron, "RayService": _service}.get(kind, _nothing)(spec)
        ]
        found += [f"{where}: unknown key {key}" for key in _unknown(kind, spec)]
        for _, cluster in clusters(document):
            found += [f"{where}: {each}" for each in _cluster(cluster)]
    return found


def _nothing(_):
    return []


def _unknown(of, values):
    return sorted(values.keys() - set(KEYS[of].split()))


def _job(spec):
    mode, selector = spec.get("submissionMode", "K8sJobMode"), spec.get("clusterSelector")
    backoff, ttl, shutdown = (
        spec.get("backoffLimit", 0),
        spec.get("ttlSecondsAfterFinished", 0),
        spec.get("shutdownAfterJobFinishes"),
    )
    if mode not in SUBMISSION_MODES:
        yield f"submissionMode {mode} is none of {sorted(SUBMISSION_MODES)}"
    if not spec.get("rayClusterSpec") and not selector:
        yield "has neither rayClusterSpec nor clusterSelector"
    if selector is not None and not selector.get("ray.io/cluster"):
        yield "clusterSelector does not name a cluster (ray.io/cluster)"
    if backoff < 0:
        yield "backoffLimit is negative"
    if backoff and selector:
        yield "backoffLimit does not go with clusterSelector"
    if backoff and mode == "InteractiveMode":
        yield "backoffLimit does not go with InteractiveMode"
    if ttl < 0:
        yield "ttlSecondsAfterFinished is negative"
    if ttl and not shutdown:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if spec.get("suspend") and not shutdown:
        yield "suspend needs shutdownAfterJobFinishes"
    if spec.get("suspend") and selector:
        yield "suspend does not go with clusterSelector"
    if spec.get("activeDeadlineSeconds", 1) <= 0:
        yield "activeDeadlineSeconds is not positive"
    if shutdown and (spec.get("deletionStrategy") or {}).get("deletionRules"):
        yield "deletionRules do not go with shutdownAfterJobFinishes"
    if mode == "SidecarMode":
        for key in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            if spec.get(key):
                yield f"{key} does not go with SidecarMode"
    if mode == "InteractiveMode":
        return
    yield from _entrypoint(spec.get("entrypoint", ""))


def _entrypoint(line):
    """What is wrong with a job's command: it is ``python jobs/JOB.py jobs/recipes/NAME.yaml -s KEY=VALUE …``."""
    words = shlex.split(line)
    if words[:1] != ["python"] or len(words) < 3 or re.search(r"[$`;&|<>]", line):
        yield f"entrypoint {line!r} is not `python jobs/JOB.py RECIPE -s …` without a shell's signs"
        return
    script, recipe, changes = words[1], words[2], words[4::2]
    if not (REPOSITORY / script).is_file() or not script.startswith("jobs/"):
        yield f"entrypoint: there is no {script}"
    elif not (REPOSITORY / recipe).is_file():
        yield f"entrypoint: there is no {recipe}"
    elif set(words[3::2]) - {"-s"}:
        yield f"entrypoint: {words[3::2]} are not all -s"
    else:
        try:
            config = load_config(REPOSITORY / recipe, changes, script.removeprefix("jobs/").removesuffix(".py"))
        except UserError as error:
            yield f"entrypoint: {error}"
        else:
            if not config.run_dir.startswith(("s3://", "gs://")):
                yield f"entrypoint: run_dir {config.run_dir} is lost with its pod"


def _cron(spec):
    if not re.fullmatch(r"(\S+\s+){4}\S+", str(spec.get("schedule", ""))) or not all(
        re.fullmatch(r"[\d*,/-]+", field) for field in spec["schedule"].split()
    ):
        yield f"schedule {spec.get('schedule')!r} is not five fields of cron"
    template = spec.get("jobTemplate")
    if not template:
        yield "has no jobTemplate"
        return
    yield from (f"jobTemplate: {each}" for each in _job(template))
    yield from (f"jobTemplate: unknown key {key}" for key in _unknown("RayJob", template))


def _service(spec):
    strategy = spec.get("upgradeStrategy") or {}
    kind, cluster = strategy.get("type", "NewCluster"), spec["rayClusterConfig"]
    options = strategy.get("clusterUpgradeOptions")
    yield from (f"upgradeStrategy: unknown key {key}" for key in _unknown("upgradeStrategy", strategy))
    yield from (f"{key} is deprecated" for key in sorted(DEPRECATED & spec.keys()))
    if kind not in UPGRADES:
        yield f"upgradeStrategy.type {kind} is none of {sorted(UPGRADES)}"
    if kind == "NewClusterWithIncrementalUpgrade":
        if not cluster.get("enableInTreeAutoscaling"):
            yield "NewClusterWithIncrementalUpgrade needs enableInTreeAutoscaling"
        if options is None:
            yield "NewClusterWithIncrementalUpgrade needs clusterUpgradeOptions"
        else:
            yield from _upgrade_options(options)
    elif options is not None:
        yield f"clusterUpgradeOptions do not go with {kind}"
    yield from _serve(spec.get("serveConfigV2", ""), cluster)


def _upgrade_options(options):
    yield from (f"clusterUpgradeOptions: unknown key {key}" for key in _unknown("clusterUpgradeOptions", options))
    for key, otherwise in (("maxSurgePercent", 100), ("stepSizePercent", -1)):
        if not 0 <= options.get(key, otherwise) <= 100:
            yield f"clusterUpgradeOptions.{key} is not between 0 and 100"
    if options.get("intervalSeconds", 0) <= 0:
        yield "clusterUpgradeOptions.intervalSeconds is not above 0"
    if not options.get("gatewayClassName"):
        yield "clusterUpgradeOptions.gatewayClassName is missing"


def _serve(text, cluster):
    """Our application in Ray Serve's config, and what each pod needs for it."""
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    from limrank.serving import application
    from limrank.serving.protocol import APP

    try:
        config = ServeDeploySchema.model_validate(yaml.safe_load(text))
    except (ValidationError, ValueError, yaml.YAMLError) as error:
        yield f"serveConfigV2: {str(error).splitlines()[0]}"
        return
    if [app.name for app in config.applications] != [APP]:
        yield f"serveConfigV2: its application is not called {APP}"
    if [app.import_path for app in config.applications] != [f"{application.__name__}:{application.build.__name__}"]:
        yield "serveConfigV2: its import_path is not limrank.serving.application:build"
    for where, group in groups(cluster):
        container = group["template"]["spec"]["containers"][0]
        env = {each["name"]: each.get("value") for each in container.get("env", [])}
        mounts = tuple(each["mountPath"] for each in container.get("volumeMounts", []))
        if not (env.get(application.RECIPE) or "").startswith(tuple(f"{mount}/" for mount in mounts)):
            yield f"{where}: {application.RECIPE} names no file of a volume"
        callback = env.get("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH")
        if callback != f"{application.__name__}.{application.middlewares.__name__}":
            yield f"{where}: its proxy checks no requests (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH)"
        if "LIMRANK_API_KEYS" not in env or env["LIMRANK_API_KEYS"]:
            yield f"{where}: LIMRANK_API_KEYS is not from a Secret"
        ports = {each["containerPort"] for each in container.get("ports", [])}
        if config.http_options.port not in ports:
            yield f"{where}: port {config.http_options.port} of Serve is not open"
        probe = str((container.get("readinessProbe") or {}).get("exec", {}).get("command"))
        ready = f":{config.http_options.port}/readyz" in probe
        if where == "head" and ready:
            yield f"{where}: it is never ready: engines start once it is"
        if where != "head" and not ready:
            yield f"{where}: its readiness does not ask /readyz"


def _cluster(cluster):
    yield from (f"unknown key {key}" for key in _unknown("RayCluster", cluster))
    version = str(cluster.get("rayVersion", ""))
    if not version.startswith(f"{RAY}."):
        yield f"rayVersion {version} is not pyproject's {RAY}"
    auth = cluster.get("authOptions") or {}
    yield from (f"authOptions: unknown key {key}" for key in _unknown("authOptions", auth))
    if auth.get("mode") != "token":
        yield "authOptions.mode is not token: anyone who reaches the cluster runs code on it"
    elif not re.match(r"\d+\.\d+", version) or tuple(map(int, version.split(".")[:2])) < OPERATOR_RAY:
        yield f"authOptions.mode token needs rayVersion 2.52 or later, not {version}"
    options = cluster.get("autoscalerOptions") or {}
    yield from (f"autoscalerOptions: unknown key {key}" for key in _unknown("autoscalerOptions", options))
    if options.get("upscalingMode", "Default") not in ("Default", "Aggressive", "Conservative"):
        yield f"autoscalerOptions.upscalingMode {options['upscalingMode']}"
    if options.get("version", "v2") not in ("v1", "v2"):
        yield f"autoscalerOptions.version {options['version']}"
    names = [group.get("groupName") for group in cluster.get("workerGroupSpecs", [])]
    if len(set(names)) < len(names):
        yield f"two groups of workers have one name: {names}"
    for where, group in groups(cluster):
        yield from (f"{where}: {each}" for each in _group(where, group, cluster))


def _group(where, group, cluster):
    yield from (f"unknown key {key}" for key in _unknown("head" if where == "head" else "workers", group))
    params, resources = group.get("rayStartParams", {}), group.get("resources", {})
    if resources and {"num-cpus", "num-gpus", "memory", "resources"} & params.keys():
        yield "resources are in rayStartParams, too"
    if "labels" in params:
        yield "rayStartParams.labels is not supported"
    if not all(isinstance(value, str) for value in [*params.values(), *resources.values()]):
        yield "a value of rayStartParams or resources is no text"
    if where != "head":
        fewest, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if not fewest <= group.get("replicas", fewest) <= most:
            yield f"replicas are not between minReplicas {fewest} and maxReplicas {most}"
    pod = group["template"]["spec"]
    if cluster.get("enableInTreeAutoscaling") and pod.get("restartPolicy", "Never") != "Never":
        yield "restartPolicy does not go with the autoscaler"
    if not pod.get("containers"):
        yield "has no container"
        return
    if pod.get("securityContext", {}).get("runAsNonRoot") is not True:
        yield "may run as root"
    yield from _container(pod["containers"][0], pod, resources)


def _container(container, pod, resources):
    own = container.get("resources", {})
    requests, limits = own.get("requests", {}), own.get("limits", {})
    if not {"cpu", "memory"} <= requests.keys() & limits.keys():
        yield "requests and limits do not both have cpu and memory"
    for name, wanted in requests.items():
        if name in limits and quantity(wanted) > quantity(limits[name]):
            yield f"requests of {name} {wanted} are above the limit {limits[name]}"
    for name, counted in (("memory", resources.get("memory")), ("cpu", resources.get("CPU"))):
        if counted and name in limits and quantity(counted) > quantity(limits[name]):
            yield f"resources count {counted} of {name}, and the pod has {limits[name]}"
    gpus = limits.get("nvidia.com/gpu", "0")
    if quantity(resources.get("GPU", gpus)) != quantity(gpus):
        yield f"resources count {resources['GPU']} GPUs, and the pod has {gpus}"
    tolerated = any(
        each.get("key") in ("nvidia.com/gpu", None) and each.get("operator", "Equal") == "Exists"
        for each in pod.get("tolerations", [])
    )
    if quantity(gpus) and not tolerated:
        yield "has GPUs and does not tolerate nvidia.com/gpu"
    name, _, tag = container["image"].rpartition(":")
    version, _, kind = tag.partition("-")
    if not name.endswith("limrank") or version != limrank.__version__ or kind not in ("cpu", "cuda"):
        yield f"image {container['image']} is not limrank:{limrank.__version__}-cpu or -cuda"
    if quantity(gpus) and kind != "cuda":
        yield f"has GPUs, and the image is {container['image']}"


def quantity(text):
    """The number of a quantity of Kubernetes: ``500m`` is 0.5."""
    number, unit = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(text)).groups()
    return (
        float(number)
        * {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[unit]
    )


def autoscaling_config(document):
    """A manifest's node types in the form of Ray's cluster files, by Ray's own reading of a RayCluster."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    ((_, cluster),) = clusters(document)
    return _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "a", "namespace": "default"}, "spec": cluster})
