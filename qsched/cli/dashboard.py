"""optuna-dashboard on a qsched database: for one's own machine, and read-only unless asked."""

import logging
from collections.abc import Callable
from typing import Any
from wsgiref.types import WSGIApplication

from qsched.cli import access
from qsched.errors import StudyError
from qsched.report.artifacts import artifact_store, place_of
from qsched.service.storage import Storage

HOST = "127.0.0.1"
LARGEST_BODY, LARGEST_UPLOAD = 64 << 10, 32 << 20
"""Bytes of a request's body that are taken in: read-only, where none says anything, and writable,
where a file may be attached to a trial. The server refuses more before it keeps it."""


def application(
    storage: Storage,
    *,
    artifacts: str | None = None,
    writable: bool = False,
    token: str | None = None,
) -> WSGIApplication:
    """The dashboard as a WSGI application, for those whom `access` lets in.

    `artifacts`: the folder or s3://bucket of the pictures. `token`: what a request must carry; None
    asks for none. Raises StudyError where it is not installed, and for a writable one without
    token.
    """
    if writable and token is None:
        raise StudyError(
            "--writable with --no-token: whoever reaches it could change the studies; drop one"
        )
    try:
        import optuna_dashboard
    except ImportError as error:
        raise StudyError(
            "the dashboard is not installed; pip install 'qsched[dashboard]'"
        ) from error
    store = artifact_store(place_of(artifacts, storage.database))
    app: Any = optuna_dashboard.wsgi(storage.database.optuna, artifact_store=store)
    app.catchall = False  # what a stored value breaks is said in a line, by `access` or so:
    logging.getLogger("optuna_dashboard._bottle_util").addFilter(_in_a_line)
    return access.guarded(app, token=token, writable=writable)


def _in_a_line(record: logging.LogRecord) -> bool:
    """Its log message holds a whole traceback."""
    record.msg, record.args = record.getMessage().partition("\n")[0], ()
    return True


def serve(
    storage: Storage,
    *,
    port: int,
    artifacts: str | None = None,
    writable: bool = False,
    token: str | None = None,
    on_ready: Callable[[str], Any] = lambda url: None,
) -> None:
    """Serves until it is interrupted, on 127.0.0.1 only; `on_ready` gets the link. Raises
    StudyError if the port is taken."""
    app = application(storage, artifacts=artifacts, writable=writable, token=token)
    import waitress

    try:
        server = waitress.create_server(
            app,
            host=HOST,
            port=port,
            threads=8,
            max_request_body_size=LARGEST_UPLOAD if writable else LARGEST_BODY,
        )
    except OSError as error:
        raise StudyError(f"--port {port}: {error.strerror}; choose another one") from error
    on_ready(f"http://{HOST}:{server.effective_port}{access.home(token)}")
    try:
        server.run()
    finally:
        server.close()
