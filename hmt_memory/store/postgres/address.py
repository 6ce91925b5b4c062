"""The address of a store in PostgreSQL: libpq's URL, which schema of the database holds the store, and for which tenant."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlencode, urlsplit

from ...errors import InputError

SCHEMA = "hmt_memory"
_NAME = re.compile("[a-z_][a-z0-9_]{0,62}")
_OWN = ("schema", "tenant")
_SECRET = {"password", "sslpassword", "passfile", "sslkey", "scram_client_key", "scram_server_key", "oauth_client_secret"}


class Address(NamedTuple):
    """Where a store is."""

    url: str  # for libpq, password included
    schema: str
    shown: str  # without secrets
    tenant: str | None = None  # the role that the role of the URL becomes; None: itself

    @classmethod
    def of(cls, url: str) -> Address:
        """Read a URL, `postgresql://user@host/database?schema=name&tenant=role`; all other parameters are libpq's.

        Raises:
            InputError: it is no such URL.
        """
        try:
            parts = _parts(url)
            parameters = [_parameter(field) for field in parts.query.split("&") if field]
            libpq = _joined(parts, parts.netloc, [(name, value) for name, value in parameters if name not in _OWN])
            _check(libpq)
        except ValueError:  # none of these may be shown: what cannot be read may hold a password anywhere
            raise InputError(
                "the address of the store is none that PostgreSQL can read. Write postgresql://user@host/database with libpq's "
                "own parameters, and percent-encode special characters in the user and the password."
            ) from None
        schema = next((value for name, value in parameters if name == "schema"), SCHEMA)
        if not _NAME.fullmatch(schema) or schema.startswith("pg_"):
            raise InputError(f"{schema!r} cannot be a schema's name: use small letters, digits and _, such as schema={SCHEMA}.")
        tenant = dict(parameters).get("tenant")
        if tenant is not None and not 0 < len(tenant.encode()) < 64:
            raise InputError(f"{tenant!r} cannot be a tenant: it is the name of a role, such as tenant=acme.")
        shown = [(name, value) for name, value in parameters if name not in _SECRET]
        user, at, host = parts.netloc.rpartition("@")
        place = f"{user.partition(':')[0]}{at}{host}"
        return cls(libpq, schema, _joined(parts, place, shown), tenant)


def _parts(url: str) -> SplitResult:
    """Split a URL. A password that is not percent-encoded would move its end elsewhere."""
    parts = urlsplit(url)
    if "#" in url or parts.netloc.count("@") > 1 or "@" in parts.path + parts.query:
        raise ValueError
    return parts


def _parameter(field: str) -> tuple[str, str]:
    name, value = field.split("=", 1)
    return unquote(name, errors="strict"), unquote(value, errors="strict")  # "+" stands for itself


def _check(url: str) -> None:
    """Raise ValueError unless libpq reads a URL; without the driver, only what is evident is checked."""
    try:
        from psycopg import Error
        from psycopg.conninfo import conninfo_to_dict
    except ImportError:
        return
    try:
        ports = str(conninfo_to_dict(url).get("port") or "")
    except Error:
        raise ValueError from None
    if not re.fullmatch("[0-9,]*", ports):  # a password without a host
        raise ValueError


def _joined(parts: SplitResult, place: str, parameters: list[tuple[str, str]]) -> str:
    query = urlencode(parameters, quote_via=quote, safe="/")
    return f"{parts.scheme}://{place}{parts.path}{'?' if query else ''}{query}"
