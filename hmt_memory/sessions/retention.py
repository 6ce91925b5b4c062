"""The limits of a session: which messages are beyond them, and what time it is for that purpose. Knows rows; runs no model.

A clock may be wrong, and forgotten messages do not come back. So a time that has jumped is believed only once the clock has
gone on from there, and a message counts as no younger than those said after it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from ..store import lineage
from ..store.rewriting import in_force
from ..store.rows import CollectionRow, MessageRow

if TYPE_CHECKING:
    from ..store.transaction import Transaction

_COUNT_SLACK, _AGE_SLACK = 0.25, 0.1  # shares of a limit by which room is made ahead
_CLOCK = "clock"  # the fact that holds the time when limits were last checked
_JUMP_SECONDS = 30 * 86_400.0  # a clock that was not looked at for longer may be wrong
_PROOF_SECONDS = 86_400.0  # a jump is believed once the clock has gone on for so long
_NOTED_SECONDS = 3600.0  # the time is noted at most so often


def believable(clock: dict[str, float], now: float) -> tuple[float, dict[str, float]]:
    """Return the time to go by, and what is to be noted of the clock.

    Args:
        clock: what was noted before: "last", the time gone by then; "jump", a time that has to prove itself.
        now: seconds since 1970, as the clock says.
    """
    last, jump = clock["last"], clock.get("jump")
    if jump is not None and now >= jump + _PROOF_SECONDS:
        last, jump = jump, None  # the clock has gone on from there
    if now <= last + _JUMP_SECONDS:
        return now, {"last": now}
    return last, {"last": last, "jump": now if jump is None or now < jump else jump}


def time_of(db: Transaction, row: CollectionRow, now: float) -> tuple[float, str | None]:
    """Return the time that limits go by, and the fact to note about the clock; None if it was noted lately.

    Args:
        db: the transaction to look in.
        row: the session.
        now: seconds since 1970, as the clock says.
    """
    stored = db.fact(_CLOCK)
    before = json.loads(stored) if stored else {"last": row.updated_at}
    believed, after = believable(before, now)
    lately = stored and before.get("jump") == after.get("jump") and abs(after["last"] - before["last"]) < _NOTED_SECONDS
    return believed, None if lately else json.dumps(after)


def note(db: Transaction, clock: str | None) -> None:
    """Note a fact about the clock."""
    if clock is not None:
        db.set_fact(_CLOCK, clock)


class Oldest(NamedTuple):
    """The time of a session's oldest turn, kept so that not all turns are looked at each time."""

    epoch: int
    messages: int  # the number of messages looked at
    time: float


def oldest(db: Transaction, row: CollectionRow, known: Oldest | None) -> Oldest:
    """Look at the turns added since; at all of them if nothing is known.

    Args:
        db: the transaction to look in.
        row: the session.
        known: the last result; None: there is none.
    """
    parts = lineage.of(db, row)
    known = Oldest(row.epoch, 0, float("inf")) if known is None or known.epoch != row.epoch else known
    return Oldest(row.epoch, lineage.size(parts)[0], min(known.time, lineage.earliest(db, parts, known.messages)))


def beyond_limits(db: Transaction, row: CollectionRow, now: float, age: Oldest) -> set[int]:
    """Return the ids of messages that are beyond a session's limits; the system messages in force do not count.

    Forgetting re-reads the messages that stay, so a limit that is reached makes room at once for a share of it.

    Args:
        db: the transaction to look in.
        row: the session.
        now: the time to go by.
        age: the time of the oldest turn.
    """
    limits = row.settings.get("retention", {})
    most, seconds = limits.get("messages"), limits.get("seconds")
    parts = lineage.of(db, row)
    kept = {message.id for message in in_force(db, parts)}
    count = lineage.size(parts)[0]
    too_many = most is not None and count - len(kept) > most
    too_old = seconds is not None and age.time < now - seconds
    messages = [message.row for message in lineage.kept(db, parts, 0, count)] if too_many or too_old else []
    return _gone([message for message in messages if message.id not in kept], limits, now)


def _gone(messages: Sequence[MessageRow], limits: dict[str, Any], now: float) -> set[int]:
    most, seconds = limits.get("messages"), limits.get("seconds")
    times = list(accumulate((message.created_at for message in reversed(messages)), min))[::-1]
    gone: set[int] = set()
    if most is not None and len(messages) > most:
        gone |= {message.id for message in messages[: len(messages) - most + int(most * _COUNT_SLACK)]}
    if seconds is not None and any(time < now - seconds for time in times):
        edge = now - seconds * (1 - _AGE_SLACK)
        gone |= {message.id for message, time in zip(messages, times, strict=True) if time < edge}
    return gone
