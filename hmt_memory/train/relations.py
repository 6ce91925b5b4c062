"""Generated facts of many relations and owners, which train a model to answer from quoted notes. Knows words; no model.

Relations, owners and vocabularies are many, so that what answers learns to copy from its notes whatever the fact is. None of
the words of evaluation in `facts` are among them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hmt_memory.train.relation_values import MEN, VALUES, WOMEN, listed
from hmt_memory.train.relation_words import RELATIONS, Relation


@dataclass(frozen=True)
class Told:
    """Something told once, with one way to ask for it and the answer."""

    key: str  # facts with the same key contradict each other: the later one holds
    text: str  # what the user says
    question: str
    answer: str
    value: str  # the words of text and answer that the question asks for


@dataclass(frozen=True)
class Owner:
    """Whom or what a fact is about: "I", "my sister", "the garage"."""

    name: str
    pronouns: tuple[str, str]  # he, his


HOUSEHOLD = "self"  # the group and the owner of what is said of the user without a name for anybody

# --- owners -------------------------------------------------------------------------------------------------------------

_HERS = listed(
    "sister, older sister, mother, daughter, wife, aunt, grandmother, boss, neighbour, best friend, niece, roommate, dentist, "
    "yoga teacher, mother-in-law, godmother"
)
_HIS = listed(
    "brother, younger brother, father, son, husband, uncle, grandfather, cousin, colleague, piano teacher, coach, nephew, "
    "brother-in-law, driving instructor, stepfather, mechanic"
)
_SHE, _HE, _IT, _THEY = ("she", "her"), ("he", "his"), ("it", "its"), ("they", "their")
_THINGS: Mapping[str, Sequence[str]] = {
    "pets": listed(
        "my cat, my dog, my parrot, my rabbit, my horse, our puppy, my neighbour's cat, my sister's dog, my boss's cat, "
        "my aunt's parrot, my brother's rabbit, my neighbour's dog, our old hen, my grandmother's goose"
    ),
    "vehicles": listed(
        "my car, my bike, our van, our boat, my moped, my sister's car, my brother's motorbike, my father's boat, our bus, "
        "my uncle's tractor, my neighbour's van, the company car"
    ),
    "kept": listed(
        "the spare key, my passport, the drill, the big umbrella, the picnic basket, the sewing machine, the tent, the "
        "sledge, my winter coat, the first aid kit, the torch, my old guitar, the ladder, the hedge trimmer, the fondue pot"
    ),
    "locks": listed(
        "the office door, the garage, my bike lock, my locker, the alarm, the safe, the garden gate, my suitcase, the shed, "
        "the bike cellar, my phone, the key box, my sister's safe, the storage unit"
    ),
    "accounts": listed(
        "the guest network, my email, the photo archive, the work laptop, the music service, the shared calendar, my old blog, "
        "the router, the streaming box, my tax account"
    ),
    "cards": listed(
        "my library card, my bank account, my health insurance, my gym membership, my train pass, my passport, the parcel, my "
        "bonus card, the repair order, my museum pass"
    ),
    "flights": listed(
        "my flight to Lisbon, my flight home, my sister's flight, our flight to Oslo, my boss's flight, the morning flight, "
        "my brother's flight, the connecting flight"
    ),
    "trains": listed(
        "the night train, my train home, the first ferry, the bus to the airport, my sister's train, the express to Graz, the "
        "last tram, the shuttle, the school bus"
    ),
    "events": listed(
        "my dentist appointment, my driving test, the team meeting, my job interview, the concert, my eye test, the parents' "
        "evening, the physics exam, the viewing of the flat, my haircut, the choir rehearsal, the workshop, my thesis defence"
    ),
    "projects": listed(
        "the new app, the bridge study, the museum job, my side project, the spring campaign, the archive migration, the "
        "warehouse contract, my thesis, the solar plant, the newsletter"
    ),
    "recipes": listed(
        "the banana bread, the apple pie, the pizza, my grandmother's plum cake, the ginger cake, the cornbread, the corn "
        "pudding, my birthday cake, the onion tart, the sourdough"
    ),
    "couples": listed(
        "my parents, my grandparents, my neighbours, my uncle and aunt, my sister and her husband, my friends, my in-laws, "
        "my brother and his wife, my boss and his wife"
    ),
}


def _owner(name: str) -> Owner:
    """Make an owner from its name in a key."""
    if name in ("I", HOUSEHOLD):
        return Owner(name, ("I", "my"))
    bare, given = name.removeprefix("my "), name.rsplit(" ", 1)[-1]
    if bare in _HERS or given in WOMEN:
        return Owner(name, _SHE)
    if bare in _HIS or given in MEN:
        return Owner(name, _HE)
    return Owner(name, _THEY if name in _THINGS["couples"] else _IT)


def _some_owner(chance: random.Random, group: str) -> str:
    """Choose an owner of a group: for people, often oneself, and sometimes one of several by name ("my friend Emma")."""
    if group in _THINGS:
        return chance.choice(_THINGS[group])
    if group == HOUSEHOLD:
        return HOUSEHOLD
    if group == "people" and chance.random() < 0.4:
        return "I"
    if chance.random() < 0.35:
        women = chance.random() < 0.5
        roles = ("friend", "colleague", "neighbour", "cousin", "classmate", "sister" if women else "brother")
        return f"my {chance.choice(roles)} {chance.choice(WOMEN if women else MEN)}"
    return f"my {chance.choice(_HERS + _HIS)}"


# --- wording ------------------------------------------------------------------------------------------------------------


_BEFORE = (
    "Had a long day.", "Quick note before I forget it.", "It rained all morning here.", "Oh, right.", "So, news from here.",
    "I'm on the bus, so just briefly.", "Guess what.", "Finally some time to write.", "The kettle is on.", "Funny thing.",
    "You asked about news.", "I was going through my papers.", "Sorry for the delay.", "We talked a lot.",
)  # fmt: skip
_AFTER = (
    "Anyway, back to work.", "Just so you know.", "That's all for now.", "Please keep that in mind.", "Now I need a nap.",
    "What a week!", "Can you remember that for me?", "I'll tell you more tomorrow.", "Nobody else knows yet.", "Dinner time.",
)  # fmt: skip
_LEADS = ("By the way, ", "Also, ", "For your notes: ", "Did I mention this? ", "One more thing: ", "Well, ", "You know, ")
_ANEW = ("Update: ", "Correction: ", "I got that wrong before. ", "Forget what I said earlier. ", "Things have changed. ")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _say(way: str, owner: Owner, relation: Relation, value: str, *, answer: bool = False) -> str:
    """Put owner and value into a way to tell, ask or answer; an answer speaks to the user."""
    own = owner.name == "I"
    who = re.sub(r"^(my|our)\b", "your", owner.name) if answer else owner.name
    who_obj, whose, (he, his) = who, who + "'s", owner.pronouns
    if own:
        who, who_obj, whose, he, his = ("you", "you", "your", "you", "your") if answer else ("I", "me", "my", "I", "my")
    elif who.endswith("s") and owner.pronouns == _THEY:
        whose = who + "'"
    way = re.sub(r"\[([^|\]]*)\|([^\]]*)\]", r"\1" if own else r"\2", way)
    article = "an" if value[:1].lower() in "aeiou" and not value.startswith(("uni", "uk", "eu", "one")) else "a"
    forms = {"who": who, "who_obj": who_obj, "whose": whose, "he": he, "his": his, "k": relation.name.replace("_", " ")}
    forms |= {_capital(name): _capital(form) for name, form in forms.items()}
    return _capital(way.format(**forms, v=value, V=value, a=article))


def _dress(chance: random.Random, text: str, value: str) -> str:
    """Put other words before or after what is told, or none."""
    lot = chance.random()
    if lot < 0.15:
        return f"{chance.choice(_BEFORE)} {text}"
    if lot < 0.3:
        return f"{text} {chance.choice(_AFTER)}"
    if lot < 0.36:
        return f"{chance.choice(_BEFORE)} {text} {chance.choice(_AFTER)}"
    if lot < 0.5:
        lead = chance.choice(_LEADS)
        if lead.endswith("? ") or text.startswith("I "):
            return lead + text
        if text.startswith(("My ", "The ", "Our ")) and not text.startswith(value):
            return lead + text[0].lower() + text[1:]
    return text


def tell(chance: random.Random, key: str | None = None, *, other_than: str | None = None) -> Told:
    """Make a fact, of any relation and owner or of those of a key; with `other_than`, one that takes that value's place.

    Args:
        chance: decides relation, owner, words and value.
        key: owner and relation, such as "my sister.job".
        other_than: the value that was told before.
    """
    if key is None:
        relation = chance.choice(list(RELATIONS.values()))
        key = f"{_some_owner(chance, relation.group)}.{relation.name}"
    name, _, kind = key.rpartition(".")
    owner, relation = _owner(name), RELATIONS[kind]
    question = ask(chance, key)
    asked = " ".join(_say(way, owner, relation, "") for way in relation.asked).lower()
    value = VALUES[relation.value](chance)
    while value == other_than or value.lower() in asked or value in name:
        value = VALUES[relation.value](chance)
    if other_than is None:
        text = _say(chance.choice(relation.told), owner, relation, value)
    elif chance.random() < 0.65:
        text = _say(chance.choice(relation.changed), owner, relation, value)
    else:
        text = chance.choice(_ANEW) + _say(chance.choice(relation.told), owner, relation, value)
    answer = _say(chance.choice(relation.answered), owner, relation, value, answer=True)
    return Told(key, _dress(chance, text, value), question, answer, value)


def ask(chance: random.Random, key: str) -> str:
    """Choose a question that asks for the fact of a key."""
    name, _, kind = key.rpartition(".")
    return _say(chance.choice(RELATIONS[kind].asked), _owner(name), RELATIONS[kind], "")


def near(chance: random.Random, key: str) -> Told:
    """Make a fact that is easily confused with that of a key: of another owner, or another relation of the same owner."""
    name, _, kind = key.rpartition(".")
    group = RELATIONS[kind].group
    others = [other for other in RELATIONS.values() if other.group == group and other.name != kind]
    if others and (group == HOUSEHOLD or chance.random() < 0.4):
        alike = [other for other in others if other.value == RELATIONS[kind].value]
        return tell(chance, f"{name}.{chance.choice(alike or others).name}")
    owner = name
    while owner == name:
        owner = _some_owner(chance, group)
    return tell(chance, f"{owner}.{kind}")
