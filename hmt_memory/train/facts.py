"""Facts that people tell about themselves, and the questions that ask for them in other words. Knows words; no model.

Names and numbers come from vocabularies too large to be learned by heart: what answers from them has to have read them. The
vocabularies, the ways to tell and the ways to ask of evaluation are disjoint from those of training.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Split = Literal["training", "evaluation"]
Value = Callable[[random.Random, Split], str]


@dataclass(frozen=True)
class Fact:
    """Something told once."""

    kind: str  # facts of one kind contradict each other: the later one holds
    told: str
    value: str  # the words that an answer has to hold


@dataclass(frozen=True)
class Kind:
    """A kind of fact: how it is told, how it is told anew, and how it is asked for."""

    told: Mapping[Split, Sequence[str]]
    changed: Sequence[str]
    asked: Mapping[Split, Sequence[str]]
    value: Value


# --- words --------------------------------------------------------------------------------------------------------------


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_MONTHS = _words("January February March April May June July August September October November December")
_ONSETS: Mapping[Split, Sequence[str]] = {
    "training": ("b", "br", "d", "dr", "f", "g", "gr", "j", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v"),
    "evaluation": ("bl", "c", "ch", "cl", "fl", "h", "kr", "pl", "qu", "sh", "sk", "sl", "th", "tr", "w", "z"),
}
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "io")
_CODAS = ("", "l", "m", "n", "r", "s", "nd", "x")
_GIVEN: Mapping[Split, Sequence[str]] = {
    "training": _words(
        "Adam Agnes Alba Amir Anders Anna Arthur Beatriz Bruno Carla Cesar Clara Daniel Diana Edgar Elena Emil Erik "
        "Esther Fatima Felix Fiona Frank Gloria Greta Gustav Hanna Harald Helena Hugo Ibrahim Ida Igor Ingrid Irene "
        "Ivan Jakob Jana Jonas Julia Karim Karin Klara Konrad Lara Lars Laura Leo Linda Lucas Luisa Magda Marco Maria "
        "Martin Mateo Mia Milan Mina Nadia Nina Nora Olaf Olga Oscar Otto Paul Paula Pedro Petra Rafael Rita Robert "
        "Rosa Rudolf Samuel Sara Simon Sofia Stefan Susanne Tanja Teresa Thomas Tim Ursula Vera Viktor Walter Wanda "
        "Yusuf Zoe"
    ),
    "evaluation": _words(
        "Aisha Alvaro Ambrose Anselm Astrid Basil Bjorn Brigitte Camille Cedric Cordelia Damaris Dmitri Eamon Edith "
        "Elspeth Farid Florian Genevieve Gideon Hedwig Hiroshi Idris Imogen Ines Isidore Jasper Jorge Kamala Kenji "
        "Leopold Linnea Lorcan Ludmila Magnus Malika Marisol Maurice Meera Nikolai Noor Octavia Odile Oleg Ottilie "
        "Perpetua Piotr Priya Quentin Radha Ramon Rosalind Rupert Saskia Selma Sigrid Silvio Tariq Thandi Theodora "
        "Tobias Ulrike Umberto Violeta Wilhelmina Xavier Yolanda Yuki Yvette Zacharias"
    ),
}
_THINGS: Mapping[str, Mapping[Split, Sequence[str]]] = {
    "food": {
        "training": ("lentil soup", "risotto", "dumplings", "ramen", "goulash", "tacos", "pancakes", "falafel", "moussaka"),
        "evaluation": ("pierogi", "biryani", "gazpacho", "shakshuka", "gnocchi", "bibimbap", "ratatouille", "empanadas"),
    },
    "allergy": {
        "training": ("peanuts", "shellfish", "pollen", "cats", "penicillin", "strawberries", "dust", "eggs"),
        "evaluation": ("sesame", "latex", "walnuts", "wasp stings", "mustard", "celery", "ibuprofen", "kiwi"),
    },
    "job": {
        "training": ("nurse", "carpenter", "translator", "pilot", "baker", "lawyer", "gardener", "plumber", "librarian"),
        "evaluation": ("radiologist", "midwife", "beekeeper", "locksmith", "surveyor", "puppeteer", "optician", "cartographer"),
    },
    "instrument": {
        "training": ("violin", "drums", "trumpet", "guitar", "harp", "clarinet", "organ"),
        "evaluation": ("cello", "bassoon", "mandolin", "oboe", "accordion", "zither", "piccolo"),
    },
    "colour": {
        "training": ("dark green", "yellow", "light blue", "orange", "purple", "white", "brown"),
        "evaluation": ("turquoise", "burgundy", "ivory", "lavender", "ochre", "magenta", "teal"),
    },
    "animal": {
        "training": ("cat", "dog", "rabbit", "parrot", "hamster"),
        "evaluation": ("tortoise", "ferret", "canary", "goldfish", "pony"),
    },
    "hobby": {
        "training": ("pottery", "chess", "rowing", "origami", "bird watching", "juggling", "fencing"),
        "evaluation": ("falconry", "calligraphy", "bouldering", "bookbinding", "curling", "geocaching", "beekeeping"),
    },
}


def word(chance: random.Random, split: Split) -> str:
    """Make a word that is none, such as a name of a town or a boat."""
    syllables = [
        chance.choice(_ONSETS[split]) + chance.choice(_VOWELS) + (chance.choice(_CODAS) if last else "")
        for last in (False, True)
    ]
    return "".join(syllables).capitalize()


def _given(chance: random.Random, split: Split) -> str:
    return chance.choice(_GIVEN[split])


def _one_of(name: str) -> Value:
    return lambda chance, split: chance.choice(_THINGS[name][split])


def _number(low: int, high: int) -> Value:
    """Choose a number: even ones are told in training, odd ones in evaluation."""
    return lambda chance, split: str(2 * chance.randrange(low // 2, high // 2) + (split == "evaluation"))


def _time(chance: random.Random, split: Split) -> str:
    return f"{chance.randrange(6, 23)}:{2 * chance.randrange(5, 29) + (split == 'evaluation'):02d}"


def _date(chance: random.Random, split: Split) -> str:
    return f"{chance.choice(_MONTHS)} {2 * chance.randrange(1, 14) + (split == 'evaluation')}"


def _code(chance: random.Random, split: Split) -> str:
    letters = "ABCDEFGH" if split == "training" else "KMNPRTVX"
    return f"{chance.choice(letters)}{chance.choice(letters)}-{_number(100, 999)(chance, split)}"


# --- kinds --------------------------------------------------------------------------------------------------------------


def _kind(value: Value, training: tuple[str, str], evaluation: tuple[str, str], changed: str, *more: tuple[str, str]) -> Kind:
    """Make a kind from pairs of telling and asking; `more` is for training."""
    told, asked = zip(training, *more, strict=True)
    return Kind(
        {"training": told, "evaluation": evaluation[:1]}, (changed,), {"training": asked, "evaluation": evaluation[1:]}, value
    )


KINDS: Mapping[str, Kind] = {
    "cat": _kind(
        word,
        ("We have a cat now. We named her {}.", "What did I name my cat?"),
        ("I finally got a cat, a grey one. She's called {}.", "What is the name of my cat?"),
        "The cat didn't listen to her name, so we call her {} now.",
        ("My cat {} slept on the keyboard all day.", "What is my cat called?"),
    ),
    "brother": _kind(
        _given,
        ("My brother {} sends his regards.", "What is my brother called?"),
        ("I'm picking up my brother {} from the station tonight.", "What is my brother's name?"),
        "I should say that my brother goes by {} these days.",
        ("I have one brother, {}, who is older than me.", "Do you remember my brother's name?"),
    ),
    "town": _kind(
        word,
        ("I live in {}, close to the river.", "Where do I live?"),
        ("We moved to {} in spring, the flat is tiny but bright.", "Which town do I live in?"),
        "We have moved again: we live in {} now.",
        ("My home is in {} and I like it there.", "What town is my home in?"),
    ),
    "door": _kind(
        _number(1000, 9999),
        ("The code for the front door is {}.", "What is the front door code?"),
        ("By the way, they set the door code of the office to {}.", "How do I get through the office door, what is the code?"),
        "They changed the door code, it is {} from today.",
        ("To get in, type {} at the door.", "Which code opens the door?"),
    ),
    "allergy": _kind(
        _one_of("allergy"),
        ("I can't have {}, I'm allergic.", "What am I allergic to?"),
        ("Please keep in mind that {} give me a bad allergic reaction.", "Which allergy do I have?"),
        "The new test says that it is {} that I am allergic to.",
        ("My doctor found that I am allergic to {}.", "What allergy did my doctor find?"),
    ),
    "train": _kind(
        _time,
        ("My train leaves at {}.", "When does my train leave?"),
        ("I have to be at the station by {}, that's when the train goes.", "What time is my train?"),
        "The timetable changed, my train goes at {} now.",
        ("The train to work is at {} every day.", "At what time is the train to work?"),
    ),
    "boss": _kind(
        _given,
        ("{} is my boss.", "Who is my boss?"),
        ("I report to a woman named {} at work.", "What is the name of my manager?"),
        "We have a new head of team, so now I report to {}.",
        ("My manager {} wants the report on Monday.", "Who is my manager?"),
    ),
    "parking": _kind(
        _code,
        ("I parked in spot {}.", "Where did I park?"),
        ("The car is in the garage, space {}.", "In which space is the car?"),
        "I moved the car, it's in space {} now.",
        ("My parking space has the number {}.", "What is the number of my parking space?"),
    ),
    "sister": _kind(
        _one_of("job"),
        ("My sister is a {}.", "What does my sister do?"),
        ("My sister has started to work as a {}.", "What does my sister do for a living?"),
        "My sister changed jobs and is a {} now.",
        ("Having a {} as a sister is useful sometimes.", "What is my sister's job?"),
    ),
    "birthday": _kind(
        _date,
        ("My birthday is on {}.", "When is my birthday?"),
        ("I was born on {}, in the middle of a storm.", "On which day was I born?"),
        "I told you my birthday wrong, it is {}.",
        ("I celebrate my birthday on {}.", "What day do I celebrate my birthday?"),
    ),
    "meal": _kind(
        _one_of("food"),
        ("My favourite dish is {}.", "What is my favourite dish?"),
        ("If I could eat one thing every day, it would be {}.", "What do I like to eat most?"),
        "I have got tired of that, my favourite food is {} now.",
        ("I love {} more than any other food.", "Which food do I love most?"),
    ),
    "flight": _kind(
        _code,
        ("My flight number is {}.", "What is my flight number?"),
        ("I'm booked on flight {} next week.", "Which flight am I on?"),
        "They rebooked me, I'm on flight {} now.",
        ("I will fly on {} on Friday.", "Which flight did I book?"),
    ),
    "shoes": _kind(
        _number(34, 49),
        ("I wear size {} shoes.", "What size are my shoes?"),
        ("My feet need a shoe of size {}.", "What is my shoe size?"),
        "It turns out that {} is the right shoe size for me.",
        ("My shoe size is {}.", "Which shoe size do I wear?"),
    ),
    "instrument": _kind(
        _one_of("instrument"),
        ("I play the {}.", "Which instrument do I play?"),
        ("On Tuesdays I take lessons on the {}.", "What instrument am I learning?"),
        "I gave that up and play the {} now.",
        ("I practise the {} every evening.", "What instrument do I practise?"),
    ),
    "doctor": _kind(
        lambda chance, split: f"Dr. {word(chance, split)}",
        ("My doctor is {}.", "Who is my doctor?"),
        ("I have an appointment with {} about my knee.", "Which doctor am I seeing about my knee?"),
        "My doctor retired, and {} took over.",
        ("I was at {}'s for a check-up.", "What is my doctor's name?"),
    ),
    "hotel": _kind(
        lambda chance, split: f"Hotel {word(chance, split)}",
        ("We are staying at {}.", "Where are we staying?"),
        ("I booked two nights at {} for the trip.", "Which hotel did I book for the trip?"),
        "I cancelled that and booked {} instead.",
        ("Our hotel is called {}.", "What is our hotel called?"),
    ),
    "car": _kind(
        _one_of("colour"),
        ("My car is {}.", "What colour is my car?"),
        ("I had the car painted {}.", "Which colour does my car have?"),
        "The car is {} now, we had it painted anew.",
        ("I drive a {} car.", "What is the colour of the car that I drive?"),
    ),
    "room": _kind(
        _number(100, 799),
        ("The meeting is in room {}.", "In which room is the meeting?"),
        ("We meet in {} tomorrow, the big room upstairs.", "What is the number of the meeting room?"),
        "The meeting was moved to room {}.",
        ("Please come to room {} for the meeting.", "Which room is the meeting in?"),
    ),
    "wifi": _kind(
        lambda chance, split: f"{word(chance, split).lower()}{_number(10, 99)(chance, split)}",
        ("The password of the wifi is {}.", "What is the wifi password?"),
        ("Guests can use our wifi, just type in {}.", "Which password do guests need for our wifi?"),
        "I changed the wifi password to {}.",
        ("To use the wifi, enter {}.", "How do I log in to the wifi, what is the password?"),
    ),
    "hobby": _kind(
        _one_of("hobby"),
        ("My hobby is {}.", "What is my hobby?"),
        ("I spend most weekends on {}.", "What do I do at weekends?"),
        "These days my weekends belong to {}.",
        ("I do {} in my free time.", "What do I do in my free time?"),
    ),
    "landlord": _kind(
        _given,
        ("Our landlord is called {}.", "What is our landlord called?"),
        ("{} owns the house and collects the rent.", "Who is my landlord?"),
        "The house was sold, {} is the landlord now.",
        ("I pay the rent to {}.", "Who do I pay the rent to?"),
    ),
    "boat": _kind(
        word,
        ("Our boat is named {}.", "What is the name of our boat?"),
        ("Grandpa painted {} on the bow of his boat.", "What is Grandpa's boat called?"),
        "They gave the boat a new name: {}.",
        ("We sail on a boat called {}.", "What is our boat called?"),
    ),
    "daughter": _kind(
        lambda chance, split: str(chance.randrange(3, 9) * 2 + (split == "evaluation")),
        ("My daughter is {} years old.", "How old is my daughter?"),
        ("There were {} candles on my daughter's cake.", "What age is my daughter?"),
        "My daughter had her birthday, so she is {} now.",
        ("My daughter turned {} this week.", "How many years old is my daughter?"),
    ),
    "pet": _kind(
        _one_of("animal"),
        ("We keep a {} at home.", "Which animal do we keep at home?"),
        ("The children talked us into buying a {}.", "What animal did we buy?"),
        "We gave it away and have a {} instead.",
        ("Our pet is a {}.", "What kind of pet do we have?"),
    ),
}


def tell(kind: str, chance: random.Random, split: Split, *, other_than: str | None = None) -> Fact:
    """Make a fact of a kind; with `other_than`, one that takes the place of a fact with that value.

    Args:
        kind: a key of `KINDS`.
        chance: decides words and values.
        split: whose words they are.
        other_than: the value that was told before.
    """
    chosen = KINDS[kind]
    value = chosen.value(chance, split)
    while value == other_than:
        value = chosen.value(chance, split)
    ways = chosen.told[split] if other_than is None else chosen.changed
    return Fact(kind, chance.choice(ways).format(value), value)


def ask(kind: str, chance: random.Random, split: Split) -> str:
    """Choose a question that asks for a fact of a kind.

    Args:
        kind: of the fact.
        chance: chooses.
        split: whose wordings are used.
    """
    return chance.choice(KINDS[kind].asked[split])
