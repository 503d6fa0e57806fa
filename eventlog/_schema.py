"""Making the schema, and checking that it is the one this code was written for."""

from importlib import resources
from typing import Final, LiteralString, cast

from psycopg import errors, sql

from refold.eventlog._connect import Connection, connect_sync
from refold.eventlog._errors import SchemaForbidden, SchemaMismatch

# Bump with every file in sql/migrations. Migration files are named NNNN_pre_... (before the new code runs) and
# NNNN_post_... (after the old code is gone). They change tables that exist; schema.sql is run after.
SCHEMA_VERSION: Final = 2

# Any number that nobody else is likely to take: "refold" in ASCII.
_MIGRATION_LOCK: Final = 0x7265666F6C64

# Where events are older than this table (it was dropped), they say which era it is: a new one if their transactions'
# numbers are of another cluster's count.
_ENTER: Final[LiteralString] = """
    insert into refold.meta (schema_version, system_identifier, era)
    select %s, c.system_identifier, coalesce(l.era, 1)
      from pg_control_system() c left join (
           select era + (xid >= pg_current_xact_id())::int as era
             from refold.events order by era desc, xid desc limit 1) l on true
        on conflict (one) do nothing
"""

# A restored dump lives in a cluster whose transaction numbers start again lower; the era keeps the order.
_NEW_ERA: Final[LiteralString] = """
    update refold.meta m set era = m.era + 1, system_identifier = c.system_identifier
      from pg_control_system() c where m.system_identifier <> c.system_identifier
 returning m.era
"""


def schema_sql() -> LiteralString:
    """Return the whole schema as SQL that can be run again."""
    # It ships with the package: nobody's input.
    text = resources.files("refold.eventlog").joinpath("sql/schema.sql").read_text()
    return cast("LiteralString", text)  # type: ignore[redundant-cast]  # mypy takes it for str


def find_version(connection: Connection) -> int | None:
    """Return the schema's version in this database, None where there is no schema."""
    try:
        row = connection.execute("select schema_version from refold.meta").fetchone()
    except (errors.UndefinedTable, errors.InvalidSchemaName):
        return None
    return row[0] if row else None


def migrate(url: str) -> int:
    """Bring the schema in the database at `url` to this code's version, and return that.

    Safe to run from many processes at once: under a transaction's advisory lock. What is up to date is left alone.

    Raises SchemaMismatch when the database is newer than the code, SchemaForbidden, DatabaseUnreachable.
    """
    with connect_sync(url) as connection:
        return migrate_on(connection)


def migrate_on(connection: Connection) -> int:
    """Do what `migrate` does, on an open autocommit connection."""
    try:
        with connection.transaction():
            connection.execute("select pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
            found = _found_under_lock(connection)
            if found is not None and found > SCHEMA_VERSION:
                raise SchemaMismatch(found, SCHEMA_VERSION)
            for number, statements in _migrations():
                if found is not None and number > found:
                    connection.execute(statements)
            if found is None or found < SCHEMA_VERSION:
                connection.execute(schema_sql())
            if found is None:
                connection.execute(_ENTER, (SCHEMA_VERSION,))
            connection.execute("update refold.meta set schema_version = %s", (SCHEMA_VERSION,))
            if connection.execute(_NEW_ERA).fetchone() is not None or found is None:
                row = connection.execute("select era from refold.meta").fetchone()
                assert row is not None
                connection.execute(
                    sql.SQL("alter table refold.events alter column era set default {}").format(row[0])
                )
    except errors.InsufficientPrivilege as error:
        raise _forbidden(connection, error) from error
    return SCHEMA_VERSION


def _forbidden(connection: Connection, error: errors.InsufficientPrivilege) -> SchemaForbidden:
    info = connection.info
    row = connection.execute("select exists (select from pg_namespace where nspname = 'refold')").fetchone()
    return SchemaForbidden(
        info.user, info.dbname, error.diag.message_primary or "no right", row is not None and row[0]
    )


def _found_under_lock(connection: Connection) -> int | None:
    row = connection.execute("select to_regclass('refold.meta')").fetchone()
    return None if row is None or row[0] is None else find_version(connection)


def _migrations() -> list[tuple[int, LiteralString]]:
    folder = resources.files("refold.eventlog").joinpath("sql/migrations")
    if not folder.is_dir():
        return []
    files = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name
    )
    return [
        (int(file.name[:4]), cast("LiteralString", file.read_text()))  # type: ignore[redundant-cast]
        for file in files
    ]


def check(url: str) -> None:
    """Make sure that the database at `url` answers and has this code's schema; make the schema where there is none.

    Raises SchemaMismatch when it is older or newer, SchemaForbidden, DatabaseUnreachable.
    """
    with connect_sync(url) as connection:
        try:
            found = find_version(connection)
        except errors.InsufficientPrivilege as error:
            raise _forbidden(connection, error) from error
        if found is None:
            migrate_on(connection)
        elif found != SCHEMA_VERSION:
            raise SchemaMismatch(found, SCHEMA_VERSION)
