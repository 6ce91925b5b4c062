"""Folders of the repository, and one in memory."""

from __future__ import annotations

import shutil
from pathlib import Path

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parent.parent


def fast_folder() -> str | None:
    """Return a folder in memory, if it has room for what tests write; None: where temporary files usually are."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > 2 << 30 else None
