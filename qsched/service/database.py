"""One database URL: an engine, its transactions, and patience with a database that is away.

SQLite runs in WAL mode and takes its write lock at the start of a transaction, so that several
workers of one machine queue up instead of failing. PostgreSQL serves several machines. What is
transient (a restart, a dropped connection, a lock) is repeated with back-off, visibly; what is not
(a password, a missing table, a full disk) is one line at once. A password is in none of them.
"""

import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InternalError,
    NoResultFound,
    OperationalError,
    PendingRollbackError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.sql.expression import FunctionElement

from qsched.errors import StorageError, Unreadable, first_line
from qsched.redaction import keep, redacted
from qsched.service.address import DEFAULT_URL, file_of, parsed, secrets, shown
from qsched.tables import unreadable

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

ENVIRONMENT = "QSCHED_STORAGE"
LOCK_SECONDS = 60
"""How long a statement waits for another process's transaction."""

CONNECT_SECONDS = 10
"""How long a server may take to answer, where nothing else is said."""

FINAL = {
    "password authentication failed": "",
    "SASL authentication failed": "",
    "no password supplied": "",
    "no pg_hba.conf entry": "",
    "unsupported startup parameter": "a pooler refuses options of the URL and PGOPTIONS; give them "
    "to the role instead: ALTER ROLE ... SET search_path = ...",
    "unrecognized configuration parameter": "correct the URL's options, or PGOPTIONS",
    "no such database": "",
    "no such user": "",
    "does not exist": "create it, or correct the URL",
    "permission denied for schema": "GRANT CREATE, USAGE ON SCHEMA ... to this role, or give it a "
    "schema of its own",
    "permission denied": "GRANT it to this role, or use another one",
    "no such table": "",
    "no such column": "",
    "readonly": "make it writable, or use another database",
    "read-only": "use the primary server, and a role that may write",
    "disk is full": "",
    "No space left": "",
    "not a database": "",
    "malformed": "",
    "unable to open": "",
    "decode to UTF-8": "",
}
"""Complaints that waiting does not mend, with the remedy where it is not the usual one."""

OLDER = (
    "Optuna's tables there were made by an older Optuna; optuna storage upgrade --storage URL, "
    "while nobody works on it"
)
NEWER = "Optuna's tables there were made by a newer Optuna; pip install --upgrade optuna"

ABORTED = "current transaction is aborted"

Fault = DBAPIError | PendingRollbackError | PoolTimeoutError
"""What SQLAlchemy raises when a database complains or is gone."""

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class now(FunctionElement[float]):  # noqa: N801 - SQL functions are written small
    """The database's clock: seconds since 1970, at this statement rather than at the transaction's
    beginning. Leases use no other clock."""

    type = sa.Float()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: Any, **options: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"


class Clock(Protocol):
    """How time passes here: as the module `time` has it."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    def sleep(self, seconds: float, /) -> None:
        """Waits."""


class Database:
    """The database of a URL, opened when it is first used.

    `url`: a SQLAlchemy URL; None takes the environment's QSCHED_STORAGE, then storage/qsched.db in
    the current folder (made where it is missing). `patience`: for how many seconds of `clock` a
    transaction is repeated while the database is away. Raises StorageError, never with a password
    in it.
    """

    def __init__(
        self, url: str | None = None, *, patience: float = 20.0, clock: Clock = time
    ) -> None:
        self.url = parsed(url or os.environ.get(ENVIRONMENT) or DEFAULT_URL)
        keep(secrets(self.url))
        self.patience = patience
        self._clock = clock

    def __str__(self) -> str:
        """Driver, user, host, port and database; a file as its absolute path."""
        return shown(self.url)

    @property
    def dialect(self) -> str:
        """sqlite or postgresql."""
        return self.url.get_backend_name()

    @property
    def path(self) -> Path | None:
        """The absolute path of a SQLite file; None for a server."""
        return file_of(self.url)

    @cached_property
    def engine(self) -> sa.Engine:
        """Our connections: one for the work, one for the lease that renews itself beside it."""
        if self.path:
            self._make_file(self.path)
        try:
            engine = sa.create_engine(
                self.url, json_deserializer=_read_json, **self._engine_arguments(2)
            )
        except ImportError as error:
            raise StorageError(
                f"storage {self}: {error}; pip install 'qsched[postgres]'"
            ) from error
        _tune(engine)
        return engine

    @cached_property
    def optuna(self) -> "RDBStorage":
        """Optuna's storage in the same database, whose tables are there."""
        import optuna

        url = self.url.render_as_string(hide_password=False)
        try:
            storage = self.patiently(
                lambda: optuna.storages.RDBStorage(
                    url.replace("{", "{{").replace("}", "}}"),  # Optuna takes it for a template
                    engine_kwargs=self._engine_arguments(1),
                    skip_table_creation=True,
                )
            )
        except RuntimeError as error:
            words = OLDER if "storage upgrade" in str(error) else NEWER
            raise StorageError(f"storage {self}: {words}") from error
        _tune(storage.engine)
        storage.engine.dispose()  # its first connection was opened before that
        return storage

    @cached_property
    def writes(self) -> bool:
        """Whether qsched's tables, which are there, may be written with this URL: a role may have
        been given SELECT alone, and a server may be a replica. Such a one takes no locks, and
        leaves to others what there is to repair."""
        if self.path:
            return True
        query = sa.text(
            "SELECT has_table_privilege('qsched_slots', 'UPDATE') "
            "AND current_setting('transaction_read_only') = 'off'"
        )
        return bool(self.transaction(lambda session: session.scalar(query)))

    def transaction(self, work: Callable[[Session], Result]) -> Result:
        """`work(session)` in a transaction of its own, repeated while the database is away.

        `work` may run twice, also when its commit arrived but the answer was lost: it must be
        idempotent. Raises StorageError.
        """
        sessions = sessionmaker(self.engine, expire_on_commit=False)

        def attempt() -> Result:
            with sessions.begin() as session:
                return work(session)

        return self.patiently(attempt)

    def insert_missing(
        self, session: Session, table: type[DeclarativeBase], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Inserts rows; one whose key is there already stays as it is."""
        insert = sqlite.insert if self.dialect == "sqlite" else postgresql.insert
        session.execute(insert(table).on_conflict_do_nothing(), list(rows))

    def alone(self, session: Session) -> None:
        """One process at a time comes past here, until its transaction ends: tables are made by
        one. SQLite's write lock does that from the start."""
        if self.dialect == "postgresql":
            session.execute(sa.select(sa.func.pg_advisory_xact_lock(0x5153)))

    def server(self) -> str:
        """The server's name and version. Raises StorageError."""
        query = {"sqlite": "SELECT 'SQLite ' || sqlite_version()"}.get(
            self.dialect, "SELECT version()"
        )
        text = self.transaction(lambda session: session.scalar(sa.text(query)))
        return " ".join(str(text).split()[:2])

    def connections(self) -> tuple[int, int] | None:
        """How many connections are used, and how many there may be; None for a file, which only
        processes of one machine share. Raises StorageError."""
        if self.path:
            return None

        def counted(session: Session) -> tuple[int, int]:
            used = session.scalar(sa.text("SELECT count(*) FROM pg_stat_activity"))
            most = session.scalar(sa.text("SELECT current_setting('max_connections')::int"))
            return int(used or 0), int(most or 0)

        return self.transaction(counted)

    def patiently(self, work: Callable[[], Result]) -> Result:
        """`work()`, repeated with back-off while the database is away; else StorageError, and
        Unreadable for a stored value that is not what its column holds."""
        deadline, pause = self._clock.monotonic() + self.patience, 0.05
        while True:
            try:
                return work()
            except Exception as error:
                fault = _database_fault(error)
                if fault is None and _unreadable(error):
                    raise Unreadable(
                        f"storage {self}: a stored value can't be read: {unreadable(error)}; "
                        "restore it from a backup"
                    ) from error
                if fault is None:
                    raise
                left = deadline - self._clock.monotonic()
                if not _transient(fault) or left <= 0:
                    raise StorageError(self._in_words(fault)) from error
                if pause > 1:
                    logger.warning("waiting for the database: %s", _complaint(fault))
                self._clock.sleep(min(left, pause * random.uniform(0.5, 1)))
                pause = min(2 * pause, 5.0)

    def _make_file(self, path: Path) -> None:
        """The file's folder where it is missing, and the file, which its owner alone may read; its
        write-ahead log will be as the file is."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() and self.url.query.get("mode", "rwc") == "rwc":
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise StorageError(f"storage {path}: {error.strerror}") from error

    def _in_words(self, fault: Fault) -> str:
        said = _complaint(fault)
        remedy = next((FINAL[words] for words in FINAL if words in said), "") or (
            "check the path, its permissions and the free disk"
            if self.path
            else "check the URL, the password and whether the server runs; qsched doctor says more"
        )
        return f"storage {self}: {said}; {remedy}"

    def _engine_arguments(self, connections: int) -> dict[str, Any]:
        if self.path:
            return {"connect_args": _missing({"timeout": LOCK_SECONDS}, self.url)}
        self._require_known_options()
        return {
            "pool_size": connections,
            "max_overflow": 1,
            "pool_pre_ping": True,
            "connect_args": {
                "prepare_threshold": None,  # behind a pooler the next statement has another server
                **_missing({"fallback_application_name": "qsched"}, self.url),
                **({} if _has_timeout(self.url) else {"connect_timeout": CONNECT_SECONDS}),
            },
        }

    def _require_known_options(self) -> None:
        """psycopg and SQLAlchemy take more than libpq's, which would change how we work."""
        try:
            from psycopg.pq import Conninfo
        except ImportError:
            return  # said by who opens the engine
        known = {each.keyword.decode() for each in Conninfo.get_defaults()}
        unknown = sorted(self.url.query.keys() - known)
        if unknown:
            raise StorageError(
                f"storage {self}: the URL's {unknown[0]} is no option of PostgreSQL's clients; "
                "correct or remove it"
            )


def _missing(arguments: Mapping[str, Any], url: sa.URL) -> dict[str, Any]:
    """Those that the URL doesn't give itself."""
    return {key: value for key, value in arguments.items() if key not in url.query}


def _has_timeout(url: sa.URL) -> bool:
    """Whether the URL, a service file or the environment may say how long to wait for a server."""
    environment = {"PGCONNECT_TIMEOUT", "PGSERVICE"} & os.environ.keys()
    return bool({"connect_timeout", "service"} & url.query.keys() or environment)


class _Owner(Protocol):
    """What keeps its rows in a database."""

    database: Database


Self = TypeVar("Self", bound=_Owner)
Parameters = ParamSpec("Parameters")


def transaction(
    method: Callable[Concatenate[Self, Session, Parameters], Result],
) -> Callable[Concatenate[Self, Parameters], Result]:
    """The method in a transaction of its own, whose session is its first argument."""

    @wraps(method)
    def repeated(self: Self, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return self.database.transaction(lambda session: method(self, session, *args, **kwargs))

    return repeated


def _tune(engine: sa.Engine) -> None:
    """What each connection and each transaction begins with."""
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up)
    else:
        event.listen(engine, "handle_error", _let_go)
    event.listen(engine, "begin", _begin)


def _let_go(context: sa.ExceptionContext) -> None:
    """A connection whose work was cut off in the middle of a statement, by a signal or with the
    network, is no use any more: psycopg says so only when it is used again."""
    if "connection in transaction status" in str(context.original_exception):
        context.is_disconnect = True


def _set_up(connection: Any, _: Any) -> None:
    """SQLite: a write-ahead log, unless the file is another program's, which is left as it is; a
    commit that waits for the disk."""
    connection.isolation_level = None  # transactions begin where `_begin` says
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if not tables or "qsched_schema" in tables:
        connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: sa.Connection) -> None:
    """SQLite: the write lock from the start. PostgreSQL: limits where the server has none, for this
    transaction only, because behind a pooler the next one has another server."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        return
    limits = ("lock_timeout", "idle_in_transaction_session_timeout")
    connection.exec_driver_sql(
        "SELECT "
        + ", ".join(
            f"CASE current_setting('{limit}') WHEN '0' "
            f"THEN set_config('{limit}', '{LOCK_SECONDS}s', true) END"
            for limit in limits
        )
    )


def _database_fault(error: BaseException | None) -> Fault | None:
    """The database's complaint behind an exception, Optuna's wrapping ones too."""
    while error is not None and not isinstance(error, Fault):
        error = error.__cause__
    return error


def _unreadable(error: Exception) -> bool:
    """Whether a stored value is not what its column holds: JSON, a number, one of an enum's; or a
    row isn't there without which the others mean nothing."""
    wrong = (ValueError, TypeError, RecursionError, NoResultFound)
    return isinstance(error, wrong) or type(error) is LookupError


def _read_json(text: str | bytes) -> Any:
    """A stored document. Raises ValueError for what is none, and for numbers that JSON has not."""

    def number(digits: str) -> float:
        if math.isfinite(found := float(digits)):
            return found
        raise ValueError(f"{digits[:20]} is no finite number")

    return json.loads(text, parse_float=number, parse_constant=number)


def _transient(fault: Fault) -> bool:
    if not isinstance(fault, DBAPIError):  # the pool is exhausted, or the connection was lost
        return True
    if any(word in str(fault.orig) for word in FINAL):
        return False
    if isinstance(fault, InternalError):  # Optuna goes on where an earlier statement was cut off
        return ABORTED in str(fault.orig)
    # Two processes inserted the same row: the second sees it when it tries again.
    transient = (OperationalError, InterfaceError, IntegrityError)
    return fault.connection_invalidated or isinstance(fault, transient)


def _complaint(fault: Fault) -> str:
    """The complaint without the statement and without secrets."""
    return redacted(
        first_line(fault.orig if isinstance(fault, DBAPIError) and fault.orig else fault)
    )
