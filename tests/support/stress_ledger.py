"""What a store should hold, by the journals of those who wrote to it: the sessions of one writer each, and those of many.

Names and what users say begin with a secret that is given out once, `~`, twelve hexadecimal digits and `~`; answers never do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

SECRET = re.compile(rb"~[0-9a-f]{12}~")
Said = list[list[Any]]  # [id, text] of each message; None: an answer nobody has seen
Details = Mapping[str, Any]


class Entry(NamedTuple):
    """A line of a journal."""

    kind: str  # "try", then "done" or "refused" or "raised"; "wrong": what was found is not what should be there
    thread: int
    op: str
    name: str  # of the session or corpus
    value: Any  # what is to be done, or what came of it
    seconds: float = 0.0


def secrets_in(text: str) -> list[str]:
    """The secrets of a text."""
    return [found.decode() for found in SECRET.findall(text.encode())]


def token_pattern(ids: Mapping[str, int]) -> re.Pattern[bytes]:
    """What finds secrets in stored token ids, where every character is a token."""
    one = {char: re.escape(np.array([id], "<u4").tobytes()) for char, id in ids.items()}
    digits = b"|".join(one[char] for char in "0123456789abcdef")
    return re.compile(one["~"] + b"(?:" + digits + b"){12}" + one["~"])


def said_equal(found: Said, expected: Said) -> bool:
    """Whether messages are those expected."""
    return len(found) == len(expected) and all(
        there[0] == id and text in (None, there[1]) for there, (id, text) in zip(found, expected, strict=True)
    )


class Owner:
    """The sessions that one thread alone writes to, as its journal says."""

    def __init__(self) -> None:
        self.held: dict[str, Said] = {}
        self.retained: set[str] = set()  # those that forget their oldest by themselves
        self.pending: Entry | None = None

    def follow(self, entries: Iterable[Entry]) -> None:
        """Go through what a journal says."""
        for entry in entries:
            if entry.kind == "try":
                self.pending = entry
            elif self.pending is not None and entry.kind in ("done", "refused", "raised"):
                if entry.kind == "done":
                    self.apply(self.pending, entry.value)
                self.pending = None

    def apply(self, tried: Entry, result: Details) -> None:
        """Do what was done."""
        work = getattr(self, f"_{tried.op}", None)
        if work is not None:  # else it changes none of them
            work(tried.name, tried.value, result)
        if "left" in result:
            held = self.held[tried.name]
            self.held[tried.name] = [one for one in held if result["left"] is not None and one[0] >= result["left"]]

    def _open(self, name: str, details: Details, result: Details) -> None:
        self.held[name] = []

    def _add(self, name: str, details: Details, result: Details) -> None:
        if "replacing" in details:
            self.held[name] = [one for one in self.held[name] if one[0] < details["replacing"]]
        texts = [*details["texts"], result.get("answer")][: len(result["ids"])]
        self.held[name] = [*self.held[name], *([id, text] for id, text in zip(result["ids"], texts, strict=True))]

    _ask = _edit = _add

    def _forget(self, name: str, details: Details, result: Details) -> None:
        self.held[name] = [one for one in self.held[name] if one[0] not in details["ids"]]

    def _delete(self, name: str, details: Details, result: Details) -> None:
        del self.held[name]
        self.retained.discard(name)

    def _rename(self, name: str, details: Details, result: Details) -> None:
        self._copy(name, details["new"], self.held[name])
        self._delete(name, details, result)

    def _fork(self, name: str, details: Details, result: Details) -> None:
        upto = details["upto"]
        self._copy(name, details["new"], [one for one in self.held[name] if upto is None or one[0] <= upto])

    def _carry(self, name: str, details: Details, result: Details) -> None:
        self._copy(name, details["new"], self.held[name])

    def _adopt(self, name: str, details: Details, result: Details) -> None:
        self.held[details["new"]] = [list(one) for one in result["held"]]
        self.retained |= {details["new"]} if result["retained"] else set()

    def _retain(self, name: str, details: Details, result: Details) -> None:
        (self.retained.discard if details["count"] is None else self.retained.add)(name)

    def _copy(self, name: str, new: str, held: Said) -> None:
        self.held[new] = [list(one) for one in held]
        self.retained |= {new} if name in self.retained else set()

    # --- after a crash ----------------------------------------------------------------------------------------------

    def accept(self, found: Mapping[str, Said], retained: set[str]) -> None:
        """Compare with what is there, of which the call that was under way may have been done: in whole, or not at all."""
        tried, self.pending = self.pending, None
        limited = set(self.retained)
        if tried is not None and not self.equals(found, limited):
            if tried.value.get("count"):
                limited |= {tried.name}
            self.apply(tried, self._result(tried, found))
        assert self.equals(found, limited | self.retained), self.difference(found, tried)
        self.held = {name: [list(one) for one in said] for name, said in found.items()}
        self.retained = set(retained)

    def equals(self, found: Mapping[str, Said], limited: set[str]) -> bool:
        """Whether what is there is what is held; less of the oldest in sessions that are `limited`."""
        return found.keys() == self.held.keys() and all(
            said_equal(said, self.held[name][-len(said) or len(self.held[name]) :] if name in limited else self.held[name])
            for name, said in found.items()
        )

    def difference(self, found: Mapping[str, Said], tried: Entry | None) -> str:
        """What is not as it should be."""
        names = sorted({*found, *self.held})
        wrong = [(name, found.get(name), self.held.get(name)) for name in names if found.get(name) != self.held.get(name)]
        return f"under way: {tried}\n" + "\n".join(f"{name}\n  is {there}\n  and not {held}" for name, there, held in wrong)

    def _result(self, tried: Entry, found: Mapping[str, Said]) -> Details:
        """What would have come of a call that was under way."""
        known = {id for id, _ in self.held.get(tried.name, [])}
        new = [one for one in found.get(tried.name, []) if one[0] not in known]
        result: dict[str, Any] = {"ids": [], "held": found.get(tried.value.get("new", ""), []), "retained": False}
        if new:
            last, answer = new[-1]
            answered = not answer.startswith("~")
            count = len(tried.value["texts"]) + answered
            result |= {"ids": list(range(last - count + 1, last + 1)), "answer": answer if answered else None}
        return result


class Common:
    """The sessions and corpora that everybody writes to, each by the number it has in the store for ever."""

    def __init__(self, entries: Sequence[tuple[Entry, Entry | None]]) -> None:
        self.said: dict[int, dict[int, str | None]] = {}  # acknowledged, by the number of the session or corpus
        self.announced: dict[int, set[str]] = {}
        self.refused: set[str] = set()
        self.gone: dict[int, set[int]] = {}  # ids whose erasure was acknowledged
        self.going: dict[int, set[int]] = {}  # or announced
        self.cuts: dict[int, list[tuple[int, int | None]]] = {}  # from which id on, up to which: None is not known
        self.deleted: dict[str, int] = {}
        for tried, end in entries:
            self._follow(tried, end)

    def _follow(self, tried: Entry, end: Entry | None) -> None:
        details, done = tried.value, end is not None and end.kind == "done"
        if tried.op in ("common_delete", "papers_delete"):
            self.deleted[tried.name] = self.deleted.get(tried.name, 0) + 1
            return
        number, texts = details.get("number", 0), details.get("texts", [])
        self.announced.setdefault(number, set()).update(texts)
        if end is not None and end.kind == "refused":
            self.refused |= set(texts)
        if done and texts:
            answered = [*texts, end.value.get("answer")][: len(end.value["ids"])]
            self.said.setdefault(number, {}).update(zip(end.value["ids"], answered, strict=True))
        for into in (self.going, self.gone) if done else (self.going,):
            into.setdefault(number, set()).update(details.get("ids", []))
        if "replacing" in details and not (end is not None and end.kind == "refused"):
            self.cuts.setdefault(number, []).append((details["replacing"], end.value["ids"][0] if done else None))

    def check(self, number: int, found: Said, *, acknowledged: Common) -> None:
        """Compare what is there with what was acknowledged before, and announced up to now (by `self`)."""
        ids, texts = [id for id, _ in found], [text for _, text in found if text.startswith("~")]
        assert ids == sorted(set(ids)) and len(texts) == len(set(texts)), f"doubled in {number}: {found}"
        assert set(texts) <= self.announced.get(number, set()), f"nobody said that in {number}: {found}"
        assert not set(texts) & acknowledged.refused, f"refused, and there in {number}: {found}"
        there = dict(map(tuple, found))
        going = self.going.get(number, set())
        for id, text in acknowledged.said.get(number, {}).items():
            if id not in there:
                assert id in going or self._cut(number, id), f"lost from {number}: {id} {text}"
            else:
                assert text in (None, there[id]), f"{number} says something else in {id}: {there[id]!r}, not {text!r}"
        assert not acknowledged.gone.get(number, set()) & set(ids), f"erased, and there in {number}: {found}"
        for first, last in acknowledged.cuts.get(number, []):
            assert last is None or not [id for id in ids if first <= id < last], f"replaced, and there in {number}: {found}"

    def _cut(self, number: int, id: int) -> bool:
        return any(first <= id and (last is None or id < last) for first, last in self.cuts.get(number, []))


def paired(entries: Iterable[Entry]) -> list[tuple[Entry, Entry | None]]:
    """What was announced, each with what came of it; None: nothing, yet."""
    found: list[tuple[Entry, Entry | None]] = []
    open_at: dict[int, int] = {}
    for entry in entries:
        if entry.kind == "try":
            open_at[entry.thread] = len(found)
            found.append((entry, None))
        elif entry.kind in ("done", "refused", "raised"):
            at = open_at.pop(entry.thread)
            found[at] = (found[at][0], entry)
    return found
