"""What searching and recalling print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..sessions import lookup
from .output import print_json, print_table
from .terminal import Screen, beginning

if TYPE_CHECKING:
    from ..retrieval.ranking import RecalledSegment
    from ..sessions.lookup import FoundText

_CHARACTERS = 200  # of a text that are shown


def show_found(found: Sequence[FoundText], query: str, screen: Screen, *, as_json: bool) -> None:
    """Print texts that share words with a query."""
    if as_json:
        return print_json([vars(one) | {"created_at": one.created_at.isoformat()} for one in found], screen)
    if not found:
        return screen.note("Nothing holds any of these words.")
    rows = [
        (one.source, str(one.id), f"{one.created_at:%Y-%m-%d %H:%M}", one.role, lookup.excerpt(one.text, query, _CHARACTERS))
        for one in found
    ]
    heads, roles = ("source", "id", "time (UTC)", "role", "text"), any(one.role for one in found)
    print_table(heads if roles else (*heads[:3], heads[4]), rows if roles else [(*row[:3], row[4]) for row in rows], screen)


def show_recalled(found: Sequence[RecalledSegment], coverage: float, screen: Screen, *, as_json: bool) -> None:
    """Print recalled segments with what they cite.

    Args:
        coverage: share of all memory's weight that the segments which were compared hold at least.
    """
    if as_json:
        content = [
            {
                "segment": one.segment,
                "weight": one.weight,
                "text": one.text,
                "source": one.source,
                "messages": [message.id for message in one.messages],
                "document": one.document,
                "token_span": one.token_span,
                "created_at": one.created_at.isoformat(),
            }
            for one in found
        ]
        return print_json({"coverage": coverage, "segments": content}, screen)
    if not found:
        return screen.note("Nothing to recall yet: no segment is full.")
    rows = [
        (
            one.source,
            f"{one.weight:.3f}",
            ", ".join(str(message.id) for message in one.messages),
            beginning(one.text, _CHARACTERS),
        )
        for one in found
    ]
    cited = any(row[2] for row in rows)
    heads = ("source", "weight", "messages", "text")
    print_table(heads if cited else (*heads[:2], heads[3]), rows if cited else [(*row[:2], row[3]) for row in rows], screen)
    if coverage < 0.995:
        screen.note(f"The index left out passages that hold at most {1 - coverage:.0%} of the weight.")
