"""What the owner of a store does for its tenants."""

from __future__ import annotations

from collections.abc import Sequence

from .database import Database
from .tenants import admit, separate
from .transaction import PostgresTransaction


class Operator(Database):
    """A store as its owner has it, who may be a superuser; its rows are not for reading."""

    def _settle_tenant(self, db: PostgresTransaction) -> None:
        """See what there is, as whoever connects."""

    def keep_apart(self, roles: Sequence[str], *, existing: str | None) -> None:
        """Keep tenants apart from now on, and let roles be tenants.

        Args:
            roles: their names.
            existing: the role whose rows those are that exist; None: there are none.

        Raises:
            InputError: there are some, or a role does not exist.
        """
        with self._committed() as connection:
            db = PostgresTransaction(connection)
            separate(db, existing)
            for role in dict.fromkeys((*roles, *([] if existing is None else [existing]))):
                admit(db, role)
