"""Answers that are kept for a while by the key that a client gave: when it calls again with it, nothing is answered twice.

What was recalled is not kept, and an answer is not given again once something of its session was forgotten.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

from ..errors import InputError

HEADER = "idempotency-key"
_LONGEST_KEY = 255
_MOST, _SECONDS = 1000, 600.0  # answers that are kept, and how long
Key = tuple[str, str]  # of a name space, and of a client


@dataclass
class _Kept:
    asked: str  # digest of the call
    answered: dict[str, Any] | None = None  # None while it is being written
    version: int = 0  # of its session when it was whole
    until: float = float("inf")


class Replays:
    """The latest answers by key, in memory: after a restart a call is answered anew."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()

    def find(self, tenant: str, key: str | None, body: str, version: Callable[[], int]) -> dict[str, Any] | None:
        """Return the body of the answer that a call has been given before; None: it is new, or has no key.

        Args:
            tenant: the name space of whoever calls.
            key: that the call has.
            body: of the call.
            version: of its session now.

        Raises:
            InputError: the key is empty or too long, or was another call's.
            HTTPException: the answer is being written, or something of its session was forgotten since.
        """
        if key is None:
            return None
        if not 0 < len(key) <= _LONGEST_KEY:
            raise InputError(f"an Idempotency-Key has 1 to {_LONGEST_KEY} characters.")
        self._let_go()
        known = self._kept.get((tenant, key))
        if known is None:
            return None
        if known.asked != _digest(body):
            raise InputError("this Idempotency-Key was used for another call. Choose a new one for each call.")
        if known.answered is None:
            raise HTTPException(409, "the call with this Idempotency-Key is being answered. Try again when it is finished.")
        if known.version != version():
            known.answered = {}
        if not known.answered:
            raise HTTPException(410, "something of this session was forgotten or replaced since this call was answered.")
        return known.answered

    @contextmanager
    def keeping(self, tenant: str, key: str | None, body: str, version: Callable[[], int]) -> Iterator[Keeper]:
        """Hold a key while its call is answered. If nothing is kept by the end, it is free again.

        Args:
            tenant: the name space of whoever calls.
            key: that the call has; None: nothing is kept.
            body: of the call.
            version: of its session at any time.
        """
        place = None if key is None else (tenant, key)
        keeper = Keeper()
        if place is not None:
            self._kept[place] = _Kept(_digest(body))
        try:
            yield keeper
        finally:
            if place is not None and keeper.answered is None:
                self._kept.pop(place, None)
            elif place is not None:
                self._kept[place] = _Kept(_digest(body), keeper.answered, version(), time.monotonic() + _SECONDS)
                self._kept.move_to_end(place)

    def _let_go(self) -> None:
        """Let go of the oldest answers, those beyond the number and those beyond the time."""
        while self._kept:
            place, first = next(iter(self._kept.items()))
            if len(self._kept) <= _MOST and first.until > time.monotonic():
                return
            del self._kept[place]


class Keeper:
    """Takes the body of an answer that is finished."""

    answered: dict[str, Any] | None = None

    def keep(self, body: dict[str, Any]) -> None:
        """Keep it, but for what was recalled."""
        self.answered = body | {"hmt": body["hmt"] | {"recalled": []}}


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()
