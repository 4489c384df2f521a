"""A database's URL: what is meant by it, what of it may be shown, and what is wrong with it.

    url = parsed("postgresql://me:secret@dbhost/qsched")
    shown(url)                                      # postgresql+psycopg://me:***@dbhost/qsched

No error quotes what stands between the URL's `//` and its last `@`: of a broken URL nobody knows
which part is the password.
"""

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from qsched.errors import StorageError

DEFAULT_URL = "sqlite:///storage/qsched.db"
EXAMPLES = f"{DEFAULT_URL} or postgresql+psycopg://user@host/database"

DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "postgresql+psycopg2": "postgresql+psycopg",  # as it stands in URLs of Optuna
}
"""What a URL may begin with, and the driver that it is opened with."""

SECRETS = ("password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret")
"""libpq's options that are nobody's business."""

_URL = re.compile(r"([A-Za-z][\w+.-]*)://(.*)", re.DOTALL)
_HOST = re.compile(r"[\w.-]*|[\da-fA-F:.]+(%\w+)?")
_PORT = re.compile(r"(?:\[[^\]]*\]|[^:/?]*):([^/?]*)")
_ENCODE = (
    "percent-encode what is no letter or digit in user name and password (@ is %40, : is %3A, "
    "/ is %2F), or leave the password out and put it into ~/.pgpass"
)


def parsed(text: str) -> sa.URL:
    """The URL, with the driver that opens it; a file's path is absolute.

    Raises StorageError for what no database is meant by, or none that outlives the process.
    """
    found = _URL.fullmatch(text)
    if found is None:
        raise StorageError(f"storage: not a database URL; expected {EXAMPLES}")
    name, rest = found.groups()
    if name not in DRIVERS:
        meant = "; write postgresql://" if name.lower().startswith("postgre") else ""
        raise StorageError(f"storage {name}: not supported{meant}; expected {EXAMPLES}")
    if "${" in rest or "$(" in rest or any(ord(character) < 32 for character in rest):
        raise StorageError(
            f"storage {name}: the URL holds a variable that nobody filled in, or a line break; "
            "a $ that is meant is written %24"
        )
    return _file(text, rest) if DRIVERS[name] == "sqlite" else _server(text, rest)


def file_of(url: sa.URL) -> Path | None:
    """The absolute path of a SQLite file; None for a server."""
    if url.get_backend_name() != "sqlite":
        return None
    name = url.database or ""
    return Path(unquote(name.removeprefix("file:")) if "uri" in url.query else name)


def shown(url: sa.URL) -> str:
    """A file's path; of a server driver, user, host, port and database, and nothing else."""
    path = file_of(url)
    if path:
        return str(path)
    place = {key: url.query[key] for key in ("host", "port") if key in url.query}
    name = url.database or url.query.get("dbname")
    user = url.username or url.query.get("user")
    return sa.URL.create(
        url.drivername,
        username=str(user) if user else None,
        password="***" if url.password else None,
        host=url.host,
        port=url.port,
        database=str(name) if name else None,
        query=place,
    ).render_as_string()


def secrets(url: sa.URL) -> set[str]:
    """What must not be shown of a URL, and of the environment that completes it. A password that is
    the name of the user or of the database is none: it stands in every sentence."""
    given = {url.password, os.environ.get("PGPASSWORD"), *map(url.query.get, SECRETS)}
    public = {url.username, url.query.get("user"), url.database, url.query.get("dbname"), "qsched"}
    return {str(secret) for secret in given - public if secret}


def _server(text: str, rest: str) -> sa.URL:
    """A server's URL."""
    name = text.partition("://")[0]
    port = _PORT.match(rest.rpartition("@")[2])
    if port and not (port[1].isdecimal() and 0 < int(port[1][:6]) < 65536):
        raise StorageError(
            f"storage {name}: the port is no number from 1 to 65535; correct it; or, if it is a "
            f"part of the password, {_ENCODE}"
        )
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError) as error:
        raise StorageError(f"storage {name}: not a database URL; {_ENCODE}") from error
    if (
        rest.count("@") > 1
        or not _HOST.fullmatch(url.host or "")
        or "@" in (url.database or "")
        or set("?=&") & set(url.username or "")
    ):
        raise StorageError(
            f"storage {name}: where user, password and host end isn't clear; {_ENCODE}"
        )
    twice = [key for key, value in url.query.items() if isinstance(value, tuple)]
    if set(twice) - {"host", "port"}:
        raise StorageError(f"storage {name}: {twice[0]} stands twice in the URL; expected it once")
    return url.set(drivername=DRIVERS[name])


def _file(text: str, rest: str) -> sa.URL:
    """The URL of a SQLite file: a path, or `file:` with a path and SQLite's own options."""
    if rest and not rest.startswith("/"):
        raise StorageError(
            f"storage sqlite: a file's URL has three slashes; expected {DEFAULT_URL}, or "
            "sqlite:////absolute/path.db"
        )
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError) as error:
        raise StorageError(f"storage sqlite: not a database URL; expected {DEFAULT_URL}") from error
    name = url.database or ""
    options = dict(url.query)
    named = name.startswith("file:")
    if named:
        name = unquote(re.sub(r"^file:(//(localhost)?(?=/))?", "", name))
    if name in ("", ":memory:") or options.get("mode") == "memory" or options.get("vfs") == "memdb":
        raise StorageError(
            "storage sqlite: a database in memory ends with this process; expected a file: "
            f"{DEFAULT_URL}"
        )
    path = _absolute(name)
    if not named:
        return url.set(drivername="sqlite", database=str(path))
    database = f"file:{quote(str(path))}"
    return url.set(drivername="sqlite", database=database, query={**options, "uri": "true"})


def _absolute(name: str) -> Path:
    try:
        return Path(name).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # nobody's home folder, a loop of links
        said = str(error).rstrip(".")
        raise StorageError(f"storage {name}: {said}; expected the path of a file") from error
