"""An imported session whose tokens say something else, through the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from archives import FORGED, MODEL, before, forged, row_of, spoken
from stored import memory_of, tokens_of, user
from tiny import NO_SYSTEM, REMEMBERING, byte_tokenizer, light_model

from hmt_memory import MemoryStore, Session
from hmt_memory.chat.transcript import Transcript
from hmt_memory.errors import InputError
from hmt_memory.sessions.archive import UNVERIFIED

OTHER = light_model(config=REMEMBERING, tokenizer=MODEL.backbone.tokenizer, seed=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MemoryStore]:
    with MemoryStore(tmp_path / "store") as opened:
        yield opened


def equals_one_that_heard(store: MemoryStore, session: Session, model: object) -> None:
    heard = store.session("heard", model)  # type: ignore[arg-type]
    for message in session.messages():
        heard.add(message.to_dict())
    assert tokens_of(session) == tokens_of(heard) and np.array_equal(memory_of(session), memory_of(heard))


@pytest.mark.parametrize("how", ["import", "open", "rebuild", "import for another"])
def test_forged_tokens_are_never_used(store: MemoryStore, tmp_path: Path, how: str) -> None:
    model = OTHER if how in ("rebuild", "import for another") else MODEL
    path = forged(store, tmp_path / "file", before(), FORGED["an order in what a user said"])
    session = store.import_session(path, name="again", model=model if how.startswith("import") else None)
    assert bool(row_of(store, "again").settings.get(UNVERIFIED)) is not how.startswith("import")
    if how == "rebuild":
        assert any("'again'" in note and "compared" in note for note in store.verify().notes)
        session = session.rebuild(model)
    session = store.session("again", model)
    assert UNVERIFIED not in row_of(store, "again").settings
    equals_one_that_heard(store, session, model)


def test_an_honest_one_for_another_model_keeps_its_tokens(store: MemoryStore, tmp_path: Path) -> None:
    again = store.import_session(spoken(store, tmp_path / "file"), name="again", model=OTHER)
    assert tokens_of(again) == tokens_of(store.session("alice", MODEL)) and UNVERIFIED not in row_of(store, "again").settings


def test_what_a_model_cannot_open_is_not_imported_for_it(store: MemoryStore, tmp_path: Path) -> None:
    strict = light_model(config=REMEMBERING, tokenizer=byte_tokenizer(NO_SYSTEM.replace("'system'", "'robot'")))
    robot = ({"role": "robot", "content": "hi"}, Transcript(MODEL.backbone).stretch(user("hi"), first=False))
    with pytest.raises(InputError, match="no place for the role 'robot'"):
        store.import_session(forged(store, tmp_path / "file", before(), robot), name="again", model=strict)
    assert store.sessions() == ["model"]
