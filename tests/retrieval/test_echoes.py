"""Echoes: what an assistant says again is no note beside the user's own words; what it alone said is one."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest
from stored import user
from tiny import REMEMBERING, byte_tokenizer, light_model

from hmt_memory import MemoryStore
from hmt_memory.engine.abstaining import OPENINGS
from hmt_memory.retrieval.citations import Citation, Message
from hmt_memory.retrieval.echoes import HEARD, without_echoes
from hmt_memory.retrieval.passages import Scored

DAY = datetime(2026, 3, 9, 12, tzinfo=timezone.utc)
WIFI = ("user", "The password of the guest wifi is lemon-tractor-88.")
MODEL = light_model(config=REMEMBERING, tokenizer=byte_tokenizer()).with_config(
    selection="words", pinned_tokens=20, replay_tokens=190
)


def kept(*said: tuple[str, str]) -> list[str]:
    """Return the texts that stay of what was said (role, text); a role of "" is a document's."""
    passages = []
    for number, (role, text) in enumerate(said):
        messages = (Message(number, role, text, DAY),) if role else ()
        passages.append(Scored((0, number, 0), Citation(number, text, messages, (number, number + 1), DAY, "alice"), 0.5, True))
    return [passage.cited.text for passage in without_echoes(passages)]


@pytest.mark.parametrize(
    "echo",
    [
        "Got it. The wifi's password is lemon-tractor-88.",
        "Okay. The password for your guest's laptop is lemon-tractor-88.",  # and wrong
        *(f"{opening} Your cousin Cecilia works at Deaden High School." for opening in HEARD),
        *(f"{opening}. You may want to ask Miguel about it." for opening in OPENINGS),
    ],
)
def test_what_is_only_said_again_is_left_out(echo: str) -> None:
    assert kept(WIFI, ("assistant", echo)) == kept(("assistant", echo), WIFI) == [WIFI[1]]


@pytest.mark.parametrize(
    "answer",
    [
        "The guest wifi has the password lemon-tractor-89.",  # another number
        "The guest wifi and its password are run by Miguel.",  # a name
        "I would hide it from visitors and change it monthly.",  # other words
    ],
)
def test_what_the_assistant_alone_said_stays(answer: str) -> None:
    assert kept(WIFI, ("assistant", answer)) == [WIFI[1], answer]


def test_an_answer_says_nothing_again_of_what_was_asked() -> None:
    talk = [("user", "Which hotel in rome would you recommend?"), ("assistant", "In rome I recommend the hotel artemide.")]
    assert kept(*talk) == [text for _, text in talk], "questions tell nothing"
    echo = ("assistant", "The password of the guest wifi is lemon-tractor-88.")
    assert kept(echo) == [echo[1]], "it is all that there is"


def test_users_and_documents_may_say_again_what_they_like() -> None:
    assert kept(WIFI, ("user", WIFI[1] + "!"), ("", WIFI[1])) == [WIFI[1], WIFI[1] + "!", WIFI[1]]


def test_notes_of_a_session_are_the_users_words(tmp_path: Path) -> None:
    told, echo = "The wifi code is tree88.", "Okay. Your wifi code is tree88."
    with MemoryStore(tmp_path) as store:
        session = store.session("alice", MODEL)
        session.add([user(told), {"role": "assistant", "content": echo}])
        session.add([user(f"It rained for {number} hours on that day, all over the valley.") for number in range(30)])
        explained = session.explain(user("What is the code of the wifi?"))
        found = {each.text: each.noted for each in explained.passages}
        assert found[told] and not found[echo]
