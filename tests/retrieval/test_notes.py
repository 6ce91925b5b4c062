"""Notes and the passages they are made of: whole, verbatim, told once, and none where nothing bears on the question."""

from __future__ import annotations

from datetime import datetime, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model

from hmt_memory.retrieval import lexical
from hmt_memory.retrieval.citations import Citation, Message
from hmt_memory.retrieval.notes import HEADING, Note, day, written
from hmt_memory.retrieval.passages import FUSED, Evidence, FoundPassage, Scored, scored
from hmt_memory.retrieval.ranking import alone
from hmt_memory.retrieval.recollection import ViewRecollection
from hmt_memory.retrieval.sentences import LONGEST, sentences, whole
from hmt_memory.store.index.words import Postings

DAY = datetime(2026, 3, 9, 12, tzinfo=timezone.utc)


def said(number: int, text: str, role: str = "user", segment: int | None = None) -> Citation:
    """A message of a session, with tokens that follow those of the one before."""
    message = Message(number, role, text, DAY)
    return Citation(segment or number, text, (message,), (number * 10, number * 10 + 10), DAY, "alice")


def ranked(question: str, *texts: str | tuple[str, str]) -> list[Scored]:
    """Rank messages, each found by a segment of its own and of the same weight."""
    cited = [said(number, *((text,) if isinstance(text, str) else text)) for number, text in enumerate(texts)]
    worth = dict.fromkeys(lexical.distinct_terms(question), 1.0)
    return scored([FoundPassage((0, one.segment), one, 1.0) for one in cited], question, worth)


def test_notes_say_when_and_by_whom_once_a_day() -> None:
    notes = [
        Note("I live in Bremen.", DAY, "user"),
        Note("Good to know.", DAY, "assistant"),
        Note("Shops open at 9.", "handbook/hours.md"),
        Note("They close at 6.", "handbook/hours.md"),
    ]
    assert written(notes).splitlines() == [
        HEADING,
        "[9 March 2026]",
        "user: I live in Bremen.",
        "assistant: Good to know.",
        "[handbook/hours.md]",
        "Shops open at 9.",
        "They close at 6.",
        "",
    ]
    assert written([]) == "" and day(DAY) == "9 March 2026"


@given(st.text(alphabet=st.sampled_from("ab .!?\n\u3002\u201d\"'Dr"), max_size=200))
def test_sentences_are_verbatim_and_lose_no_word(text: str) -> None:
    parts = sentences(text)
    place = 0
    for part in parts:
        found = text.find(part, place)
        assert found >= 0 and not text[place:found].strip() and part == part.strip()
        place = found + len(part)
    assert not text[place:].strip()


@pytest.mark.parametrize("text", ["word " * 500, "x" * 5000, "1234 " * 100 + "y" * 3000])
def test_what_has_no_end_is_cut_between_words_or_at_a_length(text: str) -> None:
    parts = sentences(text)
    assert all(len(part.split()) <= LONGEST and len(part) <= 800 for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_a_part_of_a_text_gives_up_the_sentences_it_begins_and_ends_in() -> None:
    text = "nd of one. A whole one. Another. The begin"
    assert whole(text, from_start=False, to_end=False) == "A whole one. Another."
    assert whole(text, from_start=True, to_end=True) == text
    assert whole("alf a word and more wor", from_start=False, to_end=False) == "a word and more"


def test_the_message_that_shares_rare_words_comes_first_and_an_answer_with_its_question() -> None:
    order = ranked("Where is the spare key?", "The spare key is in the shed.", "It rained.", "The key of this song is G.")
    assert order[0].cited.text == "The spare key is in the shed."
    assert [one.shares_words for one in order] == [True, True, False]
    order = ranked("What was the code?", "What is the code of the gate?", ("It is 4071.", "assistant"), "Nice weather.")
    texts = [one.cited.text for one in order]
    assert texts[:2] == ["It is 4071.", "What is the code of the gate?"], "what asks counts less than what answers it"
    assert not order[2].shares_words


def test_the_question_itself_is_no_passage_and_a_passage_found_twice_is_one() -> None:
    assert ranked("Where is it?", "Where is it?") == []
    cited = said(1, "The key is here.")
    twice = scored(
        [FoundPassage((0, 1), cited, 0.2), FoundPassage((0, 2), cited._replace(segment=2), 0.8)], "key?", {"key": 1.0}
    )
    assert len(twice) == 1 and twice[0].cited.segment == 1, "named by the first segment that has a part of it"


def test_scores_of_texts_rise_with_rare_words_and_never_above_what_the_words_are_worth() -> None:
    worth = {"key": 3.0, "the": 0.1}
    scores = lexical.text_scores(["the key", "the the the the", "nothing", "key " * 50], worth)
    assert scores[0] > scores[1] > scores[2] == 0 and max(scores) <= 3.1 + 1e-9


def test_the_letter_behind_an_apostrophe_is_no_word() -> None:
    query = lexical.distinct_terms("What is my sister's job?")
    none = np.zeros(0, np.int64)
    worth = lexical.rarities(query, [Postings(np.array([5, 5, 5]), [(none, none) for _ in query], none)])
    assert worth["s"] == 0 and worth["siste"] > 0 and lexical.rarities(["7"], [Postings(none, [(none, none)], none)])["7"] > 0


def test_of_what_was_said_twice_the_latest_is_noted_however_they_score() -> None:
    first, last = (
        Scored((0, number, number), said(number, "The code is 7."), score, True) for number, score in ((1, 0.9), (5, 0.5))
    )
    weak = Scored((0, 9, 9), said(9, "Codes are dull."), 0.1, True)
    chooser = ViewRecollection(tiny_model(), list, alone(None), own=True, question="code?")  # type: ignore[arg-type]
    assert chooser._noted([first, last, weak]) == [last]


def near_by_meaning(question: str, *texts: tuple[str, float] | tuple[str, float, str]) -> list[Scored]:
    """Rank messages of which it is known how near their keys are to the question's."""
    cited = [(said(number, text, *role), meaning) for number, (text, meaning, *role) in enumerate(texts)]
    worth = dict.fromkeys(lexical.distinct_terms(question), 1.0)
    return scored([FoundPassage((0, one.segment), one, 1.0, meaning) for one, meaning in cited], question, worth)


def test_what_is_near_by_meaning_comes_first_and_is_noted_although_it_shares_no_words() -> None:
    order = near_by_meaning(
        "What is the name of my manager?",
        ("I report to Odile at work.", 0.75),
        ("The name of the wind is a novel.", 0.2),
        ("It rained.", 0.05),
    )
    assert order[0].cited.text == "I report to Odile at work." and order[0].evidence.words == 0
    assert all(one.score == one.likelihood and 0 <= one.score <= 1 for one in order)
    chooser = ViewRecollection(tiny_model(), list, alone(None), own=True, question="manager?")  # type: ignore[arg-type]
    assert [one.cited.text for one in chooser._noted(order)][:1] == ["I report to Odile at work."]
    assert "It rained." not in [one.cited.text for one in chooser._noted(order)]
    unlikely = near_by_meaning("Thanks!", ("I report to Odile at work.", 0.1), ("It rained.", 0.05))
    assert chooser._noted(unlikely) == [], "nothing bears on it"


def test_an_answer_is_as_near_as_the_question_it_answers() -> None:
    order = near_by_meaning(
        "Where does she work?", ("And what is her job?", 0.8), ("The harbour, mostly.", 0.1, "assistant"), ("Nice.", 0.3)
    )
    by_text = {one.cited.text: one for one in order}
    assert by_text["The harbour, mostly."].evidence.meaning == pytest.approx(0.72)
    assert by_text["Nice."].evidence.meaning == 0.3


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.booleans())
def test_more_evidence_never_makes_a_passage_less_likely(evidence: list[float], asks: bool) -> None:
    rows = np.array([evidence] * 5) + 0.1 * np.eye(5, 4, -1)
    less, *more = FUSED.likelihood(*rows.T, np.array([asks] * 5))
    assert 0 <= less < 1 and all(less < likely < 1 for likely in more)
    assert FUSED.likelihood(*rows.T, np.array([True] * 5))[0] <= less


def test_what_stands_beside_the_words_of_a_question_is_likelier_than_the_same_elsewhere() -> None:
    order = near_by_meaning(
        "When does the regatta in Ostend begin?",
        ("The regatta in Ostend is the next thing.", 0.3),
        ("At ten, they said.", 0.3, "assistant"),
        ("Fine.", 0.3),
        *[("Something else.", 0.3)] * 3,
        ("At nine, they said.", 0.3),
        ("Fine, then.", 0.3),
    )
    likely = {one.cited.text: one for one in order}
    assert likely["At ten, they said."].score > likely["At nine, they said."].score
    assert likely["At ten, they said."].evidence.around > 0 == likely["At nine, they said."].evidence.around


def test_sentences_of_a_document_do_not_stand_for_those_beside_them() -> None:
    texts = ("The regatta in Ostend is next.", "Water is wet.")
    cited = [said(number, text)._replace(messages=(), document=7) for number, text in enumerate(texts)]
    worth = dict.fromkeys(lexical.distinct_terms("The regatta in Ostend?"), 1.0)
    order = scored([FoundPassage((0, one.segment), one, 1.0, 0.3) for one in cited], "The regatta in Ostend?", worth)
    assert [one.evidence.around == 0 for one in order] == [False, True]


def test_without_keys_words_and_segments_decide_as_before() -> None:
    order = ranked("Where is the spare key?", "The spare key is in the shed.", "It rained.")
    assert [one.likelihood for one in order] == [None, None] and order[0].evidence == Evidence(
        order[0].evidence.words, 0.0, 1.0
    )
