"""Connecting a job to Ray: to a cluster of its own, or to a running one."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from limrank import signals
from limrank.cluster import state
from limrank.cluster.addresses import check_ray
from limrank.config import is_uri
from limrank.errors import UserError
from limrank.parsing import without_credentials

LOOPBACK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With 0, the default on the systems in its name, a node's address is 127.0.0.1 and all its servers
listen there, instead of on every interface. Ray takes no second node then."""

MIN_LOGICAL_CPUS = 4
"""Logical CPUs may exceed the cores. An engine uses the cores whatever Ray counts, and Ray Data's own
small tasks need slots, too."""

_STDERR = 2
"""The file descriptor of standard error."""

_THREAD_ENDS_S = 10.0
"""Time limit for the end of a Ray Data execution."""


def default_address() -> str:
    named = without_credentials(os.environ.get("RAY_ADDRESS"), "RAY_ADDRESS") or ""
    return "local" if named.strip() in ("", "local") else "auto"


def prepare_environment(address: str = "auto") -> str | None:
    """Set the environment variables that Ray reads when it is imported, except those that the user has set.

    A cluster with a token (Ray's default since 2.60) refuses clients without RAY_AUTH_MODE. The token
    is in the file that ``ray start`` wrote, or that of the cluster of ``limrank cluster up`` that the address means.

    Args:
        address: ``local``, ``auto``, or that of a dashboard or a head.

    Returns:
        What ``ray.init`` takes for a cluster of ``limrank cluster up``; None: the address means none.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A thread that calls Ray after its shutdown must not start another cluster.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    if address == "local":
        os.environ.setdefault(LOOPBACK_SWITCH, "0")
        _keep_token_private()
    standing = _adopt(address)
    # With Ray Data's actors Ray's core logs a warning at every start. Its errors come as
    # exceptions anyway.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if _token_file().is_file() or os.environ.get("RAY_AUTH_TOKEN"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if "ray._raylet" in sys.modules:
        _reread_environment()
    return standing


def _adopt(address: str) -> str | None:
    """Take the token of the standing cluster that an address means, and give the address of its head."""
    if address == "auto":
        address = (os.environ.get("RAY_ADDRESS") or "").strip() or "auto"
    if address == "local" or (standing := state.meant_by(address)) is None:
        return None
    if not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(standing.folder / state.TOKEN)
    if standing.nodes == 1:
        os.environ.setdefault(LOOPBACK_SWITCH, "0")
    return standing.gcs


def _reread_environment() -> None:
    """Have Ray read the variables again: a script may import Ray before it calls limrank."""
    import ray
    from ray._private import auto_init_hook, ray_constants

    if ray.is_initialized():
        return
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
    auto_init_hook.enable_auto_connect = os.environ["RAY_ENABLE_AUTO_CONNECT"] != "0"
    ray_constants.ENABLE_RAY_CLUSTER = ray_constants.env_bool(LOOPBACK_SWITCH, ray_constants.ENABLE_RAY_CLUSTER)


def _token_file() -> Path:
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _keep_token_private() -> None:
    """Create Ray's token with permissions for its owner only. Ray would let everybody read it."""
    path = _token_file()
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    with contextlib.suppress(OSError):  # Ray reports a home directory that cannot be written
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            path.chmod(0o600)
        else:
            with open(descriptor, "w") as file:
                file.write(secrets.token_hex(32))


@contextmanager
def connect(address: str, *, paths: Iterable[str] = ()) -> Iterator[None]:
    """Connect to a Ray cluster for the ``with`` block, unless this process is connected already.

    Args:
        address: ``local`` starts a cluster that ends with the block; ``auto`` attaches to a running one: that of
            RAY_ADDRESS, else that of ``limrank cluster up``, else the one that was last started on this machine.
        paths: local paths that every node must see.

    Raises:
        UserError: there is no cluster to attach to, or a node does not see a path.
    """
    standing = prepare_environment(address)
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        # An interrupted start of a local cluster would leave processes behind.
        with signals.deferred() if address == "local" else contextlib.nullcontext():
            _initialise(standing or address)
        check_paths(paths)
        yield
    finally:
        with signals.deferred():
            _end_data_threads()
            ray.shutdown()


def _initialise(address: str) -> None:
    import ray
    from ray._private import utils

    own, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda handler: None
    try:
        if address == "local":
            cpus = max(MIN_LOGICAL_CPUS, os.cpu_count() or 1)
            with _quiet_processes():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="warning",
                )
        else:
            check_ray(None if address == "auto" else address)  # ray.init would wait for ever
            ray.init(address=address, log_to_driver=False, logging_level="warning")
    except ConnectionError as error:
        raise UserError(
            "--address auto: no running Ray cluster found; `limrank cluster up` starts one, `--address local` needs none"
        ) from error
    finally:
        utils.set_sigterm_handler = own
        # Ray's core has installed a signal handler of its own, which dumps the stack and aborts.
        signals.take_over()


@contextlib.contextmanager
def _quiet_processes() -> Iterator[None]:
    """Processes that start inside have no stderr. Ray's processes write to it until they have a log,
    for example a stack dump when they are ended that early."""
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, _STDERR)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)
        os.close(devnull)


def _end_data_threads() -> None:
    """End Ray Data's executions. An execution that was interrupted before its first block continues in a
    thread, and a thread that calls Ray during its shutdown crashes the process."""
    for thread in threading.enumerate():
        if thread.name.startswith("StreamingExecutor"):
            thread.shutdown(force=True)
            thread.join(_THREAD_ENDS_S)


def check_paths(paths: Iterable[str]) -> None:
    """Raises UserError where a node of the cluster does not see a local path as this one does."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    local = [path for path in paths if not is_uri(path)]
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not local or len(nodes) < 2:
        return
    for path in local:
        folder = Path(path)
        if not folder.is_dir():
            continue
        mark = folder / f".seen-{uuid.uuid4().hex}"
        mark.touch()
        try:
            for node in nodes:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                sees = ray.remote(os.path.exists).options(num_cpus=0, scheduling_strategy=there)
                if not ray.get(sees.remote(str(mark))):
                    raise UserError(
                        f"{path}: node {node['NodeManagerAddress']} does not see it; "
                        "with several nodes take a shared path or an s3:// one"
                    )
        finally:
            mark.unlink()
