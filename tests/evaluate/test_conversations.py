"""Published conversations told to sessions: the files, the evidence that is counted, the scores of answers, a whole run."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import SMALL

from hmt_memory import HMTModel, MemoryStore
from hmt_memory.cli import main
from hmt_memory.engine.backbone import Backbone
from hmt_memory.errors import InputError
from hmt_memory.evaluate import evidence as evidence_module
from hmt_memory.evaluate.evidence import bm25_scores, packaged_encoder
from hmt_memory.evaluate.inside import Passage, Piece, located, shares_among, shares_inside, whole_turn
from hmt_memory.evaluate.outcomes import SESSION, WITHOUT_WORDS, Context, Outcome, Reply, report
from hmt_memory.evaluate.published import Published, Question, Turn, load
from hmt_memory.evaluate.remembering import CHOSEN_ON, Plan, measure, standard, tell, with_neighbours
from hmt_memory.evaluate.scoring import f1, f1_of_parts, repeats
from hmt_memory.retrieval.citations import Message
from hmt_memory.retrieval.ranking import RecalledSegment

TALK = ["How was the weekend?", "Quiet, we stayed in.", "Did it rain?", "All day long.", "Same here.", "See you then."]
FACT = "My cat Pumpernickel caught a mouse in the kitchen."


def _locomo_row(copies: int = 3) -> dict[str, Any]:
    """A chat of two sessions; the fact is turn 8, D2:3."""
    said = [*TALK, *(f"{text} Part {part}." for part in range(2, copies + 1) for text in TALK)]
    said[8] = FACT
    turns = [{"speaker": "AB"[number % 2], "text": text} for number, text in enumerate(said)]
    sessions = [turns[:6], turns[6:]]
    told: dict[str, Any] = {"speaker_a": "A", "speaker_b": "B", "session_3_date_time": "never held"}
    for number, session in enumerate(sessions, 1):
        told[f"session_{number}_date_time"] = f"1:0{number} pm on 8 May, 2023"
        told[f"session_{number}"] = [turn | {"dia_id": f"D{number}:{at}"} for at, turn in enumerate(session, 1)]
    asked = [
        {"question": "What did Pumpernickel catch?", "answer": "a mouse", "evidence": ["D2:3"], "category": 4},
        {"question": "When did it rain?", "answer": 2023, "evidence": ["D1:3; D1:4", "D9:9", "D"], "category": 2},
        {"question": "Why?", "answer": "Likely yes; it rains", "evidence": ["D1;4"], "category": 3},
        {"question": "What did the dog catch?", "adversarial_answer": "a mouse", "evidence": ["D2:3"], "category": 5},
        {"question": "What else?", "answer": "cats, dogs", "evidence": [], "category": 1},
    ]
    return {"sample_id": "c1", "conversation": told, "qa": asked}


def _write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def _beam(folder: Path) -> Path:
    texts = ["I prefer tea.", "Noted.", "My desk costs 40 euros.", "A fair price."]
    messages = [{"role": ("user", "assistant")[number % 2], "id": number, "content": text} for number, text in enumerate(texts)]
    _write(folder / "chat_7.json", [{"turns": [messages[:2]]}, {"turns": [messages[2:]], "time_anchor": None}])
    asked = {
        "abstention": [{"question": "What is my name?", "ideal_response": "That was not told."}],
        "knowledge_update": [{"question": "Price?", "answer": "40 euros", "source_chat_ids": {"first": [2], "second": [[3]]}}],
        "preference_following": [{"question": "A drink?", "expected_compliance": "Names tea.", "source_chat_ids": [0, [1]]}],
        "summarization": [{"question": "All?", "ideal_summary": "Tea and a desk.", "source_chat_ids": [0, 2, 99]}],
    }
    _write(folder / "questions_7.json", asked)
    return folder / "chat_7.json"


# --- files --------------------------------------------------------------------------------------------------------------


def test_locomo_gives_dates_categories_and_evidence(tmp_path: Path) -> None:
    (chat,) = load([_write(tmp_path / "dev.json", [_locomo_row()])])
    assert (chat.name, chat.form, len(chat.turns)) == ("c1", "LoCoMo", 18)
    assert chat.turns[0].content == "[1:01 pm on 8 May, 2023] A: How was the weekend?"
    assert chat.turns[8].content == f"[1:02 pm on 8 May, 2023] A: {FACT}"
    assert chat.turns[8].content[slice(*chat.turns[8].own)] == FACT
    assert [(asked.category, asked.evidence, asked.counted, asked.answer, asked.unanswerable) for asked in chat.questions] == [
        ("single-hop", (8,), (8,), "a mouse", False),
        ("temporal", (2, 3), (2, 3), "2023", False),
        ("open-domain", (3,), (3,), "Likely yes", False),
        ("adversarial", (8,), (), None, True),
        ("multi-hop", (), (), "cats, dogs", False),
    ]


def test_realtalk_is_locomo_s_form_at_the_top_of_the_file(tmp_path: Path) -> None:
    row = _locomo_row()
    told = {**row["conversation"], "name": {"speaker_1": "A"}, "events_session_1": [], "qa": row["qa"]}
    for turn in [*told["session_1"], *told["session_2"]]:
        turn["clean_text"] = turn.pop("text")
    (chat,) = load([_write(tmp_path / "Chat_1_A_B.json", told)])
    (same,) = load([_write(tmp_path / "dev.json", [_locomo_row()])])
    assert (chat.name, chat.form) == ("Chat_1_A_B", "REALTALK")
    assert (chat.turns, chat.questions) == (same.turns, same.questions)


def test_beam_s_questions_lie_beside_its_chat_and_name_messages_in_nested_lists(tmp_path: Path) -> None:
    path = _beam(tmp_path)
    (chat,) = load([path, path.with_name("questions_7.json"), path])
    assert [(turn.role, turn.content, turn.own) for turn in chat.turns[1:3]] == [
        ("assistant", "Noted.", (0, 6)),
        ("user", "My desk costs 40 euros.", (0, 23)),
    ]
    assert [(asked.category, asked.counted, asked.answer, asked.unanswerable) for asked in chat.questions] == [
        ("abstention", (), None, True),
        ("knowledge_update", (2, 3), "40 euros", False),
        ("preference_following", (0, 1), None, False),
        ("summarization", (0, 2), "Tea and a desk.", False),
    ]


@pytest.mark.parametrize("count", [1, 2])
def test_qmsum_gives_a_meeting_a_line(tmp_path: Path, count: int) -> None:
    turns = [{"speaker": "A", "text": " x "}, {"speaker": "B", "text": "y"}, {"speaker": "A", "text": "z"}]
    queries = [{"query": "q", "answer": "a", "turn_spans": [[1, 2], [2, 9]]}, {"query": "all", "answer": "", "turn_spans": []}]
    line = json.dumps({"id": "m", "turns": turns, "queries": queries})
    (tmp_path / "m.jsonl").write_text(f"{line}\n" * count)
    chats = load([tmp_path / "m.jsonl"])
    assert [(chat.name, chat.form) for chat in chats] == [("m", "QMSum")] * count
    assert [turn.content for turn in chats[0].turns] == ["A: x", "B: y", "A: z"]
    assert [(asked.evidence, asked.answer) for asked in chats[0].questions] == [((1, 2), "a"), ((), None)]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", None, "cannot be read"),
        ("x.json", "[", "is not what was expected"),
        ("x.jsonl", "[\n[", "is not what was expected"),
        ("x.json", '{"a": 1}', "there is no conversation"),
        ("x.json", "[1]", "is not what was expected"),
        ("x.json", "[]", "no question in x.json"),
        ("x.json", '[{"conversation": {"session_1": [{}]}, "qa": []}]', "'dia_id' is missing"),
        ("x.json", '[{"turns": []}]', "questions_N.json"),
        ("chat_1.json", '[{"turns": []}]', "questions_1.json cannot be read"),
    ],
)
def test_other_files_are_named_with_what_is_wanted(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=words.replace(".", r"\.")):
        load([tmp_path / name])


# --- evidence -----------------------------------------------------------------------------------------------------------


def _recalled(text: str, *messages: tuple[int, str, str]) -> RecalledSegment:
    now = datetime.now(timezone.utc)
    told = tuple(Message(id, role, content, now) for id, role, content in messages)
    return RecalledSegment(0, 1.0, text, told, (0, 1), now, 1.0, "s")


ONE, TWO, THREE = (10, "user", "It rains.\n\nA lot, here."), (11, "user", "It snows."), (12, "assistant", "Is it cold?")
NUMBERS = {10: 0, 11: 1, 12: 2}


@pytest.mark.parametrize(
    ("text", "messages", "pieces"),
    [
        ("It rains.\n\nA lot, here.", [ONE], [(0, 0, 23, 0)]),
        ("A lot, here.", [ONE], [(0, 11, 23, 0)]),
        ("  A lot, here. ", [ONE], [(0, 11, 23, 0)]),
        ("user: ins.\n\nA lot", [ONE], [(0, 5, 16, 6)]),
        ("user: here.\nuser: It snows.\nassistant: Is", [ONE, TWO, THREE], [(0, 18, 23, 6), (1, 0, 9, 18), (2, 0, 2, 39)]),
        ("user: It snows.\nassistant: Is it cold?", [ONE, TWO, THREE], [(1, 0, 9, 6), (2, 0, 11, 27)]),
        ("user: here.\nassistant: Is it", [ONE, THREE], [(0, 18, 23, 6), (2, 0, 5, 23)]),
        ("[May] A lot, here.\nuser: It snows.", [ONE, TWO], [(1, 0, 9, 25)]),
        ("Never said.", [ONE], []),
        ("user: ", [ONE, THREE], []),
    ],
)
def test_the_parts_of_messages_are_found_in_what_was_recalled(
    text: str, messages: list[tuple[int, str, str]], pieces: list[tuple[int, int, int, int]]
) -> None:
    found = located(_recalled(text, *messages), NUMBERS)
    assert [tuple(piece) for piece in found.pieces] == pieces
    contents = {NUMBERS[id]: content for id, _, content in messages}
    for piece in found.pieces:
        length = piece.stop - piece.start
        assert found.text[piece.at : piece.at + length] == contents[piece.turn][piece.start : piece.stop]


def test_every_segment_of_a_session_is_found_again(tmp_path: Path, model: HMTModel) -> None:
    """All that is recalled, whatever its form, is some part of its messages, and together it is nearly all that was said."""
    (chat,) = load([_write(tmp_path / "dev.json", [_locomo_row()])])
    with MemoryStore(tmp_path / "store") as store:
        session = store.session("s", model)
        turns = tell(session, chat)
        assert list(turns.values()) == list(range(18))
        passages = [located(recalled, turns) for recalled in session.recall("What did the cat catch?", 200)]
    held = [piece for passage in passages for piece in passage.pieces]
    assert passages and all(passage.pieces for passage in passages if len(passage.text) > len("assistant: "))
    assert {piece.turn for piece in held} >= set(range(17)), "all but what fills no segment yet"
    for passage in passages:
        for piece in passage.pieces:
            said = chat.turns[piece.turn].content[piece.start : piece.stop]
            assert passage.text[piece.at : piece.at + len(said)] == said


def test_characters_count_once_and_the_last_passage_is_cut(model: HMTModel) -> None:
    codec = model.backbone  # a token a byte
    turns = [whole_turn(0, "a: " + "x" * 20), whole_turn(1, "b: " + "y" * 10)]
    evidence = {0: (3, 23), 1: (3, 13)}
    assert shares_inside(turns, evidence, [1, 3, 13, 23, 26, 31, 36, 999], codec) == pytest.approx(
        [0, 0, 10 / 30, 20 / 30, 20 / 30, 25 / 30, 1, 1]
    )
    half = Passage("x" * 10, (Piece(0, 3, 13, 0),))
    assert shares_inside([half, half, turns[0]], evidence, [10, 20, 43], codec) == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    segment = Passage("user: xx\nuser: yyy", (Piece(0, 21, 23, 6), Piece(1, 3, 6, 15)))
    assert shares_inside([segment], evidence, [6, 8, 15, 17, 18], codec) == pytest.approx([0, 2 / 30, 2 / 30, 4 / 30, 5 / 30])
    assert shares_inside([], evidence, [10], codec) == [0]


def test_half_a_character_is_not_inside(model: HMTModel) -> None:
    turn = whole_turn(0, "é" * 4)  # two tokens each
    assert shares_inside([turn], {0: (0, 4)}, [2, 3, 4, 8], model.backbone) == pytest.approx([1 / 4, 1 / 4, 1 / 2, 1])


def test_turns_count_in_the_order_in_which_they_are_first_recalled() -> None:
    passages = [Passage("", (Piece(4, 0, 1, 0), Piece(5, 0, 1, 0))), whole_turn(4, "x"), whole_turn(7, "y"), whole_turn(1, "z")]
    assert shares_among(passages, [5, 1], [1, 2, 3, 4, 20]) == [0, 0.5, 0.5, 1, 1]
    assert shares_among(passages, [9], [5]) == [0]


def test_searches_add_standard_scores_and_share_with_neighbours() -> None:
    assert standard(np.array([1.0, 3.0])) == pytest.approx([-1, 1])
    assert standard(np.array([2.0, 2.0])) == pytest.approx([0, 0])
    assert with_neighbours(np.array([1.0])).tolist() == [1.0]
    assert with_neighbours(np.array([0.0, 4.0, 0.0, 8.0])).tolist() == [1.0, 4.0, 3.0, 8.0]
    scores = bm25_scores(["red fox", "blue", "green"])("a red thing")
    assert scores[0] > 0 and not scores[1:].any()


def test_an_encoder_that_is_not_installed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_module, "ENCODER_PACKAGE", "no-such-package-anywhere")
    assert packaged_encoder() is None


# --- answers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "published", "value"),
    [
        ("A mouse", "the mouse", 1),
        ("a mouse, and a cat!", "Mouse", 2 / 3),
        ("It was a mouse.", "mouse", 1 / 2),
        ("mouse mouse", "mouse", 2 / 3),
        ("7 May, 2023", "7 May 2023", 1),
        ("mice", "mouse", 0),
        ("", "mouse", 0),
        ("the", "a", 0),
    ],
)
def test_f1_is_that_of_words(said: str, published: str, value: float) -> None:
    assert f1(said, published) == pytest.approx(value) == f1(published, said)


def test_parts_between_commas_are_compared_each_with_its_best() -> None:
    assert f1_of_parts("cats, dogs", "dogs, cats") == 1
    assert f1_of_parts("cats", "dogs, cats, the birds") == pytest.approx(1 / 3)
    assert f1_of_parts("cats dogs", "dogs, cats") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("said", "twice"),
    [
        ("It is red. It is red.", True),
        ("It is red. Is it? it is Red.", True),
        ("- one\n- two\n\n- one", True),
        ("It is red. It was red.", False),
        ("At 3.5 m, 3.5 kg.", False),
        ("No! No?", False),
        ("", False),
    ],
)
def test_a_text_repeats_where_a_sentence_or_a_line_stands_twice(said: str, twice: bool) -> None:
    assert repeats(said) == twice


def test_outcomes_are_scored_by_their_category_and_reported() -> None:
    asked = [
        Question("a", "single-hop", (1,), "cats, dogs"),
        Question("b", "multi-hop", (1,), "cats, dogs"),
        Question("c", "adversarial", unanswerable=True),
        Question("d", "adversarial", unanswerable=True),
        Question("e", "preference_following", (1,)),
    ]
    replies = [Reply("cats", True), Reply("cats", False), Reply("I don't know.", False), Reply("cats", False), None]
    outcomes = [
        Outcome("c", question, *({SESSION: [value] * size} if question.evidence else {} for size in (4, 3)), reply=reply)
        for question, reply, value in zip(asked, replies, (0.25, 0.75, 0, 0, 0.5), strict=True)
    ]
    assert [outcome.score for outcome in outcomes] == [pytest.approx(2 / 3), 1 / 2, 1, 0, None]
    made = report(outcomes, {"seed": 0})
    inside, among, by_category, answers = made.tables
    assert inside.rows == [[SESSION, *["0.500 (0.250 to 0.750)"] * 4]] and among.rows[0][1].startswith("0.500")
    assert by_category.rows == [["multi-hop", 1, "0.750"], ["preference_following", 1, "0.500"], ["single-hop", 1, "0.250"]]
    assert [row[:3] for row in answers.rows] == [
        ["all that have an answer", 2, "F1"],
        ["adversarial", 2, "says that it does not know"],
        ["multi-hop", 1, "F1"],
        ["single-hop", 1, "F1"],
    ]
    assert [row[4] for row in answers.rows] == ["1", None, "0", "1"] and answers.rows[1][3].startswith("0.500")
    assert answers.rows[0][5].startswith("0.667")
    assert (made.settings["questions with evidence"], made.settings["questions answered"]) == (3, 4)
    assert made.settings["questions without a published answer, not asked"] == 1


def test_questions_are_drawn_by_the_seed_in_their_order(tmp_path: Path) -> None:
    (chat,) = load([_write(tmp_path / "dev.json", [_locomo_row()])])
    assert Plan().asked(chat) == list(chat.questions) == Plan(questions=9).asked(chat)
    drawn = [Plan(questions=3, seed=seed).asked(chat) for seed in range(20)]
    assert drawn == [Plan(questions=3, seed=seed).asked(chat) for seed in range(20)] and len({*map(tuple, drawn)}) > 3
    places = [[chat.questions.index(question) for question in questions] for questions in drawn]
    assert all(len(set(each)) == 3 and each == sorted(each) for each in places)


# --- runs ---------------------------------------------------------------------------------------------------------------


def _letters(texts: Any) -> np.ndarray:
    """An encoder of little sense: how often each letter stands in a text."""
    counts = np.array([[text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], float)
    return counts / (np.linalg.norm(counts, axis=1, keepdims=True) + 1e-9)


def test_a_run_finds_the_evidence_and_leaves_the_session_as_it_was(tmp_path: Path, chatty: str) -> None:
    model = HMTModel.from_pretrained(chatty, config=SMALL)
    said: list[str] = []
    chats = load([_write(tmp_path / "dev.json", [_locomo_row()]), _beam(tmp_path)])
    made, outcomes = measure(model, chats, Plan(answers=True, max_new_tokens=3), encoder=_letters, progress=said.append)
    rows = {row[0]: [float(cell.split()[0]) for cell in row[1:]] for row in made.tables[0].rows}
    assert list(rows) == [
        *(SESSION, "BM25 of turns", "MiniLM of turns", "BM25 and MiniLM, with neighbours", "most recent turns"),
    ]
    first = outcomes[0]
    assert first.question.text == "What did Pumpernickel catch?"
    assert first.inside["BM25 of turns"] == [1] * 4 and first.among["BM25 of turns"] == [1] * 3
    assert first.inside[SESSION][3] > 0.9 and first.among[SESSION][0] == 1, "its odd word stands in one place alone"
    assert first.inside["most recent turns"][0] == 0 and first.inside["most recent turns"][3] == 1
    assert outcomes[1].question.evidence == (2, 3) and outcomes[1].among["most recent turns"] == [0, 0, 1]
    assert (
        made.settings["form"] == "LoCoMo, BEAM"
        and made.settings["questions"] == 9
        and not any("MiniLM" in note for note in made.notes)
    )
    replied = {outcome.question.text: outcome.reply is not None for outcome in outcomes}
    assert [text for text, there in replied.items() if not there] == ["A drink?"]
    assert said[0] == "telling c1 (1 of 2)" and said[1] == "asking c1 (1 of 2): question 1 of 5" and len(said) == 2 + 9
    texts = json.dumps([made.settings, [table.rows for table in made.tables], made.notes])
    assert "Pumpernickel" not in texts, "what was published is not in the report"


def test_what_was_asked_is_forgotten_before_the_next_question(tmp_path: Path, chatty: str, monkeypatch: Any) -> None:
    from hmt_memory.sessions.session import Session

    sizes: list[int] = []
    recall = Session.recall

    def counted(session: Session, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(session.messages()))
        return recall(session, *arguments, **options)

    monkeypatch.setattr(Session, "recall", counted)
    model = HMTModel.from_pretrained(chatty)
    measure(model, load([_beam(tmp_path)]), Plan(answers=True, max_new_tokens=2, baselines=False))
    assert sizes == [4, 4, 4]


def test_recall_without_words_is_that_of_a_session_opened_for_it(tmp_path: Path, chatty: str, monkeypatch: Any) -> None:
    from hmt_memory.sessions.session import Session

    asked: list[tuple[str, str]] = []
    recall = Session.recall

    def noted(session: Session, query: str, *arguments: Any, **options: Any) -> Any:
        asked.append((session._model.view.selection, query))
        return recall(session, query, *arguments, **options)

    monkeypatch.setattr(Session, "recall", noted)
    model, chats = HMTModel.from_pretrained(chatty, config=SMALL), load([_beam(tmp_path)])
    made, outcomes = measure(model, chats, Plan(without_words=True, baselines=False))
    assert [row[0] for row in made.tables[0].rows] == [SESSION, WITHOUT_WORDS]
    questions = [outcome.question.text for outcome in outcomes if outcome.inside]
    assert asked == [(selection, text) for text in questions for selection in ("fused", "recall")] and len(questions) == 3


def test_a_report_marks_data_that_something_was_chosen_on(chatty: str) -> None:
    said, asked = (Turn("A", "My boat is blue."),), (Question("Which colour?", "single-hop", (0,)),)
    model = HMTModel.from_pretrained(chatty)
    for forms in (["LoCoMo"], ["REALTALK", "BEAM"], ["REALTALK", "QMSum", "LoCoMo"]):
        made, _ = measure(model, [Published("c", form, said, asked) for form in forms], Plan(baselines=False))
        marked = [form for form in forms if form in ("QMSum", "LoCoMo")]
        assert [note for note in made.notes if "chosen" in note] == [CHOSEN_ON[form] for form in marked]


def test_conversations_are_compared_with_the_window_of_the_model_that_answers(chatty: str) -> None:
    model, answerer = HMTModel.from_pretrained(chatty, config=SMALL), HMTModel.from_pretrained(chatty, config=SMALL)
    turns = [Turn("A", "x" * 17) for _ in range(8)]  # 20 tokens each, of a byte
    asked = (Question("Which?", "k", (0, 7)), Question("And why?", "k", (6,)), Question("Who?", "k", (), None, True))
    answerer.backbone.config.max_position_embeddings = 100 + 8 + 3  # tokens for turns, for the longest question, for the answer
    chats = [
        Published("long", "X", tuple(turns), asked),
        Published("short", "X", tuple(turns[:5]), (Question("q", "k", (0,)),)),
    ]
    made, outcomes = measure(model, chats[:1], Plan(max_new_tokens=3), answerer=answerer)
    assert [outcome.context for outcome in outcomes] == [Context(160, 100, 0.5), Context(160, 100, 1.0), None]
    (table,) = [table for table in made.tables if "window" in table.title]
    assert "100 tokens" in table.title
    assert table.rows == [
        ["fit whole", 0, None, 0, None],
        ["do not: the latest turns that fit", 1, "160", 2, "0.750 (0.500 to 1.000)"],
    ]
    _, outcomes = measure(model, chats, Plan(max_new_tokens=3), answerer=answerer)
    assert [outcome.context and outcome.context.fits for outcome in outcomes] == [False, False, None, True]
    assert outcomes[3].context == Context(100, 107, 1.0)
    made = report(outcomes, {})
    (table,) = [table for table in made.tables if "window" in table.title]
    assert "100 to 107 tokens" in table.title and table.rows[0] == ["fit whole", 1, "100", 1, "1.000 (1.000 to 1.000)"]


def test_a_window_without_end_holds_every_conversation(chatty: str, monkeypatch: Any) -> None:
    model = HMTModel.from_pretrained(chatty, config=SMALL)
    monkeypatch.setattr(Backbone, "positions", None)
    chat = Published("c", "X", (Turn("A", "x" * 5000),), (Question("Which?", "k", (0,)),))
    _, (outcome,) = measure(model, [chat], Plan())
    assert outcome.context == Context(5003, 5003, 1.0) and outcome.context.fits


@pytest.mark.parametrize(("told", "in_view"), [(Turn("A", "My boat is blue."), True), (Turn("A", "Nothing much."), False)])
def test_evidence_in_view_is_what_the_model_was_shown(tmp_path: Path, chatty: str, told: Turn, in_view: bool) -> None:
    model = HMTModel.from_pretrained(chatty)
    talk = [told, *(Turn("B", text) for text in TALK)]
    chat = Published("c", "LoCoMo", tuple(talk), (Question("Which colour?", "single-hop", (), "my boat is BLUE"),))
    _, (outcome,) = measure(model, [chat], Plan(answers=True, max_new_tokens=2, baselines=False))
    assert outcome.reply is not None and outcome.reply.in_view == in_view and outcome.score is not None


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


@pytest.mark.slow
def test_the_command_writes_its_report_and_the_answers(tmp_path: Path, chatty: str, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(evidence_module, "ENCODER_PACKAGE", "no-such-package-anywhere")
    _write(tmp_path / "dev.json", [_locomo_row()])
    arguments = ["eval", "conversations", str(tmp_path / "dev.json"), "--out", str(tmp_path / "out")]
    arguments += ["--model", chatty, "--reader", "same"]
    assert run([*arguments, "--answers", "--questions", "4", "--max-tokens", "2", "--seed", "3"]) == 0
    made = capsys.readouterr()
    assert made.out.split() == [
        str(tmp_path / "out" / f"conversations{end}") for end in (".json", ".md", ".png", "-answers.jsonl")
    ]
    held = json.loads((tmp_path / "out/conversations.json").read_text())
    settings = held["settings"]
    assert (settings["files"], settings["questions"], settings["seed"], settings["max_new_tokens"]) == ("dev.json", 4, 3, 2)
    assert settings["model"] and settings["dtype"] and settings["adapter"] == "as shipped"
    assert str(tmp_path) not in json.dumps(held) and any("not installed" in note for note in held["notes"])
    assert [row[0] for row in held["tables"][0]["rows"]] == [SESSION, "BM25 of turns", "most recent turns"]
    answers = [json.loads(line) for line in (tmp_path / "out/conversations-answers.jsonl").read_text().splitlines()]
    assert len(answers) == 4 and {"question", "said", "score", "in view", "category"} <= set(answers[0])
    assert run([*arguments, "--no-baselines", "--without-words"]) == 0
    held = json.loads((tmp_path / "out/conversations.json").read_text())
    assert [row[0] for row in held["tables"][0]["rows"]] == [SESSION, WITHOUT_WORDS] and len(held["tables"]) == 3
    assert not any("MiniLM" in note for note in held["notes"]) and held["settings"]["questions of each"] == "all"


@pytest.mark.parametrize("content", [None, '{"a": 1}'])
def test_the_command_refuses_other_files_before_it_loads_a_model(tmp_path: Path, content: str | None, capsys: Any) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    assert run(["eval", "conversations", str(path), "--model", "no-such-model", "--out", str(tmp_path / "out")]) == 1
    assert "x.json" in capsys.readouterr().err and not (tmp_path / "out").exists()
