"""The server's own output: lines of text, or of JSON with one for each call. Of what calls fail of never the words."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from datetime import datetime, timezone
from enum import Enum
from typing import Any

CALLS = "hmt_memory.server.calls"  # the logger of calls, whose records have `call`


class LogFormat(str, Enum):
    """The form of a line."""

    text = "text"
    json = "json"


def settings(form: LogFormat) -> dict[str, Any]:
    """Return the settings for `logging.config.dictConfig`."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": Formatter, "form": form}},
        "handlers": {"output": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["output"], "level": "WARNING"},
        "loggers": {CALLS: {"level": "INFO" if form is LogFormat.json else "WARNING"}},
    }


class Formatter(logging.Formatter):
    """Writes records as lines.

    Args:
        form: of a line.
    """

    def __init__(self, form: LogFormat) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """Write a record. Of an exception: where it was raised, and its type."""
        error = record.exc_info[1] if record.exc_info else None
        where = None if error is None else "".join(_trace(error))
        if self._form is LogFormat.text:
            return f"{record.levelname}: {record.getMessage()}" + ("" if where is None else f"\n{where}")
        about = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "call", {}),
        }
        return json.dumps(about if where is None else about | {"exception": where})


def _trace(error: BaseException) -> Iterator[str]:
    """Yield the lines of an exception and of those behind it, without what they say."""
    if (before := error.__cause__ or error.__context__) is not None:
        yield from _trace(before)
    yield from traceback.format_list(traceback.extract_tb(error.__traceback__))
    yield f"{type(error).__module__}.{type(error).__qualname__}\n"
    for part in getattr(error, "exceptions", ()):
        yield from _trace(part)
