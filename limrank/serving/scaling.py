"""How many engine replicas the load wants: by pairs, not by requests, of which one may have a thousand.

Ray Serve's controller runs :class:`PairsPolicy`, and gets this module pickled by value.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

PAIRS = "limrank_pairs"
"""The number that each replica reports: its pairs, from the arrival of a request to its answer."""

_REPORT_S = 1.0
_AVERAGED_S = 3.0
_GROW_AFTER_S = 1.0


def wanted_replicas(pairs: float, running: float, waiting: float, target: int) -> int:
    """Replicas so that each has at most ``target`` pairs.

    Args:
        pairs: those of the requests that replicas have.
        running: the number of those requests.
        waiting: requests that wait for a replica. They count as many pairs as the running ones have on average.
    """
    each = pairs / running if running > 0 and pairs > 0 else 1.0
    return math.ceil((pairs + waiting * each) / target)


class PairsPolicy:
    """An autoscaling policy of Ray Serve, which clips its number to the deployment's bounds and delays it."""

    def __init__(self, target_pairs: int) -> None:
        self._target = target_pairs

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        pairs = sum((context.aggregated_metrics or {}).get(PAIRS, {}).values())
        running, waiting = context.total_running_requests, context.total_queued_requests or 0.0
        return wanted_replicas(pairs, running, waiting, self._target), {}


def autoscaling(least: int, most: int, target_pairs: int, shrink_after_s: float) -> Any:
    """Serve's autoscaling configuration: up within seconds, down after ``shrink_after_s`` of less load."""
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    policy = AutoscalingPolicy(policy_function=PairsPolicy, policy_kwargs={"target_pairs": target_pairs})
    with warnings.catch_warnings():
        # Serve 2.60 deprecates metrics_interval_s, and does not read the variables that are to replace it yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=least,
            max_replicas=most,
            metrics_interval_s=_REPORT_S,
            look_back_period_s=_AVERAGED_S,
            upscale_delay_s=_GROW_AFTER_S,
            downscale_delay_s=shrink_after_s,
            policy=policy,
        )
