"""The tokens that clients show: kept as digests, each with a name space of its own. Knows a file; no HTTP."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import InputError, StoreError
from ..files import replacing
from ..sessions.names import check_name, normal

FILE = "server-tokens.json"
_BYTES = 32
_PREFIX = "hmt-"
_LONGEST_NAME = 50  # it stands before the names of sessions


@dataclass(frozen=True)
class Token:
    """Whoever shows a token: sees the sessions and corpora of one name space only."""

    name: str
    digest: str  # SHA-256 of the secret, which has 256 random bits
    tenant: str  # the name space
    read_only: bool = False


class Tokens:
    """The tokens of a store, in a file beside it.

    Args:
        folder: of the store.

    Raises:
        StoreError: the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8")) if self._path.is_file() else []
            self._known = [Token(**row) for row in rows]
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(f"{self._path} cannot be read: {error}. Remove it, and make new tokens.") from error

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self._known)

    def names(self) -> list[str]:
        """Return the names of all tokens."""
        return [token.name for token in self._known]

    def make(self, name: str, *, of: str | None = None, read_only: bool = False) -> str:
        """Make a token. Returns its secret, which is kept nowhere.

        Args:
            name: its own.
            of: another token, whose name space it sees; None: it has one of its own.
            read_only: whether it may look only.

        Raises:
            InputError: the name is empty, too long or taken, or has a slash; or there is no such other token.
        """
        check_name(name)
        name = normal(name)
        if "/" in name or len(name) > _LONGEST_NAME or name in self.names():
            raise InputError(f"{name!r} cannot name a token: it is taken, too long, or has a slash. Choose another name.")
        tenant = name if of is None else self._named(normal(of)).tenant
        secret = _PREFIX + secrets.token_urlsafe(_BYTES)
        self._keep([*self._known, Token(name, _digest(secret), tenant, read_only)])
        return secret

    def remove(self, name: str) -> None:
        """Remove a token; its sessions stay.

        Raises:
            InputError: there is none of that name.
        """
        gone = self._named(normal(name))
        self._keep([token for token in self._known if token is not gone])

    def _named(self, name: str) -> Token:
        found = next((token for token in self._known if token.name == name), None)
        if found is None:
            raise InputError(f"there is no token {name!r}. Known: {', '.join(self.names()) or 'none'}.")
        return found

    def of(self, secret: str) -> Token | None:
        """Return the token of a secret; None if it has none. It takes as long whichever it is."""
        digest, found = _digest(secret), None
        for token in self._known:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found

    def _keep(self, tokens: list[Token]) -> None:
        with replacing(self._path, private=True) as file:
            file.write(json.dumps([asdict(token) for token in tokens], indent=2).encode())
        self._known = tokens


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
