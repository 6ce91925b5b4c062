"""What of a resent conversation is new: the cases of agent frameworks, and laws over random conversations."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmt_memory.assistant.reconcile import Continuation, Entry, entry, reconcile
from hmt_memory.errors import ConfigError


def conversation(text: str, ids: str = "") -> list[Entry]:
    """Turns by turn: upper case letters are the user's, lower case are answers; `ids` gives each one, a space none."""
    roles = {True: "user", False: "assistant"}
    found = [entry({"role": roles[letter.isupper()], "content": letter}) for letter in text]
    return [one._replace(id=id.strip() or None) for one, id in zip(found, ids.ljust(len(found)), strict=True)]


@pytest.mark.parametrize(
    ("log", "messages", "plan"),
    [
        ("", "A", Continuation(0, 0)),
        ("Ab", "AbC", Continuation(2, 2)),  # the whole conversation again
        ("Ab", "C", Continuation(2, 0)),  # only what is new
        ("AbCd", "CdE", Continuation(4, 2)),  # a trimmed window
        ("AbCd", "dE", Continuation(4, 1)),  # trimmed to the last answer
        ("AbCd", "AbC", Continuation(3, 3)),  # another try
        ("AbCd", "AbE", Continuation(2, 2)),  # an edited turn
        ("AbCdEf", "AbXdE", Continuation(2, 2)),  # edited in the middle
        ("AbCdEf", "AdEfG", Continuation(6, 4)),  # the first and the last turns
        ("CdEf", "AbCdEfG", Continuation(4, 6)),  # the session has forgotten the beginning
        ("AbEf", "AbCdEfG", Continuation(4, 6)),  # or something in the middle
        ("AbCd", "AbX", Continuation(2, 2)),
        ("AbCbDeFb", "AbCbDeX", Continuation(6, 6)),  # edited behind an answer in the same words as the last
        ("AbCbDb", "AbCbX", Continuation(4, 4)),
        ("AbCdEfCd", "AbCdX", Continuation(4, 4)),  # and a turn in the same words
        ("AbCdAb", "AbX", Continuation(6, 2)),  # a trimmed window, or an edited turn: nothing is lost
        ("Ab", "CbD", Continuation(2, 0)),  # another turn that was answered in the same words
        ("Ab", "A", Continuation(2, 0)),  # the same said once more
        ("AbAb", "A", Continuation(4, 0)),
        ("A", "A", Continuation(1, 1)),  # said and not answered yet
        ("Ab", "XyZ", Continuation(2, 0)),
    ],
)
def test_calls_of_every_kind(log: str, messages: str, plan: Continuation) -> None:
    assert reconcile(conversation(log), conversation(messages)) == plan


def test_equal_ids_tell_another_try_from_the_same_said_once_more() -> None:
    assert reconcile(conversation("Ab", "1 "), conversation("A", "1")) == Continuation(1, 1)
    assert reconcile(conversation("Ab", "1 "), conversation("A", "2")) == Continuation(2, 0)
    assert reconcile(conversation("AbA", "1 3"), conversation("AC", "34")) == Continuation(3, 1)
    assert reconcile(conversation("AbCd", "1 3 "), conversation("AE", "15")) == Continuation(
        4, 1
    )  # trimmed to the first and the new
    assert reconcile(conversation("AbCd", "1234"), conversation("AbE", "567")) == Continuation(
        4, 0
    )  # another talk that begins alike
    assert reconcile(conversation("AbCd", "1 3 "), conversation("AbC", "1 9")) == Continuation(2, 2)  # the edit once more
    assert reconcile(conversation("AbA", "1 3"), conversation("AC", "94")) == Continuation(3, 0)


def test_modes() -> None:
    log, again = conversation("AbCd"), conversation("AbC")
    assert reconcile(log, again, "incremental") == Continuation(4, 0)
    assert reconcile(log, conversation("X"), "full") == Continuation(0, 0)
    assert reconcile(log, conversation("A"), "full") == Continuation(1, 1)
    with pytest.raises(ConfigError, match="Choose one of auto, incremental, full"):
        reconcile(log, again, "other")  # type: ignore[arg-type]


def test_fingerprints_see_what_was_said_and_nothing_else() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    asked: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
    same = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"name": "add", "args": {"b": 2, "a": 1}, "id": "2"}],
        "name": "x",
    }
    assert entry(asked).print == entry(same).print
    assert entry({"role": "user", "content": " hi\n"}).print == entry({"role": "user", "content": "hi", "id": "7"}).print
    other = {**call, "function": {"name": "add", "arguments": '{"a": 1, "b": 3}'}}
    differ = [
        asked,
        {**asked, "tool_calls": [other]},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hi"},
    ]
    differ += [{"role": "tool", "content": "hi", "tool_call_id": id} for id in ("1", "2")]
    assert len({entry(one).print for one in differ}) == len(differ)
    assert entry({"role": "user", "content": "\ud800"}).print != entry({"role": "user", "content": "\ud801"}).print


turns = st.lists(st.sampled_from("AbCdEf"), max_size=8).map("".join)


@given(turns, turns)
def test_resending_everything_adds_exactly_what_is_new(log: str, more: str) -> None:
    known, messages = conversation(log), conversation(log + more)
    plan = reconcile(known, messages)
    assert plan == Continuation(len(log), len(log) if log else 0)


@given(turns, turns, st.sampled_from(["auto", "full", "incremental"]))
def test_afterwards_the_session_ends_with_the_messages_or_holds_them_all(log: str, messages: str, mode: Any) -> None:
    plan = reconcile(conversation(log), conversation(messages), mode)
    assert 0 <= plan.keep <= len(log) and 0 <= plan.new <= len(messages)
    after = log[: plan.keep] + messages[plan.new :]
    assert after.endswith(messages[-1:])
    if mode != "auto":
        assert after.endswith(messages)


@given(st.lists(st.tuples(st.sampled_from("AB"), st.sampled_from("xy")), min_size=2, max_size=6), st.data())
def test_an_edited_turn_replaces_what_followed_whatever_else_was_said_in_the_same_words(
    said: list[tuple[str, str]], data: st.DataObject
) -> None:
    """Unless what stands before it ends as the session does: then it may be a window of its last turns."""
    log = "".join(asked + answered for asked, answered in said)
    before = log[: 2 * data.draw(st.integers(1, len(said) - 1))]
    plan = reconcile(conversation(log), conversation(before + "X"))
    if any(log.endswith(before[:length]) for length in range(1, len(before) + 1)):
        assert plan.keep in (len(before), len(log))
    else:
        assert plan == Continuation(len(before), len(before))
