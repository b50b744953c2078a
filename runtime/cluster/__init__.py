"""Servers on several machines: `catp-serve`'s application as replicas of Ray Serve."""

from typing import Any

from catp.runtime.cluster.settings import ClusterSettings
from catp.runtime.errors import UsageError
from catp.runtime.system.optional_imports import optional_import

__all__ = ["ClusterSettings", "app"]


def app(settings: ClusterSettings) -> Any:  # Ray reads the annotation: it has to be the class, not its name
    """The application that `serve run catp.runtime.cluster:app bundle=...` and Serve's configuration files name.

    Raises:
        UsageError: Ray is missing.
    """
    library, missing = optional_import("ray.serve")
    if library is None:
        raise UsageError(
            f"catp.runtime.cluster: ray.serve {missing}; install this project's extra: pip install '.[cluster]'"
        )
    from catp.runtime.cluster.application import make_application

    return make_application(settings)
