"""What a database's URL means, what of it is shown, and what is said of one that is broken."""

from pathlib import Path

import pytest

from qsched.errors import StorageError
from qsched.service.address import file_of, parsed, secrets, shown

SECRET = "S3cr3tPw"
ENCODE = "percent-encode"
MEMORY = "a database in memory ends with this process; expected a file"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"postgresql://u:{SECRET}@h:1/x", "postgresql+psycopg://u:***@h:1/x"),
        (f"postgresql+psycopg2://u:a/{SECRET}@h/x", "postgresql+psycopg://u:***@h/x"),
        (f"postgresql://u:a:?#{SECRET}@h/x", "postgresql+psycopg://u:***@h/x"),
        (f"postgresql://u:%24%7B%40%25{SECRET}@h/x", "postgresql+psycopg://u:***@h/x"),
        (f"postgresql://u@h/x?password={SECRET}&sslmode=prefer", "postgresql+psycopg://u@h/x"),
        (f"postgresql://u@h/x?sslpassword={SECRET}", "postgresql+psycopg://u@h/x"),
        (
            f"postgresql:///?host=h&port=1&dbname=x&user=u&password={SECRET}",
            "postgresql+psycopg://u@/x?host=h&port=1",
        ),
        (f"postgresql://u:{SECRET}@[::1]:5/x", "postgresql+psycopg://u:***@[::1]:5/x"),
    ],
)
def test_of_a_server_driver_user_host_port_and_database_are_shown(text: str, name: str) -> None:
    url = parsed(text)
    assert shown(url) == name
    assert SECRET in secrets(url).pop()
    assert parsed(url.render_as_string(hide_password=False)) == url  # as workers get it


def test_a_password_that_everybody_sees_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", SECRET)
    assert secrets(parsed("postgresql://team:team@h/x?sslpassword=qsched")) == {SECRET}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a database URL; expected sqlite:///storage/qsched.db or postgresql"),
        (f"host=h password={SECRET}", "not a database URL"),
        (f"postgresql:u:{SECRET}@h/x", "not a database URL"),
        (f"postgres://u:{SECRET}@h/x", "postgres: not supported; write postgresql://"),
        (f"postgresql+asyncpg://u:{SECRET}@h/x", "asyncpg: not supported; write postgresql://"),
        (f"mysql://u:{SECRET}@h/x", "mysql: not supported; expected sqlite"),
        (f"postgresql://u:a@{SECRET}@h/x", ENCODE),
        (f"postgresql://u:a@b:{SECRET}@h/x", ENCODE),
        (f"postgresql://u:a@b/{SECRET}@h/x", ENCODE),
        (f"postgresql://u:a?b@{SECRET}@h/x", ENCODE),
        (f"postgresql://h?user=a@b&password={SECRET}", ENCODE),
        (f"postgresql://u:{SECRET}@h:port/x", f"the port is no number from 1 to 65535; .*{ENCODE}"),
        (f"postgresql://u:{SECRET}/x", f"the port is no number .*{ENCODE}"),
        (f"postgresql://u:{SECRET}@h:/x", "the port is no number"),
        (f"postgresql://u:{SECRET}@h:99999/x", "the port is no number"),
        (f"postgresql://u:{SECRET}@[::1/x", "the port is no number"),
        (f"postgresql://u:{SECRET}@h:${{PGPORT}}/x", "a variable that nobody filled in"),
        (f"postgresql://u:{SECRET}@h/x?sslmode=a&sslmode=b", "sslmode stands twice"),
        (f"sqlite://u:{SECRET}@h/x", "three slashes"),
        ("sqlite://", MEMORY),
        ("sqlite:///", MEMORY),
        ("sqlite:///:memory:", MEMORY),
        ("sqlite:///file::memory:?cache=shared&uri=true", MEMORY),
        ("sqlite:///file:q?mode=memory", MEMORY),
        ("sqlite:///~nobody-4711/q.db", "home directory; expected the path of a file"),
        ("sqlite:///a\0b", "a line break"),
    ],
)
def test_what_is_broken_is_one_line_without_a_part_of_the_password(text: str, words: str) -> None:
    with pytest.raises(StorageError, match=words) as raised:
        parsed(text)
    assert SECRET not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("sqlite:///q.db", "here/q.db"),
        ("sqlite:///~/q.db", "home/q.db"),
        ("sqlite:///file:q%20%25.db", "here/q %.db"),
        ("sqlite:///file:///{}/q.db?uri=true", "q.db"),
        ("sqlite:///file://localhost{}/q.db?mode=ro", "q.db"),
        ("sqlite:///{}/q{{}}.db?timeout=3", "q{}.db"),
    ],
)
def test_a_file_is_meant_by_its_absolute_path(
    text: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    url = parsed(text.format(tmp_path))
    assert file_of(url) == tmp_path / path
    assert shown(url) == str(tmp_path / path)
    assert parsed(url.render_as_string()) == url
