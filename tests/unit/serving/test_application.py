"""What Ray Serve calls where others run it: the application's builder, and the checks in front of its proxies."""

import pytest
from ray import serve
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call_builder
from uvicorn.protocols.http import auto

from limrank.cluster import growth
from limrank.errors import UserError
from limrank.serving import application
from limrank.serving.access import Guard
from limrank.serving.protocol import API, SCORER

KEY = "k" * 32


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Writes the recipe that the environment names."""

    def write(text="", serving="{host: 0.0.0.0}", keys=f"web={KEY}"):
        path = tmp_path / "serve.yaml"
        path.write_text(f"job: serve\nrun_dir: runs/serve\nengine: {{kind: fake}}\nserving: {serving}\n{text}")
        monkeypatch.setenv(application.RECIPE, str(path))
        monkeypatch.delenv("LIMRANK_API_KEYS", raising=False)
        if keys:
            monkeypatch.setenv("LIMRANK_API_KEYS", keys)

    return write


@pytest.fixture(autouse=True)
def nodes(monkeypatch):
    """The nodes of the cluster that the builder runs on."""
    found = [{"CPU": 4.0, "memory": 2.0**34}]
    monkeypatch.setattr(growth, "look", lambda: growth.Growth(found))
    return found


def built(args=None):
    """As Serve calls a builder: the application, and its deployments by name."""
    app = call_builder(application.build, args or {})
    assert isinstance(app, serve.Application)
    api = app._bound_deployment
    scorer = api.init_args[0]._bound_deployment
    return {deployment.name: deployment for deployment in (api, scorer)}


def test_the_application_of_a_recipe(recipe):
    recipe("workers: {replicas: [1, 3], cpus: 2}")
    deployments = built()
    assert deployments.keys() == {API, SCORER}
    assert deployments[SCORER].ray_actor_options["num_cpus"] == 2
    scaling = deployments[SCORER]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 3)


def test_a_refused_engine_fails_its_replica(recipe):
    """The replica raises the error of its engine, and does not keep it for who asks."""
    recipe()
    assert built()[SCORER].init_kwargs == {"strict": True}


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"text": "scoring: {mode: none}"}, "scoring.mode none gives no scores to serve"),
        ({"keys": None, "serving": "{}"}, "anyone who reaches it could use the server: set API keys"),
        ({"keys": None}, "anyone who reaches it could use the server: set API keys"),
        ({"text": "workers: {replicas: 9}"}, "9 replicas of 1 CPUs each"),
        ({"text": "modle: {id: a}"}, "modle"),
    ],
)
def test_a_recipe_that_cannot_be_served_is_refused(recipe, given, fault):
    recipe(**given)
    with pytest.raises(UserError, match=fault):
        built()


def test_the_recipe_is_named_by_the_environment_alone(recipe, monkeypatch):
    recipe()
    with pytest.raises(UserError, match="args: this application takes none: put recipe into the recipe"):
        built({"recipe": "another.yaml"})
    monkeypatch.delenv(application.RECIPE)
    with pytest.raises(UserError, match="LIMRANK_SERVE_RECIPE is not set"):
        built()


def test_the_proxies_check_the_same_keys_and_limits(recipe, monkeypatch):
    monkeypatch.setattr(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)
    recipe(serving="{host: 0.0.0.0, max_body_bytes: 2048, allowed_hosts: [rerank.example.com]}")
    (guard,) = [each for each in application.middlewares() if each.cls is Guard]
    access = guard.kwargs["access"]
    assert access.limits.body_bytes == 2048
    assert access.keys.name_of(KEY) == "web" and access.keys.name_of("x" * 32) is None
    assert access.hosts.accepts("rerank.example.com") and not access.hosts.accepts("elsewhere.example.com")


@pytest.mark.parametrize("serving", ["{host: 0.0.0.0}", "{}"])
def test_a_proxy_without_keys_does_not_start(recipe, serving):
    recipe(keys=None, serving=serving)
    with pytest.raises(UserError, match="set API keys"):
        application.middlewares()
