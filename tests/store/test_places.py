"""Where a store may be: a folder, or the URL of a database, whose secrets no message shows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hmt_memory import Assistant, MemoryStore
from hmt_memory.errors import InputError, MissingDependencyError
from hmt_memory.store.open import place_of, shown
from hmt_memory.store.postgres.address import Address


def test_a_folder_and_a_url_are_told_apart() -> None:
    assert place_of("~/memories") == Path.home() / "memories" and place_of("C:/memories") == Path("C:/memories")
    assert place_of("postgresql://db/memory") == "postgresql://db/memory" == place_of(place_of("postgresql://db/memory"))


@pytest.mark.parametrize("place", [Path("postgresql://db/memory"), "mysql://db/memory", "postgresql:/db/memory"])
def test_what_is_neither_is_refused(place: Path | str) -> None:
    with pytest.raises(InputError, match="begins with postgresql://"):
        place_of(place)


@pytest.mark.parametrize(
    ("url", "libpq", "said"),
    [
        ("postgresql://me:pw@db:5433/memory", "postgresql://me:pw@db:5433/memory", "postgresql://me@db:5433/memory"),
        ("postgresql:///memory?host=/run/pg&schema=a1", "postgresql:///memory?host=/run/pg", None),
        ("postgresql://db/m?password=pw&sslmode=require", "postgresql://db/m?password=pw&sslmode=require", None),
        ("postgres://a,b:2/m?target_session_attrs=read-write", "postgres://a,b:2/m?target_session_attrs=read-write", None),
    ],
)
def test_an_address(url: str, libpq: str, said: str | None) -> None:
    address = Address.of(url)
    assert address.url == libpq and address.schema == ("a1" if "a1" in url else "hmt_memory")
    assert "pw" not in address.shown and said in (None, address.shown) and address.shown == shown(url)


@pytest.mark.parametrize(
    "url",
    [
        "u:secret%zz@h/db",
        "u:p[w]secret@h/db",
        "u:sec#ret@h/db",
        "u:sec/ret@h/db",
        "u:sec?ret@h/db",
        "u:sec?a=ret@h/db",
        "u:sec@ret@h/db",
        "u:secret",
        "h/db?foo=secret",
        "h/db?secret",
        "h/db?password=%ffsecret",
    ],
)
def test_an_address_that_cannot_be_read_is_not_shown(url: str) -> None:
    with pytest.raises(InputError, match="percent-encode") as caught:
        MemoryStore(f"postgresql://{url}")
    assert "sec" not in str(caught.value) and caught.value.__suppress_context__


def test_a_password_is_sent_as_it_is_written() -> None:
    assert Address.of("postgresql://h/db?password=a+b").url == "postgresql://h/db?password=a%2Bb"


@pytest.mark.parametrize("schema", ["", "Big", "a-b", 'a"; DROP', "pg_mine", "x" * 64, "a,b"])
def test_a_schema_has_a_plain_name(schema: str) -> None:
    with pytest.raises(InputError, match="cannot be a schema's name"):
        Address.of(f"postgresql://db/memory?schema={schema}")


def test_an_assistant_does_not_show_a_password() -> None:
    assert "pw" not in repr(Assistant(store="postgresql://me:pw@db/memory"))


def test_the_driver_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("psycopg", "hmt_memory.store.postgres."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingDependencyError, match=r"hmt-memory\[postgres\]"):
        MemoryStore("postgresql://db/memory")
