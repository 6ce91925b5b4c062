"""The embedded database does what any database of a store has to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_conformance import RecordStoreConformance

from hmt_memory.store.backend import Backend, Capability
from hmt_memory.store.open import open_backend


class TestSqlite(RecordStoreConformance):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[Backend]:
        opened = open_backend(tmp_path / "store", timeout=5)
        yield opened
        opened.close()

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "store"

    def place(self, backend: Backend) -> Path | str:
        return self.folder

    def damage(self, backend: Backend, statement: str) -> None:
        db = sqlite3.connect(self.folder / "memory.db", isolation_level=None)
        assert db.execute(statement).rowcount > 0
        db.close()

    def test_it_erases_bytes(self, backend: Backend) -> None:
        assert Capability.ERASES_BYTES in backend.capabilities
