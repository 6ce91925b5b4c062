"""The wording of the relations: how they are told, told anew, asked for and answered. Knows words; no owners.

It stands in the files of `wording/`. A line that begins with % names a kind of values and lists them. A relation is a
paragraph: after @ its names, each with the kind of its values, and the group of its owners, then `::` the ways to tell, `=>`
the ways to tell that it changed, `??` the ways to ask and `==` the ways to answer, each parted by ` / `. In them stand {v} for
the value, {V} for one with a capital, {a} for its article, {k} for the name of the relation, {who} and {who_obj} for the owner,
{whose} for the possessive, {he} and {his} for the pronouns, and [first|third] for a verb after "I" or "you" and after others.
The group `self` has no owner: its sentences are about the user as they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent / "wording"
_FILES = ("basics", "work", "people", "home", "leisure")


@dataclass(frozen=True)
class Relation:
    """How facts of one relation are worded."""

    name: str
    group: str  # of its owners
    value: str  # the kind of its values
    told: Sequence[str]
    changed: Sequence[str]
    asked: Sequence[str]
    answered: Sequence[str]


def _texts() -> Iterator[str]:
    for name in _FILES:
        yield (_FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def _kinds(text: str) -> Iterator[tuple[str, Sequence[str]]]:
    for line in text.splitlines():
        if line.startswith("%"):
            name, values = line[1:].split(" ", 1)
            yield name, tuple(values.strip().split(", "))


def _relations(text: str) -> Iterator[Relation]:
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    for paragraph in re.split(r"^@", body, flags=re.MULTILINE)[1:]:
        head, *parts = re.split(r" (?:::|=>|\?\?|==) ", " ".join(paragraph.split()))
        names, group = head.split()
        told, changed, asked, answered = (part.split(" / ") for part in parts)
        for name, value in (pair.split("=") for pair in names.split(",")):
            yield Relation(name, group, value, told, changed, asked, answered)


LISTED: Mapping[str, Sequence[str]] = {name: values for text in _texts() for name, values in _kinds(text)}
RELATIONS: Mapping[str, Relation] = {relation.name: relation for text in _texts() for relation in _relations(text)}
