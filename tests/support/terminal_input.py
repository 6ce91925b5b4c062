"""The `hmt` command called in this process, and what is typed into it."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from hmt_memory import cli
from hmt_memory.cli import terminal

FAST = ["--max-tokens", "8", "--dtype", "float32", "--device", "cpu"]
SAME = ["--reader", "same"]
TEXT = "The meeting is on Friday at noon. " * 30  # four segments of bytes, the last one open


def run(*arguments: str) -> int:
    """The exit code of `hmt ARGUMENTS`."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return int(stop.value.code or 0)


def type_in(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Make `content` standard input, which is then no terminal."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def typing_screen(out: io.StringIO | None = None) -> terminal.Screen:
    """A screen with a person before it."""
    return terminal.Screen(Console(file=io.StringIO(), width=200), out or io.StringIO(), interactive=True)
