"""The tables of a new database, and databases that other programs or other Optunas occupy."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa

from qsched.errors import StorageError
from qsched.service import stored_study as studies
from qsched.service.address import file_of, parsed
from qsched.service.database import Database
from qsched.service.storage import Storage
from tests.conftest import new_database
from tests.support import fakes_light as fakes
from tests.support.faults.invariants import examine
from tests.support.faults.workers import NAME, work
from tests.support.pgbouncer import pgbouncer
from tests.support.processes import FORKED

OLD = "v3.0.0.d"
ELSEWHERE = "use a database of its own, or on PostgreSQL a schema"


@pytest.fixture
def url(url: str) -> str:
    """An empty database whose folder is there for programs other than qsched."""
    path = file_of(parsed(url))
    if path:
        path.parent.mkdir()
    return url


def stamp(url: str, revision: str) -> None:
    """As if another Optuna had made the tables."""
    with connected(url) as connection:
        connection.execute(sa.text(f"UPDATE alembic_version SET version_num = '{revision}'"))


@contextmanager
def connected(url: str) -> Iterator[sa.Connection]:
    """A connection that is not qsched's; what is done is committed."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def in_schema(url: str, schema: str) -> str:
    """The URL of a new schema."""
    with connected(url) as connection:
        connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
    return with_options(url, schema)


def with_options(url: str, *schemas: str) -> str:
    """The URL with a search_path, as Optuna's documentation has it."""
    options = {"options": f"-csearch_path={','.join(schemas)}"}
    return sa.make_url(url).update_query_dict(options).render_as_string(hide_password=False)


def dump(url: str) -> dict[str, Any]:
    """Every table of the first schema: columns, indexes, and rows of the small ones."""
    with connected(url) as connection:
        inspector = sa.inspect(connection)
        return {
            name: (
                [(each["name"], str(each["type"])) for each in inspector.get_columns(name)],
                sorted(str(each["name"]) for each in inspector.get_indexes(name)),
                [tuple(row) for row in connection.execute(sa.text(f'SELECT * FROM "{name}"'))],
            )
            for name in sorted(inspector.get_table_names())
        }


def test_optunas_tables_are_as_optuna_makes_them(url: str) -> None:
    plain = f"{url}.plain" if url.startswith("sqlite") else in_schema(url, "plain")
    optuna.storages.RDBStorage(plain)
    Storage(url)
    made = {name: table for name, table in dump(url).items() if not name.startswith("qsched_")}
    assert made == dump(plain)


def test_nothing_is_made_again_and_nothing_by_optuna(url: str) -> None:
    Storage(url)
    made = dump(url)
    assert Storage(url).database.optuna.get_all_studies() == []
    assert dump(url) == made


def test_optunas_studies_are_shared(url: str) -> None:
    optuna.create_study(study_name="theirs", storage=url)
    storage = Storage(url)
    assert [study.study_name for study in storage.database.optuna.get_all_studies()] == ["theirs"]
    assert storage.study_names() == []


def test_what_a_killed_optuna_left_out_is_made(url: str) -> None:
    optuna.create_study(storage=url)
    with connected(url) as connection:
        for table in ("trial_heartbeats", "alembic_version"):
            connection.execute(sa.text(f"DROP TABLE {table}"))
    assert len(Storage(url).database.optuna.get_all_studies()) == 1
    assert {"trial_heartbeats", "alembic_version", "qsched_slots"} <= dump(url).keys()


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        (
            ["CREATE TABLE alembic_version (version_num VARCHAR(32))"],
            f"another program has tables there of Optuna's names: alembic_version; {ELSEWHERE}",
        ),
        (
            [
                "CREATE TABLE alembic_version (version_num VARCHAR(32))",
                "INSERT INTO alembic_version VALUES ('5a1b2c3d')",
            ],
            "Optuna's names: alembic_version",
        ),
        (
            ["CREATE TABLE trials (id INTEGER)", "CREATE TABLE studies (study_id INTEGER)"],
            f"Optuna's names: studies, trials; {ELSEWHERE}",
        ),
        (["CREATE TABLE t (x INTEGER)", "CREATE VIEW studies AS SELECT x FROM t"], "studies"),
        (
            ["CREATE TABLE t (x INTEGER)", "CREATE INDEX ix_trials_study_id ON t (x)"],
            "Optuna's names: ix_trials_study_id",
        ),
        (["CREATE TABLE qsched_slots (id INTEGER)"], "of qsched's names: qsched_slots"),
        (
            ["CREATE TABLE qsched_schema (version INTEGER)"],
            f"qsched_schema has 0 rows, expected 1; restore it from a backup, or {ELSEWHERE}",
        ),
    ],
)
def test_tables_of_others_are_refused_and_nothing_is_made(
    url: str, statements: list[str], words: str
) -> None:
    with connected(url) as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    before = dump(url)
    with pytest.raises(StorageError, match=words) as raised:
        Storage(Database(url, patience=60))
    assert "\n" not in str(raised.value)
    assert dump(url) == before


@pytest.mark.parametrize(
    ("revision", "remedy"),
    [(OLD, "optuna storage upgrade --storage URL"), ("v9.0.0.a", "pip install --upgrade optuna")],
)
def test_tables_of_another_optuna_are_refused_and_nothing_is_made(
    url: str, revision: str, remedy: str
) -> None:
    optuna.create_study(storage=url)
    stamp(url, revision)
    before = dump(url)
    with pytest.raises(StorageError, match=remedy):
        Storage(Database(url, patience=60))
    assert dump(url) == before


def test_another_optuna_may_come_later(url: str) -> None:
    Storage(url)
    stamp(url, OLD)
    storage = Storage(url)
    assert storage.study_names() == []
    with pytest.raises(StorageError, match="optuna storage upgrade --storage URL, while nobody"):
        _ = storage.database.optuna


def test_another_programs_file_is_the_same_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with connected(f"sqlite:///{path}") as connection:
        connection.execute(sa.text("CREATE TABLE Trials (x INTEGER)"))
    before = path.read_bytes()
    with pytest.raises(StorageError, match="names: trials"):
        Storage(f"sqlite:///{path}")
    assert path.read_bytes() == before


# Schemas of PostgreSQL.


@pytest.mark.parametrize("occupied", [False, True])
def test_the_first_schema_of_the_urls_search_path_is_the_place(
    postgres: str, occupied: bool
) -> None:
    """Also where the next one is another team's."""
    server = new_database(postgres)
    with connected(server) as connection:
        connection.execute(sa.text("CREATE SCHEMA team_b"))
        if occupied:
            connection.execute(sa.text("CREATE TABLE public.studies (x INTEGER)"))
            connection.execute(sa.text("CREATE TABLE public.alembic_version (version_num TEXT)"))
            connection.execute(sa.text("CREATE TYPE public.trialstate AS ENUM ('a')"))
    if not occupied:
        Storage(server).add_study("team a's", "{}", {}, budget=1)
    before = dump(server)
    url = with_options(server, "team_b", "public")
    storage = Storage(url)
    assert storage.study_names() == []
    optuna.create_study(study_name="mirror", storage=storage.database.optuna)
    assert dump(server) == before
    assert {"qsched_slots", "studies", "alembic_version"} <= dump(url).keys()
    assert Storage(url).database.optuna.get_study_id_from_name("mirror") == 1


def test_a_role_needs_what_it_uses_and_no_more(postgres: str) -> None:
    server = new_database(postgres)
    url = with_options(server, "team_c")
    with pytest.raises(StorageError, match="no schema of search_path = team_c is there"):
        Storage(Database(url, patience=60))
    role = f"guest_{sa.make_url(server).database}"
    with connected(server) as connection:
        connection.execute(sa.text(f"CREATE ROLE {role} LOGIN"))
    guest = sa.make_url(server).set(username=role).render_as_string(hide_password=False)
    with pytest.raises(StorageError, match="permission denied for schema public; GRANT CREATE"):
        Storage(Database(guest, patience=60))

    Storage(server).add_study("one", "{}", {}, budget=1)
    with connected(server) as connection:
        connection.execute(sa.text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"))
    looking = Storage(Database(guest, patience=60))
    assert looking.study_names() == ["one"]
    assert [each.study_name for each in looking.database.optuna.get_all_studies()] == ["one"]


# At once.


def first(url: str, name: str, gate: Any, said: Any) -> None:
    """The process of a first command; it repeats nothing."""
    gate.wait(60)
    try:
        storage = Storage(Database(url, patience=0))
        optuna.create_study(study_name=name, storage=storage.database.optuna)
        said.put("")
    except Exception as error:  # noqa: BLE001 - for whoever waits
        said.put(f"{type(error).__name__}: {error}")


def test_six_first_commands_at_once_all_work(url: str) -> None:
    gate, said = FORKED.Barrier(6), FORKED.Queue()
    processes = [FORKED.Process(target=first, args=(url, f"s{i}", gate, said)) for i in range(6)]
    for process in processes:
        process.start()
    assert [said.get(timeout=120) for _ in processes] == [""] * 6
    for process in processes:
        process.join(30)
    assert len(Database(url).optuna.get_all_studies()) == 6


# Behind a pooler.


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_study_is_worked_on_behind_a_pooler(postgres: str, mode: str, tmp_path: Path) -> None:
    """In transaction mode the clients are more than the servers: each has another one each time."""
    name = sa.make_url(new_database(postgres)).database
    with pgbouncer(postgres, mode, size=12 if mode == "session" else 2) as pooler:
        url = pooler.set(database=name).render_as_string(hide_password=False)
        study = studies.create(Storage(url), fakes.study(tmp_path, name=NAME, trials=9))
        processes = [
            FORKED.Process(target=work, args=(url, tmp_path / f"worker-{i}.jsonl", i))
            for i in range(3)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0, 0]
        assert examine(study, 9, tmp_path)["wrong"] == []


def test_what_a_pooler_refuses_is_said_at_once(postgres: str) -> None:
    with pgbouncer(postgres, "transaction") as pooler:
        url = with_options(f"{pooler.render_as_string(False)}/postgres", "team_b")
        with pytest.raises(StorageError, match=r"startup parameter: options; .*ALTER ROLE"):
            Storage(Database(url, patience=60))
