"""Answers without a session: nothing is stored, what scrolled away comes back, and what was read is not read again."""

from __future__ import annotations

import copy
import io
import json
import pickle
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import REMEMBERING, byte_tokenizer, light_model

from hmt_memory import Assistant, MemoryStore, Session
from hmt_memory.assistant.loading import ModelSettings
from hmt_memory.assistant.stateless import PrefixCache, prompt_of, reply
from hmt_memory.chat.transcript import Transcript
from hmt_memory.cli.asking import ask, ask_about, remembering
from hmt_memory.cli.documents import Document
from hmt_memory.cli.terminal import Screen
from hmt_memory.errors import BudgetError, InputError, SessionNotFoundError

MODEL = light_model(config=replace(REMEMBERING, pinned_tokens=60, replay_tokens=150), tokenizer=byte_tokenizer())
FAST: dict[str, Any] = {"max_new_tokens": 8}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


TALK = [
    {"role": "system", "content": "Be brief."},
    user("The secret word is zanzibar. Remember it well."),
    {"role": "assistant", "content": "I will."},
    user("Now something else, to fill the time. " * 3),
    {"role": "assistant", "content": "Yes."},
    user("What was the secret word zanzibar?"),
]


def test_an_answer_is_that_of_a_session_that_holds_the_same(tmp_path: Path) -> None:
    plain = MODEL.with_config(replay_tokens=0)
    with MemoryStore(tmp_path) as store:
        for model in (plain, MODEL):
            found = reply(model, TALK, **FAST).finish()
            session = store.session(f"alice {model.view.note_tokens}", model)
            session.add(TALK[:-1])
            expected = session.reply(TALK[-1], **FAST).finish()
            if model is plain:  # what a session replays also says when it was said
                assert found.text == expected.text and found.finish_reason == expected.finish_reason
    assert found.recalled[0].token_span == expected.recalled[0].token_span
    assert "zanziba" in " ".join(one.text for one in found.recalled)
    assert found.recalled[0].messages[0].content in [message["content"] for message in TALK]


def test_what_an_earlier_call_read_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, read = PrefixCache(), []
    real = type(MODEL).summarize
    monkeypatch.setattr(type(MODEL), "summarize", lambda self, segments: read.append(len(segments)) or real(self, segments))
    first = reply(MODEL, TALK[:4], cache=cache, **FAST).finish()
    before = sum(read)
    read.clear()
    second = reply(MODEL, TALK, cache=cache, **FAST).finish()
    with_cache = sum(read)
    read.clear()
    alone = reply(MODEL, TALK, **FAST).finish()
    assert with_cache < sum(read) and before > with_cache / 2
    assert second.text == alone.text and second.usage == alone.usage
    assert first.usage.prompt_tokens > 0


def test_the_cache_keeps_a_bounded_number_and_only_true_prefixes() -> None:
    cache = PrefixCache(entries=2)
    state = MODEL.empty_state()
    rows = [torch.tensor(ids).numpy().astype("uint32") for ids in ([1, 2], [1, 2, 3], [7])]
    for ids in rows:
        cache.keep(ids, replace(state, tokens=len(ids)))
    found = cache.longest(torch.tensor([1, 2, 3, 4]).numpy().astype("uint32"))
    assert found is not None and found.tokens == 3
    assert cache.longest(rows[0]) is None  # let go
    assert cache.longest(torch.tensor([2, 7]).numpy().astype("uint32")) is None


def test_a_namespace_meets_its_own_prefixes_only_and_all_together_are_bounded() -> None:
    cache, ids = PrefixCache(entries=2), torch.tensor([1, 2]).numpy().astype("uint32")
    for tokens, namespace in enumerate(("alice", "bob", None), 1):
        cache.keep(ids, replace(MODEL.empty_state(), tokens=tokens), namespace)
    kept = {name: cache.longest(ids, name) for name in ("alice", "bob", None)}
    assert {name: state and state.tokens for name, state in kept.items()} == {"alice": None, "bob": 2, None: 3}


def test_a_call_is_not_text_and_a_schema_is_kept() -> None:
    model = MODEL.with_config(pinned_tokens=230, replay_tokens=0, recent_tokens=0)
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
    answer = reply(model, [user("go")], tools=[tool], tool_choice="required", max_new_tokens=80)
    assert "".join(answer) == "" and answer.tool_calls[0].name == "look_up" and answer.finish_reason == "tool_calls"
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    assert isinstance(json.loads(reply(model, [user("go")], schema=schema, max_new_tokens=60).finish().text)["n"], int)


def test_nothing_to_answer_is_refused() -> None:
    for messages in ([], [{"role": "system", "content": "Be."}]):
        with pytest.raises(InputError, match="nothing to answer"):
            reply(MODEL, messages)


def test_a_file_s_beginning_is_replayed_for_a_question_about_it() -> None:
    text = "The lighthouse keeper is called Felix. " + "The sea was calm and nothing happened at all. " * 6
    ids = torch.tensor(MODEL.backbone.encode(text))
    model = MODEL.with_config(pinned_tokens=120, replay_tokens=100, recent_tokens=0)
    memory = remembering(model, "What is the lighthouse keeper called?", ids)
    ask_about(model, "What is the lighthouse keeper called?", model.read(ids), recollection=memory, **FAST).finish()
    assert memory.recalled[0].text == "The lighthouse keeper is called Felix." and memory.recalled[0].messages == ()
    assert all(one.text in model.backbone.decode(ids[slice(*one.token_span)].tolist()) for one in memory.recalled)


def test_quotes_of_a_conversation_that_nobody_dated_have_no_time() -> None:
    ids = MODEL.backbone.encode("The lighthouse keeper is called Felix. " * 3)
    memory = remembering(MODEL, "Felix", torch.tensor(ids))
    assert memory._sources(lambda shards: shards[0].cite(1).quote()) == MODEL.backbone.decode(ids[16:32])


def test_hmt_ask_replays_what_its_answer_needs() -> None:
    """The command itself, not only what it is made of."""
    notes = io.StringIO()
    screen = Screen(Console(file=notes, width=200), io.StringIO())
    text = "The lighthouse keeper is called Felix. " + "The sea was calm and nothing happened at all. " * 6
    model = MODEL.with_config(pinned_tokens=120, replay_tokens=100, recent_tokens=0)
    ask(model, [Document("text", text)], "What is the lighthouse keeper called?", screen, decoding=FAST)
    assert "Notes (segment" in notes.getvalue() and "segment 0" in notes.getvalue()


# --- the assistant ------------------------------------------------------------------------------------------------------


@pytest.fixture
def assistant(tmp_path: Path) -> Assistant:
    return Assistant(MODEL, store=tmp_path / "memories")


def contents(assistant: Assistant, name: str) -> list[str]:
    return [message.content for message in assistant.session(name).messages()]


def test_resent_conversations_are_remembered_once(assistant: Assistant) -> None:
    said = [user("one")]
    for text in ("two", "three"):
        answer = assistant.reply(said, session="alice", **FAST).finish()
        said += [{"role": "assistant", "content": answer.text}, user(text)]
    assert contents(assistant, "alice") == [message["content"] for message in said[:-1]]
    assistant.reply(said[-1:], session="alice", **FAST).finish()  # only the new turn
    assert len(contents(assistant, "alice")) == 6


def test_an_edited_turn_replaces_what_followed(assistant: Assistant) -> None:
    said = [user("one")]
    for text in ("two", "three"):
        answer = assistant.reply(said, session="alice", **FAST).finish()
        said += [{"role": "assistant", "content": answer.text}, user(text)]
    edited = [*said[:2], user("TWO")]
    answer = assistant.reply(edited, session="alice", **FAST).finish()
    assert contents(assistant, "alice") == [*(message["content"] for message in edited), answer.text]
    again = assistant.reply(edited, session="alice", **FAST).finish()  # another try
    assert again.text == answer.text and len(contents(assistant, "alice")) == 4


def test_a_system_prompt_is_stored_when_it_changes(assistant: Assistant) -> None:
    for prompt in ("Be.", "Be.", "Do.", "Do."):
        assistant.reply([{"role": "system", "content": prompt}, user("x")], session="s", history="incremental", **FAST).finish()
    assert [text for text in contents(assistant, "s") if text in ("Be.", "Do.")] == ["Be.", "Do."]
    assert assistant.session("s").system() == "Do."


def test_a_session_is_set_to_what_it_shall_hold(assistant: Assistant) -> None:
    turns = [{"role": "system", "content": "Brief."}, *(user(str(at)) for at in range(4))]
    assistant.add("alice", turns)
    kept = assistant.session("alice").messages()[:3]
    for wanted in (turns[:3], [*turns[:3], user("new")], turns[:3]):
        assistant.set("alice", wanted)
        assert contents(assistant, "alice") == [one["content"] for one in wanted]
        assert assistant.session("alice").messages()[:3] == kept, "what stays is not read again"
    for wanted in (
        turns[1:3],
        [{"role": "system", "content": "Long."}, *turns[1:3]],
        [turns[1], turns[0], turns[2]],
        turns[1:],
    ):
        assistant.set("alice", wanted)
        assert contents(assistant, "alice") == [one["content"] for one in wanted]
    assistant.set("alice", [user("other"), user("1")])
    assert contents(assistant, "alice") == ["other", "1"]
    assistant.set("alice", [])
    assert contents(assistant, "alice") == []


def test_what_another_writer_did_is_seen(assistant: Assistant, tmp_path: Path) -> None:
    assistant.reply([user("one")], session="alice", **FAST).finish()
    with MemoryStore(tmp_path / "memories") as store:
        other = store.session("alice", MODEL)
        other.forget([other.messages()[0].id])
    assistant.reply([user("one")], session="alice", **FAST).finish()
    assert contents(assistant, "alice").count("one") == 1


def test_messages_that_replace_are_added_whole_or_not_at_all(assistant: Assistant) -> None:
    said = [user("one"), {"role": "assistant", "content": "two"}, user("three")]
    assistant.add("alice", said)
    with pytest.raises(BudgetError):
        assistant.add("alice", [{"role": "system", "content": "word " * 99}, *said[:2], user("THREE")])
    assert contents(assistant, "alice") == ["one", "two", "three"]
    assistant.add("alice", [*said[:2], user("THREE")])
    assert contents(assistant, "alice") == ["one", "two", "THREE"]


def test_a_session_deleted_elsewhere_begins_anew(assistant: Assistant, tmp_path: Path) -> None:
    assistant.reply([user("one")], session="alice", **FAST).finish()
    with MemoryStore(tmp_path / "memories") as store:
        store.delete("alice")
    assistant.reply([user("two")], session="alice", **FAST).finish()
    assert contents(assistant, "alice")[0] == "two"


def test_looking_makes_nothing_and_sessions_are_kept_open_within_the_account(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wanted in ({"session": "typo"}, {"corpora": ["typo"]}):
        with pytest.raises(SessionNotFoundError, match="'typo'"):
            assistant.recall("x", **wanted)
    assert assistant.store.sessions() == assistant.store.corpora() == []
    for name in ("a", "b", "c"):
        assistant.add(name, user("hello"))
    monkeypatch.setattr(assistant.store.hot, "limit", 3 * assistant.store.hot.bytes // 4)
    assistant.store.settle()
    assert assistant._sessions.names() == ["b", "c"]
    assistant.add("a", [user("hello"), user("more")])
    assert contents(assistant, "a") == ["hello", "more"]


def test_twenty_turns_at_once_are_all_kept(assistant: Assistant) -> None:
    def turn(number: int) -> None:
        assistant.reply([user(f"turn {number}")], session="busy", max_new_tokens=2).finish()

    threads = [threading.Thread(target=turn, args=(number,)) for number in range(20)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(text for text in contents(assistant, "busy") if text.startswith("turn ")) == sorted(
        f"turn {number}" for number in range(20)
    )


def test_assistants_are_shared_copied_and_pickled_without_their_weights(tmp_path: Path) -> None:
    settings = ModelSettings("no-such-model")
    first, second = Assistant.shared(settings, str(tmp_path)), Assistant.shared(settings, str(tmp_path))
    assert first is second and not first.is_loaded
    assert Assistant.shared(settings, str(tmp_path / "x"))._weights is first._weights
    assert copy.deepcopy(first) is first and copy.copy(first) is first
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(Assistant(MODEL, store=tmp_path))
    assert pickle.loads(pickle.dumps(first)) is first and len(repr(first)) < 300
    with pytest.raises(LookupError):
        first.token_ids("x")


def test_tokens_are_the_model_s_own(assistant: Assistant) -> None:
    assert len(assistant.token_ids("hello")) == 5
    counted = assistant.count_message_tokens(TALK)
    rendered = MODEL.backbone.tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert counted == len(MODEL.backbone.encode(rendered))


def test_what_a_model_is_not_shown_is_recalled_for_it(assistant: Assistant) -> None:
    words = Assistant(MODEL.with_config(selection="words"), store=assistant.folder)
    talk = [user("the red door is locked today"), *(user(f"line {at} says very little") for at in range(8)), user("red door?")]
    ids = words.add("alice", talk)
    found = words.recall_hidden("red door?", [talk[-1]["content"]], session="alice", top_k=2, before=ids[-1])
    assert "the red" in found[0].text and "red door?" not in "".join(one.text for one in found)
    assert [one.segment for one in found] == sorted(one.segment for one in found)
    assert all(one.messages[0].id < ids[-1] for one in words.session("alice").recall("red door?", 50, before=ids[-1]))
    costs = [len(words.token_ids(one.quote())) for one in found]
    assert len(words.recall_hidden("red door?", [], session="alice", tokens=min(costs), before=ids[-1])) <= 1
    assert words.recall_hidden("red door?", [], session="nobody") == words.recall_hidden(" ", [], session="alice") == []
    shown = [message["content"] for message in talk]
    assert words.recall_hidden("red door?", shown, session="alice") == []
    words.corpus("house").add_documents([("doors.md", "the red door leads to the garden")])
    words.session("alice").attach("house")
    (quote, *_) = words.recall_hidden("red door?", shown, session="alice")
    assert quote.quote().startswith("[house/doors.md]\n")
    with pytest.raises(SessionNotFoundError):
        words.session("alice").recall("x", before=999)


def test_a_system_prompt_too_long_to_be_pinned_is_read_before_the_question() -> None:
    model = MODEL.with_config(pinned_tokens=90, recent_tokens=20, replay_tokens=110)
    long = {"role": "system", "content": "the red door leads to the garden. " + "nothing more is known here. " * 12}
    talk = [user("hello"), {"role": "assistant", "content": "hi"}, user("red door?")]
    answer = reply(model, [long, *talk], max_new_tokens=4).finish()
    assert "red door" in "".join(one.text for one in answer.recalled) and answer.usage.view_tokens <= 256
    transcript = Transcript(model.backbone)
    prompt = prompt_of(transcript, [long, *talk], limit=90)
    assert [one["role"] for one in prompt.batch.messages] == ["user", "assistant", "system", "user"]
    assert [one.ids for at, one in enumerate(prompt.batch.stretches) if at != 2] == [
        one.ids for one in prompt_of(transcript, talk).batch.stretches
    ]
    start, stop = prompt.batch.stretches[2].content
    assert model.backbone.decode(prompt.batch.stretches[2].ids[start:stop]) == long["content"], "what is cited is what it says"
    with pytest.raises(InputError, match="nothing to answer"):
        reply(model, [long])
    with pytest.raises(BudgetError, match="pinned_tokens"):
        reply(model, [user("x")], tools=[{"type": "function", "function": {"name": "f" * 300}}])


def test_a_long_read_of_one_session_keeps_no_other_waiting(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    add = Session.add

    def slow(self: Session, *args: Any, **options: Any) -> Any:
        if self.name == "alice":
            begun.set()
            assert go_on.wait(10)
        return add(self, *args, **options)

    monkeypatch.setattr(Session, "add", slow)
    reading = threading.Thread(target=assistant.add, args=("alice", [user("long")]))
    reading.start()
    assert begun.wait(10)
    assistant.add("bob", [user("short")])
    go_on.set()
    reading.join()
    assert contents(assistant, "alice") == ["long"] and contents(assistant, "bob") == ["short"]


def test_passages_that_fit_are_chosen_by_weight_and_what_fills_no_segment_comes_last(assistant: Assistant) -> None:
    words = Assistant(MODEL.with_config(selection="words"), store=assistant.folder)
    ids = words.add(
        "alice", [user("red door here"), *(user(f"line {at} says little") for at in range(8)), user("the end of it")]
    )
    (best,) = words.recall_hidden("red door", [], session="alice", top_k=1, before=ids[-2])[:1]
    assert "red" in best.text
    tail = words.session("alice").latest()
    assert tail is not None and tail.weight == 0 and "of it" in tail.text
    cost = len(words.token_ids(best.quote()))
    assert [one.segment for one in words.recall_hidden("red door", [], session="alice", tokens=cost)] == [best.segment]
    assert [one.segment for one in words.recall_hidden("red door", [], session="alice", top_k=1)] == [
        best.segment,
        tail.segment,
    ]
