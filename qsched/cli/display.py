"""What a person sees in the terminal: a study's progress, its status, its verdict."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
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
from qsched.cli.terminal import Formatter, facts
from qsched.errors import StudyError
from qsched.pipelines.catalog import ModelEntry
from qsched.proof.outcome import PENDING, Proof, Taken
from qsched.proof.standing import Standing
from qsched.report import files
from qsched.report.numerals import compact, duration
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

    def gauge(self, sentence: str) -> None:
        """Says what was measured before the search."""
        self._console.print(Text(f"gauge     {sentence}", style="dim"))

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

    def stopping(self, grace: float) -> None:
        """Says what the first Ctrl-C does, and what a second one would."""
        what = f"this trial, at most {grace:.0f} s" if grace else "this batch"
        self._console.print(f"stopping  finishing {what}; again to give it back")

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


@contextmanager
def shown(console: Console, *, quiet: bool = False, verbose: bool = False) -> Iterator[Observer]:
    """What is told while the context lasts: a run's progress, nothing, or a worker's log as well.
    Raises StudyError for both at once."""
    if quiet and verbose:
        raise StudyError("--quiet and --verbose: expected one; drop the other")
    if quiet:
        yield Observer()
        return
    with _heard(console) if verbose else nullcontext(), LiveProgress(console).live() as observer:
        yield observer


class _Said(logging.Handler):
    """Prints messages that are less than warnings, which are printed anyway, above the bars."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Prints it."""
        if record.levelno < logging.WARNING:
            self._console.print(Text(self.format(record), style="dim"), soft_wrap=True)


@contextmanager
def _heard(console: Console) -> Iterator[None]:
    logger, handler = logging.getLogger("qsched"), _Said(console)
    handler.setFormatter(Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def settings_taken(settings: Mapping[str, tuple[Any, Any]]) -> list[Text]:
    """A line for each setting that a study took, {key: (before, now)}."""
    return [
        Text(f"takes     {key} = {json.dumps(now)}, before {json.dumps(before)}")
        for key, (before, now) in settings.items()
    ]


def outcome(console: Console, result: Outcome, storage: str) -> None:
    """The end of a run: the verdict, the held-out table, where things are."""
    status, proven, folder = result.status, result.validation, result.folder
    if proven is None or folder is None:
        console.print(
            f"stopped after {status.done} of {status.budget} trials; nothing is lost, "
            "the same command goes on from here",
            soft_wrap=True,
        )
        return
    console.print()
    proof(console, proven)
    published, best = proven.taken().coefficients, proven.candidate.coefficients
    said: list[tuple[str, str | Path]] = [("coefficients", compact(published))]
    if published != best:
        said.append(("candidate", compact(best)))
    said += [
        ("searched", f"{status.images:,} images in {status.seconds:.0f} s"),
        ("", f"(the official 50 x 50 grid: {result.grid_images:,} images)"),
        ("proven on", f"{proven.images - status.images:,} more images"),
        ("look at", folder / files.PAGE),
        ("", folder / files.IMAGES),
        ("numbers", folder / files.NUMBERS),
        ("take away", folder / files.COEFFICIENTS),
        ("", folder / files.SCHEDULER),
        ("database", Path(storage)),
    ]
    console.print(facts(said, console.width), soft_wrap=True)


def taken_away(
    console: Console, paths: Sequence[Path], proof: Proof, taken: Taken, pushed: str = ""
) -> None:
    """What `qsched export` wrote of a study's outcome, where it was `pushed`, and what to do."""
    note = ""
    if taken.forced:
        note = "; exported all the same, and the files say so"
    elif not proof.proven:
        note = "; so all coefficients are 1, and --force exports the best that was found"
    verdict = Text.assemble((proof.badge.word, proof.badge.colour), note)
    written = [("" if index else "written", path) for index, path in enumerate(paths)]
    said: list[tuple[str, str | Path | Text]] = [
        ("verdict", verdict),
        ("coefficients", compact(taken.coefficients)),
        *written,
        *([("pushed", pushed)] if pushed else []),
        ("next", f"paste the code of {files.CARD}"),
    ]
    console.print(facts(said, console.width), soft_wrap=True)


def studies(rows: Sequence[Standing]) -> Table:
    """`qsched status`: a row a study, in 80 columns where its name is no longer than 20."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("study", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    for heading in ("trials", "running", "parked", "gain", "left"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        status = row.status
        identity, best = status.identity, status.best
        table.add_row(
            f"{status.study} (paused)" if status.paused else status.study,
            _verdict(row),
            f"{status.done}/{status.budget}",
            str(status.running),
            str(status.parked),
            f"{best.value - identity.value:+.4f}" if best and identity else "-",
            _left(row),
        )
    return table


def study(row: Standing, storage: str, width: int) -> Text:
    """`qsched status NAME`: its verdict first, then how far it is and where things are."""
    status, best, identity = row.status, row.status.best, row.status.identity
    said: list[tuple[str, str | Path | Text]] = [
        ("study", status.study),
        ("verdict", _verdict(row)),
    ]
    said += [("", row.proof.sentence)] if row.proof else []
    early = f", {status.stopped} of them on some of the prompts" if status.stopped else ""
    said.append(("trials", f"{status.done}/{status.budget}{early}{_at_work(status)}"))
    said.append(("", f"{status.images:,} images in {duration(status.seconds)}"))
    if best and identity:
        gain = best.value - identity.value
        said.append(
            ("best", f"{best.value:.4f} (trial {best.slot}), {gain:+.4f} over the identity")
        )
    if row.coefficients:
        label = "coefficients" if row.proof else "best so far"
        said.append((label, compact(row.coefficients)))
    if row.left:
        told = "not known yet" if row.seconds_left is None else _left(row)
        said.append(("time left", f"{told}, for {row.left:,} images at the most"))
    folder = (Path("runs") / status.study).resolve()
    for label, name in (("look at", files.PAGE), ("take away", files.COEFFICIENTS)):
        said += [(label, folder / name)] if (folder / name).is_file() else []
    return facts([*said, ("database", Path(storage))], width)


def _verdict(row: Standing) -> Text:
    badge = row.proof.badge if row.proof else PENDING
    return Text(badge.word if row.proof else "-", style=badge.colour)


def _left(row: Standing) -> str:
    """The estimate of the time that is left."""
    if row.over or row.seconds_left is None:
        return "-"
    return f"about {duration(row.seconds_left)}"


def _at_work(status: Status) -> str:
    """What is going on."""
    found = [("running", status.running), ("parked", status.parked), ("paused", status.paused)]
    words = [
        f", {number} {word}" if number > 1 or word != "paused" else f", {word}"
        for word, number in found
        if number
    ]
    return "".join(words)


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


def _lead(status: Status) -> str:
    """How far the best trial is above the identity, or is expected to be while none but the
    identity has all prompts; and how fast it goes."""
    if status.best is None or status.identity is None:
        return ""
    lead, word = status.best, "best"
    if lead.slot == 0 and status.expected is not None:
        lead, word = status.expected, "expected"
    gain = lead.value - status.identity.value
    alive = status.alive
    if len(alive) > 1:
        speed = sum(worker.images_per_second for worker in alive)
        return f"{word} {gain:+.3f} over identity, {len(alive)} workers, {speed:.0f} img/s"
    speed = status.images / max(status.seconds, 1e-9)
    return f"{word} {gain:+.3f} over identity, {speed:.0f} img/s"
