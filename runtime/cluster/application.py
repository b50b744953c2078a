"""The application: ingresses before replicas of one model, and how Ray is to treat both."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from catp.runtime.cluster.ingress import Ingress
from catp.runtime.cluster.replica import Replica
from catp.runtime.cluster.settings import ClusterSettings
from catp.runtime.limits import CONNECTIONS

_INGRESS_CPUS = 0.1
_HEALTH_PERIOD_SECONDS = 2.0


def make_application(settings: ClusterSettings) -> Application:
    """Deployments `Model` and `Ingress`, bound.

    Pictures stay with their replica by Ray's ring of hashes: of those whose replica goes, or that a new one gets, there
    are as few as may be. A replica that has as many requests as it takes passes others on to the next of the ring.

    Raises:
        UsageError: see `ClusterSettings.check`.
    """
    settings.check()
    router: dict[str, Any] = {
        "request_router_class": "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
    }
    deployment: Any = serve.deployment
    model = deployment(Replica, name="Model").options(
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        max_ongoing_requests=settings.rows + settings.waiting,
        max_queued_requests=max(1, settings.waiting),
        request_router_config=RequestRouterConfig(**router),
        health_check_period_s=_HEALTH_PERIOD_SECONDS,
        graceful_shutdown_timeout_s=settings.drain_timeout,
        graceful_shutdown_wait_loop_s=0.5,
    )
    ingress = deployment(serve.ingress()(Ingress), name="Ingress").options(
        num_replicas=settings.ingresses,
        ray_actor_options={"num_cpus": _INGRESS_CPUS},
        max_ongoing_requests=CONNECTIONS,
        graceful_shutdown_timeout_s=settings.drain_timeout,
        graceful_shutdown_wait_loop_s=0.5,
    )
    # Ray replaces every process whose arguments change: their number is none of them.
    each = settings.model_copy(update={"replicas": 1, "ingresses": 1})
    bound: Application = ingress.bind(model.bind(each), each)
    return bound
