"""What the API holds its requests to, apart from how a pair is scored."""

from __future__ import annotations

from dataclasses import dataclass, field

from limrank.config import ServeJob
from limrank.engines.base import DEFAULT_IN_FLIGHT
from limrank.serving.access import Access
from limrank.serving.options import Modes, offered_modes


@dataclass(frozen=True)
class ApiSettings:
    """The settings of an API. The defaults take any request that the default limits take.

    Attributes:
        max_requests: scoring requests that may run or wait; None: any number.
        max_pairs: pairs of all requests that may run or wait; None: any number.
        min_score: results with a lower score are left out, where a request has no number; None: none are.
        modes: what a request may ask for; None: the served mode, and direct.
        aliases: more names of the model.
        access: limits, hosts and keys.
        spread_pairs: a request of more pairs is divided among the replicas; None: none is.
        respond_ids: whether to set ``X-Request-Id``. Ray Serve's proxy sets it, and a client would read two.
    """

    max_requests: int | None = None
    max_pairs: int | None = None
    min_score: float | None = None
    modes: Modes | None = None
    aliases: tuple[str, ...] = ()
    access: Access = field(default_factory=Access)
    spread_pairs: int | None = None
    respond_ids: bool = True

    @classmethod
    def of(cls, config: ServeJob, access: Access) -> ApiSettings:
        """The settings of a server behind Ray Serve's proxy."""
        serving, workers = config.serving, config.workers
        # The API counts requests itself: Serve's own limit answers in plain text, and counts a
        # request on its way to a free replica as a waiting one.
        running = workers.max_replicas * requests_per_replica(config)
        return cls(
            max_requests=None if serving.max_queued_requests < 0 else running + serving.max_queued_requests,
            max_pairs=None if serving.max_queued_pairs < 0 else serving.max_queued_pairs,
            min_score=config.scoring.min_score,
            modes=offered_modes(config.scoring, serving.modes),
            aliases=serving.aliases,
            access=access,
            spread_pairs=serving.spread_pairs,
            respond_ids=False,
        )


def requests_per_replica(config: ServeJob) -> int:
    """Requests that one engine replica takes at a time. Each has at least one pair, so an engine has always enough."""
    return config.engine.max_in_flight or DEFAULT_IN_FLIGHT


def target_pairs(config: ServeJob) -> int:
    """Pairs of one engine replica above which there should be another one."""
    return config.serving.target_pairs_per_replica or 2 * requests_per_replica(config)
