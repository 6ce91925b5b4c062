"""A tiny model that remembers, a store, and a session in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import REMEMBERING, byte_tokenizer, light_model

from hmt_memory import MemoryStore, Session

TOKENIZER = byte_tokenizer()
MODEL = light_model(config=REMEMBERING, tokenizer=TOKENIZER)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    with MemoryStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def session(store: MemoryStore) -> Session:
    return store.session("alice", MODEL)
