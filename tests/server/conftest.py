"""Fixtures: an assistant that answers with a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmt_memory import Assistant


@pytest.fixture
def assistant(chatty: str, tmp_path: Path) -> Assistant:
    return Assistant(chatty, reader="same", store=tmp_path / "store", dtype="float32", device="cpu")
