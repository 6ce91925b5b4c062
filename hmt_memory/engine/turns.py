"""The places of turns in a stream of tokens. Knows numbers; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Turns:
    """The places of turns in a stream's tokens, as far as a view has to know them."""

    starts: Sequence[int] = ()  # where the user's turns begin, rising; the window of recent turns begins at one of them
    question: int | None = (
        None  # where the words of the question begin, in front of which notes stand; None: behind the pinned part
    )

    def behind(self, tokens: int) -> Turns:
        """Return the places as they are where so many tokens stand before."""
        return Turns([start + tokens for start in self.starts], None if self.question is None else self.question + tokens)
