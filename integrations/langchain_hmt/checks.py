"""Checks of arguments of the LangChain classes and of their calls. Knows names and values; no model, no store."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from .errors import HMTInvalidRequestError


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse arguments that nothing would use.

    Raises:
        HMTInvalidRequestError: a name is unknown; the message suggests the nearest known name.
    """
    names = sorted(known)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known are: {', '.join(names)}."
            raise HMTInvalidRequestError(f"unknown argument {name!r}. {hint}")


def session_name(value: Any) -> str:
    """Return the name of a session as text.

    Raises:
        HMTInvalidRequestError: it is neither a text nor a whole number.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise HMTInvalidRequestError(f"{value!r} cannot name a session. Pass a text or a whole number, such as str(your_id).")
    return str(value)


def as_list(value: Any) -> Any:
    """Turn a text into a list of one; leave anything else as it is."""
    return [value] if isinstance(value, str) else value


def reasons(error: ValidationError) -> str:
    """Put pydantic's findings into one line that names each argument with its value."""
    parts = [
        f"{'.'.join(map(str, problem['loc']))}={problem['input']!r}: {problem['msg']}"
        for problem in error.errors(include_url=False)
    ]
    return "; ".join(parts) + ". Correct the arguments of the call."
