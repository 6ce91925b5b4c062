"""PostgreSQL does what any database of a store has to do, and what only a server can be asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
from store_conformance import RecordStoreConformance

from hmt_memory.store.backend import Backend, Capability
from hmt_memory.store.open import open_backend


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMT_CACHE", str(tmp_path / "caches"))


@pytest.fixture
def backend(postgres_url: str) -> Iterator[Backend]:
    opened = open_backend(postgres_url, timeout=5)
    yield opened
    opened.close()


class TestPostgres(RecordStoreConformance):
    @pytest.fixture(autouse=True)
    def _url(self, postgres_url: str) -> None:
        self.url = postgres_url

    def damage(self, backend: Backend, statement: str) -> None:
        postgres.run(self.url, statement)

    def test_it_erases_rows_and_promises_no_bytes(self, backend: Backend) -> None:
        assert backend.capabilities == {Capability.ERASES_ROWS, Capability.MANY_HOSTS}
