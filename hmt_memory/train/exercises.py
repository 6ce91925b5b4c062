"""Exercises in answering from notes: a view up to its notes, and questions that are asked behind it, each on its own.

Facts are made up (`relations`), so that what answers from them has to have read them; exercises about other texts come from
files. Part of the questions ask for what no note says, part are general: then notes are no reason to answer otherwise.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from ..chat.transcript import Transcript
from ..errors import InputError
from ..retrieval.echoes import HEARD
from ..retrieval.lexical import distinct_terms
from ..retrieval.notes import Note, day, written
from . import relations
from .answering import Written
from .talk import small_talk

_CHANGED = 0.5  # share of facts that are told anew
_TOLD = (1, 1, 1, 2, 2, 3, 5, 8)  # how many facts are told
Pair = tuple[str, str]  # what is asked or said, and what is answered

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You are a friendly personal assistant who remembers what the user says.",
    "Answer the user's questions in one or two sentences.",
    "You are the user's private assistant.",
    "Be concise and honest. If you do not know something, say so.",
)
# each begins as `engine.abstaining.OPENINGS` has it, whose first token few other answers begin with
UNKNOWN = ("I don't know. You haven't told me that.", "I don't know, you have not mentioned it.")
_ONLY = (
    "{} Answer with the bare answer only.",
    "{} Just the answer, no sentence.",
    "{} Reply with nothing else.",
    "In a word or two: {}",
    "{} Short answer please.",
)
_WHEN = ("When did I tell you this: {}", "On which day did I say that? I mean: {}", "When did I mention this: {}")


@dataclass(frozen=True)
class Exercise:
    """A view and what is asked behind it."""

    asked: Sequence[Pair]
    notes: Sequence[Note] = ()
    turns: Sequence[Pair] = ()  # recent ones
    system: str | None = None

    def tokens(self, transcript: Transcript) -> Written:
        """Write the exercise as a view has it.

        Args:
            transcript: writes messages as the backbone's template does.
        """
        ids = transcript.pinned(self.system)
        first = True
        for said, answered in self.turns:
            for role, text in (("user", said), ("assistant", answered)):
                ids = [*ids, *transcript.stretch({"role": role, "content": text}, first=first).ids]
                first = False
        opening: list[int] = []
        branches = []
        for question, answer in self.asked:
            turn = transcript.stretch({"role": "user", "content": question}, first=first)
            opening = turn.ids[: turn.content[0]]
            reply = transcript.stretch({"role": "assistant", "content": answer}, first=False)
            branches.append(([*turn.ids[turn.content[0] :], *transcript.answer_opening()], reply.ids[reply.content[0] :]))
        return Written([*ids, *opening], transcript.plain(written(self.notes)), branches)


def from_file(path: str | Path) -> list[Exercise]:
    """Read exercises from a JSONL file.

    A row has `asked`, a list of [question, answer], and may have `notes` (objects with text, and origin and speaker where they
    have them), `turns` (a list of [said, answered]) and `system`.

    Args:
        path: the file.

    Raises:
        InputError: there is no such file, or a row has another form; the message names its line.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}. --exercises names JSONL files.")
    exercises = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            exercises.append(_of_row(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}, line {number}: not an exercise ({error}). A row needs `asked`: [[question, answer]]."
            ) from error
    return exercises


def _of_row(row: Mapping[str, Any]) -> Exercise:
    pairs = {name: [(str(said), str(answered)) for said, answered in row.get(name, ())] for name in ("asked", "turns")}
    if not pairs["asked"]:
        raise ValueError("nothing is asked")
    notes = [Note(note["text"], note.get("origin"), note.get("speaker", "")) for note in row.get("notes", ())]
    return Exercise(pairs["asked"], notes, pairs["turns"], row.get("system"))


class Exercises:
    """All exercises of a run: those of files, and made-up facts.

    Args:
        given: exercises about other texts.
        facts: the share of exercises about made-up facts.
    """

    def __init__(self, given: Sequence[Exercise] = (), *, facts: float = 0.5) -> None:
        self._given, self._share = list(given), facts if given else 1.0
        general = [pair for exercise in given if not exercise.notes for pair in exercise.asked]
        self._facts = Facts(general or small_talk(random.Random(0), 32))

    def draw(self, seed: str) -> Exercise:
        """Draw the exercise that a seed stands for."""
        chance = random.Random(seed)
        return self._facts.make(chance) if chance.random() < self._share else chance.choice(self._given)


class Facts:
    """Exercises about made-up facts.

    Args:
        talk: other turns that stand beside the facts; the first half of a pair is also a general question.
    """

    def __init__(self, talk: Sequence[Pair]) -> None:
        self._talk = talk
        self._alike: dict[str, list[Pair]] = {}  # talk by its words that are not common
        for pair in talk:
            for word in distinct_terms(f"{pair[0]} {pair[1]}"):
                self._alike.setdefault(word, []).append(pair)
        self._alike = {word: pairs for word, pairs in self._alike.items() if len(pairs) <= max(1, len(talk) // 20)}

    def make(self, chance: random.Random) -> Exercise:
        """Make an exercise: facts in notes, or now and then in recent turns, with what is easily confused with them."""
        told = {fact.key: fact for fact in (relations.tell(chance) for _ in range(chance.choice(_TOLD)))}
        missing = {fact.key: fact for fact in (self._missing(chance, sorted(told)) for _ in range(2)) if fact.key not in told}
        others = self._confusable(chance, told, 0.4) | self._confusable(chance, missing, 0.6)
        others = {key: fact for key, fact in others.items() if key not in told and key not in missing}
        facts = [*told.values(), *others.values()]
        chance.shuffle(facts)
        said: list[Note] = []
        for fact in facts:
            said += [Note(fact.text, None, "user"), *self._beside(chance, fact)]
        for fact in missing.values():
            at = chance.randint(0, len(said))
            said[at:at] = self._beside(chance, fact)
        earlier = {}
        for key, fact in list(told.items()):
            if chance.random() < _CHANGED:
                told[key], earlier[key] = relations.tell(chance, key, other_than=fact.value), fact
                earliest = 1 + next(place for place, note in enumerate(said) if note.text == fact.text)
                said.insert(chance.randint(earliest, len(said)), Note(told[key].text, None, "user"))
        system = chance.choice(SYSTEM_PROMPTS) if chance.random() < 0.35 else None
        if chance.random() < 0.15:  # nothing was told of what is asked, and nothing is noted
            return Exercise(self._asked(chance, (), missing, earlier, {}), (), self._recent(chance), system)
        dated = self._dated(chance, said)
        notes, turns = self._parted(chance, dated)
        texts = {note.text for note in notes} | {text for text, _ in turns}
        visible = [fact for fact in told.values() if fact.text in texts]
        asked = self._asked(chance, visible, missing, earlier, {note.text: note.origin for note in notes})
        before = self._asked_before(chance, [*told.values(), *others.values(), *missing.values()])
        return Exercise(asked, notes, [*(turns or self._recent(chance)), *before], system)

    @staticmethod
    def _parted(chance: random.Random, said: Sequence[Note]) -> tuple[Sequence[Note], list[Pair]]:
        """Part what was said into notes and recent turns: all notes, the latest as turns and nothing else, or some of each."""
        form = chance.random()
        if form < 0.7:
            return said, []
        latest = 6 if form < 0.82 else chance.randint(1, 3)
        turns = [(note.text, chance.choice(HEARD)) for note in said[-latest:] if note.speaker == "user"]
        return (() if form < 0.82 else said[:-latest]), turns

    @staticmethod
    def _asked_before(chance: random.Random, facts: Sequence[relations.Told]) -> list[Pair]:
        """Return questions that were asked last, with what was answered: not always rightly, and no evidence of anything."""
        if chance.random() < 0.5:
            return []
        pairs = []
        for fact in chance.sample(list(facts), min(len(facts), chance.choice((1, 2, 3, 5)))):
            right, wrong = fact.answer, relations.tell(chance, fact.key, other_than=fact.value).answer
            pairs.append((relations.ask(chance, fact.key), chance.choice((right, right, wrong, chance.choice(UNKNOWN)))))
        return pairs

    @staticmethod
    def _missing(chance: random.Random, told: Sequence[str]) -> relations.Told:
        """Return a fact that is asked for and not told, often one that is easily confused with one that is."""
        return relations.near(chance, chance.choice(told)) if chance.random() < 0.5 else relations.tell(chance)

    @staticmethod
    def _confusable(chance: random.Random, facts: Mapping[str, relations.Told], share: float) -> dict[str, relations.Told]:
        return {fact.key: fact for fact in (relations.near(chance, key) for key in facts) if chance.random() < share}

    @staticmethod
    def _dated(chance: random.Random, said: Sequence[Note]) -> list[Note]:
        moment = datetime(chance.randint(2019, 2027), chance.randint(1, 12), chance.randint(1, 28), tzinfo=timezone.utc)
        dated = []
        for note in said:
            moment += timedelta(days=chance.choice((0, 0, 0, 1, 2, 9, 40)))
            dated.append(replace(note, origin=moment))
        return dated

    def _beside(self, chance: random.Random, fact: relations.Told) -> list[Note]:
        """Return what a search by words brings along: talk that shares a word with the question, but does not answer it."""
        if chance.random() < 0.5:
            return []
        if chance.random() < 0.15:  # an earlier question, which is no answer
            return [Note(relations.tell(chance).question, None, "user")]
        shared = [word for word in distinct_terms(fact.question) if word in self._alike]
        said, answered = chance.choice(self._alike[chance.choice(shared)] if shared and chance.random() < 0.6 else self._talk)
        if chance.random() < 0.6 or len(answered) > 250:
            return [Note(said, None, "user")]
        return [Note(answered, None, "assistant")]

    def _recent(self, chance: random.Random) -> list[Pair]:
        kind = chance.random()
        if kind < 0.3:
            return []
        if kind < 0.45:
            return [(said, chance.choice(HEARD)) for said, _ in chance.sample(self._talk, chance.randint(1, 4))]
        if kind < 0.85:
            return small_talk(chance, chance.choice((1, 2, 2, 3, 4, 6, 8)))
        return [pair for pair in chance.sample(self._talk, chance.randint(1, 2)) if len(pair[1]) < 300]

    def _asked(
        self,
        chance: random.Random,
        facts: Sequence[relations.Told],
        missing: Mapping[str, relations.Told],
        earlier: Mapping[str, relations.Told],
        days: Mapping[str, datetime | str | None],
    ) -> list[Pair]:
        """Return questions with their answers.

        Args:
            chance: decides which.
            facts: those that can be asked for.
            missing: those that were not told, by key.
            earlier: what was told first of facts that were told anew, by key.
            days: when each text was said; without, nobody asks for that.
        """
        asked: list[Pair] = []
        for fact in chance.sample(list(facts), min(len(facts), 4)):
            question = self._question(chance, fact, earlier.get(fact.key))
            form, told_at = chance.random(), days.get(fact.text)
            if form < 0.12:
                asked.append((chance.choice(_ONLY).format(question), fact.value))
            elif form < 0.16 and isinstance(told_at, datetime):
                asked.append((chance.choice(_WHEN).format(fact.text), f"You told me on {day(told_at)}."))
            else:
                asked.append((question, fact.answer))
            if len(facts) < 3:
                asked.append((relations.ask(chance, fact.key), fact.answer))
        asked += [(fact.question, chance.choice(UNKNOWN)) for fact in missing.values() if not facts or chance.random() < 0.8]
        # told now, for the first time or anew: nothing to look for, or to say again
        heard = [*missing.values(), *(relations.tell(chance, fact.key, other_than=fact.value) for fact in facts)]
        share = 0.25 if days else 0.7  # a session begins with what is told
        asked += [(fact.text, chance.choice(HEARD)) for fact in heard if fact.text not in days and chance.random() < share]
        if chance.random() < 0.25 or not asked:
            asked.append(chance.choice(self._talk))
        chance.shuffle(asked)
        return list(dict(asked).items())

    @staticmethod
    def _question(chance: random.Random, fact: relations.Told, earlier: relations.Told | None) -> str:
        """Choose a question; where a fact was told anew often one that is worded as it was told first."""
        questions = [fact.question, *(relations.ask(chance, fact.key) for _ in range(3))]
        if earlier is None or chance.random() < 0.4:
            return chance.choice(questions[:2])
        first, later = set(distinct_terms(earlier.text)), set(distinct_terms(fact.text))
        return max(questions, key=lambda question: sum((t in first) - (t in later) for t in distinct_terms(question)))
