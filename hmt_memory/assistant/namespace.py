"""Namespaces: calls without a session share the prompts that were read within one. Loads nothing."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Namespace:
    """A namespace that nobody else can name.

    The object that holds it shares it with its shallow copies; a deep copy or a pickle, which may go anywhere, has another.
    """

    key: object = field(default_factory=object, compare=False)  # not compared, so that objects with equal fields stay equal
