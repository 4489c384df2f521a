"""A real PgBouncer before a server."""

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

SCRIPT = Path(__file__).parents[2] / "scripts" / "pgbouncer"

SETTINGS = """\
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = {size}
"""
"""Nothing else than a stock PgBouncer has."""


@contextlib.contextmanager
def pgbouncer(server: str, mode: str, size: int = 4) -> Iterator[sa.URL]:
    """The URL of a server as seen through a pooler, without a database.

    `server`: its URL, by a socket's folder; it asks nobody for a password. `mode`: session or
    transaction. `size`: the connections that all clients of a database share.
    """
    found = subprocess.run([SCRIPT], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    behind = sa.make_url(server)
    with tempfile.TemporaryDirectory(prefix="qsched-pgbouncer-") as place, socket.socket() as free:
        folder = Path(place)
        folder.chmod(0o755)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        (folder / "users").write_text(f'"{behind.username or "postgres"}" ""\n')
        (folder / "settings.ini").write_text(
            SETTINGS.format(
                host=behind.query["host"], port=behind.port or 5432, listen=port,
                folder=folder, mode=mode, size=size,
            )
        )  # fmt: skip
        owner = Path(str(behind.query["host"])).owner()
        user = ["-u", owner] if os.geteuid() == 0 else []  # it refuses to be root
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [found.stdout.strip(), *user, folder / "settings.ini"], stdout=log, stderr=log
            )
        try:
            _await(process, port, folder / "log")
            yield behind.set(
                drivername="postgresql+psycopg", username=behind.username or "postgres",
                host="127.0.0.1", port=port, database=None, query={},
            )  # fmt: skip
        finally:
            process.terminate()
            process.wait(10)


def _await(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
