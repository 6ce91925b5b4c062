"""What pages print from the code is what the code says. HMT_WRITE_DOCS=1 writes it anew.

The page on the configuration is made of the fields and their comments; the order of the packages, of the linter's contracts.
"""

from __future__ import annotations

import ast
import inspect
import io
import itertools
import os
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import fields
from types import ModuleType
from typing import Any

from places import ROOT

from hmt_memory import config
from hmt_memory.engine import decoding
from hmt_memory.sessions import tiers

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = ROOT / "docs" / "reference" / "configuration.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
CONTRACTS = re.compile(r"(?<=<!-- contracts: begin -->\n).*?(?=<!-- contracts: end -->)", re.DOTALL)
HEAD = """# Configuration

Sizes are in tokens unless said. The letters are those of the [HMT paper](https://arxiv.org/abs/2405.06067). A value that is
impossible is refused with an error that names the field."""


def page() -> str:
    """Return the whole page: a section for each class of fields."""
    return (
        "\n\n".join([HEAD, *(section(*found) for module in (config, decoding, tiers) for found in configurations(module))])
        + "\n"
    )


def configurations(module: ModuleType) -> Iterator[tuple[ast.ClassDef, dict[int, str]]]:
    """Yield the frozen dataclasses of a module that take keywords only, and the comments in it."""
    source = inspect.getsource(module)
    for node in ast.parse(source).body:
        decorators = [ast.unparse(one) for one in node.decorator_list] if isinstance(node, ast.ClassDef) else []
        if isinstance(node, ast.ClassDef) and "dataclass(frozen=True, kw_only=True)" in decorators:
            yield node, comments(source)


def comments(source: str) -> dict[int, str]:
    """Return the trailing comment of each line that has one."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def section(node: ast.ClassDef, said: dict[int, str]) -> str:
    """Return a class as a heading, the first paragraph of its docstring, and a table of its fields."""
    about = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    return "\n".join([f"## {node.name}\n\n{about}\n", "| field | default | meaning |", "|---|---|---|", *rows(node, said)])


def rows(node: ast.ClassDef, said: dict[int, str]) -> Iterator[str]:
    """Yield the row of each field."""
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.value is not None:
            default, meaning = ast.unparse(field.value), said.get(field.lineno, "see `ViewConfig`").replace("|", "\\|")
            yield f"| `{field.target.id}` | `{default}` | {meaning} |"


def test_the_page_is_what_the_fields_say() -> None:
    if os.environ.get("HMT_WRITE_DOCS"):
        PAGE.write_text(page(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: HMT_WRITE_DOCS=1 pytest tests/docs"


def test_every_field_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    chosen = (config.HMTConfig, config.ViewConfig, decoding.Decoding, tiers.Tiers)
    assert [field.name for kind in chosen for field in fields(kind) if f"| `{field.name}` |" not in text] == []


# --- the order of the packages ------------------------------------------------------------------------------------------


def contracts() -> list[dict[str, Any]]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return list(tomllib.load(file)["tool"]["importlinter"]["contracts"])


def layers() -> list[list[str]]:
    """Return the packages of `hmt_memory` from the first floor up; those of one floor do not import one another."""
    (contract,) = (contract for contract in contracts() if contract["type"] == "layers")
    return [re.split(r" *[|:] *", layer) for layer in reversed(contract["layers"])]


def order() -> str:
    """Return the packages in their order, and what else is held."""
    floors = " → ".join(", ".join(f"`{name}`" for name in floor) for floor in layers())
    return "\n".join([floors, "", *(f"- {contract['name']}." for contract in contracts())]) + "\n"


def test_the_order_is_what_the_linter_holds() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    if os.environ.get("HMT_WRITE_DOCS"):
        text = CONTRACTS.sub(lambda _: order(), text)
        ARCHITECTURE.write_text(text, encoding="utf-8")
    assert CONTRACTS.findall(text) == [order()], "write it anew: HMT_WRITE_DOCS=1 pytest tests/docs"


def test_the_packages_are_described_in_their_order() -> None:
    described = re.findall(r"^\| (`.*?`) \|", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE)
    named = [re.sub(r"/|\.py", "", name) for row in described for name in re.findall(r"`(.*?)`", row)]
    rest = iter(named)
    assert [sorted(itertools.islice(rest, len(floor))) for floor in layers()] == [sorted(floor) for floor in layers()]
    assert list(rest) == []
