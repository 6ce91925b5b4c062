"""What an assistant only says again: no evidence beside the user's own words, and often a worse copy of them.

Small models repeat what they are told, not always rightly, and answer from notes what later notes correct. Knows passages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ..engine.abstaining import OPENINGS
from .citations import Citation
from .lexical import distinct_terms
from .passages import Scored, asks

# what the bundled model answers when it is told something; it may go on with what it has understood, often wrongly
HEARD = ("Got it.", "Noted.", "Okay.", "Good to know.", "I'll remember that.", "Thanks, I'll remember that.")
_SHORT = 4  # letters of a word that may say something
_AGAIN = 0.5  # share of its words that a message says again, from which on it is an echo
_WORD = re.compile(r"\w+")
_ENDS = ".!?:…"  # a word behind one of these begins a sentence


def without_echoes(passages: Sequence[Scored]) -> list[Scored]:
    """Leave out an assistant's messages that say again what the user's say, that it has heard something, or does not know it.

    Others stay if they have a number or a name that the user's have not, or if most of their words are new.

    Args:
        passages: those that bear on a question.
    """
    told = [one.cited.text for one in passages if _role(one.cited) == "user" and not asks(one.cited)]
    said = {word for text in told for word in _telling(text)}
    return [one for one in passages if _role(one.cited) != "assistant" or _says_something(one.cited.text, said)]


def _says_something(text: str, said: set[str]) -> bool:
    words = _telling(text)
    new = [word for word in words if word not in said]
    if text.startswith((*OPENINGS, *HEARD)):
        return False
    return len(new) > (1 - _AGAIN) * len(words) or any(word.isdigit() for word in new) or not said.issuperset(_names(text))


def _telling(text: str) -> list[str]:
    """Return the words of a text that may say something: not the short ones of alphabets, but numbers."""
    return [word for word in distinct_terms(text) if len(word) >= _SHORT or not word.isascii() or word.isdigit()]


def _names(text: str) -> Iterator[str]:
    """Yield the words of a text that begin with a capital letter, but those that begin a sentence."""
    for found in _WORD.finditer(text):
        before = text[: found.start()].rstrip()
        if found[0][0].isupper() and before and before[-1] not in _ENDS:
            yield from _telling(found[0])


def _role(cited: Citation) -> str:
    return cited.messages[0].role if cited.messages else ""
