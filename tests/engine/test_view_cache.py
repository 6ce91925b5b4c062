"""What views begin with is kept between answers: the answers are the same, and less goes through the model."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, LONG, SMALL, byte_tokenizer, random_ids, tiny_model

from hmt_memory import HMTModel, MemoryStore, Tiers, ViewConfig
from hmt_memory.assistant import stateless
from hmt_memory.assistant.stateless import PrefixCache
from hmt_memory.engine.backbone import Backbone
from hmt_memory.engine.view_cache import ViewCache, read_whole
from hmt_memory.hot import Hot

HALVES = replace(SMALL, memory_tokens=3, recalled_tokens=1)  # the carried half of P is the same from turn to turn
MODEL = tiny_model(config=HALVES, tokenizer=byte_tokenizer()).with_view(
    ViewConfig(recent_tokens=110, note_tokens=60, pinned_tokens=60)
)
WORDS = ("cat", "river", "Tuesday", "blue", "what", "is", "it?", "seven")


class Counted:
    """How many positions each call of a backbone's `extend` has read."""

    def __init__(self, backbone: Backbone, patch: pytest.MonkeyPatch) -> None:
        self.positions: list[int] = []
        extend = backbone.extend

        def counting(embeddings: torch.Tensor, cache: Any = None) -> Any:
            self.positions.append(embeddings.shape[1])
            return extend(embeddings, cache)

        patch.setattr(backbone, "extend", counting)

    def take(self) -> int:
        total = sum(self.positions)
        self.positions.clear()
        return total


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_on_from_what_it_can_keep(family: str) -> None:
    """Also where a view leaves the kept one midway; windows that slide here are shorter than the views."""
    model, views = tiny_model(family), ViewCache()
    backbone = model.backbone
    embed = backbone.embed(random_ids(100))
    for before, behind in ((embed[:60], embed[60:70]), (embed[:80], embed[80:100]), (embed[:50], embed[70:90])):
        expected, *_ = read_whole(backbone, before, behind)
        for repeated in (False, True):
            hidden, cache, known = views.prefill(backbone, before, behind, "alice")
            assert known == len(before) or not (repeated and backbone.appends)
            torch.testing.assert_close(hidden, expected, atol=2e-4, rtol=2e-4)
        again, _ = backbone.advance(embed[None, :1], cache)
        whole, *_ = read_whole(backbone, torch.cat([before, behind]), embed[:1])
        torch.testing.assert_close(again, whole, atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_only_what_has_changed_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, views = MODEL.backbone, ViewCache()
    counted = Counted(backbone, monkeypatch)
    embed = backbone.embed(random_ids(200))
    reads = []
    for before, behind, namespace in (
        (embed[:100], embed[100:110], "alice"),
        (embed[:120], embed[100:105], "alice"),  # goes on
        (torch.cat([embed[:70], embed[150:160]]), embed[:5], "alice"),  # leaves it after 70
        (embed[:120], embed[100:105], "bob"),  # another name space
    ):
        views.prefill(backbone, before, behind, namespace)
        reads.append(counted.take())
    assert reads == [110, 25, 15, 125]
    views.clear()
    views.prefill(backbone, embed[:120], embed[:5], "alice")
    assert counted.take() == 125


@torch.no_grad()
def test_other_weights_use_nothing_that_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model, views = tiny_model(), ViewCache()
    twin, embed = tiny_model(), model.backbone.embed(random_ids(60))
    views.prefill(model.backbone, embed[:50], embed[50:], "alice")
    counted = Counted(twin.backbone, monkeypatch)
    views.prefill(twin.backbone, embed[:50], embed[50:], "alice")
    assert counted.take() == 60
    for parameter in model.backbone.parameters():
        parameter.add_(0.01)
    hidden, *_ = views.prefill(model.backbone, embed[:50], embed[50:], "alice")
    torch.testing.assert_close(hidden, read_whole(model.backbone, embed[:50], embed[50:])[0])


@torch.no_grad()
def test_bytes_are_bounded_and_the_least_recently_used_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, one = MODEL.backbone, ViewCache()
    embed = backbone.embed(random_ids(120))
    one.prefill(backbone, embed[:100], embed[100:], "alice")
    views = ViewCache(Hot(int(2.5 * one.bytes)))
    assert one.bytes >= embed[:100].nbytes + 100 * 2 * 2 * 16 * 4  # embeddings; layers x (keys, values) x width x fp32
    for name in ("alice", "bob", "alice", "carol"):
        views.prefill(backbone, embed[:100], embed[100:], name)
    assert one.bytes < views.bytes <= 2.5 * one.bytes
    counted = Counted(backbone, monkeypatch)
    for name, positions in (("carol", 20), ("alice", 20), ("bob", 120)):
        views.prefill(backbone, embed[:100], embed[100:], name)
        assert counted.take() == positions, name
    none = ViewCache(Hot(100))
    none.prefill(backbone, embed[:100], embed[100:], "alice")
    assert none.bytes == 0


@torch.no_grad()
def test_what_was_let_go_of_meanwhile_is_not_kept_by_an_answer_that_had_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, views = MODEL.backbone, ViewCache()
    embed, extend = backbone.embed(random_ids(60)), backbone.extend

    def forgetting(embeddings: torch.Tensor, cache: Any = None) -> Any:
        if cache is None:  # while the beginning is read, not after it was kept
            views.clear()
        return extend(embeddings, cache)

    monkeypatch.setattr(backbone, "extend", forgetting)
    views.prefill(backbone, embed[:50], embed[50:], "alice")
    assert views.bytes == 0


def test_threads_keep_and_use_side_by_side() -> None:
    backbone, views = MODEL.backbone, ViewCache()
    embed = backbone.embed(random_ids(150)).detach()
    expected = [read_whole(backbone, embed[: 50 + 10 * n], embed[140:])[0].detach() for n in range(8)]
    wrong: list[int] = []

    @torch.no_grad()
    def work(number: int) -> None:
        for _ in range(6):
            hidden, *_ = views.prefill(backbone, embed[: 50 + 10 * number], embed[140:], number % 3)
            if not torch.allclose(hidden, expected[number], atol=1e-4):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def turn(session: Any, text: str, **options: Any) -> str:
    reply = session.reply({"role": "user", "content": text}, max_new_tokens=12, min_new_tokens=12, **options)
    return "".join(reply)


@pytest.mark.slow
@settings(max_examples=60 if LONG else 3, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=14).map(" ".join), min_size=3, max_size=7))
def test_a_session_answers_the_same_with_and_without_what_was_kept(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    """Law of the prefix: greedy, fp32, torch; window steps, edits and forks included."""
    folder = tmp_path_factory.mktemp("law")
    answers = []
    for kept in (1 << 28, 0):
        with MemoryStore(folder / str(kept), tiers=Tiers(hot_bytes=kept)) as store:
            session = store.session("alice", MODEL)
            session.add({"role": "system", "content": "Be kind."})
            said = [turn(session, text) for text in texts]
            branch = session.fork("branch")
            said.append(turn(branch, texts[0]))
            said.append(turn(session, texts[1], replacing=session.messages()[-2].id))
            said.append(turn(session, "And now?"))
            assert (store.view_cache.bytes > 0) is (kept > 0)
            answers.append(said)
    assert answers[0] == answers[1]


def test_a_session_reads_only_the_new_part_of_its_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = MODEL.with_view(ViewConfig(recent_tokens=200, note_tokens=10, pinned_tokens=20))
    with MemoryStore(tmp_path) as store:
        session = store.session("alice", roomy)
        for number in range(2):
            turn(session, f"Turn {number}")
        counted = Counted(roomy.backbone, monkeypatch)
        reply = session.reply({"role": "user", "content": "And now?"}, max_new_tokens=1)
        "".join(reply)
        assert counted.take() < reply.usage.view_tokens / 2
        session.forget([session.messages()[0].id])
        assert store.view_cache.bytes == 0, "what was forgotten is in no memory either"


def test_a_call_without_a_session_reads_only_the_new_part_in_its_own_name_space(monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = MODEL.with_view(ViewConfig(recent_tokens=200, note_tokens=10, pinned_tokens=20))
    kept, counted = PrefixCache(), Counted(roomy.backbone, monkeypatch)
    talk = [{"role": role, "content": f"{role} says this."} for role in ("user", "assistant", "user")]
    more = [*talk, {"role": "assistant", "content": "Fine."}, {"role": "user", "content": "And now?"}]
    reads = []
    for messages, namespace in ((talk, "alice"), (more, "alice"), (more, "bob")):
        stateless.reply(roomy, messages, cache=kept, namespace=namespace, max_new_tokens=1).finish()
        reads.append(counted.take())
    assert reads[1] < reads[2] / 1.3


@pytest.mark.long
@pytest.mark.real
def test_the_default_model_says_the_same_with_and_without(smollm2: HMTModel, tmp_path: Path) -> None:
    said = []
    for kept in (1 << 28, 0):
        with MemoryStore(tmp_path / str(kept), tiers=Tiers(hot_bytes=kept)) as store:
            session = store.session("alice", smollm2)
            said.append(
                [
                    "".join(session.reply({"role": "user", "content": text}, max_new_tokens=12))
                    for text in ("My dog is called Biscuit.", "I live in Lisbon.", "What is my dog called?", "Where do I live?")
                ]
            )
    assert said[0] == said[1]
