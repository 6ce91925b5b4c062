"""What tests of LlamaIndex begin with, and what those with LlamaIndex's own memory put up with: a database it never closes, and
old ways of pydantic.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from llama_indexed import assistant, handbook, llm

__all__ = ["assistant", "handbook", "llm"]

_FILES = tuple(f"test_llama_index_{what}.py" for what in ("engines", "memory", "retriever", "real"))
_IGNORED = (
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
    "ignore::pydantic.warnings.PydanticDeprecationWarning",
    "ignore:is_running called:DeprecationWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let those tests pass over warnings that are LlamaIndex's."""
    for item in items:
        if item.path.name in _FILES:
            for warning in _IGNORED:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(autouse=True)
def closed(request: pytest.FixtureRequest) -> Iterator[None]:
    """What LlamaIndex leaves open is closed, and complains, where that is ignored."""
    yield
    if request.path.name in _FILES:
        gc.collect()
