"""The command line: every verb has help, an example and documentation; an error is one line."""

import io
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from diffusers import DiffusionPipeline

from qsched import __version__, api
from qsched.cli import main as cli
from qsched.errors import StudyError
from qsched.pipelines.twins import pipeline_twin
from qsched.proof.outcome import keep
from qsched.schedule.coefficients import Coefficients
from qsched.service import stored_study as studies
from qsched.service.evaluator import Evaluator
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy
from qsched.service.worker import Worker
from qsched.study.study import load_study
from tests.support import fakes
from tests.support.command import Qsched, one_line
from tests.support.outcomes import proof

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(typer.main.get_group(cli.app).commands)


def test_the_verbs_are_those_of_the_design() -> None:
    assert COMMANDS == [
        "check",
        "compare",
        "create",
        "dashboard",
        "delete",
        "demo",
        "doctor",
        "export",
        "extend",
        "generate",
        "init",
        "models",
        "pause",
        "preview",
        "report",
        "retry",
        "run",
        "status",
        "unpause",
        "validate",
        "work",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example(qsched: Qsched, command: str) -> None:
    code, out, _ = qsched(command, "--help")
    assert code == 0
    assert f"Example: qsched {command}" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_option_is_explained(command: str) -> None:
    for parameter in typer.main.get_group(cli.app).commands[command].params:
        assert getattr(parameter, "help", None), f"{command}: {parameter.name}"


def test_the_version_is_the_packages(qsched: Qsched) -> None:
    assert qsched("--version")[1].strip() == f"qsched {__version__}"


def test_check_says_what_a_study_costs(qsched: Qsched) -> None:
    path = str(ROOT / "studies" / "demo.toml")
    code, out, _ = qsched("check", path)
    assert code == 0
    assert "158 trials x 4 of 64 prompts: 800 images" in out
    code, out, _ = qsched("check", path, "--json")
    row = json.loads(out)[0]
    assert row["file"] == path
    assert (row["trials"], row["prompts_per_trial"], row["prompts"]) == (158, 4, 64)
    assert row["images"] == 64 + 2 * 8 * 2 + 154 * 4 + 2 * 28 + 32 == 800
    assert row["network_calls"] == 64 + 800 * 3
    assert row["held_out_images"] == 4 * 256
    assert row["grid_images"] == 160_000


def test_the_launcher_is_found_beside_the_study_or_refused_in_words(
    qsched: Qsched, tmp_path: Path
) -> None:
    path = fakes.study_file(tmp_path / "files")
    with path.open("a") as file:
        file.write('launcher = "our_cluster:Launcher"\n')
    for command in (("check", str(path)), ("run", str(path))):
        code, _, err = qsched(*command)
        assert code == 2
        assert "put our_cluster.py beside the study file" in one_line(err)
    assert not json.loads(qsched("status", "--json")[1])  # nothing was begun
    (path.parent / "our_cluster.py").write_text(
        "class Launcher:\n    def start(self, crew):\n        raise OSError('no machine is free')\n"
    )
    assert qsched("check", str(path))[0] == 0
    code, _, err = qsched("run", str(path))
    assert code == 2
    assert one_line(err) == (
        "error: Launcher could not start the workers: OSError: no machine is free"
    )


def test_a_device_and_all_of_them_are_too_much(qsched: Qsched, finished: Path) -> None:
    code, _, err = qsched("work", "fake", "--device", "cuda:1", "--all-devices")
    assert code == 2
    assert "--device cuda:1 and --all-devices: expected one; drop the other" in one_line(err)


def test_check_reports_every_problem_of_every_file(qsched: Qsched, tmp_path: Path) -> None:
    bad = fakes.study_file(tmp_path / "bad", trials=0)
    bad.write_text(bad.read_text().replace("steps = 4", "stepz = 4"))
    good = fakes.study_file(tmp_path / "good")
    code, out, err = qsched("check", str(bad), str(good), str(tmp_path / "none.toml"))
    assert code == 2
    assert f"ok  {good}" in out
    assert "did you mean 'steps'" in err
    assert "search.trials = 0" in err
    assert "none.toml" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "none.toml"), "none.toml"),
        (("status", "none"), "no studies yet"),
        (("validate", "none"), "no studies yet"),
        (("export", "none", "--out", "out"), "no studies yet"),
        (("status", "--storage", "mysql://u:secret@h/db"), "mysql: not supported"),
        (("work", "none"), "no studies yet"),
        (("extend", "none", "--trials", "+5"), "no studies yet"),
        (("pause", "none"), "no studies yet"),
        (("retry", "none"), "no studies yet"),
        (("delete", "none", "--yes"), "no studies yet"),
        (("status", "--storage", "nonsense"), "not a database URL"),
        (
            ("generate", "--model", "none", "--prompts", "p.txt", "--out", "o", "--steps", "4"),
            "model.name = 'none'",
        ),
        (
            ("generate", "--model", "demo", "--prompts", "p.txt", "--out", "o", "--steps", "4"),
            "p.txt",
        ),
        (
            ("generate", "--model", "demo", "--prompts", "p.txt", "--out", "o", "--steps", "3"),
            "trained for 1, 2, 4 steps",
        ),
        (
            ("generate", "--model", "demo", "--prompts", "p", "--out", "o", "--coefficients", "c"),
            "c: ",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(
    qsched: Qsched, arguments: tuple[str, ...], words: str
) -> None:
    code, _, err = qsched(*arguments)
    assert code == 2
    assert words in one_line(err)
    assert "secret" not in err


def test_status_of_an_empty_database_says_how_to_begin(qsched: Qsched) -> None:
    code, out, _ = qsched("status")
    assert code == 0
    assert "no studies yet" in out
    assert "qsched run" in out
    assert qsched("status", "--json")[1].strip() == "[]"


def test_status_shows_trials_best_and_identity(qsched: Qsched, finished: Path) -> None:
    code, out, _ = qsched("status")
    assert code == 0
    assert "6/6" in out
    code, out, _ = qsched("status", "fake", "--json")
    status = json.loads(out)
    assert (status["study"], status["done"], status["budget"]) == ("fake", 6, 6)
    assert status["best"]["value"] >= status["identity"]["value"]
    assert status["identity"]["coefficients"]["model"] == [1.0] * 4
    assert [row["study"] for row in json.loads(qsched("status", "--json")[1])] == ["fake"]


def test_a_study_is_created_for_workers_to_find(qsched: Qsched, tmp_path: Path) -> None:
    path = str(fakes.study_file(tmp_path / "files"))
    code, out, _ = qsched("create", path)
    assert code == 0
    assert "qsched work fake" in out
    code, out, _ = qsched("create", path, "--trials", "9", "--json")
    created = json.loads(out)
    assert (created["budget"], created["waiting"], created["workers"]) == (9, 9, [])


def test_a_study_is_managed(qsched: Qsched, finished: Path) -> None:
    assert "trials    11" in qsched("extend", "fake", "--trials", "+5")[1]
    assert "paused" in qsched("pause", "fake")[1]
    assert json.loads(qsched("status", "fake", "--json")[1])["paused"] is True
    assert "fake (paused)" in qsched("status")[1]
    assert "goes on" in qsched("unpause", "fake")[1]
    assert "0 trials wait again" in qsched("retry", "fake")[1]
    assert "deleted   fake" in qsched("delete", "fake", "--yes")[1]
    assert json.loads(qsched("status", "--json")[1]) == []
    assert Storage(f"sqlite:///{finished}").database.optuna.get_all_studies() == []


def test_a_study_that_was_extended_goes_on(
    qsched: Qsched, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its file as it was and by its name; also if it is extended while it is being proven."""
    proven: list[int] = []

    def work(study: StoredStudy, **_: object) -> bool:
        prompts = study.definition.calibration
        return Worker(study, Evaluator(fakes.FakeGenerator(), fakes.FakeScorers(), prompts)).run()

    def validate(study: StoredStudy, **_: object) -> api.Outcome:
        proven.append(study.status().done)
        if len(proven) == 1:
            study.extend("+1")
        return api.Outcome(study.status(), True, 0)

    monkeypatch.setattr(api, "work", work)
    monkeypatch.setattr(api, "validate", validate)
    file = str(fakes.study_file(tmp_path / "files"))
    assert "go on with qsched run fake" in qsched("extend", "fake", "--trials", "+2")[1]
    code, out, _ = qsched("run", file)
    assert code == 0
    assert "budget    8 trials: the study was extended from 6" in out
    assert proven == [8, 9]
    assert "budget    9 trials" in qsched("create", file)[1]
    qsched("extend", "fake", "--trials", "10")
    assert qsched("run", "fake")[0] == 0
    assert proven == [8, 9, 10]
    code, _, err = qsched("run", file, "--trials", "7")
    assert code == 2
    assert "has 10 trials; a budget of 7 would drop some" in one_line(err)
    assert "'other' is not in" in one_line(qsched("run", "other")[2])


def test_a_study_that_is_worked_on_is_extended_without_more_words(
    qsched: Qsched, tmp_path: Path
) -> None:
    stored = studies.create(
        Storage(f"sqlite:///{tmp_path}/storage/qsched.db"), fakes.study(tmp_path / "files")
    )
    stored.storage.enter(stored.incarnation, "w", machine="", host="h", pid=1, hardware={})
    assert qsched("extend", "fake", "--trials", "+2")[1] == "trials    8\n"


@pytest.mark.parametrize("command", [("work", "fake"), ("run", "files/study.toml")])
def test_a_study_that_is_deleted_ends_its_commands_in_one_line(
    qsched: Qsched, finished: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, str]
) -> None:
    def asleep(worker: Worker, **_: object) -> None:
        worker.study.storage.delete_study(worker.study.incarnation)
        worker.study.tidy()

    monkeypatch.setattr(Worker, "run", asleep)
    assert "trials    7" in qsched("extend", "fake", "--trials", "+1")[1]
    code, out, err = qsched(*command, *(["--trials", "7"] if command[0] == "run" else []))
    assert code == 0, err
    assert out.splitlines()[-1] == "ended     study 'fake' was deleted"
    assert err == ""


def test_edits_of_settings_are_taken_and_said(qsched: Qsched, tmp_path: Path) -> None:
    """So the remedy that a worker on other hardware advises can take effect."""
    path = fakes.study_file(tmp_path)
    assert qsched("create", str(path))[0] == 0
    path.write_text(path.read_text() + "allow_mixed_hardware = true\n")
    code, out, _ = qsched("create", str(path))
    assert code == 0
    assert "takes     execution.allow_mixed_hardware = true, before false" in out
    assert "takes" not in qsched("create", str(path))[1]


def test_a_worker_says_by_what_its_machine_differs(qsched: Qsched, finished: Path) -> None:
    study = studies.load(Storage(f"sqlite:///{finished}"), "fake")
    other = study.status().fingerprint | {"versions.numpy": "1.26.4", "model.weights": "0"}
    study.storage.redefine(study.incarnation, study.definition.to_json(), other, {})
    for command in (("work", "fake", "--idle-exit"), ("validate", "fake")):
        code, _, err = qsched(*command)
        assert code == 2
        assert "versions.numpy: the study has '1.26.4', now it is" in err
        assert "model.weights: the study has '0', now it is" in err
        assert "Traceback" not in err
    accepted = ["--accept", "versions.numpy", "--accept", "model.weights"]
    assert qsched("work", "fake", "--idle-exit", *accepted)[0] == 0
    assert set(study.status().accepted) == {"versions.numpy", "model.weights"}


def test_delete_asks_first(qsched: Qsched, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    code, out, _ = qsched("delete", "fake")
    assert code == 1
    assert "6 finished trials" in out
    assert json.loads(qsched("status", "--json")[1])[0]["done"] == 6


def test_a_study_that_is_worked_on_is_not_deleted(qsched: Qsched, tmp_path: Path) -> None:
    stored = studies.create(
        Storage(f"sqlite:///{tmp_path}/storage/qsched.db"), fakes.study(tmp_path)
    )
    stored.queue.claim("w", 60)
    code, _, err = qsched("delete", "fake", "--yes")
    assert code == 2
    assert "is being worked on" in one_line(err)


def test_doctor_finds_nothing_wrong_here(qsched: Qsched, finished: Path) -> None:
    code, out, _ = qsched("doctor", str(ROOT / "studies" / "demo.toml"))
    assert code == 0, out
    for name in ("database", "clock", "workers", "disk", "device", "study"):
        assert f"ok     {name}" in out


def test_doctor_says_what_to_do(qsched: Qsched, finished: Path, tmp_path: Path) -> None:
    stored = studies.load(Storage(f"sqlite:///{finished}"), "fake")
    stored.extend("+1")
    for _ in range(3):
        slot = stored.queue.claim("w", 60)
        assert slot is not None
        stored.queue.fail(slot, "broken")
    code, out, _ = qsched("doctor", str(tmp_path / "none.toml"), "--json")
    assert code == 1
    wrong = {row["name"]: row["words"] for row in json.loads(out) if not row["ok"]}
    assert "qsched retry fake" in wrong["fake"]
    assert "none.toml" in wrong["study"]
    code, out, _ = qsched("doctor", "--storage", "postgresql://u:secret@127.0.0.1:1/x")
    assert code == 1
    assert "wrong  database" in out
    assert "secret" not in out


def test_export_says_what_it_wrote(qsched: Qsched, finished: Path) -> None:
    keep(studies.load(Storage(f"sqlite:///{finished}"), "fake"), proof("not_shown"))
    code, out, _ = qsched("export", "fake", "--out", "plain")
    assert code == 0
    for words in (
        "c_eps 1, 1, 1, 1; c_x 1, 1, 1, 1",
        "not shown; so all coefficients are 1, and --force exports the best that was found",
        "plain/coefficients.json",
        "plain/scheduler/preconditioned_dpm_solver_multistep.py",
        "plain/README.md",
    ):
        assert "".join(words.split()) in "".join(out.split())  # long paths are folded
    code, out, _ = qsched("export", "fake", "--out", "forced", "--force", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["model"][0] == 1.1
    assert document["provenance"]["forced"] is True
    assert all(Path(path).is_file() for path in document["files"])
    assert len(document["files"]) == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", "0"), "sampling.steps = 0; demo was trained for"),
        (("--model", "./" + "x" * 300), "name = './xxx.*too long for a path"),
        (("--model", "~nouser/x"), "name = '~nouser/x'; Could not determine home directory"),
        (("--prompts", "~nouser/x"), "--prompts = '~nouser/x'; Could not determine"),
        (("--prompts", "pipe.txt"), "pipe.txt: it is a pipe; expected a file"),
        (("--coefficients", "pipe.txt"), "pipe.txt: cannot be read: it is a pipe"),
        (("--coefficients", "x" * 300), "xxx: cannot be read: File name too long"),
        (("--out", "x" * 300), "xxx: cannot be written: File name too long; give another --out"),
        (("--out", "captions.txt"), "captions.txt: cannot be written: File exists"),
        (("--batch-size", "100000"), "batch_size = 100000; expected at most"),
    ],
)
def test_odd_arguments_of_generate_are_one_line(
    qsched: Qsched, tmp_path: Path, arguments: tuple[str, str], words: str
) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "captions.txt").write_text("a cat\na dog\n")
    given = {"--model": "demo", "--prompts": "captions.txt", "--out": "images", "--steps": "4"}
    given |= dict([arguments])
    code, _, err = qsched("generate", *(word for pair in given.items() for word in pair))
    assert code == 2
    assert re.search(words, one_line(err)), err


def test_generate_reads_both_versions_and_refuses_the_rest(qsched: Qsched, tmp_path: Path) -> None:
    """Each file reaches the next check, of captions that are not there, or is refused by name."""

    def refusal(text: str, *options: str) -> str:
        (tmp_path / "found.json").write_text(text)
        code, _, err = qsched(
            *("generate", "--model", "demo", "--coefficients", "found.json"),
            *("--prompts", "no captions.txt", "--out", "out", *options),
        )
        assert code == 2
        return one_line(err)

    first = Coefficients.ramp(4, 1.1, 0.9)
    for version, found in ((1, first), (2, first.averaged([0.25] * 4))):
        text = found.to_json({"study": "fake"})
        assert json.loads(text)["version"] == version
        assert "no captions.txt" in refusal(text)
        by_hand = {key: value for key, value in json.loads(text).items() if key != "digest"}
        assert "no captions.txt" in refusal(json.dumps(by_hand))
        assert "found.json: changed since it was written" in refusal(text.replace("1.1", "1.2"))
        assert ": not valid JSON: Unterminated string" in refusal(text[:-9])
        assert "found.json: for 4 steps, and 2 are asked for" in refusal(text, "--steps", "2")
    three = Coefficients.identity(3).to_json()
    assert "demo was trained for 1, 2, 4 steps" in refusal(three)
    assert not (tmp_path / "out").exists()


def test_nothing_is_exported_before_it_is_validated(qsched: Qsched, finished: Path) -> None:
    code, _, err = qsched("export", "fake", "--out", "out")
    assert code == 2
    assert "qsched validate fake" in one_line(err)
    assert not Path("out").exists()


def test_a_report_before_the_verdict_says_that_nothing_is_proven(
    qsched: Qsched, finished: Path
) -> None:
    code, out, _ = qsched("report", "fake", "--out", "here")
    assert code == 0
    paths = [Path(line) for line in out.split()]
    assert paths == [Path("here").resolve() / name for name in ("report.html", "report.json")]
    assert "Nothing is proven yet" in paths[0].read_text(encoding="utf-8")
    code, out, _ = qsched("report", "fake", "--json")
    assert code == 0
    assert json.loads(out) == json.loads(paths[1].read_text())
    assert json.loads(out)["verdict"] is None
    assert Path("runs/fake/report.html").is_file()
    code, _, err = qsched("report", "nobody")
    assert code == 2
    assert "nobody" in one_line(err)


def test_a_study_in_progress_is_not_validated(qsched: Qsched, tmp_path: Path) -> None:
    studies.create(Storage(f"sqlite:///{tmp_path}/storage/qsched.db"), fakes.study(tmp_path))
    code, _, err = qsched("validate", "fake")
    assert code == 2
    assert "0 of 6 trials are done" in one_line(err)


def test_a_control_that_does_not_exist_is_refused(qsched: Qsched, finished: Path) -> None:
    code, _, err = qsched("validate", "fake", "--controls", "grid, gird")
    assert code == 2
    assert "gird; expected some of full-precision, alignment, quality, grid" in one_line(err)
    assert [row["study"] for row in json.loads(qsched("status", "--json")[1])] == ["fake"]


def test_another_definition_under_the_same_name_is_refused(
    qsched: Qsched, finished: Path, tmp_path: Path
) -> None:
    other = fakes.study_file(tmp_path / "other", seed=9)
    code, _, err = qsched("run", str(other))
    assert code == 2
    assert "search.seed: the study has 0, now it is 9" in err


def test_the_module_runs_as_a_program_too() -> None:
    """The console script, in a process of its own, with an error."""
    done = subprocess.run(
        [Path(sys.executable).with_name("qsched"), "run", "none.toml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert one_line(done.stderr)


@pytest.mark.parametrize("stem", ["my study", "a; touch ran", "it's $(touch ran)", "-x", "a\nb"])
@pytest.mark.parametrize("own", [False, True])
def test_what_init_prints_can_be_pasted(
    qsched: Qsched, tmp_path: Path, stem: str, own: bool
) -> None:
    """The commands that it prints and writes name one file, whatever it is called."""
    model = "lcm-dreamshaper"
    if own:
        model = str(tmp_path / "of two words")
        shutil.copytree(pipeline_twin("StableDiffusionPipeline") / "pipeline", model)
    code, out, _ = qsched("init", model, f"--out=files/{stem}.toml")
    assert code == 0
    text = (tmp_path / "files" / f"{stem}.toml").read_text()
    pasted = shlex.split(out.partition("next      ")[2])
    if "\n" not in stem:  # a terminal shows it as an escape
        assert pasted == ["qsched", "check", f"files/{stem}.toml"]
    commands = [line[1:] for line in text.splitlines() if line.startswith("#     qsched ")]
    assert len(commands) > 2
    for command in commands:
        assert shlex.split(command)[:3][2] == f"{stem}.toml".replace("\n", "\\n")
    code, _, err = qsched("check", f"./files/{stem}.toml")
    assert code == 0 or (own and "set model.scheduler" in one_line(err))


def test_init_writes_a_study_that_check_takes(qsched: Qsched) -> None:
    code, out, _ = qsched("init", "lcm-dreamshaper", "--quantization", "w8a8", "--steps", "2")
    assert code == 0
    assert "lcm-2step-w8a8.toml" in out
    code, out, _ = qsched("check", "lcm-2step-w8a8.toml")
    assert code == 0
    assert "164 trials x 4 of 64 prompts: 800 images, 864 network calls" in out
    assert "8.9 GB to download once; a GPU with about 10 GB" in out
    code, _, err = qsched("init", "lcm-dreamshaper", "--quantization", "w8a8", "--steps", "2")
    assert code == 2
    assert "lcm-2step-w8a8.toml exists; give another file with --out" in one_line(err)
    code, _, err = qsched("init", "lcm")
    assert code == 2
    assert "no template for 'lcm'; expected one of sdxl-turbo, lcm-dreamshaper" in one_line(err)


def test_models_lists_what_each_needs(qsched: Qsched) -> None:
    code, out, _ = qsched("models")
    assert code == 0
    assert re.search(r"^sdxl-turbo +1 4 ", out, re.MULTILINE)
    for words in ("33.7 GB", "gated: accept it on the hub", "[schnell]"):
        assert words in out
    code, out, _ = qsched("models", "--json")
    listed = {entry["name"]: entry for entry in json.loads(out)}
    assert listed["pcm-sdxl"]["lora"]["source"] == "wangfuyun/PCM_Weights"
    assert listed["flux-schnell"]["pipeline"] == "FluxPipeline"


def test_a_twin_of_a_real_study_runs_offline(qsched: Qsched, tmp_path: Path) -> None:
    assert qsched("init", "pcm-sd15", "--quantization", "nf4", "--steps", "2")[0] == 0
    study = "pcm-sd15-2step-nf4.toml"
    code, out, _ = qsched("run", study, "--twin", "--trials", "2")
    assert code == 0
    assert "it tries the study, it proves nothing" in out
    assert "nf4 (bitsandbytes)" in out
    results = tmp_path / "runs" / "pcm-sd15-2step-nf4-twin"
    assert (results / "images.png").is_file()
    coefficients = str(results / "coefficients.json")
    (tmp_path / "captions.jsonl").write_text('{"prompt": "a cat"}\n{"prompt": "an owl"}\n')
    code, _, _ = qsched(
        *("generate", "--model", study, "--twin", "--coefficients", coefficients),
        *("--prompts", "captions.jsonl", "--out", "set", "--count", "1"),
    )
    assert code == 0
    assert [path.name for path in sorted((tmp_path / "set").iterdir())] == [
        "00000.png",
        "manifest.json",
        "prompts.jsonl",
    ]
    code, _, err = qsched("run", study, "--trials", "2")
    assert code == 2
    assert "sDCI.yaml is not downloaded" in one_line(err)


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("StableDiffusionXLPipeline", ("unet", "0.0", "EulerDiscreteScheduler", 32)),
        ("LatentConsistencyModelPipeline", ("unet", "8.5", "LCMScheduler", 32)),
        ("FluxPipeline", ("transformer", "0.0", "FlowMatchEulerDiscreteScheduler", 256)),
    ],
)
def test_init_writes_a_study_of_an_own_folder(
    kind: str, facts: tuple[str, str, str, int], qsched: Qsched, tmp_path: Path
) -> None:
    part, guidance, scheduler, side = facts
    folder = tmp_path / "my [own] model"
    stock = DiffusionPipeline.from_pretrained(pipeline_twin(kind) / "pipeline", dtype=torch.float16)
    stock.save_pretrained(folder)
    code, out, _ = qsched("init", str(folder), "--out", "mine.toml")
    assert code == 0
    table = load_study("mine.toml", fetch=False).tables
    model, sampling = table.model, table.sampling
    assert (model.pipeline, model.part, model.dtype) == (kind, part, "float16")
    assert (str(sampling.guidance_scale), sampling.height, sampling.width) == (guidance, side, side)
    code, out, _ = qsched("check", "mine.toml")
    size = f"size {side} x {side}, scheduler {scheduler}, float16"
    assert f"draws   4 steps, guidance {guidance}, {size}" in out
    assert "warning" not in out


def test_init_reads_a_repository_in_the_hub_s_cache(
    qsched: Qsched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "hub" / "models--some--turbo"
    shutil.copytree(
        pipeline_twin("StableDiffusionXLPipeline") / "pipeline", cached / "snapshots" / ("a" * 40)
    )
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    code, out, _ = qsched("init", "some/turbo", "--steps", "2", "--quantization", "nf4")
    assert (code, out.split()[0]) == (0, "turbo-nf4.toml")
    table = load_study("turbo-nf4.toml", fetch=False).tables
    assert (table.model.name, table.model.dtype) == ("some/turbo", "float32")
    assert (table.model.pipeline, table.sampling.height) == ("StableDiffusionXLPipeline", 32)
    assert (table.sampling.steps, table.quantization.backend) == (2, "bitsandbytes")


def test_init_of_what_is_no_model_is_one_line(qsched: Qsched, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "model_index.json").write_text("[]")
    for source, words in (
        (str(tmp_path / "odd"), "model_index.json: [] is all there is; expected a JSON object"),
        (str(tmp_path / "none"), "no model_index.json in"),
        ("owner/name", "owner/name/model_index.json is not downloaded"),
    ):
        code, _, err = qsched("init", source)
        assert code == 2
        assert words in one_line(err)


def test_guidance_that_is_left_open_is_warned_of(qsched: Qsched, tmp_path: Path) -> None:
    """It would be drawn with the pipeline's default, whatever the model was distilled for."""
    file = fakes.study_file(tmp_path)
    text = file.read_text()
    folder = pipeline_twin("StableDiffusionXLPipeline") / "pipeline"
    file.write_text(text.replace('"demo"', f'"{folder}"'))
    code, out, _ = qsched("check", str(file))
    assert code == 0
    assert "draws   4 steps, guidance 5.0 (the pipeline's own), size 32 x 32" in out
    assert (
        "warning sampling.guidance_scale is left open: StableDiffusionXLPipeline draws with 5"
        in out
    )
    code, out, _ = qsched("check", str(file), "--json")
    (row,) = json.loads(out)
    assert row["effective"] == {
        "guidance_scale": 5.0,
        "width": 32,
        "height": 32,
        "scheduler": "EulerDiscreteScheduler",
        "dtype": "float32",
    }
    assert len(row["warnings"]) == 1
    file.write_text(file.read_text().replace("steps = 4", "steps = 4\nguidance_scale = 0.0"))
    code, out, _ = qsched("check", str(file))
    assert "guidance 0.0, size" in out
    assert "warning" not in out


def test_a_place_that_cannot_be_written_is_one_line(
    qsched: Qsched, finished: Path, tmp_path: Path
) -> None:
    file = str(fakes.study_file(tmp_path / "files"))
    (tmp_path / "taken").write_text("a file")
    for words in (
        ("preview", file, "--out", "taken/x"),
        ("init", "sdxl-turbo", "--out", "taken/x.toml"),
        ("report", "fake", "--out", "taken/x"),
    ):
        code, _, err = qsched(*words)
        assert code == 2, words
        assert "cannot be written: " in one_line(err)


@pytest.mark.parametrize(
    ("words", "folder", "option"),
    [
        (("work", "fake", "--idle-exit"), "/sys/runs", "--log"),
        (("work", "fake", "--all-devices"), "/sys/runs", "--log"),
        (("work", "fake", "--log", "/sys/x/y.log"), "/sys/x", "--log"),
        (("run", "FILE"), "/sys/runs", "--out"),
        (("report", "fake"), "/sys/runs", "--out"),
        (("validate", "fake"), "/sys/runs", "--out"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_folder_that_nobody_can_write_to_is_said_before_the_work(
    qsched: Qsched,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    folder: str,
    option: str,
) -> None:
    """/sys is such a folder, for the superuser too."""
    monkeypatch.setattr("qsched.api.work", None)
    monkeypatch.setattr("qsched.service.launchers.work", None)
    monkeypatch.setattr("qsched.proof.validation.validate", None)
    file = str(fakes.study_file(tmp_path / "files"))
    monkeypatch.chdir("/sys")
    arguments = [file if word == "FILE" else word for word in words]
    code, _, err = qsched(*arguments, "--storage", f"sqlite:///{finished}")
    assert code == 2
    assert re.match(
        rf"error: {folder}[^ ]*: cannot be written: .*; give another {option}$", one_line(err)
    )


def test_what_needs_no_folder_works_in_any(
    qsched: Qsched, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/sys")
    storage = ("--storage", f"sqlite:///{finished}")
    log = tmp_path / "of a worker.log"
    assert qsched("work", "fake", "--idle-exit", "--log", str(log), *storage)[0] == 0
    assert log.exists()
    assert qsched("work", "fake", "--idle-exit", "--log", str(tmp_path), *storage)[0] == 0
    assert len(list(tmp_path.glob("*-*.log"))) == 1
    assert qsched("status", *storage)[0] == 0
    assert qsched("report", "fake", "--out", str(tmp_path / "report"), *storage)[0] == 0
    assert "deleted   fake" in qsched("delete", "fake", "--yes", *storage)[1]


@pytest.mark.parametrize("ends", ["well", "with an error"])
def test_a_log_ends_with_its_command(
    qsched: Qsched, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Whatever runs next in the same process logs as it did before."""
    logger = logging.getLogger("qsched")
    before = (logger.level, list(logger.handlers))

    def work(*_: object, **__: object) -> None:
        logger.info("at work")
        if ends == "with an error":
            raise StudyError("no luck")

    monkeypatch.setattr(api, "work", work)
    log, storage = tmp_path / "a.log", f"sqlite:///{finished}"
    code, _, _ = qsched("work", "fake", "--log", str(log), "--storage", storage)
    assert code == (0 if ends == "well" else 2)
    logger.info("after work")
    assert log.read_text().endswith(" INFO at work\n")
    assert (logger.level, logger.handlers) == before


def test_looking_makes_nothing(qsched: Qsched, tmp_path: Path) -> None:
    """No empty database, and no folder for one."""
    for looks in (("status",), ("status", "--json"), ("doctor",)):
        assert qsched(*looks)[0] == 0
    for words in (
        ("status", "fake"),
        ("work", "fake"),
        ("extend", "fake", "--trials", "9"),
        ("pause", "fake"),
        ("retry", "fake"),
        ("delete", "fake"),
        ("validate", "fake"),
        ("report", "fake"),
        ("export", "fake", "--out", "x"),
        ("dashboard",),
    ):
        code, _, err = qsched(*words)
        assert code == 2
        path = tmp_path / "storage" / "qsched.db"
        assert f"no studies yet in {path}; start one with qsched run" in one_line(err)
    assert not list(tmp_path.iterdir())


def test_preview_draws_before_any_budget_is_spent(qsched: Qsched, tmp_path: Path) -> None:
    file = str(fakes.study_file(tmp_path))
    code, out, _ = qsched("preview", file, "--out", "seen")
    assert code == 0
    assert "preview.html" in out
    assert "network   w4a8" in out
    code, out, _ = qsched("preview", file, "--json")
    document = json.loads(out)
    assert (code, document["captions"]) == (0, ["a", "b", "c", "d"])
    assert Path("runs/fake/preview.png").is_file()
    assert not Path("storage").exists()
