"""The address of a store in PostgreSQL: libpq's URL, and which schema of the database holds the store."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

from ...errors import InputError

SCHEMA = "hmt_memory"
_NAME = re.compile("[a-z_][a-z0-9_]{0,62}")
_SECRET = {"password", "sslpassword", "passfile", "sslkey"}


class Address(NamedTuple):
    """Where a store is."""

    url: str  # for libpq, password included
    schema: str
    shown: str  # without secrets

    @classmethod
    def of(cls, url: str) -> Address:
        """Read a URL, `postgresql://user@host/database?schema=name`; all other parameters are libpq's.

        Raises:
            InputError: it is no such URL.
        """
        try:
            parts = urlsplit(url)
            parameters = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError as error:
            raise InputError(f"the address of the store cannot be read: {error}. Write postgresql://host/database.") from None
        schema = next((value for name, value in parameters if name == "schema"), SCHEMA)
        if not _NAME.fullmatch(schema) or schema.startswith("pg_"):
            raise InputError(f"{schema!r} cannot be a schema's name: use small letters, digits and _, such as schema={SCHEMA}.")
        libpq = [(name, value) for name, value in parameters if name != "schema"]
        shown = [(name, value) for name, value in parameters if name not in _SECRET]
        user, at, host = parts.netloc.rpartition("@")
        place = f"{user.partition(':')[0]}{at}{host}"
        return cls(_joined(parts, parts.netloc, libpq), schema, _joined(parts, place, shown))


def _joined(parts: SplitResult, place: str, parameters: list[tuple[str, str]]) -> str:
    query = urlencode(parameters, quote_via=quote, safe="/")
    return f"{parts.scheme}://{place}{parts.path}{'?' if query else ''}{query}"
