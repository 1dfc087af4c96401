"""Ray Serve's application of a server: deployed, updated while it answers, and ended."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from limrank.cluster.resources import reserve
from limrank.cluster.waiting import free
from limrank.config import ServeJob
from limrank.engines import EngineSource, EngineSpec
from limrank.errors import EngineError, UserError, first_line
from limrank.scoring import with_prompt_text
from limrank.scoring.calibration import fingerprint, read_calibration
from limrank.serving import draining
from limrank.serving.access import Access
from limrank.serving.protocol import APP, SCORER, Served

if TYPE_CHECKING:
    from ray import serve

_SHUTDOWN_S = 30.0

DRAIN_S = 20.0
"""Time that running requests have when the server stops. Kubernetes kills a pod after 30 s."""

_FIXED = ("host", "port", "max_body_bytes", "receive_timeout_s", "allowed_hosts", "keys_file")
"""Keys of ``serving`` that Serve's proxy has from its start."""


@dataclass(frozen=True)
class Versions:
    """A version of each deployment. Serve replaces the replicas of another version, and only those."""

    scorer: str
    api: str

    @classmethod
    def of(cls, config: ServeJob) -> Versions:
        scorer = {
            "model": config.model.model_dump(mode="json"),
            "engine": config.engine.model_dump(mode="json"),
            "workers": config.workers.model_dump(mode="json", exclude={"replicas"}),
            "scoring": with_prompt_text(config.scoring).model_dump(mode="json"),
            "calibration": fingerprint(read_calibration(config.scoring.calibration)),
            "seed": config.seed,
        }
        api = scorer | {
            "replicas": config.workers.replicas,
            "serving": config.serving.model_dump(mode="json"),
        }
        return cls(_digest(scorer), _digest(api))


def check_update(old: ServeJob, new: ServeJob) -> None:
    """Raises UserError for a key that cannot change while a server runs."""
    for key in _FIXED:
        if getattr(old.serving, key) != getattr(new.serving, key):
            raise UserError(f"serving.{key} cannot change while the server runs: start it again")


@dataclass
class Server:
    """A server that runs.

    Attributes:
        config: what it serves now.
        access: limits, hosts and keys.
        secret: with it Serve's proxy can be drained.
    """

    config: ServeJob
    access: Access
    insecure: bool = False
    url: str = ""
    secret: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    def start(self, source: EngineSource, wanted: dict[str, Any]) -> None:
        """Deploy the application, and wait for its engines.

        Args:
            wanted: the resources of a replica.

        Raises:
            UserError: an engine refuses its settings.
            EngineError: an engine did not start.
        """
        deploy(self._application(self.config, source, self.access, wanted))
        _check_ready()

    def update(self, config: ServeJob) -> bool:
        """Serve another recipe, without a failed request: Serve replaces one replica after another. Where the cluster
        has room for one more engine, the new one is up before an old one goes. False if nothing changes.

        Raises:
            UserError: a key cannot change, or is refused by an engine. The old recipe is still served.
            EngineError: an engine did not start. The old recipe is still served.
        """
        check_update(self.config, config)
        access = Access.of(config.serving, self.access.keys, insecure=self.insecure)
        if Versions.of(config) == Versions.of(self.config):
            return False
        source = EngineSpec(config.model, config.engine, config.workers.tensor_parallel)
        wanted = reserve([source], config.workers, config.workers.min_replicas)
        try:
            deploy(self._application(config, source, access, wanted, update=True))
        except EngineError:
            old = self.config
            source = EngineSpec(old.model, old.engine, old.workers.tensor_parallel)
            wanted = reserve([source], old.workers, old.workers.min_replicas)
            deploy(self._application(old, source, self.access, wanted, update=True))
            raise
        self.config, self.access = config, access
        return True

    def drain(self) -> None:
        """Answer the running requests, for :data:`DRAIN_S` at most, and refuse others."""
        import httpx

        headers = {draining.SECRET: self.secret, draining.SECONDS: str(DRAIN_S)}
        try:
            httpx.post(f"{self.url}{draining.PATH}", headers=headers, timeout=DRAIN_S + 5, trust_env=False)
        except httpx.HTTPError:
            return  # nobody answers, so nothing runs

    @staticmethod
    def _application(
        config: ServeJob, source: EngineSource, access: Access, wanted: dict[str, Any], *, update: bool = False
    ) -> serve.Application:
        from limrank.serving.app import application

        served = Served.of(config.model, config.scoring, config.seed)
        surge = update and has_room(wanted)
        return application(config, source, served, wanted, access, Versions.of(config), update=update, surge=surge)


def has_room(wanted: dict[str, Any]) -> bool:
    """Whether a node has one replica's resources left now."""
    return free(wanted) > 0


def deploy(app: serve.Application) -> None:
    """Deploy, or update, and wait until all replicas are of this version. Raises EngineError if they do not start."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        serve.run(app, name=APP, route_prefix="/")
    except RuntimeError as error:
        raise EngineError(f"the server did not come up: {_why_not(error)}") from error
    except (RayError, RayServeException, TimeoutError) as error:
        raise EngineError(f"the server did not come up: {first_line(error)}") from error


def _check_ready() -> None:
    """Raises UserError if the engines refuse their settings."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        # A process of its own asks, and ends with the answer: a handle keeps polling the controller,
        # and Ray would report its last call as failed when Serve ends.
        ray.get(ray.remote(num_cpus=0, max_calls=1)(_ask_whether_ready).remote())
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def _ask_whether_ready() -> None:
    from ray import serve
    from ray.exceptions import RayTaskError

    try:
        serve.get_deployment_handle(SCORER, app_name=APP).ready.remote().result()
    except RayTaskError as error:
        raise error.cause from None


def shut_down() -> None:
    """End Serve. Its own ``shutdown`` waits for a call that ends with the controller, and Ray would
    report that call as failed and retried for ever, so the controller is ended first, without retries."""
    import ray
    from ray import serve
    from ray.exceptions import RayActorError
    from ray.serve.context import _get_global_client
    from ray.serve.exceptions import RayServeException

    try:
        controller = _get_global_client()._controller
        ray.get(controller.graceful_shutdown.options(max_task_retries=0).remote(), timeout=_SHUTDOWN_S)
    except (RayActorError, RayServeException, TimeoutError):
        pass  # it has ended, or never started
    serve.shutdown()


def silence_controller_retries() -> None:
    """Keep one message of Ray's from stdout: that a call of the controller is retried for ever. Routers
    and proxies poll the controller, and print the message when Serve ends it."""
    from ray._private import worker

    print_it = worker.print_to_stdstream
    if getattr(print_it, "__module__", "") == __name__:
        return

    def print_others(data: dict[str, Any], **options: Any) -> None:
        if not any(line.startswith("Task ServeController.") for line in data.get("lines", ())):
            print_it(data, **options)

    worker.print_to_stdstream = print_others


def _why_not(error: RuntimeError) -> str:
    """The error of a replica's constructor: the last line of the traceback that Serve keeps."""
    from ray import serve

    application = serve.status().applications.get(APP)
    scorer = application.deployments.get(SCORER) if application else None
    lines = [line for line in (scorer.message if scorer else "").splitlines() if line.strip()]
    return re.sub(r"^limrank\.errors\.\w+: ", "", lines[-1].strip()) if lines else str(error)


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
