"""Who may use the dashboard: whoever was given its link, from its own pages.

Every process of this machine can connect to 127.0.0.1, and so can every web page in a browser on
it. Four things stand between: the `Host` that was asked for is this machine (a page whose name was
rebound to 127.0.0.1 asks for its own); the request comes from no other page; it carries the token
of the printed link; and it changes nothing unless the dashboard is writable.

What the database names as an artifact may be anything: it is never run as a page of this origin.
"""

import json
import logging
import secrets
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs, urlsplit
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from qsched.errors import in_one_line

HOME = "/dashboard/"
HOSTS = {"127.0.0.1", "localhost", "::1"}
READING = {"GET", "HEAD", "OPTIONS"}
PICTURES = {"image/png", "image/jpeg", "image/gif", "image/webp"}
"""What a browser may show of an artifact. SVG isn't among it: it is a page."""

EVERY_ANSWER = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "SAMEORIGIN"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "same-origin"),
]

logger = logging.getLogger(__name__)

Headers = list[tuple[str, str]]


def new_token() -> str:
    """A token that can't be guessed."""
    return secrets.token_urlsafe(24)


def home(token: str | None) -> str:
    """The path to open first; with the token it is a key, to be kept as one."""
    return f"{HOME}?token={token}" if token else HOME


def guarded(app: WSGIApplication, *, token: str | None, writable: bool) -> WSGIApplication:
    """The dashboard `app` for those who may use it; others get the reason in JSON.

    `token`: what a link and afterwards a cookie must carry; None asks for none. `writable`: methods
    that could change something are let through.
    """

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        refused = _refusal(environ, writable=writable)
        if refused is None and token is not None and not _knows(environ, token):
            if _linked(environ, token):
                start_response("303 See Other", [("Location", HOME), _cookie(environ, token)])
                return []
            refused = "401 Unauthorized", "open the link that qsched dashboard printed"
        if refused is not None:
            return _said(*refused, start_response)

        def start(status: str, headers: Headers, *error: Any) -> Any:
            artifact = environ["PATH_INFO"].startswith("/artifacts/")
            return start_response(status, _safe(headers, artifact=artifact), *error)

        try:
            return app(environ, start)
        except Exception as error:  # noqa: BLE001 - whatever optuna-dashboard makes of what is stored
            logger.warning("%s: %s", environ["PATH_INFO"], in_one_line(error))
            reason = f"what is stored can't be read: {in_one_line(error)}"
            return _said("500 Internal Server Error", reason, start_response)

    return answer


def _said(status: str, reason: str, start_response: StartResponse) -> list[bytes]:
    body = json.dumps({"reason": reason}).encode()
    length = ("Content-Length", str(len(body)))
    start_response(status, [("Content-Type", "application/json"), length, *EVERY_ANSWER])
    return [body]


def _refusal(environ: WSGIEnvironment, *, writable: bool) -> tuple[str, str] | None:
    """Status and reason, whoever asks."""
    host = environ.get("HTTP_HOST", "")
    if _name(f"//{host}") not in HOSTS:
        return "403 Forbidden", f"the host {host[:100]!r} is not this machine; ask for 127.0.0.1"
    if environ["REQUEST_METHOD"] not in READING and not writable:
        reason = "this dashboard is read-only; start it with qsched dashboard --writable"
        return "405 Method Not Allowed", reason
    if _from_another_page(environ) and not _followed_link(environ):
        return "403 Forbidden", "another web page asks; open the dashboard itself"
    return None


def _name(url: str) -> str | None:
    """The host of a URL; None where there is none, or it is none."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _from_another_page(environ: WSGIEnvironment) -> bool:
    """Whether the browser says so; other programs say nothing, and are asked for the token."""
    origin = environ.get("HTTP_ORIGIN")
    own = {f"{scheme}://{environ['HTTP_HOST']}" for scheme in ("http", "https")}
    elsewhere = environ.get("HTTP_SEC_FETCH_SITE", "none") not in ("none", "same-origin")
    return elsewhere or (origin is not None and origin not in own)


def _followed_link(environ: WSGIEnvironment) -> bool:
    """Whether a person follows a link from another page: it shows that page nothing."""
    how = environ.get("HTTP_SEC_FETCH_MODE"), environ.get("HTTP_SEC_FETCH_DEST")
    reads = environ["REQUEST_METHOD"] == "GET" and "HTTP_ORIGIN" not in environ
    return reads and how == ("navigate", "document")


def _knows(environ: WSGIEnvironment, token: str) -> bool:
    name, _, value = _cookie(environ, token)[1].partition(";")[0].partition("=")
    pairs = (part.strip().partition("=") for part in environ.get("HTTP_COOKIE", "").split(";"))
    return any(key == name and _equal(given, value) for key, _, given in pairs)


def _linked(environ: WSGIEnvironment, token: str) -> bool:
    reads = environ["REQUEST_METHOD"] in ("GET", "HEAD")
    given = parse_qs(environ.get("QUERY_STRING", "")).get("token", [""])
    return reads and _equal(given[0], token)


def _equal(given: str, token: str) -> bool:
    """In a time that tells nothing of how near it came."""
    return secrets.compare_digest(given.encode(errors="replace"), token.encode())


def _cookie(environ: WSGIEnvironment, token: str) -> tuple[str, str]:
    """Browsers keep one jar for all ports of a host, so the name has the port."""
    name = f"qsched_{environ['SERVER_PORT']}"
    return "Set-Cookie", f"{name}={token}; Path=/; HttpOnly; SameSite=Lax"


def _safe(headers: Headers, *, artifact: bool) -> Headers:
    """Headers that let no other page read the answer, and no artifact act as a page."""
    kept = [(key, value) for key, value in headers if not key.startswith("Access-Control-")]
    if artifact:
        kept = [(k, v) for k, v in kept if k not in ("Content-Encodings", "Content-Disposition")]
        kind = dict(kept).get("Content-Type", "").partition(";")[0].strip().lower()
        kept.append(("Content-Security-Policy", "default-src 'none'; sandbox"))
        if kind not in PICTURES:
            kept = [(key, value) for key, value in kept if key != "Content-Type"]
            kept.append(("Content-Type", "application/octet-stream"))
            kept.append(("Content-Disposition", "attachment"))
    return kept + EVERY_ANSWER
