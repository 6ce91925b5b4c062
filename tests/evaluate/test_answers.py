"""Facts told and asked for: what is made of a seed, what counts as right, and a whole run in two processes."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from hmt_memory import MemoryStore
from hmt_memory.cli import main
from hmt_memory.engine.backbone import Backbone
from hmt_memory.engine.decoding import Decoding
from hmt_memory.errors import InputError
from hmt_memory.evaluate import answers as answers_module
from hmt_memory.evaluate.answers import Answered, Loading, Plan, Question, answer, holds, measure
from hmt_memory.train.facts import KINDS, Split, ask, tell
from hmt_memory.train.talk import small_talk


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_evaluation_share_neither_words_nor_values(kind: str) -> None:
    made: dict[Split, set[tuple[str, str, str]]] = {}
    splits: tuple[Split, ...] = ("training", "evaluation")
    for split in splits:
        chance = random.Random(0)
        facts = [(tell(kind, chance, split), ask(kind, chance, split)) for _ in range(100)]
        assert all(holds(fact.told, fact.value) and not holds(question, fact.value) for fact, question in facts)
        made[split] = {(fact.told.replace(fact.value, "{}"), fact.value, question) for fact, question in facts}
    for part in range(3):
        assert not {entry[part] for entry in made["training"]} & {entry[part] for entry in made["evaluation"]}


def test_a_fact_told_anew_has_another_value() -> None:
    chance = random.Random(0)
    for kind in KINDS:
        first = tell(kind, chance, "evaluation")
        assert tell(kind, chance, "evaluation", other_than=first.value).value != first.value


def test_a_plan_tells_what_it_asks_for_and_nothing_else() -> None:
    plan = Plan(conversations=3, facts=9, changed=3, unknown=4, talk=2)
    conversations = plan.make()
    assert conversations == plan.make() and len(conversations) == 3 and conversations[0] != conversations[1]
    for conversation in conversations:
        said = [said for said, _ in conversation.turns]
        assert len(said) == 12 * 3 and len(conversation.questions) == 13
        assert sum(question.value is None for question in conversation.questions) == 4
        for question in conversation.questions:
            places = [at for at, text in enumerate(said) if holds(text, question.value)]
            assert len(places) >= (question.value is not None)
            if question.before is not None:
                assert min(at for at, text in enumerate(said) if holds(text, question.before)) < max(places)
        assert sum(question.before is not None for question in conversation.questions) == 3


def test_small_talk_tells_nothing_that_is_asked_for() -> None:
    talks = {split: small_talk(random.Random(0), 100, split) for split in get_args(Split)}
    said = " ".join(text for talk in talks.values() for turn in talk for text in turn)
    values = {tell(kind, random.Random(seed), "evaluation").value for kind in KINDS for seed in range(50)}
    assert not [value for value in values if holds(said, value)]
    assert len(talks["evaluation"]) == 100 and not set(talks["training"]) & set(talks["evaluation"])
    turns = {turn for conversation in Plan().make() for turn in conversation.turns}
    assert turns & set(talks["evaluation"]) and not turns & set(talks["training"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"facts": 30}, "facts=30"),
        ({"changed": 21}, r"changed \(21\)"),
        ({"conversations": 0}, "at least one"),
        ({"talk": -1}, "0"),
    ],
    ids=str,
)
def test_an_impossible_plan_is_refused(options: dict[str, int], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Plan(**options)


@pytest.mark.parametrize(
    ("answer", "right", "abstains"),
    [
        ("It is Rex.", True, False),
        ("rex", True, False),
        ("Her name is Rexford.", False, False),
        ("It was Bello, now it is Rex.", False, False),
        ("I don't know. It is Rex.", True, False),
        ("I do not know.", False, True),
        ("You haven't told me that.", False, True),
        ("I have no information about your dog.", False, True),
        ("The dog is a dog.", False, False),
    ],
)
def test_what_counts_as_right_and_as_abstaining(answer: str, right: bool, abstains: bool) -> None:
    outcome = Answered(Question("What is my dog called?", "Rex", "Bello"), answer, True, 1, True)
    assert (outcome.says_it, outcome.abstains) == (right, abstains)
    unknown = Answered(Question("What is my dog called?", None), answer, False, 0, True)
    assert not unknown.says_it and unknown.abstains == (re.search("know|told|information", answer) is not None)


@pytest.mark.slow
def test_a_run_asks_in_another_process_what_the_first_has_told(chatty: str) -> None:
    said: list[str] = []
    plan = Plan(conversations=2, facts=3, changed=1, unknown=1, talk=0)
    report = measure(Loading(chatty), plan, decoding=Decoding(max_new_tokens=4), progress=said.append)
    shares, answers = report.tables
    counted = {row[0]: (row[1], row[2]) for row in shares.rows}
    assert counted["told: in view"] == (6, 6), "the whole conversation is shown, and so is every fact"
    assert counted["told twice: the later value"][1] == 2 and counted["not told: says so"][1] == 2
    assert counted["answers that repeat a sentence"][1] == 8 == counted["answers that end at the limit"][1]
    assert len(answers.rows) == 8 and all(row[2] for row in answers.rows)
    assert said == ["telling conversation 1 of 2", "telling conversation 2 of 2", "asking in a new process"]


@pytest.mark.slow
def test_a_model_may_answer_what_it_is_told(chatty: str, tmp_path: Path) -> None:
    (conversation,) = Plan(conversations=1, facts=2, changed=0, unknown=0, talk=1).make()
    told = [said for said, _ in conversation.turns]
    for replied in (None, Decoding(max_new_tokens=3)):
        folder = tmp_path / ("given" if replied is None else "replied")
        answers_module._tell(Loading(chatty), str(folder), [conversation], lambda _: None, replied)
        with MemoryStore(folder) as store:
            messages = list(store.session("0").messages())
        assert [each.content for each in messages if each.role == "user"] == told
        written = [each.content for each in messages if each.role == "assistant"] == [
            answered for _, answered in conversation.turns
        ]
        assert len(messages) == 2 * len(told) and written == (replied is None)


def test_another_model_answers_from_what_one_has_read(chatty: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reader, other = Loading(chatty).load(), Loading(chatty).load()
    (conversation,) = Plan(conversations=1, facts=3, changed=0, unknown=0, talk=0).make()
    messages = [{"role": "user", "content": said} for said, _ in conversation.turns]
    wrote, advance = [], Backbone.advance

    def noted(backbone: Backbone, *given: Any) -> Any:
        wrote.append(backbone)
        return advance(backbone, *given)

    monkeypatch.setattr(Backbone, "advance", noted)
    with MemoryStore(tmp_path) as store:
        session = store.session("one", reader)
        session.add(messages)
        outcome = answer(session, reader, conversation.questions[0], decoding=Decoding(max_new_tokens=3), answerer=other)
        assert outcome.in_view and wrote and all(backbone is other.backbone for backbone in wrote)
        assert len(session.messages()) == len(messages), "the question is forgotten"


@pytest.mark.parametrize("ends", [True, False])
def test_an_answer_that_the_limit_cuts_has_not_ended(chatty: str, tmp_path: Path, ends: bool) -> None:
    model = Loading(chatty).load()
    (end, *_), (conversation,) = sorted(model.backbone.end_ids), Plan(1, 3, 0, 0, 0).make()

    def written(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(scores.shape[1]) == end, torch.inf if ends else -torch.inf, scores)

    with MemoryStore(tmp_path) as store:
        session = store.session("one", model)
        session.add([{"role": "user", "content": said} for said, _ in conversation.turns])
        decoding = Decoding(max_new_tokens=3, logits_processors=(written,))
        assert answer(session, model, conversation.questions[0], decoding=decoding).ended == ends


def test_loops_and_answers_that_are_cut_are_counted_among_all() -> None:
    said = [("Rex.", True), ("It is. It is.", False), ("I don't know. I don't know.", True), ("A", False), ("B", False)]
    questions = [Question("Who?", "Rex"), Question("Who?", "Rex", "Bello"), *[Question("Who?", None)] * 3]
    outcomes = [Answered(asked, text, True, 1, ended) for asked, (text, ended) in zip(questions, said, strict=True)]
    rows = {row[0]: row[1:] for row in answers_module._report(outcomes, {}).tables[0].rows}
    assert rows["answers that repeat a sentence"][:3] == [2, 5, 0.4]
    assert rows["answers that end at the limit"][:3] == [3, 5, 0.6]
    assert rows["answers that end at the limit"][3] < 0.6 < rows["answers that end at the limit"][4]


@pytest.mark.slow
def test_the_command_passes_the_repetition_penalty_on(chatty: str, tmp_path: Path) -> None:
    arguments = ["eval", "answers", "--conversations", "1", "--facts", "1", "--talk", "0", "--model", chatty]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--reader", "same", "--out", str(tmp_path), "--repetition-penalty", "1.5"])
    assert not stopped.value.code
    held = json.loads((tmp_path / "answers.json").read_text())
    assert held["settings"]["repetition_penalty"] == 1.5 and held["settings"]["facts"] == 1
