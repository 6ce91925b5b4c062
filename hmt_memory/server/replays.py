"""Answers that are kept for a while by the key that a client gave: when it calls again with it, nothing is answered twice."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

from ..errors import InputError

HEADER = "idempotency-key"
_LONGEST_KEY = 255
_MOST = 1000  # answers that are kept
Key = tuple[str, str]  # of a name space, and of a client


@dataclass
class _Kept:
    asked: str  # digest of the call
    answered: dict[str, Any] | None = None  # None while it is being written


class Replays:
    """The latest answers by key, in memory: after a restart a call is answered anew."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()

    def find(self, tenant: str, key: str | None, body: str) -> dict[str, Any] | None:
        """Return the body of the answer that a call has been given before; None: it is new, or has no key.

        Args:
            tenant: the name space of whoever calls.
            key: that the call has.
            body: of the call.

        Raises:
            InputError: the key is empty or too long, or was another call's.
            HTTPException: the answer is being written.
        """
        if key is None:
            return None
        if not 0 < len(key) <= _LONGEST_KEY:
            raise InputError(f"an Idempotency-Key has 1 to {_LONGEST_KEY} characters.")
        known = self._kept.get((tenant, key))
        if known is None:
            return None
        if known.asked != _digest(body):
            raise InputError("this Idempotency-Key was used for another call. Choose a new one for each call.")
        if known.answered is None:
            raise HTTPException(409, "the call with this Idempotency-Key is being answered. Try again when it is finished.")
        self._kept.move_to_end((tenant, key))
        return known.answered

    @contextmanager
    def keeping(self, tenant: str, key: str | None, body: str) -> Iterator[Keeper]:
        """Hold a key while its call is answered. If nothing is kept by the end, it is free again.

        Args:
            tenant: the name space of whoever calls.
            key: that the call has; None: nothing is kept.
            body: of the call.
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
                self._kept[place].answered = keeper.answered
                while len(self._kept) > _MOST:
                    self._kept.popitem(last=False)


class Keeper:
    """Takes the body of an answer that is finished."""

    answered: dict[str, Any] | None = None

    def keep(self, body: dict[str, Any]) -> None:
        """Keep it."""
        self.answered = body


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()
