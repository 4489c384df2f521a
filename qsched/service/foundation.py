"""The tables of a database: whose they are, and the making of those that are missing.

qsched's own and Optuna's are made together, in the transaction of whoever comes first; what other
programs keep in the same place is neither used nor touched. On PostgreSQL that place is the first
schema of the `search_path` that exists.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from qsched.errors import StorageError
from qsched.service.database import NEWER, OLDER
from qsched.service.schema import SCHEMA_VERSION, SchemaTable, Table

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

ALEMBIC = "alembic_version"
STAMPS = sa.Table(
    ALEMBIC,
    sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Where Alembic notes the version of tables: of Optuna's, or of those of any other program."""

OPTUNAS = {"version_info", "studies", "trials"}
LAID = {SchemaTable.__tablename__, ALEMBIC, *OPTUNAS}
"""Where these are, nothing is missing: all tables are made at once."""

ELSEWHERE = "use a database of its own, or on PostgreSQL a schema: ?options=-csearch_path%3DNAME"


def lay(connection: sa.Connection, place: str) -> int:
    """Makes what is missing of qsched's and Optuna's tables; the version of qsched's.

    To be called alone (`Database.alone`), and all or nothing with its transaction. `place`: the
    database in words. Raises StorageError, before anything is made, where tables of other programs,
    or of another Optuna, stand in the way. Tables of another qsched are left as they are.
    """
    names = _names(connection, place)
    founded = SchemaTable.__tablename__ in names
    if founded:
        version = _version(connection, place)
        if names >= LAID or version != SCHEMA_VERSION:
            return version
    else:
        _require_free(_relations(Table.metadata.tables.values()) & names, "qsched", place)
    stamps = connection.scalars(sa.select(STAMPS.c.version_num)) if ALEMBIC in names else ()
    stamped = set(stamps)
    _require_this_optuna(stamped, names, place)
    _require_no_namesakes(connection, names, place)
    _make_optunas(connection, names, stamped)
    if not founded:
        Table.metadata.create_all(connection, checkfirst=False)
        connection.execute(sa.insert(SchemaTable).values(version=SCHEMA_VERSION))
    return SCHEMA_VERSION


def _names(connection: sa.Connection, place: str) -> set[str]:
    """Tables, indexes, views and whatever else has a name where ours would be made."""
    if connection.dialect.name == "sqlite":
        return set(connection.scalars(sa.text("SELECT lower(name) FROM sqlite_master")))
    if connection.scalar(sa.text("SELECT current_schema()")) is None:
        path = connection.scalar(sa.text("SHOW search_path"))
        raise StorageError(
            f"storage {place}: no schema of search_path = {path} is there for this role; "
            "CREATE SCHEMA, or GRANT USAGE on it"
        )
    return set(
        connection.scalars(
            sa.text(
                "SELECT relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace "
                "WHERE nspname = current_schema()"
            )
        )
    )


def _version(connection: sa.Connection, place: str) -> int:
    versions = connection.scalars(sa.select(SchemaTable.version)).all()
    if len(versions) != 1:
        raise StorageError(
            f"storage {place}: {SchemaTable.__tablename__} has {len(versions)} rows, expected 1; "
            f"restore it from a backup, or {ELSEWHERE}"
        )
    return versions[0]


def _relations(tables: Collection[sa.Table]) -> set[str]:
    """The names of tables and of their indexes."""
    return {table.name for table in tables} | {
        str(index.name) for table in tables for index in table.indexes
    }


def _require_free(taken: Collection[str], whose: str, place: str) -> None:
    if taken:
        raise StorageError(
            f"storage {place}: another program has tables there of {whose}'s names: "
            f"{', '.join(sorted(taken))}; {ELSEWHERE}"
        )


def _require_this_optuna(stamped: Collection[str], names: Collection[str], place: str) -> None:
    """Tables that Alembic has stamped are those of this Optuna."""
    revisions = _revisions()
    if not stamped or set(stamped) == {revisions.get_current_head()}:
        return
    if set(stamped) <= {each.revision for each in revisions.walk_revisions()}:
        raise StorageError(f"storage {place}: {OLDER}; {ELSEWHERE}")
    if set(names) >= OPTUNAS:
        raise StorageError(f"storage {place}: {NEWER}; {ELSEWHERE}")
    _require_free([ALEMBIC], "Optuna", place)


def _require_no_namesakes(connection: sa.Connection, names: Collection[str], place: str) -> None:
    """What has the name of a table of Optuna's has its columns, too."""
    tables = _optunas()
    there = [table for table in tables if table.name in names]
    columns = sa.inspect(connection).get_columns
    namesakes = {
        table.name
        for table in there
        if not {column.name for column in table.columns}
        <= {column["name"] for column in columns(table.name)}
    }
    namesakes |= _relations([table for table in tables if table not in there]) & set(names)
    if not there:  # of what then?
        namesakes |= {ALEMBIC} & set(names)
    _require_free(namesakes, "Optuna", place)


def _make_optunas(connection: sa.Connection, names: Collection[str], stamped: set[str]) -> None:
    """What Optuna makes itself: all of it, or what a killed process of its own left out."""
    from optuna import __version__
    from optuna.storages._rdb.models import SCHEMA_VERSION as VERSION
    from optuna.storages._rdb.models import VersionInfoModel as Info

    for table in _optunas():
        if table.name not in names:
            table.create(connection, checkfirst=False)
    if not connection.scalar(sa.select(sa.func.count()).select_from(Info)):
        row = {"version_info_id": 1, "schema_version": VERSION, "library_version": __version__}
        connection.execute(sa.insert(Info).values(row))
    if ALEMBIC not in names:
        STAMPS.create(connection, checkfirst=False)
    if not stamped:
        head = _revisions().get_current_head()
        connection.execute(sa.insert(STAMPS).values(version_num=head))


def _optunas() -> list[sa.Table]:
    """Optuna's tables, each after those that it refers to."""
    from optuna.storages._rdb.models import BaseModel

    return list(BaseModel.metadata.sorted_tables)


def _revisions() -> "ScriptDirectory":
    """The versions that Optuna's tables have had."""
    import optuna.storages._rdb as rdb
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(rdb.__path__[0]) / "alembic"))
