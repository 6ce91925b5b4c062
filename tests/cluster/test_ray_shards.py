"""A corpus in four processes: what is recalled from it, and with which weights, is what one index gives."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SMALL, byte_tokenizer, light_model

import hmt_kernels
from hmt_memory import Corpus, HMTModel, MemoryStore
from hmt_memory.cluster.shards import ShardedCorpus, sharded
from hmt_memory.errors import InputError
from hmt_memory.retrieval.ranking import query_of

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed: make test-ray", allow_module_level=True)

pytestmark = pytest.mark.enable_socket
QUESTIONS = ["who grows roses in July?", "the harbour", "zebra"]
WORDS = ["roses", "harbour", "July", "boats", "rain", "gardens", "letters", "bread", "stones", "music"]


@pytest.fixture(scope="module")
def model() -> HMTModel:
    return light_model(config=replace(SMALL, recall_window=24, key_dim=8), tokenizer=byte_tokenizer())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, model: HMTModel) -> Iterator[MemoryStore]:
    with MemoryStore(tmp_path_factory.mktemp("store")) as opened:
        corpus = opened.corpus("books", model)
        corpus.add_documents((f"book {number}", text_of(number)) for number in range(40))
        yield opened


@pytest.fixture(scope="module")
def many(cluster: Any, store: MemoryStore, model: HMTModel) -> Iterator[ShardedCorpus]:
    with sharded(store, "books", model, shards=4, cpus=0.5) as corpus:
        yield corpus


def text_of(number: int) -> str:
    picked = np.random.default_rng(number)
    return " ".join(f"In {picked.choice(WORDS)} {number} saw {picked.choice(WORDS)}." for _ in range(picked.integers(1, 6)))


def compare(many: ShardedCorpus, one: Corpus, model: HMTModel) -> None:
    for question in QUESTIONS:
        found, expected = many.recall(question, top_k=8), one.recall(question, top_k=8)
        assert [passage.id for passage in found] == [passage.id for passage in expected]
        assert np.allclose([passage.weight for passage in found], [passage.weight for passage in expected], atol=1e-6)
        assert abs(found.coverage - expected.coverage) < 1e-6
        output, total = many.prompt(question)
        reference = attended(one, model, question)
        assert torch.allclose(output, reference.output, atol=1e-6) and torch.allclose(total, reference.lse, atol=1e-6)


def attended(one: Corpus, model: HMTModel, question: str) -> Any:
    """Recall over one matrix of all embeddings."""
    summary = query_of(model, question).summary
    assert summary is not None
    with torch.no_grad():
        query = model.recall.fold(summary[None]).float()

    def everything(shards: Any) -> Any:
        memory = torch.from_numpy(shards[0].embeddings(range(shards[0].total)).astype(np.float32))
        return hmt_kernels.recall(query.expand(memory.shape[1], -1), memory.transpose(0, 1))

    return one._sources(())(everything)


def test_recall_is_that_of_one_index(many: ShardedCorpus, store: MemoryStore, model: HMTModel) -> None:
    one = store.corpus("books", model)
    sizes = [part.total for part in many._parts.split(one._shard().shelf)[0]]
    assert len(sizes) == 4 and max(sizes) < 2 * min(sizes)
    compare(many, one, model)


def test_embeddings_come_in_the_order_that_they_are_asked_for(many: ShardedCorpus, store: MemoryStore, model: HMTModel) -> None:
    one = store.corpus("books", model)._shard()
    positions = np.random.default_rng(0).permutation(one.total)
    assert (many._shard().embeddings(positions.tolist()) == one.embeddings(positions.tolist())).all()


def test_what_is_added_and_removed_is_seen(many: ShardedCorpus, store: MemoryStore, model: HMTModel) -> None:
    one = store.corpus("books", model)
    one.add_documents([("a new one", "A zebra walks through the harbour.")])
    compare(many, one, model)
    one.remove([1, 13, 27])
    compare(many, one, model)


def test_a_process_that_dies_reads_its_part_again(many: ShardedCorpus, store: MemoryStore, model: HMTModel) -> None:
    one = store.corpus("books", model)
    killed = many._parts._fetched([actor.process.remote() for actor in many._parts._actors])[2]
    os.kill(killed, signal.SIGKILL)
    compare(many, one, model)


def test_threads_may_ask_while_documents_are_added(many: ShardedCorpus, store: MemoryStore, model: HMTModel) -> None:
    one = store.corpus("books", model)
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(many.recall, question, 8) for question in QUESTIONS * 4]
        one.add_documents([("one more", "Boats in July.")])
        assert all(each.result() for each in asked)
    compare(many, one, model)


def test_an_empty_corpus_and_impossible_numbers(cluster: Any, store: MemoryStore, model: HMTModel) -> None:
    with pytest.raises(InputError, match="at least 1"):
        sharded(store, "books", model, shards=0)
    with sharded(store, "empty", model, shards=2, cpus=0.5) as empty:
        assert empty.recall("roses") == []
        with pytest.raises(InputError, match="no document"):
            empty.prompt("roses")
        empty.add_documents(["Roses grow in the garden of the harbour."])
        compare(empty, store.corpus("empty", model), model)
