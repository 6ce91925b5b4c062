"""docs/reference/commands.md is what the commands say of themselves. HMT_WRITE_DOCS=1 writes it anew."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from places import ROOT

from hmt_memory.cli.command import app

PAGE = ROOT / "docs" / "reference" / "commands.md"
HEAD = """# The `hmt` command

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Answers and tables go to stdout, everything else to stderr.
`hmt --install-completion` lets the shell complete commands, options and the names of sessions and corpora."""


def page() -> str:
    """The whole page."""
    return "\n\n".join([HEAD, *sections(typer.main.get_command(app), "hmt")]) + "\n"


def sections(command: Any, path: str) -> Iterator[str]:
    """A section for each command, those of groups below them."""
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        yield f"## {path}\n\n{' '.join((command.help or '').split())}\n\n{parameters(command)}"
        return
    for name, inner in subcommands.items():
        yield from sections(inner, f"{path} {name}")


def parameters(command: Any) -> str:
    """The arguments and options of a command as a table."""
    rows = ["| | |", "|---|---|"]
    for one in command.params:
        if one.name != "help":
            is_option = one.param_type_name == "option"
            name = ", ".join(one.opts) if is_option else one.metavar or one.name.upper()
            rows.append(f"| `{name}` | {described(one)} |")
    return "\n".join(rows)


def described(one: Any) -> str:
    """What a parameter is for, the variable that sets it, and what it is if left out."""
    given = getattr(one.default, "value", one.default)
    told = [f"${one.envvar} sets it too"] if getattr(one, "envvar", None) else []
    if isinstance(given, (int, float, str, Path)) and not isinstance(given, bool) and given != "":
        told.append(f"default: {given}")
    return (one.help or "").replace("|", "/") + f" ({'; '.join(told)})" * bool(told)


def test_the_page_is_what_the_commands_say() -> None:
    if os.environ.get("HMT_WRITE_DOCS"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: HMT_WRITE_DOCS=1 pytest tests/test_command_docs.py"
