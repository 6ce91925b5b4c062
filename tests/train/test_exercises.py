"""Exercises in answering from notes: what they hold, how they are written as a view, and their losses."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import byte_tokenizer, random_ids, tiny_model
from torch.nn.functional import cross_entropy

from hmt_memory import HMTConfig
from hmt_memory.chat.transcript import Transcript
from hmt_memory.errors import InputError
from hmt_memory.retrieval.echoes import HEARD
from hmt_memory.retrieval.notes import HEADING, Note
from hmt_memory.train import Recipe, Stage, Trainer, answering, open_sources, prepare, relations
from hmt_memory.train.answering import answer_losses, backward_answers
from hmt_memory.train.exercises import UNKNOWN, Exercise, Exercises, Facts, from_file

MODEL = tiny_model(tokenizer=byte_tokenizer())
EXERCISE = Exercise(
    [("Who?", "Rex."), ("Where is he now?", "I don't know.")], [Note("He is Rex.", None, "user")], [("hi", "hello")], "Be kind."
)


def test_every_answer_of_an_exercise_rests_on_its_notes() -> None:
    """What is answered stands in the notes or the turns, and what is not told is answered with not knowing."""
    answers = unknown = 0
    for number in range(300):
        exercise = Exercises().draw(f"{number}")
        shown = "\n".join([*(note.text for note in exercise.notes), *(said for said, _ in exercise.turns)]).lower()
        for _, answer in exercise.asked:
            if answer in UNKNOWN:
                unknown += 1
            elif not answer.startswith("You told me on"):
                words = [word.strip(".,:'").lower() for word in answer.split()]
                answers += any(word in shown for word in words if len(word) > 2)
    assert answers > 1.5 * unknown > 100


def test_what_is_told_now_is_acknowledged_and_not_said_again() -> None:
    """What is asked for as unknown in one question is told in another, so that a question is told from a telling."""
    heard, unknown = 0, 0
    for number in range(200):
        exercise = Exercises().draw(f"{number}")
        told = {text for text, answer in exercise.asked if answer in HEARD}
        assert not told & {note.text for note in exercise.notes}, "it is new"
        heard += len(told)
        unknown += sum(answer in UNKNOWN for _, answer in exercise.asked)
    assert unknown > heard > 20


def test_a_fifth_to_two_fifths_of_what_is_asked_was_never_told() -> None:
    """Counted among all that is asked or said behind a view, and among questions alone."""
    answers = [answer for number in range(200) for _, answer in Exercises().draw(f"share {number}").asked]
    unknown, heard = (sum(answer in known for answer in answers) for known in (UNKNOWN, HEARD))
    assert len(answers) > 1000 and 0.2 < unknown / len(answers) < unknown / (len(answers) - heard) < 0.4


def test_what_was_answered_last_is_right_wrong_or_unknown() -> None:
    """So it is no evidence, and an answer has to rest on what was told."""
    chance, answers = random.Random(0), Counter()
    for _ in range(200):
        facts = [relations.tell(chance) for _ in range(3)]
        for _, answer in Facts._asked_before(chance, facts):
            answers["unknown" if answer in UNKNOWN else "right" if answer in {fact.answer for fact in facts} else "wrong"] += 1
    assert answers["right"] > answers["wrong"] > 20 < answers["unknown"], answers


def test_facts_stand_in_notes_in_recent_turns_or_in_both() -> None:
    forms = Counter()
    for number in range(200):
        exercise = Exercises().draw(f"{number}")
        forms[bool(exercise.notes), any(answer in HEARD for _, answer in exercise.turns)] += 1
    assert forms[True, False] > 60 and forms[False, True] > 10 and forms[True, True] > 15, forms


def test_talk_that_shares_a_word_with_a_question_stands_beside_the_facts_more_often() -> None:
    """A search by words brings it along, so what answers has to tell it from the facts."""
    kinds = [relations.tell(random.Random(f"talk {number}")).question for number in range(60)]
    talk = [(question, "Hm.") for question in kinds] + [(f"plain number {number}", "Hm.") for number in range(240)]
    shared = plain = 0
    for number in range(150):
        told = [note.text for note in Facts(talk).make(random.Random(number)).notes]
        shared += sum(text in kinds for text in told)
        plain += sum(text.startswith("plain") for text in told)
    assert shared > plain > 20  # by chance it would be a quarter


def test_an_exercise_is_written_as_the_view_has_it() -> None:
    before, notes, branches = EXERCISE.tokens(Transcript(MODEL.backbone))
    decode = MODEL.backbone.tokenizer.decode
    assert decode(before) == "<s>system\nBe kind.</s>\n<s>user\nhi</s>\n<s>assistant\nhello</s>\n<s>user\n"
    assert decode(notes).startswith(HEADING) and decode(notes).endswith("user: He is Rex.\n\n")
    assert [MODEL.backbone.tokenizer.decode(asked) for asked, _ in branches] == [
        "Who?</s>\n<s>assistant\n",
        "Where is he now?</s>\n<s>assistant\n",
    ]
    assert MODEL.backbone.tokenizer.decode(branches[0][1]) == "Rex.</s>\n"


@pytest.mark.parametrize("notes", [EXERCISE.notes, ()])
def test_branches_cost_what_each_question_alone_costs_and_do_not_see_each_other(notes: Sequence[Note]) -> None:
    view = replace(EXERCISE, notes=notes).tokens(Transcript(MODEL.backbone))
    prompt = MODEL.prompt([None], [MODEL.initial_memory[None][:0]])[0].detach()
    losses, _ = answer_losses(MODEL, [(prompt, view)])
    expected = torch.zeros(())
    branches, embed = view.branches, MODEL.backbone.embed
    carried, recalled = MODEL.placed(prompt)
    for asked, answer in branches:
        before, behind = embed(torch.tensor(view.before)), embed(torch.tensor([*view.notes, *asked, *answer]))
        hidden = MODEL.backbone.body(torch.cat([carried, before, recalled, behind])[None])[0]
        expected = expected + cross_entropy(
            MODEL.backbone.head(hidden[-len(answer) - 1 : -1]), torch.tensor(answer), reduction="sum"
        )
    assert float(losses.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert losses.tokens == sum(len(answer) for _, answer in branches)


@pytest.mark.slow
def test_views_read_together_cost_what_they_cost_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tokenizer=byte_tokenizer())
    views = [Exercises().draw(f"{number}").tokens(Transcript(model.backbone)) for number in range(7)]
    read, divide = answering.answer_losses, answering._groups

    def learned(most: int) -> tuple[list[int], torch.Tensor, float]:
        sizes: list[int] = []
        monkeypatch.setattr(answering, "answer_losses", lambda model, group: (sizes.append(len(group)), read(model, group))[1])
        monkeypatch.setattr(answering, "_groups", lambda shared, _: divide(shared, most))
        embedding = model.backbone.embedding.weight.requires_grad_()
        embedding.grad = None
        loss = backward_answers(model, views, [random_ids(8)], weight=1.0, abstaining=0.5)
        assert embedding.grad is not None
        return sizes, embedding.grad, loss

    (ones, lone, loss), (sizes, together, same) = learned(0), learned(4000)
    assert ones == [1] * 7 and len(sizes) < 7 and sum(sizes) == 7
    assert (together - lone).norm() <= 1e-4 * lone.norm() and loss == pytest.approx(same, rel=1e-5)


def test_abstaining_costs_by_the_token_that_it_begins_with() -> None:
    """Answers that begin alike and do not abstain tell nothing of it."""
    begins = MODEL.backbone.encode(UNKNOWN[0])[0]
    asked = [("Who?", "Rex."), ("Where?", UNKNOWN[0]), ("What are you?", "I am a dog."), ("When?", UNKNOWN[1])]
    view = replace(EXERCISE, asked=asked).tokens(Transcript(MODEL.backbone))
    prompt = MODEL.prompt([None], [MODEL.initial_memory[None][:0]])[0].detach()
    _, loss = answer_losses(MODEL, [(prompt, view)])
    carried, recalled = MODEL.placed(prompt)
    expected = torch.zeros(())
    for (question, _), abstains in zip(view.branches, (False, True, None, True), strict=True):
        before, behind = (MODEL.backbone.embed(torch.tensor(ids)) for ids in (view.before, [*view.notes, *question]))
        hidden = MODEL.backbone.body(torch.cat([carried, before, recalled, behind])[None])[0, -1]
        chance = MODEL.backbone.head(hidden).softmax(-1)[begins]
        if abstains is not None:
            expected = expected - (chance if abstains else 1 - chance).log()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-3)


def test_files_of_exercises_are_read_and_their_mistakes_named(tmp_path: Path) -> None:
    row = {"asked": [["Who?", "Rex."]], "notes": [{"text": "He is Rex.", "speaker": "user"}], "turns": [["hi", "hello"]]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (exercise,) = from_file(path)
    assert exercise.asked == [("Who?", "Rex.")] and exercise.notes == [Note("He is Rex.", None, "user")]
    assert Exercises([exercise], facts=0.0).draw("x") is exercise
    with pytest.raises(InputError, match="no file"):
        from_file(tmp_path / "nothing.jsonl")
    for bad in ("{}", "[1]", '{"asked": [["one"]]}', "no json"):
        path.write_text(json.dumps(row) + "\n" + bad + "\n")
        with pytest.raises(InputError, match=r"line 2.*A row needs `asked`"):
            from_file(path)


@pytest.mark.slow
def test_lora_of_early_layers_stays_as_it_is(layered: str, tmp_path: Path) -> None:
    """And exercises are reported and learned from, and whether they abstain: without, the other layers end elsewhere."""
    text = tmp_path / "text.txt"
    text.write_text("".join(random.Random(0).choice("abcdefgh .") for _ in range(3000)))
    ends = []
    for exercises, abstaining in ((2, 0.0), (2, 1.0), (0, 0.0)):
        stage = Stage(steps=2, segments=2, batch=1, distillation=1.0, exercises=exercises, abstaining=abstaining)
        recipe = Recipe(
            stages=(stage,), config=HMTConfig(segment_length=64), lora_rank=2, lora_from_layer=1, learning_rate=1e-2
        )
        model = prepare(layered, recipe, dtype="float32", device="cpu")
        before = {name: value.clone() for name, value in model.backbone.adapter_parameters()}
        reports = list(
            Trainer(model, recipe, open_sources([str(text)], model.backbone.encode), tmp_path / str(len(ends))).run()
        )
        assert all((report.answers is not None) == bool(exercises) for report in reports)
        after = dict(model.backbone.adapter_parameters())
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert changed and all(".layers.1." in name for name in changed)
        asked = {name for name, value in model.named_parameters() if value.requires_grad and ".layers." in name}
        assert asked and all(".layers.1." in name for name in asked)  # also once the teacher was asked
        ends.append(after)
    for other in ends[1:]:
        assert any(not torch.equal(value, other[name]) for name, value in ends[0].items())
