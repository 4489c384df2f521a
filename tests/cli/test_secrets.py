"""A database's password reaches no terminal, no JSON and no log, however the URL is written."""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qsched.cli import main as cli
from qsched.cli import studies
from qsched.service.database import Database

SECRET = "S3cr3tPw"
AWAY = "127.0.0.1:1/x"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`said(*arguments)`: all that a command says that has no patience; it has to fail in words."""
    monkeypatch.setattr(Database.__init__, "__kwdefaults__", {"patience": 0.0, "clock": time})
    monkeypatch.setattr("qsched.cli.doctor.PATIENCE", 0.0)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["qsched", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code in (1, 2)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return out + err

    return call


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{SECRET}@{AWAY}",
        f"postgresql://u@{AWAY}?password={SECRET}",
        f"postgresql:///x?host=127.0.0.1&port=1&user=u&password={SECRET}",
        f"postgresql://u@{AWAY}?sslpassword={SECRET}&application_name=a",
        *(f"postgresql://u:a{character}{SECRET}@{AWAY}" for character in "@/:#?%"),
        f"postgresql://u:{SECRET}@127.0.0.1:port/x",
        f"postgresql://u:{SECRET}@127.0.0.1:99999/x",
        f"postgresql://u:{SECRET}@[::1/x",
        f"postgresql://u:{SECRET}@{AWAY}?options=-c%20a=b",
        f"postgresql://u:{SECRET}@{AWAY}?nonsense={SECRET}",
        f"postgresql:u:{SECRET}@{AWAY}",
        f"postgresql+psycopgx://u:{SECRET}@{AWAY}",
        f"postgre://u:{SECRET}@{AWAY}",
        f"mysql://u:{SECRET}@h/x",
        f"sqlite://u:{SECRET}@h/x",
        f"host=127.0.0.1 port=1 password={SECRET}",
    ],
)
def test_an_error_is_one_line_without_the_password(
    said: Callable[..., str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QSCHED_STORAGE", url)
    for line in (said("status"), said("status", "--storage", url)):
        assert SECRET not in line
        assert line.startswith("error: storage")
        assert line.count("\n") == 1


def test_the_doctor_and_wrong_arguments_do_not_say_it_either(said: Callable[..., str]) -> None:
    url = f"postgresql://u:a@{SECRET}@{AWAY}"
    for arguments in (
        ("doctor", "--json", "--storage", f"postgresql://u@{AWAY}?password={SECRET}"),
        ("doctor", "--json", "--storage", url),
        ("status", "a", url),
        ("delete", "a", f"--storages={url}"),
    ):
        assert SECRET not in said(*arguments)


def test_a_librarys_traceback_is_redacted(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody expects goes past every handler, to the stream itself."""

    def app() -> None:
        Database(f"postgresql://u:{SECRET}@{AWAY}")
        raise KeyError(f"connect({SECRET!r})")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(KeyError) as raised:
        cli.main()
    sys.excepthook(raised.type, raised.value, raised.tb)
    err = capfd.readouterr().err
    assert "KeyError" in err
    assert SECRET not in err


def test_a_workers_log_is_redacted(tmp_path: Path) -> None:
    Database(f"postgresql://u@{AWAY}?password={SECRET}")
    with studies._logging_to(tmp_path / "worker.log", "fake") as log:
        logging.getLogger("qsched").warning(
            "connect to %s", f"postgresql://u@{AWAY}?password={SECRET}"
        )
    assert log.read_text().endswith("127.0.0.1:1/x?password=***\n")
