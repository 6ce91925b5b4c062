"""LangGraph's store: the same results as its own in-memory store, durable, and searched by recall."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest
from langgraph.store.base import GetOp, InvalidNamespaceError, ListNamespacesOp, MatchCondition, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore
from tiny import SMALL, byte_tokenizer, tiny_model

from hmt_memory import Assistant
from langchain_hmt import HMTStore

MODEL = tiny_model(config=SMALL, tokenizer=byte_tokenizer())
SPACES = [("users",), ("users", "ada"), ("users", "bob.b"), ("notes",)]


def made(folder: Path) -> HMTStore:
    return HMTStore(engine=Assistant(MODEL, store=folder))


def random_op(chance: random.Random) -> Any:
    space, key = chance.choice(SPACES), f"k{chance.randrange(5)}"
    kind = chance.randrange(6)
    if kind < 2:
        return PutOp(space, key, {"n": chance.randrange(4), "text": f"value {chance.randrange(9)}"})
    if kind == 2:
        return chance.choice([PutOp(space, key, None), GetOp(space, key)])
    if kind == 3:
        return GetOp(space, key)
    if kind == 4:
        wanted = chance.choice([None, {"n": 2}, {"n": {"$gte": 1, "$ne": 3}}])
        return SearchOp(space[: chance.randrange(3)], wanted, chance.randrange(1, 5), chance.randrange(2))
    conditions = (MatchCondition("prefix", ("users", "*")),) if chance.random() < 0.5 else None
    return ListNamespacesOp(conditions, chance.choice([None, 1]), 10, 0)


def shown(result: Any) -> Any:
    if isinstance(result, list):
        return [shown(one) for one in result]
    return (result.namespace, result.key, result.value) if hasattr(result, "key") else result


@pytest.mark.parametrize("seed", range(4))
def test_results_are_those_of_langgraphs_own_store(seed: int, tmp_path: Path) -> None:
    ours, theirs, chance = made(tmp_path), InMemoryStore(), random.Random(seed)
    for _ in range(40):
        ops = [random_op(chance) for _ in range(chance.randrange(1, 5))]
        assert shown(ours.batch(ops)) == shown(theirs.batch(ops)), ops


def test_items_outlive_the_process_with_their_times_and_are_found_by_a_query(tmp_path: Path) -> None:
    store = made(tmp_path)
    store.put(("facts",), "door", {"text": "The door code of the office is 4071."})
    store.put(("facts",), "lunch", {"text": "The canteen opens at noon."})
    store.put(("facts",), "hidden", {"text": "The door is blue."}, index=False)
    first = store.get(("facts",), "door")
    store.put(("facts",), "door", {"text": "The door code of the office is 4072."})
    again = made(tmp_path)
    item = again.get(("facts",), "door")
    assert item is not None and first is not None
    assert item.value["text"].endswith("4072.") and item.created_at == first.created_at and item.updated_at > item.created_at
    found = again.search(("facts",), query="What is the door code?", limit=2)
    assert found[0].key == "door" and found[0].score is not None and len(found) == 2
    assert b"4071" not in b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    store.put(("facts",), "new", {"text": "Later."})
    assert again.get(("facts",), "new") is not None  # written by another object


def test_two_writers_of_one_folder_see_each_other(tmp_path: Path) -> None:
    stores = [made(tmp_path), made(tmp_path)]

    def write(number: int) -> None:
        for at in range(6):
            stores[number].put(("w",), f"{number}-{at}", {"at": at})
            stores[number].put(("w",), "shared", {"by": number})
            if at % 2:
                stores[number].delete(("w",), "shared")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    keys = [{item.key for item in store.search(("w",), limit=50)} for store in (*stores, made(tmp_path))]
    assert keys[0] == keys[1] == keys[2] >= {f"{number}-{at}" for number in range(2) for at in range(6)}
    stores[0].delete(("w",), "1-0")
    assert stores[1].get(("w",), "1-0") is None and made(tmp_path).get(("w",), "1-0") is None


async def test_async_and_what_is_refused(tmp_path: Path) -> None:
    store = made(tmp_path)
    await store.aput(("a",), "k", {"x": 1})
    assert (await store.aget(("a",), "k")).value == {"x": 1}  # type: ignore[union-attr]
    with pytest.raises(InvalidNamespaceError):
        store.put((), "k", {})
    with pytest.raises(NotImplementedError):
        store.put(("a",), "k", {}, ttl=1)
    await store.adelete(("a",), "k")
    assert store.get(("a",), "k") is None
