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


class PgBouncer:
    """A pooler that runs until `stop`.

    `server`: the URL of what is behind it, by a socket's folder; it asks nobody for a password.
    `mode`: session or transaction. `size`: the connections that all clients of a database share.
    """

    def __init__(self, server: str, mode: str, folder: Path, size: int = 4) -> None:
        found = subprocess.run([SCRIPT], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        behind = sa.make_url(server)
        user, host = behind.username or "postgres", str(behind.query["host"])
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        (folder / "users").write_text(f'"{user}" ""\n')
        settings = folder / "settings.ini"
        settings.write_text(
            SETTINGS.format(
                host=host, port=behind.port or 5432, listen=self.port,
                folder=folder, mode=mode, size=size,
            )
        )  # fmt: skip
        self.url = behind.set(
            drivername="postgresql+psycopg", username=user,
            host="127.0.0.1", port=self.port, database=None, query={},
        )  # fmt: skip
        owner = ["-u", Path(host).owner()] if os.geteuid() == 0 else []  # it refuses to be root
        self._command = [found.stdout.strip(), *owner, str(settings)]
        self._log = folder / "log"
        self._start()

    def restart(self) -> None:
        """Is killed, and starts again."""
        self._process.kill()
        self._process.wait()
        self._start()

    def stop(self) -> None:
        """The end."""
        self._process.terminate()
        self._process.wait(10)

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port)),
            ):
                return
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)


@contextlib.contextmanager
def pgbouncer(server: str, mode: str, size: int = 4) -> Iterator[sa.URL]:
    """The URL of a server as seen through a pooler, without a database."""
    with tempfile.TemporaryDirectory(prefix="qsched-pgbouncer-") as folder:
        pooler = PgBouncer(server, mode, Path(folder), size)
        try:
            yield pooler.url
        finally:
            pooler.stop()
