"""A corpus read by many workers, some of which are killed: each document once, and the rest by the next call."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmt_memory import Corpus, HMTModel, MemoryStore
from hmt_memory.cluster.reading import RayEngine
from hmt_memory.errors import InputError
from hmt_memory.retrieval import ranking

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed: make test-ray", allow_module_level=True)

pytestmark = pytest.mark.enable_socket
DOCUMENTS = {f"book {number}": f"Book {number} of roses. " * 60 for number in range(24)}


def beginnings(corpus: Corpus) -> Any:
    """The first embeddings of each document: later ones of a random model grow apart by what rounding does to a batch."""

    def taken(shards: Any) -> Any:
        (shard,) = shards
        first = [start + segment for start in shard.shelf.starts[:-1] for segment in range(6)]
        return shard.embeddings(first).astype(np.float32)

    return corpus._sources([])(taken)


def check(store: MemoryStore, alone: MemoryStore, model: HMTModel) -> None:
    """Compare a corpus with the same one read in one process."""
    corpus = store.corpus("books", model)
    expected = alone.corpus("books", model)
    expected.add_documents(DOCUMENTS.items())
    assert [document.name for document in corpus.documents()] == list(DOCUMENTS)
    assert corpus.stats()["segments"] == expected.stats()["segments"] == sum(-(-len(text) // 16) for text in DOCUMENTS.values())
    assert np.abs(beginnings(corpus) - beginnings(expected)).max() < 0.05
    assert store.verify().ok


def workers() -> list[int]:
    """The processes that read."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with_title = path.read_bytes() if path.exists() else b""
        if with_title.startswith(b"ray::MapWorker"):
            found.append(int(path.parent.name))
    return found


def while_reading(place: Path, corpus: Corpus, work: Callable[[], object]) -> None:
    """Read documents; do some work when a tenth is read."""

    def add() -> None:
        corpus.add_documents(DOCUMENTS.items(), engine=RayEngine(workers=2))

    with ThreadPoolExecutor(1) as threads, MemoryStore(place) as watching:
        reading: Future[None] = threads.submit(add)
        tokens = sum(map(len, DOCUMENTS.values()))
        while watching.corpus("books").stats()["segments"] * 16 < tokens / 10:
            assert not reading.done() or reading.result()
            time.sleep(0.01)
        assert not reading.done()
        work()
        reading.result()


def test_a_worker_that_is_killed_is_replaced(cluster: Any, model: HMTModel, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill() -> None:
        killed.append(workers()[0])
        os.kill(killed[0], signal.SIGKILL)

    with MemoryStore(tmp_path / "many") as store, MemoryStore(tmp_path / "one") as alone:
        corpus = store.corpus("books", model)
        while_reading(tmp_path / "many", corpus, kill)
        assert killed and killed[0] not in workers()
        check(store, alone, model)


def test_what_was_left_is_read_by_the_next_call(
    cluster: Any, model: HMTModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    with MemoryStore(tmp_path / "many") as store, MemoryStore(tmp_path / "one") as alone:
        corpus = store.corpus("books", model)
        with monkeypatch.context() as patch:
            patch.setattr(Corpus, "_read_pending", lambda *_, **__: None)
            corpus.add_documents(DOCUMENTS.items())
        corpus.read_documents([1, 2])
        assert 0 < corpus.stats()["segments"] < 24 * 90
        assert corpus.add_documents([], engine="ray", progress=lambda *counts: told.append(counts)) == []
        assert told[-1][0] == told[-1][1] > 0
        with monkeypatch.context() as patch:
            patch.setattr(Corpus, "_read_chunk", None)  # nothing is left to read
            check_read(corpus)
        check(store, alone, model)


def check_read(corpus: Corpus) -> None:
    assert ranking.recall(corpus._needs_model(), corpus._sources([]), "roses", 3)


def test_the_other_node_reads_on_when_one_dies(cluster: Any, model: HMTModel, tmp_path: Path) -> None:
    with MemoryStore(tmp_path / "many") as store, MemoryStore(tmp_path / "one") as alone:
        corpus = store.corpus("books", model)
        node = cluster.list_all_nodes()[-1]
        while_reading(tmp_path / "many", corpus, lambda: cluster.remove_node(node, allow_graceful=False))
        check(store, alone, model)


def test_engines_that_cannot_be_are_refused(cluster: Any, model: HMTModel, tmp_path: Path) -> None:
    with MemoryStore(tmp_path / "store") as store:
        corpus = store.corpus("books", model)
        with pytest.raises(InputError, match="no engine is called 'rays'"):
            corpus.add_documents(["Roses."], engine="rays")
        assert corpus.documents() == []
        with pytest.raises(InputError, match="no room"):
            corpus.add_documents(["Roses."], engine=RayEngine(gpus=1))
        assert len(corpus.documents()) == 1
