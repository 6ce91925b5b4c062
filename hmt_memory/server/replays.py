"""Answers that are kept for a while by the key that a client gave: when it calls again with it, nothing is answered twice.

What was recalled is not kept, and an answer is not given again once something of its session was forgotten.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

from ..errors import InputError

HEADER = "idempotency-key"
GONE = "something of this session was forgotten or replaced since this call was answered."
_LONGEST_KEY = 255
_MOST, _SECONDS = 1000, 600.0  # answers of one name space that are kept, and how long
Version = tuple[int, int] | None  # the number of a session, and what forgetting changes; None: it was answered from none
DELETED: Version = (0, -1)  # that of a session which is gone: no session has it


@dataclass
class Kept:
    """The answer to one call."""

    asked: str  # digest of the call
    answered: dict[str, Any] | None = None  # None while it is being written
    version: Version = None  # of its session when it was whole
    until: float = float("inf")

    def keep(self, body: dict[str, Any]) -> None:
        """Take what is kept of the body of an answer that is whole: nothing that was recalled."""
        if self.answered is None:
            self.answered, self.until = body, time.monotonic() + _SECONDS


class Replays:
    """The latest answers by name space and key, in memory: after a restart a call is answered anew."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()

    def find(self, tenant: str, key: str | None, body: str) -> Kept | None:
        """Return the answer that a call has been given before; None: it is new, or has no key.

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
        self.let_go()
        known = self._kept.get((tenant, key))
        if known is None:
            return None
        if known.asked != _digest(body):
            raise InputError("this Idempotency-Key was used for another call. Choose a new one for each call.")
        if known.answered is None:
            raise HTTPException(409, "the call with this Idempotency-Key is being answered. Try again when it is finished.")
        return known

    @contextmanager
    def keeping(self, tenant: str, key: str | None, body: str) -> Iterator[Kept]:
        """Hold a key while its call is answered. If nothing is kept by the end, it is free again.

        Args:
            tenant: the name space of whoever calls.
            key: that the call has; None: nothing is kept.
            body: of the call.
        """
        kept = Kept(_digest(body))
        if key is not None:
            self._kept[tenant, key] = kept
        try:
            yield kept
        finally:
            if key is not None and kept.answered is None:
                self._kept.pop((tenant, key), None)
            elif key is not None:
                asyncio.get_running_loop().call_later(_SECONDS + 1, self.let_go)

    def let_go(self) -> None:
        """Let go of answers that were kept for long enough, and of the oldest beyond the number; none that is being written."""
        now, count = time.monotonic(), dict[str, int]()
        for place, kept in reversed(list(self._kept.items())):
            if kept.answered is None:
                continue
            count[place[0]] = count.get(place[0], 0) + 1
            if kept.until <= now or count[place[0]] > _MOST:
                del self._kept[place]


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()
