"""Fixtures: a Ray cluster of two nodes on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

_OBJECTS = 100_000_000  # bytes of the store of each node


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, to whose first this process is connected."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "1"  # else a test of scaling waits for ten
    import ray
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 4, "object_store_memory": _OBJECTS}
    nice = {"worker_niceness": 0}  # else nothing comes of them on a busy machine
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False, "_system_config": nice})
    try:
        cluster.add_node(**node)
        ray.init(address=cluster.address)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
