"""optuna-dashboard on a qsched database: for one's own machine, and read-only unless asked."""

from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from qsched.errors import StudyError
from qsched.report.artifacts import artifact_store
from qsched.service.storage import Storage

HOST = "127.0.0.1"
READING = {"GET", "HEAD", "OPTIONS"}
REFUSAL = b'{"reason": "this dashboard is read-only; start it with qsched dashboard --writable"}'


def application(
    storage: Storage, *, artifacts: str | None = None, writable: bool = False
) -> WSGIApplication:
    """The dashboard as a WSGI application. `artifacts`: as `gallery.store` in the study files.

    Raises StudyError where it is not installed.
    """
    try:
        import optuna_dashboard
    except ImportError as error:
        raise StudyError(
            "the dashboard is not installed; pip install 'qsched[dashboard]'"
        ) from error
    app = optuna_dashboard.wsgi(
        storage.database.optuna, artifact_store=artifact_store(artifacts, storage.database)
    )
    return app if writable else read_only(app)


def read_only(app: WSGIApplication) -> WSGIApplication:
    """Refuses every method that could change something."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in READING:
            return app(environ, start_response)
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(REFUSAL)))]
        start_response("405 Method Not Allowed", headers)
        return [REFUSAL]

    return guarded


def serve(
    storage: Storage,
    *,
    port: int,
    artifacts: str | None = None,
    writable: bool = False,
    on_ready: Callable[[str], Any] = lambda url: None,
) -> None:
    """Serves until it is interrupted, on 127.0.0.1 only. Raises OSError if the port is taken."""
    app = application(storage, artifacts=artifacts, writable=writable)
    import waitress

    server = waitress.create_server(app, host=HOST, port=port, threads=8)
    on_ready(f"http://{HOST}:{server.effective_port}/dashboard/")
    try:
        server.run()
    finally:
        server.close()
