"""What a session keeps in memory behind its own calls is what the store would give."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stored import user
from tiny import REMEMBERING, byte_tokenizer, light_model

from hmt_memory import MemoryStore, Session
from hmt_memory.sessions import session_memory

MODEL = light_model(
    config=replace(REMEMBERING, segment_length=64, summary_length=32, replay_tokens=40), tokenizer=byte_tokenizer()
)
LENGTH = MODEL.config.segment_length


def is_as_stored(session: Session) -> bool:
    """Return whether the snapshot that is kept equals the one that is loaded."""
    kept, loaded = session._snapshot(), session._snapshot(anew=True)
    same = [
        torch.equal(getattr(kept.state, name), getattr(loaded.state, name)) for name in ("memory", "recent_ids", "open_ids")
    ]
    counts = [(of.state.segments, of.state.tokens, of.state.held, of.state.memory_bits) for of in (kept, loaded)]
    return all(same) and counts[0] == counts[1] and (kept.row, kept.parts) == (loaded.row, loaded.parts)


@pytest.mark.parametrize("seed", range(3))
def test_a_session_that_goes_on_by_itself_is_as_the_store_has_it(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with MemoryStore(tmp_path) as store:
        session, other, short = store.session("alice", MODEL), store.session("alice", MODEL), 0
        for step in range(40):
            what = chance.randrange(6)
            said = [user("a" * chance.randrange(LENGTH)) for _ in range(chance.randrange(1, 4))]
            if what == 0:
                other.add(said)
            elif what == 1:
                session.add({"role": "system", "content": "Be kind."})
            elif what == 2:
                session = session.fork(f"fork {step}")
                other = store.session(session.name, MODEL)
            elif what == 3 and (messages := session.messages()):
                session.add(said, replacing=chance.choice(messages).id)
            elif what == 4 and (messages := session.messages()):
                session.forget([chance.choice(messages).id])
            else:
                before = session._snapshot().state.segments
                session.add([user("a")] * chance.randrange(1, 3))
                short += session._snapshot().state.segments == before
            assert is_as_stored(session), (step, what)
        assert short, "some filled no segment"


def test_a_message_that_fills_no_segment_is_not_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MemoryStore(tmp_path) as store:
        session = store.session("alice", MODEL)
        session.add(user("a" * LENGTH))
        room = LENGTH - len(session._snapshot().state.open_ids)
        monkeypatch.setattr(session_memory, "load_state", None)
        while room > 20:
            (number,) = session.add(user("a"))
            assert session.messages()[-1].id == number
            room = LENGTH - len(session._snapshot().state.open_ids)
        with pytest.raises(TypeError):  # this one fills it
            session.add(user("a" * LENGTH))
