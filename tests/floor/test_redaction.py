"""Secrets stay out of text, whatever they hold and wherever they stand."""

import io
import logging

import pytest

from qsched.redaction import Redacting, keep, redacted, redacted_stream

SECRET = 'p@"ß w%41\\/+'


@pytest.mark.parametrize(
    "written",
    [
        SECRET,
        "p%40%22%C3%9F%20w%2541%5C%2F%2B",
        "p%40%22%C3%9F+w%2541%5C%2F%2B",
        r"p@\"\u00df w%41\\/+",
        repr(SECRET)[1:-1],
    ],
)
def test_a_secret_is_found_however_it_is_written(written: str) -> None:
    keep([SECRET])
    assert redacted(f"before {written} after") == "before *** after"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no route to http://me:hunter2@proxy:8080/", "no route to http://me:***@proxy:8080/"),
        ("postgresql://u:a@hunter2:b@h/x", "postgresql://u:***@h/x"),
        ("invalid dsn: password=hunter2 host=h", "invalid dsn: password=*** host=h"),
        ("see http://127.0.0.1:8080/dashboard/", "see http://127.0.0.1:8080/dashboard/"),
        ("password authentication failed", "password authentication failed"),
    ],
)
def test_a_password_is_known_by_its_place(text: str, expected: str) -> None:
    assert redacted(text) == expected


def test_what_is_too_short_to_be_told_from_words_is_left_alone() -> None:
    keep(["", "abc"])
    assert redacted("the abc of it") == "the abc of it"


def test_streams_and_logs_are_redacted_with_their_tracebacks() -> None:
    keep(["hunter4711"])
    text = io.StringIO()
    stream = redacted_stream(text)
    print("a hunter4711", file=stream)
    assert not stream.isatty()  # all else is the stream's own
    handler = logging.StreamHandler(stream=text)
    handler.setFormatter(Redacting("%(message)s"))
    try:
        raise ValueError("hunter4711")
    except ValueError as error:
        found = (ValueError, error, error.__traceback__)
    handler.emit(logging.LogRecord("n", 30, __file__, 1, "b %s", ("hunter4711",), found))
    assert text.getvalue().startswith("a ***\nb ***\nTraceback")
    assert "hunter4711" not in text.getvalue()
