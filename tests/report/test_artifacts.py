"""Pictures in a bucket: a real S3 over HTTP that answers, is gone, or has lost some."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
from moto.server import ThreadedMotoServer
from optuna.artifacts import get_all_artifact_meta

from qsched.cli.doctor import examine
from qsched.pictures.sheets import Pictures
from qsched.report import artifacts, gallery
from qsched.service import stored_study as studies
from qsched.service.evaluator import Evaluator
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.service.worker import Worker
from qsched.study.study import load_study
from tests.support import fakes

BUCKET = "lab-qsched"


class Bucket:
    """An S3 with one bucket."""

    def __init__(self, server: ThreadedMotoServer) -> None:
        self.server = server
        self.client: Any = boto3.client("s3")
        self.client.create_bucket(Bucket=BUCKET)

    @property
    def keys(self) -> set[str]:
        found = self.client.list_objects_v2(Bucket=BUCKET).get("Contents", ())
        return {each["Key"] for each in found}

    def lose(self, what: str) -> None:
        """From here on there is no endpoint, or no bucket."""
        if what == "endpoint":
            self.server.stop()
            assert self.server._server is not None
            self.server._server.server_close()  # which it leaves open
            return
        for key in self.keys:
            self.client.delete_object(Bucket=BUCKET, Key=key)
        self.client.delete_bucket(Bucket=BUCKET)


GONE = {"endpoint": "EndpointConnectionError", "bucket": "NoSuchBucket"}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    urlopen(Request(f"{endpoint}/moto-api/reset", method="POST")).close()
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    yield Bucket(server)
    server.stop()


def study_file(folder: Path) -> Path:
    path = fakes.study_file(folder)
    path.write_text(path.read_text() + f"[gallery]\ntrials = 1\nstore = {json.dumps(STORE)}\n")
    return path


STORE = f"s3://{BUCKET}"


def finished(folder: Path, url: str) -> StoredStudy:
    """A study whose budget is spent, with its contact sheets."""
    study = studies.create(Storage(url), load_study(study_file(folder)))
    evaluator = Evaluator(fakes.FakeGenerator(), fakes.FakeScorers(), study.definition.calibration)
    assert Worker(study, evaluator, gallery=gallery.Gallery(study)).run()
    return study


def shown(study: StoredStudy) -> set[str]:
    """The artifacts that the dashboard shows."""
    storage = study.storage.database.optuna
    trials = study.trials.study.get_trials()
    listed = [get_all_artifact_meta(each, storage=storage) for each in trials]
    return {meta.artifact_id for each in listed for meta in each}


def test_pictures_lie_in_the_bucket_and_go_with_their_study(bucket: Bucket, tmp_path: Path) -> None:
    study = finished(tmp_path, f"sqlite:///{tmp_path}/q.db")
    assert len(bucket.keys) >= 2
    assert shown(study) == bucket.keys
    assert artifacts.inventory(study) == (len(bucket.keys), 0)
    assert artifacts.clear(study) is None
    assert not bucket.keys


@pytest.mark.parametrize("what", GONE)
def test_a_study_is_deleted_without_its_store_and_says_what_remains(
    bucket: Bucket,
    tmp_path: Path,
    url: str,
    what: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from qsched.cli.studies import delete

    monkeypatch.setenv("QSCHED_ARTIFACTS", STORE)
    study = finished(tmp_path, url)
    pictures = shown(study)
    bucket.lose(what)
    delete("fake", url, yes=True)
    deleted, remains = capsys.readouterr().out.strip().splitlines()
    assert deleted == "deleted   fake"
    assert remains.startswith(f"remains   {len(pictures)} pictures in {STORE} ({GONE[what]}: ")
    assert all(picture in remains for picture in pictures)
    assert Storage(url).study_names() == []


def test_a_place_that_only_the_database_names_is_left_alone(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from qsched.cli.studies import delete

    url = f"sqlite:///{tmp_path}/q.db"
    pictures = shown(finished(tmp_path, url))
    delete("fake", url, yes=True)
    _, remains = capsys.readouterr().out.strip().splitlines()
    assert remains.startswith(f"remains   {len(pictures)} pictures in {STORE} (by the database")
    assert bucket.keys == pictures


@pytest.mark.parametrize("what", GONE)
def test_without_its_store_a_study_goes_on_and_shows_no_broken_picture(
    bucket: Bucket, tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.lose(what)
    study = finished(tmp_path, f"sqlite:///{tmp_path}/q.db")
    artifacts.keep(study, Pictures((), {}, {}))
    assert study.status().done == 6
    assert not shown(study)
    said = [message for message in caplog.messages if "no contact sheet of trial" in message]
    assert said
    assert all(GONE[what] in message and "\n" not in message for message in said)
    assert "Traceback" not in caplog.text


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else the doctor looks at takes seconds."""
    monkeypatch.setattr("qsched.cli.doctor._device", lambda: ())


def found(folder: Path, url: str) -> tuple[bool, str]:
    """What the doctor finds of the pictures."""
    (finding,) = [each for each in examine(url, folder / "study.toml") if each.name == "pictures"]
    return finding.ok, finding.words


def test_doctor_looks_at_the_store_and_at_what_it_holds(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/q.db"
    study = finished(tmp_path, url)
    before = bucket.keys
    assert found(tmp_path, url) == (True, f"are kept in {STORE}")
    assert bucket.keys == before
    bucket.client.delete_object(Bucket=BUCKET, Key=min(before))
    assert found(tmp_path, url) == (False, f"{STORE}: 1 of {len(before)} pictures are gone")
    bucket.lose("bucket")
    ok, words = found(tmp_path, url)
    assert not ok
    assert f"{STORE}: NoSuchBucket" in words
    bucket.lose("endpoint")
    assert f"{STORE}: EndpointConnectionError" in found(tmp_path, url)[1]
    monkeypatch.setitem(sys.modules, "boto3", None)
    ok, words = found(tmp_path, url)
    assert not ok
    assert "needs boto3: pip install 'qsched[s3]'" in words
    study.delete()


def test_doctor_makes_no_folder_for_pictures(tmp_path: Path) -> None:
    fakes.study_file(tmp_path)
    url = f"sqlite:///{tmp_path}/db/q.db"
    assert found(tmp_path, url) == (True, f"are kept in {tmp_path}/db/artifacts")
    assert not (tmp_path / "db").exists()
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "artifacts").write_text("a file")
    assert not found(tmp_path, url)[0]
