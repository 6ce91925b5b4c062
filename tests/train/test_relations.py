"""The made-up facts that exercises are about: their wording, and that it is not the one of the evaluation."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

import pytest

from hmt_memory.train import facts, relation_words, relations
from hmt_memory.train.relation_values import VALUES
from hmt_memory.train.relation_words import LISTED, RELATIONS

SPOKEN = {text for kind in facts.KINDS.values() for text in (*kind.told["evaluation"], *kind.asked["evaluation"])}
WORDS = {value for kind in facts._THINGS.values() for value in kind["evaluation"]}


def test_made_up_facts_can_be_told_asked_for_and_told_anew() -> None:
    chance = random.Random(1)
    for _ in range(2000):
        fact = relations.tell(chance)
        later, near = relations.tell(chance, fact.key, other_than=fact.value), relations.near(chance, fact.key)
        assert all(fact.value.lower() in text.lower() for text in (fact.text, fact.answer))
        assert fact.value.lower() not in fact.question.lower()
        assert later.key == fact.key and later.value != fact.value and near.key != fact.key
        assert relations.ask(chance, fact.key).strip()


@pytest.mark.parametrize("name", RELATIONS)
def test_every_wording_is_complete(name: str) -> None:
    relation = RELATIONS[name]
    assert relation.value in VALUES
    said = [*relation.told, *relation.changed, *relation.answered]
    assert all(way.count("{v}") + way.count("{V}") == 1 for way in said)
    assert not any("{v}" in way or "{V}" in way for way in relation.asked)
    assert min(len(relation.told), len(relation.asked)) >= 2 and relation.changed and relation.answered
    owned = {"{who}", "{Who}", "{who_obj}", "{whose}", "{Whose}", "{he}", "{He}", "{his}", "{His}"}
    used = {part for way in (*said, *relation.asked) for part in re.findall(r"{\w+}", way)}
    assert used <= {*owned, "{v}", "{V}", "{a}", "{k}"}
    assert bool(used & owned) == (relation.group != relations.HOUSEHOLD)


def test_no_name_of_a_relation_or_of_a_kind_of_values_is_used_twice() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in relation_words._FOLDER.glob("*.txt"))
    heads = re.findall(r"^@(.*?)\s(?:\w+)\s+::", text, re.MULTILINE | re.DOTALL)
    names = [pair.split("=")[0] for head in heads for pair in head.split(",")]
    kinds = re.findall(r"^%(\w+)", text, re.MULTILINE)
    assert sorted(names) == sorted(RELATIONS) and sorted(kinds) == sorted(LISTED)


def test_no_sentence_of_the_evaluation_is_trained_on() -> None:
    ways = {way for one in RELATIONS.values() for way in (*one.told, *one.changed, *one.asked)}
    plain = {_plain(re.sub(r"{[vV]}", "{}", way)) for way in ways}
    assert not {_plain(text) for text in SPOKEN} & plain
    chance = random.Random(2)
    for _ in range(3000):
        fact = relations.tell(chance)
        assert fact.question not in SPOKEN and fact.text not in SPOKEN


def test_no_value_of_the_evaluation_is_trained_on() -> None:
    assert not WORDS & {value for values in LISTED.values() for value in values}


def _plain(text: str) -> Iterable[str]:
    return tuple(re.findall(r"{}|\w+", text.lower()))
