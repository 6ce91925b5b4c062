"""Whose calls without a session share what was read of their prompts. Knows nothing else, so that having one loads nothing."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Namespace:
    """A namespace that nobody else can name.

    What it is a part of shares it with its shallow copies; a deep copy or a pickle, which may go anywhere, has another.
    """

    key: object = field(default_factory=object, compare=False)  # all are equal: objects with equal fields stay equal
