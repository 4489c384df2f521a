"""An export on the hub: what the hub reads of its card, and what is sent, to a stand-in here."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from qsched import api
from qsched.pipelines.catalog import MODELS
from qsched.proof import outcome
from qsched.proof.outcome import Taken
from qsched.report.card import HUB_LICENCES, model_card
from qsched.schedule.coefficients import Coefficients
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy, create
from qsched.study.study import Study, load_study
from qsched.study.template import study_text
from tests.support import fakes
from tests.support.outcomes import IDENTITY, RAMP, proof

TOKEN = "hf_of_somebody_who_may_write"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a commit of small files takes; `sent` is what came."""

    sent: list[tuple[str, Any]]

    def do_HEAD(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in body.splitlines() if line]
        if self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer({"error": "no"}, 403)
        elif self.path == "/api/repos/create":
            self.sent.append(("create", lines[0]))
            self._answer({"url": f"http://{self.headers['Host']}/me/found"})
        elif self.path == "/api/models/me/found/preupload/main":
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in lines[0]["files"]
            ]
            self._answer({"files": files})
        elif self.path == "/api/models/me/found/commit/main":
            self.sent.append(("commit", lines))
            self._answer(
                {
                    "commitUrl": f"http://{self.headers['Host']}/me/found/commit/{'a' * 40}",
                    "commitOid": "a" * 40,
                    "success": True,
                }
            )
        else:
            self._answer({"error": self.path}, 404)

    def _answer(self, document: Any, code: int = 200) -> None:
        body = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def hub() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    sent: list[tuple[str, Any]] = []
    kind = type("Told", (Hub,), {"sent": sent})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", sent
    server.shutdown()
    server.server_close()


@pytest.fixture
def study(tmp_path: Path) -> StoredStudy:
    stored = create(
        Storage(f"sqlite:///{tmp_path}/storage/qsched.db"), fakes.study(tmp_path / "files")
    )
    outcome.keep(stored, proof("improved"))
    return stored


def pushed(
    folder: Path, endpoint: str, *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(Path(sys.executable).with_name("qsched"), "export", "fake"),
            *("--out", "calibrated", "--push", "me/found", *options),
        ],
        cwd=folder,
        env=os.environ
        | {
            "HF_HOME": str(folder / "hub"),
            "HF_ENDPOINT": endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "HF_TOKEN": TOKEN,
            "COLUMNS": "120",
        }
        | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_an_export_is_pushed_and_nothing_else(
    tmp_path: Path, study: StoredStudy, hub: tuple[str, list[tuple[str, Any]]]
) -> None:
    endpoint, sent = hub
    (tmp_path / "calibrated").mkdir()
    (tmp_path / "calibrated" / "my notes.txt").write_text("private")
    done = pushed(tmp_path, endpoint)
    assert done.returncode == 0, done.stderr
    assert f"pushed         {endpoint}/me/found/commit/{'a' * 40}" in done.stdout
    (_, made), (_, (header, *files)) = sent
    assert (made["name"], made["organization"]) == ("found", "me")
    assert made["visibility"] == "private"
    assert header["value"]["summary"] == "Exported by qsched"
    texts = {each["value"]["path"]: base64.b64decode(each["value"]["content"]) for each in files}
    here = {
        path.relative_to(tmp_path / "calibrated").as_posix(): path.read_bytes()
        for path in (tmp_path / "calibrated").rglob("*")
        if path.is_file() and path.suffix != ".txt"
    }
    assert texts == here
    assert set(texts) >= {"README.md", "coefficients.json", "scheduler/scheduler_config.json"}


def test_what_the_hub_refuses_is_one_line(
    tmp_path: Path, study: StoredStudy, hub: tuple[str, list[tuple[str, Any]]]
) -> None:
    refused = pushed(tmp_path, hub[0], HF_TOKEN="hf_of_a_reader")
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: me/found can't be written to; log in (hf auth login), or set HF_TOKEN to a token "
        "that may write there\n"
    )
    assert hub[1] == []
    assert (tmp_path / "calibrated" / "README.md").is_file()
    offline = pushed(tmp_path, hub[0], HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stderr) == (
        2,
        "error: me/found: HF_HUB_OFFLINE is set; unset it to push\n",
    )


def metadata(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(head)
    return found


def of_catalogue(folder: Path, model: str, scheme: str) -> Study:
    path = folder / "study.toml"
    path.write_text(study_text(model, scheme=scheme))
    return load_study(path, fetch=False)


def test_the_card_says_what_it_belongs_to(tmp_path: Path) -> None:
    card = model_card(
        of_catalogue(tmp_path, "pcm-sd15", "nf4"),
        proof(best=RAMP),
        Taken(RAMP, forced=False),
        "TCDScheduler",
    )
    entry = MODELS["pcm-sd15"]
    assert entry.lora is not None
    assert metadata(card) == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "base_model": [entry.source, entry.lora.source],
        "license": "other",
        "license_name": "creativeml-open-rail-m-the-lora-states-none",
        "tags": ["qsched", "scheduler", "quantization", "nf4", "calibrated"],
    }
    own = fakes.study(tmp_path / "own")
    assert "base_model" not in metadata(model_card(own, proof(), Taken(RAMP, False), "X"))
    assert set(HUB_LICENCES) <= {each.licence for each in MODELS.values()} | {
        "CreativeML Open RAIL-M"
    }


@pytest.mark.parametrize("verdict", ["not_shown", "worse", "suspicious"])
def test_what_is_not_proven_does_not_call_itself_calibrated(
    tmp_path: Path, study: StoredStudy, verdict: str
) -> None:
    outcome.keep(study, replace(proof(verdict)))
    for force, tag, title in (
        (False, "unmodified", "as it was, since no improvement is proven"),
        (True, "not-proven", "with coefficients that are not proven"),
    ):
        api.take_away(study, tmp_path / "out", force=force)
        card = (tmp_path / "out" / "README.md").read_text()
        assert metadata(card)["tags"][-1] == tag
        (heading,) = [line for line in card.splitlines() if line.startswith("# ")]
        assert heading.endswith(title)
        assert "calibrated" not in heading
        found = Coefficients.load(tmp_path / "out" / "coefficients.json")
        assert found == (RAMP if force else IDENTITY)
