"""What is settled before a test is collected.

Whatever takes long to import stands in `shared_fixtures`: the process that hands out tests needs none of it.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import fast_folder

MOST_WORKERS = 4  # each holds the real model


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def pytest_configure(config: pytest.Config) -> None:
    """Let the folders of tests be in memory, unless somebody has said where; take the fixtures where tests run."""
    if "TMPDIR" not in os.environ and (memory := fast_folder()):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", memory)
    if config.getoption("dist", "no") == "no":
        gc.disable()  # until everything is imported, of which nothing goes again
        config.pluginmanager.import_plugin("shared_fixtures")


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder of the test's own: in memory, where nothing waits for a disk, but on one where the test is about what lasts."""
    if not request.node.get_closest_marker("disk"):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)
