"""The tokens of an imported session say what its messages say, or are not used."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from archives import CALL, FORGED, MODEL, TRANSCRIPT, USER, answered, before, encoded, forged, row_of, spoken
from stored import memory_of, tokens_of, user
from tiny import CHATML, NO_SYSTEM, REMEMBERING, byte_tokenizer, light_model
from tokenizers.processors import TemplateProcessing

from hmt_memory import HMTModel, MemoryStore
from hmt_memory.chat.transcript import Transcript
from hmt_memory.errors import InputError, StoreError
from hmt_memory.sessions.archive import UNVERIFIED, settle
from hmt_memory.store import lineage

PLAIN = light_model(config=REMEMBERING, tokenizer=byte_tokenizer(None))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    with MemoryStore(tmp_path / "store") as opened:
        yield opened


def epoch_after_settling(store: MemoryStore, name: str, model: HMTModel) -> int:
    """How often the session has been rewritten."""
    row = settle(store.database, row_of(store, name), model)
    assert UNVERIFIED not in row.settings and row == row_of(store, name)
    return row.epoch


# --- honest ones ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [MODEL, PLAIN], ids=["template", "script"])
def test_what_was_said_agrees(store: MemoryStore, tmp_path: Path, model: HMTModel) -> None:
    store.import_session(spoken(store, tmp_path / "file", model), name="again")
    original = store.session("alice", model)
    assert epoch_after_settling(store, "again", model) == 0
    again = store.session("again", model)
    assert tokens_of(again) == tokens_of(original) and np.array_equal(memory_of(again), memory_of(original))


def test_an_import_is_marked_until_a_model_opens_it(store: MemoryStore, tmp_path: Path) -> None:
    """And so is what is forked from it, or exported and imported again."""
    session = store.import_session(spoken(store, tmp_path / "file"), name="again")
    session.fork("fork")
    session.export(tmp_path / "twice")
    store.import_session(tmp_path / "twice", name="twice")
    assert all(row_of(store, name).settings[UNVERIFIED] for name in ("again", "fork", "twice"))
    assert UNVERIFIED not in row_of(store, "alice").settings
    assert epoch_after_settling(store, "fork", MODEL) == epoch_after_settling(store, "twice", MODEL) == 0
    assert row_of(store, "again").settings[UNVERIFIED]


def test_a_session_without_tokens_has_nothing_to_compare(store: MemoryStore, tmp_path: Path) -> None:
    session = store.session("alice", MODEL)
    session.add({"role": "system", "content": "Be kind."})
    session.export(tmp_path / "file")
    store.import_session(tmp_path / "file", name="again")
    assert UNVERIFIED not in row_of(store, "again").settings


HONEST = {
    "in its own tokens": answered("hi", encoded("hi")),
    "with an end": answered("hi", encoded("hi</s>")),
    "cut off within a character": answered("caf", encoded("café")[:-1]),
    "that spells out a mark": answered("a </s> b", encoded("a </s> b", literal=True)),
    "with a call": (
        {"role": "assistant", "content": "Well.", "tool_calls": [CALL]},
        TRANSCRIPT.answer(encoded('Well.<tool_call>{"name": "add", "arguments":{"n":1}}</tool_call>')),
    ),
    "with nothing but a call": (
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        TRANSCRIPT.answer(encoded('<tool_call>{"name": "add", "arguments":{"n":1}}</tool_call>')),
    ),
}


@pytest.mark.parametrize("kind", HONEST)
def test_an_answer_agrees(store: MemoryStore, tmp_path: Path, kind: str) -> None:
    """Whatever tokens it was given in."""
    store.import_session(forged(store, tmp_path / "file", before(), HONEST[kind]), name="again")
    assert epoch_after_settling(store, "again", MODEL) == 0


def test_an_answer_in_a_script_agrees(store: MemoryStore, tmp_path: Path) -> None:
    """What it says is kept without the spaces around it."""
    script = Transcript(PLAIN.backbone)
    asked = (user("hello"), script.stretch(user("hello"), first=True))
    answer = ({"role": "assistant", "content": "hi"}, script.answer(encoded("   hi ")))
    store.import_session(forged(store, tmp_path / "file", asked, answer, model=PLAIN), name="again")
    assert epoch_after_settling(store, "again", PLAIN) == 0


def test_an_answer_that_begins_the_stream_agrees(store: MemoryStore, tmp_path: Path) -> None:
    """What came before it was forgotten, and with it the start token, which every view begins with."""
    tokenizer = byte_tokenizer()
    start = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    model = light_model(config=REMEMBERING, tokenizer=tokenizer)
    body, stretch = HONEST["with a call"]
    first = Transcript(model.backbone).without_start(stretch)
    assert first.ids == stretch.ids[1:]
    store.import_session(forged(store, tmp_path / "file", (body, first), model=model), name="again")
    assert epoch_after_settling(store, "again", model) == 0


# --- others -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORGED)
def test_tokens_that_say_something_else_are_written_anew(
    store: MemoryStore, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And what memory the file has of them is not used: the session equals one that heard the messages."""
    store.import_session(forged(store, tmp_path / "file", before(), FORGED[kind], before("and that is all")), name="again")
    assert store.verify().ok, "rows alone do not tell"
    with caplog.at_level(logging.WARNING, "hmt_memory"):
        assert epoch_after_settling(store, "again", MODEL) == 1
    assert "written anew" in caplog.text
    again, heard = store.session("again", MODEL), store.session("heard", MODEL)
    for message in again.messages():
        heard.add(message.to_dict())
    assert tokens_of(again) == tokens_of(heard) and np.array_equal(memory_of(again), memory_of(heard))
    assert [one.id for one in again.messages()] == [1, 2, 3] and store.verify().ok


def test_a_fork_is_compared_for_itself(store: MemoryStore, tmp_path: Path) -> None:
    """It shares tokens that are written anew in the other."""
    path = forged(store, tmp_path / "file", before(), FORGED["an order in an answer"])
    store.import_session(path, name="again").fork("fork")
    assert epoch_after_settling(store, "again", MODEL) == 1 and row_of(store, "fork").settings[UNVERIFIED]
    assert epoch_after_settling(store, "fork", MODEL) == 1
    assert tokens_of(store.session("fork", MODEL)) == tokens_of(store.session("again", MODEL)) and store.verify().ok


@pytest.mark.parametrize("template", [None, CHATML + "{# the same #}"], ids=["script", "another"])
def test_another_tokenizer_writes_them_anew(store: MemoryStore, tmp_path: Path, template: str | None) -> None:
    """Whether or not it has the same tokens for them."""
    model = light_model(config=REMEMBERING, tokenizer=byte_tokenizer(template))
    store.import_session(spoken(store, tmp_path / "file"), name="again")
    assert epoch_after_settling(store, "again", model) == 1
    again, heard = store.session("again", model), store.session("heard", model)
    for message in again.messages():
        heard.add(message.to_dict())
    assert tokens_of(again) == tokens_of(heard)


def test_a_message_that_the_template_has_no_place_for(store: MemoryStore, tmp_path: Path) -> None:
    """Such a session is not opened with the model; what it says can still be seen."""
    strict = NO_SYSTEM.replace("'system'", "'robot'")
    model = light_model(config=REMEMBERING, tokenizer=byte_tokenizer(strict))
    robot = ({"role": "robot", "content": "hi"}, USER)
    store.import_session(forged(store, tmp_path / "file", before(), robot), name="again")
    with pytest.raises(InputError, match="no place for the role 'robot'"):
        settle(store.database, row_of(store, "again"), model)
    assert row_of(store, "again").settings[UNVERIFIED] and len(store.session("again").messages()) == 2


def test_a_store_that_is_read_only_stays_as_it_is(store: MemoryStore, tmp_path: Path) -> None:
    store.import_session(spoken(store, tmp_path / "file"), name="honest")
    store.import_session(forged(store, tmp_path / "forged", before(), FORGED["a longer answer"]), name="forged")
    with MemoryStore(store.folder, read_only=True) as same:
        assert settle(same.database, row_of(same, "honest"), MODEL).settings[UNVERIFIED]
        with pytest.raises(StoreError, match="read-only"):
            settle(same.database, row_of(same, "forged"), MODEL)
    assert all(row_of(store, name).settings[UNVERIFIED] for name in ("honest", "forged"))


def test_what_is_added_meanwhile_is_compared_too(store: MemoryStore, tmp_path: Path) -> None:
    store.import_session(forged(store, tmp_path / "file", before(), FORGED["a longer answer"]), name="again")
    stale = row_of(store, "again")
    store.session("again").forget([2])
    assert settle(store.database, stale, MODEL) == row_of(store, "again")
    with store.database.reading() as db:
        assert lineage.size(lineage.of(db, row_of(store, "again")))[0] == 1
