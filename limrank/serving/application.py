"""A recipe's server for a Ray Serve that others run: KubeRay's RayService, or ``serve deploy``.

Their config names :func:`build` (``import_path: limrank.serving.application:build``) and calls the application
``limrank``. Every node has these variables:

- ``LIMRANK_SERVE_RECIPE``: the recipe of ``limrank serve``, a file that each node has;
- ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``: ``limrank.serving.application.middlewares``;
- ``LIMRANK_API_KEYS``, or a keys file that the recipe names, on each node.

Address and port are Serve's there, whatever ``serving.host`` says. Without keys neither starts.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from limrank.cluster.resources import reserve
from limrank.config import ServeJob
from limrank.config.recipe import load_config
from limrank.engines import EngineSpec
from limrank.errors import UserError
from limrank.serving.access import Access
from limrank.serving.deploying import Versions
from limrank.serving.job import check_config
from limrank.serving.protocol import Served
from limrank.serving.proxy import stack

if TYPE_CHECKING:
    from ray import serve
    from starlette.middleware import Middleware

RECIPE = "LIMRANK_SERVE_RECIPE"


def build(args: dict[str, Any]) -> serve.Application:
    """The application of the recipe. Serve calls it on the cluster.

    An engine that refuses its settings fails the deployment, so its server never says that it is ready.

    Args:
        args: what Serve's config has under ``args``: nothing. Serve's proxies do not see it, and check requests too.

    Raises:
        UserError: there are arguments, the recipe cannot be served, keys are missing, or the cluster cannot hold the
            replicas.
    """
    from limrank.serving.app import application

    if args:
        raise UserError(f"args: this application takes none: put {', '.join(sorted(args))} into the recipe in {RECIPE}")
    config = recipe()
    check_config(config)
    access = _access(config)
    source = EngineSpec(config.model, config.engine, config.workers.tensor_parallel)
    wanted = reserve([source], config.workers, config.workers.min_replicas)
    served = Served.of(config.model, config.scoring, config.seed)
    return application(config, source, served, wanted, access, Versions.of(config), update=True)


def middlewares() -> list[Middleware]:
    """What Serve puts in front of its proxies: the checks of the recipe's ``serving`` and of the keys.

    Raises:
        UserError: as :func:`build`; the proxy does not start then.
    """
    # Serve itself drains the proxies of a cluster that is taken down, so nobody knows the secret.
    return stack(_access(recipe()), secrets.token_hex(16))


def recipe(environment: Mapping[str, str] = os.environ) -> ServeJob:
    """The recipe that ``LIMRANK_SERVE_RECIPE`` names.

    Raises:
        UserError: the variable is not set, or the file is no recipe of ``limrank serve``.
    """
    if not (path := environment.get(RECIPE)):
        raise UserError(f"{RECIPE} is not set: it names the recipe to serve, a file that every node has")
    return load_config(path, job="serve")


def _access(config: ServeJob) -> Access:
    """Who may use a server that may listen on any address."""
    return Access.of(config.serving.model_copy(update={"host": "0.0.0.0"}))
