"""The server as KubeRay deploys it: its Serve config through the dashboard of a real cluster, the fake engine."""

import socket
import time
from pathlib import Path

import httpx
import pytest
import yaml

from helpers import REPOSITORY
from limrank.cluster.local import local_cluster
from limrank.config import RERANKER
from limrank.serving import application

KEY = "k" * 32
PATIENCE_S = 120
KUBERAY = REPOSITORY / "cluster" / "kuberay" / "base" / "rayservice.yaml"
RECIPE = """
job: serve
run_dir: runs/serve
engine: {{kind: fake, fail_start: {refused}}}
serving: {{host: 0.0.0.0}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return tmp_path_factory.mktemp("recipe") / "serve.yaml"


@pytest.fixture(scope="module")
def deploy(recipe):
    """Deploys the manifest's Serve config, and gives what the dashboard then says of the application."""
    service = yaml.safe_load(KUBERAY.read_text())["spec"]
    head = service["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    variables = {each["name"]: each["value"] for each in head["env"] if each["name"].startswith("RAY_SERVE")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setenv(application.RECIPE, str(recipe))
        patch.setenv("LIMRANK_API_KEYS", f"web={KEY}")
        with local_cluster(4) as cluster:
            token = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
            dashboard = httpx.Client(
                base_url=cluster.address, headers={"Authorization": f"Bearer {token}"}, timeout=60, trust_env=False
            )

            def deployed(port, attempt):
                config = yaml.safe_load(service["serveConfigV2"])
                config["http_options"] |= {"host": "127.0.0.1", "port": port}
                # Serve builds an application again where its config has changed.
                config["applications"][0]["runtime_env"] = {"env_vars": {"ATTEMPT": attempt}}
                dashboard.put("/api/serve/applications/", json=config).raise_for_status()
                deadline = time.monotonic() + PATIENCE_S
                while time.monotonic() < deadline:
                    found = dashboard.get("/api/serve/applications/").json()["applications"].get("limrank", {})
                    if found.get("status") in ("RUNNING", "DEPLOY_FAILED", "UNHEALTHY"):
                        return found
                    time.sleep(0.5)
                raise AssertionError(f"not deployed: {found}")

            yield deployed


def get(port, path, **options):
    return httpx.request("GET", f"http://127.0.0.1:{port}{path}", timeout=60, trust_env=False, **options)


def test_a_refused_engine_is_never_ready_and_a_good_one_is(deploy, recipe):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    recipe.write_text(RECIPE.format(refused="true"))
    failed = deploy(port, "1")
    assert failed["status"] == "DEPLOY_FAILED"
    with pytest.raises(httpx.HTTPError):
        get(port, "/readyz").raise_for_status()

    recipe.write_text(RECIPE.format(refused="false"))
    assert deploy(port, "2")["status"] == "RUNNING"
    assert _soon(lambda: get(port, "/readyz").status_code == 200)
    body = {"query": "q", "documents": ["a", "b"]}
    url = f"http://127.0.0.1:{port}/v1/rerank"
    refused = httpx.post(url, json=body, trust_env=False, timeout=60)
    assert refused.status_code == 401 and refused.json()["error"]["code"] == "missing_api_key"
    answer = httpx.post(url, json=body, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False, timeout=60)
    assert answer.status_code == 200 and answer.json()["model"] == RERANKER
    assert len(answer.json()["results"]) == 2


def _soon(holds):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if holds():
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    return False
