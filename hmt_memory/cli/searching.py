"""The tables that searching and recalling print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .output import print_json, print_table
from .terminal import Screen, beginning

if TYPE_CHECKING:
    from ..retrieval.ranking import RecalledSegment
    from ..sessions.lookup import FoundText

_CHARACTERS = 200  # shown of a text


def show_found(texts: Sequence[FoundText], query: str, screen: Screen, *, as_json: bool) -> None:
    """Print texts that share words with a query.

    Args:
        texts: best first.
        query: the words; each text is shown where it has them.
        screen: where the table goes.
        as_json: print JSON instead of a table.
    """
    from ..sessions import lookup

    if as_json:
        return print_json([vars(text) | {"created_at": text.created_at.isoformat()} for text in texts], screen)
    if not texts:
        return screen.note("Nothing holds any of these words.")
    rows = [
        (
            text.source,
            str(text.id),
            f"{text.created_at:%Y-%m-%d %H:%M}",
            text.role,
            lookup.excerpt(text.text, query, _CHARACTERS),
        )
        for text in texts
    ]
    heads, roles = ("source", "id", "time (UTC)", "role", "text"), any(text.role for text in texts)
    print_table(heads if roles else (*heads[:3], heads[4]), rows if roles else [(*row[:3], row[4]) for row in rows], screen)


def show_recalled(segments: Sequence[RecalledSegment], coverage: float, screen: Screen, *, as_json: bool) -> None:
    """Print recalled segments with what they cite.

    Args:
        segments: by falling weight.
        coverage: the least share of all memory's weight that the compared segments hold.
        screen: where the table goes.
        as_json: print JSON instead of a table.
    """
    if as_json:
        content = [
            {
                "segment": segment.segment,
                "weight": segment.weight,
                "text": segment.text,
                "source": segment.source,
                "messages": [message.id for message in segment.messages],
                "document": segment.document,
                "token_span": segment.token_span,
                "created_at": segment.created_at.isoformat(),
            }
            for segment in segments
        ]
        return print_json({"coverage": coverage, "segments": content}, screen)
    if not segments:
        return screen.note("Nothing to recall yet: no segment is full.")
    rows = [
        (
            segment.source,
            f"{segment.weight:.3f}",
            ", ".join(str(message.id) for message in segment.messages),
            beginning(segment.text, _CHARACTERS),
        )
        for segment in segments
    ]
    cited = any(row[2] for row in rows)
    heads = ("source", "weight", "messages", "text")
    print_table(heads if cited else (*heads[:2], heads[3]), rows if cited else [(*row[:2], row[3]) for row in rows], screen)
    if coverage < 0.995:
        screen.note(f"The index left out passages that hold at most {1 - coverage:.0%} of the weight.")
