"""What a person sees in the terminal: a study's progress, its status, its verdict."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from qsched.api import Observer, Outcome
from qsched.cli.proof import proof
from qsched.pipelines.catalog import ModelEntry
from qsched.proof.outcome import Proof, Taken
from qsched.report import files
from qsched.schedule.coefficients import Coefficients
from qsched.service.status import Status


class LiveProgress(Observer):
    """Shows a run as it goes: bars in a terminal, a line at every tenth of the way in a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._status: Status | None = None
        self._tenths: dict[str, int] = {}

    @contextmanager
    def live(self) -> Iterator["LiveProgress"]:
        """The display is on while the context lasts."""
        with self._progress:
            yield self

    def extended(self, asked: int, budget: int) -> None:
        """Says which budget holds."""
        self._console.print(f"budget    {budget} trials: the study was extended from {asked}")

    def changed(self, settings: Mapping[str, tuple[Any, Any]]) -> None:
        """Says which settings a study took."""
        for line in settings_taken(settings):
            self._console.print(line, soft_wrap=True)

    def loading(self, what: str) -> None:
        """Says what takes a moment."""
        self._console.print(Text(f"loading   {what}", style="dim"))

    def network(self, summary: str) -> None:
        """Says which share of the network is quantized."""
        self._console.print(Text(f"network   {summary}", style="dim"))

    def tested(self, sentence: str) -> None:
        """Says what the self-test found."""
        self._console.print(Text(f"self-test {sentence}", style="dim"))

    def working(self, status: Status) -> None:
        """Moves the bar to the finished trials, with the best against the identity."""
        if self._status is None and 0 < status.done < status.budget:
            self._console.print(f"resuming  {status.done} of {status.budget} trials are done")
        self._status = status
        self._show("trials", status.done, status.budget, _lead(status))

    def batch(self, slot: int, scored: int, prompts: int) -> None:
        """Moves the bar within a trial."""
        status = self._status
        if status is not None and scored < prompts:
            done = status.done + scored / prompts
            self._show("trials", done, status.budget, _lead(status))

    def waiting(self, status: Status) -> None:
        """Says why nothing happens."""
        why = "the study is paused" if status.paused else f"other workers hold {status.running}"
        self._status = status
        self._show("trials", status.done, status.budget, why if status.budget > status.done else "")

    def control(self, study: str, what: str) -> None:
        """Says which control is searched; its trials get a bar of their own."""
        self._console.print(Text(f"control   {study}: {what}"), soft_wrap=True)
        for task in self._progress.tasks:
            self._progress.remove_task(task.id)
        self._tenths.clear()
        self._status = None

    def validating(self, images: int, of: int) -> None:
        """Moves the bar of the held-out images."""
        self._show("held-out", images, of, "images")

    def _show(self, what: str, done: float, total: int, note: str) -> None:
        if not self._console.is_terminal:
            tenth = int(10 * done / total)
            if self._tenths.get(what) != tenth:
                self._tenths[what] = tenth
                self._console.print(f"{what:<9} {int(done)}/{total}  {note}".rstrip())
            return
        tasks = {task.description: task.id for task in self._progress.tasks}
        if what in tasks:
            self._progress.update(tasks[what], completed=done, total=total, note=note)
        else:
            self._progress.add_task(what, total=total, completed=int(done), note=note)


def settings_taken(settings: Mapping[str, tuple[Any, Any]]) -> list[Text]:
    """A line for each setting that a study took, {key: (before, now)}."""
    return [
        Text(f"takes     {key} = {json.dumps(now)}, before {json.dumps(before)}")
        for key, (before, now) in settings.items()
    ]


def outcome(console: Console, result: Outcome, storage: str) -> None:
    """The end of a run: the held-out table, the verdict in one sentence, where things are."""
    status, proven, folder = result.status, result.validation, result.folder
    if proven is None or folder is None:
        console.print(
            f"stopped after {status.done} of {status.budget} trials; nothing is lost, "
            "the same command goes on from here"
        )
        return
    console.print()
    proof(console, proven)
    published, best = proven.taken().coefficients, proven.candidate.coefficients
    console.print(coefficients("coefficients", published), soft_wrap=True)
    if published != best:
        console.print(coefficients("candidate", best), soft_wrap=True)
    for label, text in (
        ("searched", f"{status.images:,} images in {status.seconds:.0f} s"),
        ("", f"(the official 50 x 50 grid: {result.grid_images:,} images)"),
        ("proven on", f"{proven.images - status.images:,} more images"),
        ("look at", str(folder / files.PAGE)),
        ("", str(folder / files.IMAGES)),
        ("numbers", str(folder / files.NUMBERS)),
        ("take away", str(folder / files.COEFFICIENTS)),
        ("", f"{folder / files.SCHEDULER}/"),
        ("database", storage),
    ):
        console.print(Text(f"{label:<14} {text}"), soft_wrap=True)


def taken_away(console: Console, paths: Sequence[Path], proof: Proof, taken: Taken) -> None:
    """What `qsched export` wrote of a study's outcome, and what to do with it."""
    note = ""
    if taken.forced:
        note = "; exported all the same, and the files say so"
    elif not proof.proven:
        note = "; so all coefficients are 1, and --force exports the best that was found"
    verdict = (proof.badge.word, proof.badge.colour)
    console.print(coefficients("coefficients", taken.coefficients), soft_wrap=True)
    console.print(Text.assemble(f"{'verdict':<14} ", verdict, note), soft_wrap=True)
    for index, path in enumerate(paths):
        label = "" if index else "written"
        console.print(Text(f"{label:<14} {path}"), soft_wrap=True)
    console.print(Text(f"{'next':<14} paste the code of {files.CARD}"), soft_wrap=True)


def studies(rows: Sequence[Status]) -> Table:
    """`qsched status`: a row a study."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("study")
    for heading in ("trials", "running", "parked", "images", "identity", "best", "gain"):
        table.add_column(heading, justify="right")
    for status in rows:
        identity, best = status.identity, status.best
        table.add_row(
            f"{status.study} (paused)" if status.paused else status.study,
            f"{status.done}/{status.budget}"
            + (f" ({status.stopped} early)" if status.stopped else ""),
            str(status.running),
            str(status.parked),
            f"{status.images:,}",
            f"{identity.value:.4f}" if identity else "-",
            f"{best.value:.4f} (trial {best.slot})" if best else "-",
            f"{best.value - identity.value:+.4f}" if best and identity else "-",
        )
    return table


def workers(status: Status) -> Table:
    """The workers of a study that were heard of lately."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("worker")
    table.add_column("device")
    for heading in ("images", "images/s", "last seen"):
        table.add_column(heading, justify="right")
    for worker in status.alive:
        table.add_row(
            f"{worker.host}:{worker.pid}",
            str(worker.hardware.get("device", "")),
            f"{worker.images:,}",
            f"{worker.images_per_second:.1f}",
            f"{worker.idle:.0f} s ago",
        )
    return table


def models(entries: Sequence[ModelEntry]) -> Group:
    """`qsched models`: a line a model, and where it comes from below."""
    parts: list[Text] = [
        Text(
            f"{'model':<28}{'steps':<13}{'guidance':<10}{'size':<7}{'download':>8}{'GPU':>8}",
            "bold",
        )
    ]
    for entry in entries:
        steps = " ".join(map(str, entry.steps)) if entry.steps else "any"
        guidance = f"{entry.guidance[1]:g}" if entry.guidance else ""
        download = f"{entry.download_gb:.1f} GB" if entry.download_gb else "-"
        gpu = f"{entry.gpu_gb:.0f} GB" if entry.gpu_gb else "-"
        line = f"{steps:<13}{guidance:<10}{entry.height or '':<7}{download:>8}{gpu:>8}"
        parts.append(Text.assemble((f"{entry.name:<28}", "bold cyan"), line))
        parts.append(Text(f"  {entry.description}"))
        source = entry.source if entry.download_gb else ""
        source += "".join(f" + {each.source}" for each in (entry.weights, entry.lora) if each)
        gated = "; gated: accept it on the hub" if entry.gated else ""
        parts.append(Text("  " + "; ".join(filter(None, (source, entry.licence))) + gated, "dim"))
    return Group(*parts)


def coefficients(label: str, value: Coefficients) -> str:
    """All series in one line."""
    model = ", ".join(f"{number:.4g}" for number in value.model)
    sample = ", ".join(f"{number:.4g}" for number in value.sample)
    weights = ", ".join(f"{number:.4g}" for number in value.average)
    average = f"; x0 average {weights}" if weights else ""
    return f"{label:<14} c_eps {model}; c_x {sample}{average}"


def _lead(status: Status) -> str:
    """How far the best trial is above the identity, and how fast it goes."""
    if status.best is None or status.identity is None:
        return ""
    gain = status.best.value - status.identity.value
    alive = status.alive
    if len(alive) > 1:
        speed = sum(worker.images_per_second for worker in alive)
        return f"best {gain:+.3f} over identity, {len(alive)} workers, {speed:.0f} img/s"
    return f"best {gain:+.3f} over identity, {status.images / max(status.seconds, 1e-9):.0f} img/s"
