"""Tenants of one store in PostgreSQL: roles of a server of the tests, and what one of them may see."""

from __future__ import annotations

import itertools
import os
import re
from typing import Any

import postgres

from hmt_memory.store.open import keep_tenants_apart

_numbers = itertools.count()


class Apart:
    """A store that keeps tenants apart, and the roles made for it.

    Args:
        server: that of `postgres.start`.
        url: of the store, as a superuser.
    """

    def __init__(self, server: Any, url: str) -> None:
        self._server, self.url = server, url
        self.schema = url.partition("&schema=")[2]
        self._roles: list[str] = []

    def role(self, options: str = "LOGIN") -> str:
        """Make a role that nobody else has."""
        name = f"tenant_{os.getpid()}_{next(_numbers)}"
        postgres.run(self.url, f"CREATE ROLE {name} {options}")
        self._roles.append(name)
        return name

    def tenant(self, options: str = "LOGIN") -> str:
        """Make a role that is a tenant."""
        name = self.role(options)
        keep_tenants_apart(self.url, [name])
        return name

    def of(self, role: str, tenant: str | None = None) -> str:
        """Return the store's address for a role."""
        theirs = re.sub("//[^@]*@", f"//{role}@", self._server.get_uri())
        return f"{theirs}{'' if tenant is None else f'&tenant={tenant}'}&schema={self.schema}"

    def drop(self) -> None:
        """Delete the store and the roles."""
        postgres.drop(self.url)
        for name in self._roles:
            postgres.run(self._server.get_uri(), f"DROP OWNED BY {name} CASCADE")
            postgres.run(self._server.get_uri(), f"DROP ROLE {name}")
