"""Fixtures: machines with GPUs that only seem so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gpus import Machine


@pytest.fixture
def machine() -> Iterator[Callable[..., Machine]]:
    made: list[Machine] = []

    def make(count: int = 1, **options: Any) -> Machine:
        made.append(Machine(count, **options))
        return made[-1]

    yield make
    for one in reversed(made):
        one.close()
