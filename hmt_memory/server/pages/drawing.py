"""What the pages draw: the parts of a view as a bar, and the weights of recall as a map of cells. Knows numbers; no HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...sessions.explaining import Explanation, Part

_BAR = 1000  # width of a bar
_COLUMNS, _ROWS = 40, 10  # cells of a map, at most
_CELL = 10  # side of one


def bar(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Return the places of a view's parts in a bar, by how many positions they take."""
    total, at = sum(part.tokens for part in parts) or 1, 0
    placed = []
    for part in parts:
        placed.append(
            {
                "name": part.name,
                "tokens": part.tokens,
                "x": round(_BAR * at / total, 2),
                "width": round(_BAR * part.tokens / total, 2),
            }
        )
        at += part.tokens
    return placed


def heat(why: Explanation) -> dict[str, Any]:
    """Return the cells of a map of recall: each is a segment, or as many as it takes, and as dark as the heaviest of them."""
    weights = list(why.weights)
    if not weights:
        return {"cells": []}
    each = -(-len(weights) // (_COLUMNS * _ROWS))
    most = max(weights)
    cells = []
    for number, start in enumerate(range(0, len(weights), each)):
        held = weights[start : start + each]
        first = why.first_segment + start
        named = f"segment {first}" if len(held) == 1 else f"segments {first} to {first + len(held) - 1}"
        cells.append(
            {
                "x": _CELL * (number % _COLUMNS),
                "y": _CELL * (number // _COLUMNS),
                "shade": round((max(held) / most) ** 0.5, 3) if most else 0.0,
                "title": f"{named}: {sum(held):.2%}",
            }
        )
    return {
        "cells": cells,
        "columns": min(_COLUMNS, len(cells)),
        "rows": -(-len(cells) // _COLUMNS),
        "heaviest": why.first_segment + weights.index(most),
        "most": most,
        "per_cell": "Each cell is a segment."
        if each == 1
        else f"Each cell is {each} segments, as dark as the heaviest of them.",
    }
