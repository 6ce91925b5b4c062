"""Tenants of one schema, kept apart by row-level security: each is a role, and sees and writes rows of its own name only.

Every key begins with the tenant, so whatever another one has neither refuses a row nor is referred to. Knows the server's
catalogue; names no table but the one that all tenants share.
"""

from __future__ import annotations

import re
from typing import Any

from psycopg import sql

from ...errors import InputError, StoreError
from .transaction import TENANT, PostgresTransaction

_SHARED = "store"  # says which store this is, to all tenants alike
_TABLES = f"relnamespace = current_schema()::text::regnamespace AND relkind IN ('r', 'p') AND relname != '{_SHARED}'"
_CONSTRAINTS = (
    "SELECT conrelid::regclass::text, conname::text, contype::text, pg_get_constraintdef(oid) FROM pg_constraint"
    f" WHERE contype IN ('p', 'u', 'f') AND conrelid IN (SELECT oid FROM pg_class WHERE {_TABLES})"
)
_INDEXES = (
    "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid IN"
    f" (SELECT oid FROM pg_class WHERE {_TABLES}) AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = indexrelid)"
)
_BYPASSING = (
    "SELECT rolname::text FROM pg_roles WHERE (rolsuper OR rolbypassrls) AND pg_has_role(session_user, oid, 'MEMBER')"
    " ORDER BY rolname = session_user DESC, rolname LIMIT 1"
)
_OPEN = f"SELECT relname::text FROM pg_class WHERE {_TABLES} AND NOT row_security_active(oid) ORDER BY relname"
# What a role may do that passes over row-level security, or changes what all tenants share.
_MORE = (
    f"SELECT relname::text FROM pg_class WHERE {_TABLES} AND has_table_privilege(oid, 'TRUNCATE, REFERENCES, TRIGGER')"
    " UNION ALL SELECT 'schema ' || current_schema() WHERE has_schema_privilege(current_schema(), 'CREATE')"
    f" UNION ALL SELECT '{_SHARED}' WHERE has_table_privilege('{_SHARED}', 'INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER')"
    " UNION ALL SELECT relname::text FROM pg_class WHERE relnamespace = current_schema()::text::regnamespace"
    " AND CASE relkind WHEN 'S' THEN has_sequence_privilege(oid, 'UPDATE') ELSE false END"
)
_OWNED = f"SELECT bool_and(pg_has_role(current_user, relowner, 'USAGE')) FROM pg_class WHERE {_TABLES}"
_WHO = "SELECT current_user::text, tableowner::text FROM pg_tables WHERE schemaname = current_schema() AND tablename = ?"
_HOLDING = "SELECT EXISTS (SELECT 1 FROM {})"
_NOTES = "commits"  # of connections: whoever has none of the other rows has nothing


def are_apart(db: PostgresTransaction) -> bool:
    """Return whether the store keeps tenants apart."""
    query = "SELECT EXISTS (SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass('collections') AND attname = ?)"
    return bool(db.one(query, (TENANT,))[0])


def owns_tables(db: PostgresTransaction) -> bool:
    """Return whether the role may do what only the owner of the tables may."""
    return bool(db.one(_OWNED)[0])


def check_owns_tables(db: PostgresTransaction) -> None:
    """Raise StoreError unless the role may bring the tables of an earlier version up to date."""
    if not owns_tables(db):
        role, owner = db.one(_WHO, (_SHARED,))
        raise StoreError(
            f"the store is of an earlier version, and {role!r} does not own its tables. Open it once as {owner!r}, or run hmt "
            "tenants as that role."
        )


def tenant_of(db: PostgresTransaction, wanted: str | None) -> str:
    """Return the tenant whose rows this transaction sees; empty: the store has no tenants.

    Args:
        db: the transaction.
        wanted: the tenant that the address names.

    Raises:
        StoreError: the role sees other rows, too, or is not the tenant.
    """
    if not are_apart(db):
        if wanted is not None:
            raise StoreError(
                f"the store does not keep tenants apart, so {wanted!r} has no rows of its own. Run hmt tenants first."
            )
        return ""
    (role,) = db.one("SELECT current_user::text")
    if (bypassing := db.one(_BYPASSING)) is not None:
        raise StoreError(
            f"the store keeps tenants apart, and row-level security does not hold this role: it is, or may become, "
            f"{bypassing[0]!r}, a superuser or one with BYPASSRLS. Connect as the role of a tenant."
        )
    if open_tables := [name for (name,) in db.all(_OPEN)]:
        raise StoreError(
            f"the store keeps tenants apart, but row-level security does not hold {role!r} in {', '.join(open_tables)}: it was "
            "disabled there, or is not forced for the owner. Run hmt tenants again."
        )
    if not owns_tables(db) and (more := sorted(name for (name,) in db.all(_MORE))):
        raise StoreError(
            f"the store keeps tenants apart, but {role!r} may do more in {', '.join(more[:5])} than read and write rows of its "
            "own. Run hmt tenants again for it, and take from it what it may do as a member of other roles."
        )
    if wanted not in (None, role):
        raise StoreError(f"the server lets this role be {role!r}, and not the tenant {wanted!r}. Name a role in ?tenant=.")
    return str(role)


def separate(db: PostgresTransaction, existing: str | None) -> None:
    """Keep tenants apart from now on, in a store that does so already as well.

    Args:
        db: a transaction of the owner of the tables.
        existing: the role whose rows those are that exist; None: there are none.

    Raises:
        InputError: there are some.
    """
    tables = [name for (name,) in db.all(f"SELECT relname::text FROM pg_class WHERE {_TABLES} ORDER BY relname")]
    if not are_apart(db):
        held = [table for table in tables if table != _NOTES and db.one(_HOLDING.format(table))[0]]
        if held and existing is None:
            raise InputError("the store holds something already. Say which role that belongs to: --existing ROLE.")
        _add_tenant(db, tables, existing or db.one("SELECT current_user::text")[0])
    elif existing is not None:
        raise InputError("the rows of this store belong to tenants already. Leave --existing out.")
    own = f"({TENANT} = current_user::text)"
    for table in tables:
        db.script(
            f"DROP POLICY IF EXISTS {TENANT} ON {table};"
            f"CREATE POLICY {TENANT} ON {table} USING {own} WITH CHECK {own};"
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"
        )
    schema = sql.Identifier(db.one("SELECT current_schema()::text")[0])
    for what in ("CREATE ON SCHEMA {}", "ALL ON ALL TABLES IN SCHEMA {}", "ALL ON ALL SEQUENCES IN SCHEMA {}"):
        _alter(db, f"REVOKE {what} FROM PUBLIC", schema)


def _add_tenant(db: PostgresTransaction, tables: list[str], existing: str) -> None:
    """Give every row and every key its tenant, collated as names of roles are: other indexes would not be used."""
    constraints, indexes = db.all(_CONSTRAINTS), db.all(_INDEXES)
    for table, name, _, _ in sorted(constraints, key=_foreign_first):
        db.script(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    for index, _ in indexes:
        db.script(f"DROP INDEX {index}")
    for table in tables:
        _alter(db, f'ALTER TABLE {table} ADD COLUMN {TENANT} TEXT COLLATE "C" NOT NULL DEFAULT {{}}', sql.Literal(existing))
        db.script(f"ALTER TABLE {table} ALTER COLUMN {TENANT} SET DEFAULT current_user")
    for table, name, _, definition in sorted(constraints, key=_foreign_first, reverse=True):
        db.script(f"ALTER TABLE {table} ADD CONSTRAINT {name} {_with_tenant(definition)}")
    for _, definition in indexes:
        db.script(_with_tenant(definition))


def _foreign_first(constraint: tuple[str, ...]) -> bool:
    return constraint[2] != "f"


def _with_tenant(definition: str) -> str:
    """Return the definition of a key or an index with the tenant in front of its columns.

    >>> _with_tenant("FOREIGN KEY (stream) REFERENCES streams(id)")
    'FOREIGN KEY (tenant, stream) REFERENCES streams(tenant, id)'
    """
    return re.sub(r"((?:KEY|UNIQUE|USING btree) |REFERENCES \S+)\(", rf"\1({TENANT}, ", definition)


def admit(db: PostgresTransaction, role: str) -> None:
    """Let a role use the store, as a tenant or for the tenants that are members of it, and take from it what is more than that.

    Args:
        db: a transaction of the owner of the tables.
        role: its name.

    Raises:
        InputError: there is no such role.
    """
    if db.one("SELECT 1 FROM pg_roles WHERE rolname = ?", (role,)) is None:
        raise InputError(f"the server has no role {role!r}. Make it first: CREATE ROLE {role} LOGIN.")
    if db.one(_WHO, (_SHARED,))[1] == role:
        return
    schema, name = sql.Identifier(db.one("SELECT current_schema()::text")[0]), sql.Identifier(role)
    for what in ("SCHEMA {}", "ALL TABLES IN SCHEMA {}", "ALL SEQUENCES IN SCHEMA {}"):
        _alter(db, f"REVOKE ALL ON {what} FROM {{}}", schema, name)  # TRUNCATE passes over row-level security
    _alter(db, "GRANT USAGE ON SCHEMA {} TO {}", schema, name)
    _alter(db, "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {} TO {}", schema, name)
    _alter(db, f"REVOKE INSERT, UPDATE, DELETE ON {_SHARED} FROM {{}}", name)
    _alter(db, "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {} TO {}", schema, name)


def _alter(db: PostgresTransaction, statement: str, *values: Any) -> None:
    """Run a statement that takes no parameters, with names and literals in their places."""
    db.run(sql.SQL(statement).format(*values))
