"""The connection to a Ray cluster."""

from __future__ import annotations

import os
from typing import Any

from ..errors import InputError, MissingDependencyError

_NO_STATISTICS = "RAY_USAGE_STATS_ENABLED"


def connect() -> Any:
    """Connect to the cluster of $RAY_ADDRESS, or that runs on this machine, or start one here; return Ray.

    A cluster that is started here sends no usage statistics.

    Raises:
        MissingDependencyError: the extra `ray` is not installed.
    """
    os.environ[_NO_STATISTICS] = "0"
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(f"many workers need {error.name}. Run: pip install 'hmt-memory[ray]'") from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=True)
    return ray


def check_place(ray: Any, place: str) -> None:
    """Refuse a store in a folder where workers may run on several machines.

    Raises:
        InputError: it is one.
    """
    machines = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if "://" not in place and len(machines) > 1:
        raise InputError(
            f"the store is the folder {place}, which serves one machine, and the cluster has {len(machines)}. "
            "Use a database for all of them: --store postgresql://host/database"
        )
