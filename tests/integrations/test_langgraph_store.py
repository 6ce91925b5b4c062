"""LangGraph's store: the same results as its own in-memory store, durable, and searched by recall."""

from __future__ import annotations

import json
import random
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langgraph.store.base import GetOp, InvalidNamespaceError, ListNamespacesOp, MatchCondition, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore
from pydantic import ValidationError
from tiny import SMALL, byte_tokenizer, tiny_model

from hmt_memory import Assistant, HMTModel, MemoryStore
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


# --- what is searched ---------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> HMTStore:
    return made(tmp_path)


def keys(found: list[Any]) -> list[str]:
    return [one.key for one in found]


def test_values_are_searched_and_what_holds_the_words_comes_first(store: HMTStore) -> None:
    """Whatever the model's memory says, which is random here."""
    facts = {"a": "blue Volvo", "b": "loves jazz", "c": "has two cats", "d": "works at night", "e": "was born in May"}
    for key, text in facts.items():
        store.put(("users", "ada"), key, {"text": text})
    asked = {"jazz": "b", "a Volvo?": "a", "Which cats does she have?": "c", "NIGHT": "d", "born in May": "e"}
    for query, key in asked.items():
        found = store.search(("users",), query=query)
        assert found[0].key == key, query
        scores = [one.score for one in found]
        assert scores == sorted(scores, reverse=True) and all(score is not None and 0 <= score <= 1 for score in scores)


def test_two_items_are_enough(store: HMTStore) -> None:
    store.put(("users",), "car", {"text": "blue Volvo"})
    store.put(("users",), "music", {"text": "loves jazz"})
    found = store.search(("users",), query="jazz")
    assert keys(found) == ["music", "car"] and found[0].score > 0.6 > 0.4 > found[1].score  # type: ignore[operator]


def test_a_score_is_the_same_whatever_else_is_asked_for(store: HMTStore) -> None:
    for at in range(6):
        store.put(("users", str(at % 2)), f"k{at}", {"text": f"likes fruit number {at}", "n": at})
    every = {one.key: one.score for one in store.search((), query="fruit number 3", limit=10)}
    assert keys(store.search((), query="fruit number 3", limit=10))[0] == "k3" and len(every) == 6
    for options in ({"limit": 1}, {"filter": {"n": {"$gte": 2}}}, {"offset": 2}):
        found = store.search(("users",), query="fruit number 3", **options)
        assert found and all(one.score == every[one.key] for one in found)
    assert all(one.score == every[one.key] for one in store.search(("users", "1"), query="fruit number 3"))


def test_what_has_no_text_to_search_comes_last_without_a_score(tmp_path: Path) -> None:
    store = HMTStore(engine=Assistant(MODEL, store=tmp_path), fields=["text", "tags[*]"])
    store.put(("n",), "jazz", {"other": "jazz"})
    store.put(("n",), "hidden", {"text": "jazz"}, index=False)
    store.put(("n",), "tagged", {"tags": ["music", "jazz"]})
    store.put(("n",), "own", {"title": "jazz"}, index=["title"])
    store.put(("n",), "whole", {"title": "jazz"}, index=["$"])
    for each in (store, made(tmp_path)):
        found = each.search(("n",), query="jazz")
        assert {one.key for one in found[:3]} == {"tagged", "own", "whole"}
        assert [(one.key, one.score) for one in found[3:]] == [("jazz", None), ("hidden", None)]
    store.put(("n",), "hidden", {"text": "jazz"})
    store.delete(("n",), "own")
    assert {one.key for one in store.search(("n",), query="jazz") if one.score and one.score > 0.5} == {
        "tagged",
        "hidden",
        "whole",
    }


def test_words_of_a_long_value_count_where_they_stand_together(store: HMTStore) -> None:
    store.put(("n",), "long", {"text": "door " + "filler " * 400 + "code"})
    store.put(("n",), "short", {"text": "the door code"})
    assert keys(store.search(("n",), query="door code")) == ["short", "long"]


def test_selection_says_what_is_searched_by(tmp_path: Path) -> None:
    stores = {one: HMTStore(engine=Assistant(MODEL, store=tmp_path), selection=one) for one in ("fused", "words", "recall")}
    for at in range(4):
        stores["fused"].put(("n",), f"k{at}", {"text": f"fact {at}"})
    scores = {one: {item.key: item.score for item in store.search(("n",), query="fact 2")} for one, store in stores.items()}
    for key in scores["fused"]:
        assert scores["fused"][key] == pytest.approx((2 * scores["words"][key] + scores["recall"][key]) / 3)
    assert scores["words"]["k2"] == 1 and len(set(scores["recall"].values())) == 4
    untrained = HMTModel.wrap(MODEL.backbone.causal_lm, byte_tokenizer(), SMALL)
    plain = HMTStore(engine=Assistant(untrained, store=tmp_path / "plain"))
    plain.put(("n",), "k", {"text": "fact 2"})
    assert plain.search(("n",), query="fact 2")[0].score == 1


def test_a_folder_by_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HMTModel, "from_pretrained", lambda *_, **__: MODEL)
    HMTStore(str(tmp_path), model="m").put(("a",), "k", {"text": "hello"})
    with MemoryStore(tmp_path) as opened:
        found = HMTStore(opened, model="m").get(("a",), "k")
    assert found is not None and found.value == {"text": "hello"}
    with pytest.raises(ValidationError, match="unknown argument 'session_id'"):
        HMTStore(tmp_path, session_id="a")


@pytest.mark.slow
def test_searching_takes_time_in_proportion_to_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a search reads again of a document is not the document for each of its passages."""
    model = tiny_model(config=replace(SMALL, recall_window=300), tokenizer=byte_tokenizer())
    store = HMTStore(engine=Assistant(model, store=tmp_path))
    store.put(("n",), "long", {"text": " ".join(f"word {at}" for at in range(600))}, index=["text"])
    store.search(("n",), query="word 7")
    read = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text, **options: read.append(len(text)) or loads(text, **options))
    found = store.search(("n",), query="word 7")
    assert found[0].score and sum(read) < 10 * 6000, "the value is read once or twice, not for each of 300 passages"
