"""Fixtures: a tokenizer, a tiny model, and the real default model (loaded once)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import byte_tokenizer, tiny_model

from hmt_memory import HMTModel

THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> None:
    """Tiny models run fastest on one thread, many times so on a busy machine; the real one wants them all."""
    torch.set_num_threads(THREADS if request.node.get_closest_marker("real") else 1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture
def model(tokenizer: Any) -> HMTModel:
    return tiny_model(tokenizer=tokenizer)


@pytest.fixture(scope="session")
def smollm2() -> HMTModel:
    """The real default model; the first use on a machine converts its weights."""
    return HMTModel.from_pretrained("smollm2-135m-instruct")
