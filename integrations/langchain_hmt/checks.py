"""What arguments of the LangChain classes and of their calls have to be. Knows names and values; no model, no store."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from .errors import HMTInvalidRequestError


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse arguments that nobody would look at.

    Raises:
        HMTInvalidRequestError: one is unknown; the message names the nearest that is known.
    """
    names = sorted(known)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(names)}."
            raise HMTInvalidRequestError(f"unknown argument {name!r}. {hint}")


def session_name(value: Any) -> str:
    """Check what a session is called.

    Raises:
        HMTInvalidRequestError: it is neither a text nor a whole number.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise HMTInvalidRequestError(f"{value!r} cannot name a session. Pass a text or a whole number, such as str(your_id).")
    return str(value)


def as_list(value: Any) -> Any:
    """Take a text for a list of one; anything else stays what it is."""
    return [value] if isinstance(value, str) else value


def reasons(error: ValidationError) -> str:
    """Put what pydantic found wrong into one line that names each argument with its value."""
    parts = [f"{'.'.join(map(str, one['loc']))}={one['input']!r}: {one['msg']}" for one in error.errors(include_url=False)]
    return "; ".join(parts) + ". Correct the arguments of the call."
