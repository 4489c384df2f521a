"""The verbs of qsched as Python functions: what the command line calls.

outcome = run("studies/demo.toml")
outcome.verdict, outcome.sentence, outcome.coefficients, outcome.folder
"""

import functools
import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from qsched import hub
from qsched.captions import read_captions
from qsched.errors import ConfigError, OutputError, QschedError, StudyError
from qsched.files import outputs
from qsched.libraries import quiet
from qsched.pipelines.catalog import TWIN_SIDE, model_entry
from qsched.pipelines.effective import effective
from qsched.pipelines.table import LOCAL, Execution, Model, Sampling, model_named, sampling_of
from qsched.prompts import choose, locate, with_seeds
from qsched.proof import comparison, outcome
from qsched.proof import controls as companions
from qsched.proof.comparison import Comparison
from qsched.proof.outcome import Proof, Verdict
from qsched.quantization.schemes import Scheme
from qsched.quantization.table import Quantization
from qsched.report import artifacts, gallery, writing
from qsched.report import compare as comparisons
from qsched.report import preview as previews
from qsched.report.export import coefficients_of
from qsched.report.writing import Part
from qsched.schedule.coefficients import Coefficients
from qsched.scoring.catalog import metric_entry
from qsched.search.table import gauge_images
from qsched.seeds import digest
from qsched.service import launchers
from qsched.service.status import Status
from qsched.service.storage import Storage
from qsched.service.stored_study import StoredStudy, create, load
from qsched.study import packages
from qsched.study.study import Study, is_file, load_study
from qsched.tables import checked

if TYPE_CHECKING:
    from qsched.pipelines.generator import ImageGenerator
    from qsched.service.interrupts import Interrupts

__all__ = [
    "Observer",
    "Outcome",
    "compare",
    "cost",
    "create",
    "generate",
    "load",
    "load_study",
    "preview",
    "push",
    "run",
    "take_away",
    "validate",
    "work",
    "write_report",
]


EMPTY_DATABASE, BYTES_A_SCORE = 4_500_000, 110
"""What SQLite takes on disk: all tables and the write-ahead log, and a score with its index."""


LISTEN_SECONDS = 0.1
"""How often it is looked whether a signal came."""

STATUS_SECONDS = 0.5
"""A worker looks at the whole study no more often than this."""

Subject = TypeVar("Subject", bound=Study | StoredStudy)
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def _with_plugins(
    verb: Callable[Concatenate[Subject, Parameters], Result],
) -> Callable[Concatenate[Subject, Parameters], Result]:
    """The verb, with the plug-ins found that lie beside the file of its study."""

    @functools.wraps(verb)
    def called(study: Subject, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        definition = study if isinstance(study, Study) else study.definition
        with definition.code():
            return verb(study, *args, **kwargs)

    return called


class Observer:
    """Told what happens while a study runs; every method does nothing here. Override some."""

    def extended(self, asked: int, budget: int) -> None:
        """The study has a larger budget than was asked for: it was extended."""

    def changed(self, settings: Mapping[str, tuple[Any, Any]]) -> None:
        """A study that was there took settings that no score depends on: {key: (before, now)}."""

    def loading(self, what: str) -> None:
        """Something slow is being loaded."""

    def network(self, summary: str) -> None:
        """The network was quantized; what share of it."""

    def tested(self, sentence: str) -> None:
        """The pipeline was tested, and nothing had to be switched off."""

    def gauge(self, sentence: str) -> None:
        """The gauge was measured by this worker; what was found."""

    def working(self, status: Status) -> None:
        """Before the first trial, and after each finished one."""

    def batch(self, slot: int, scored: int, prompts: int) -> None:
        """A batch of a trial was committed: `scored` of its `prompts`."""

    def waiting(self, status: Status) -> None:
        """Nothing is free: the study is paused, or other workers hold the last trials."""

    def stopping(self, grace: float) -> None:
        """A signal came: the batch in hand is finished, or as much of its trial as fits into
        `grace` seconds; another one gives it back at once. Called from a thread of its own."""

    def control(self, study: str, what: str) -> None:
        """A control, a companion study, is being worked on next; what it is."""

    def validating(self, images: int, of: int) -> None:
        """`images` of the held-out images are made."""


@dataclass(frozen=True, repr=False)
class Outcome:
    """What a run ends with. `finished`: the budget is spent; else a signal stopped it before.

    `grid_images`: what the official 50 x 50 grid takes on the same prompts. `validation`: what was
    proven, and all that was measured for it.
    """

    status: Status
    finished: bool
    grid_images: int
    folder: Path | None = None
    validation: Proof | None = None

    def __repr__(self) -> str:
        """Short: its fields have all."""
        stopped = f"stopped after {self.status.done} of {self.status.budget} trials"
        said = f"{self.verdict}: {self.sentence}" if self.validation else stopped
        return f"<Outcome of {self.status.study!r}: {said}>"

    def _repr_html_(self) -> str:
        return (self.validation or self.status)._repr_html_()

    @property
    def verdict(self) -> Verdict | None:
        """improved, not_shown, worse or suspicious; None if it was stopped before."""
        return self.validation.verdict if self.validation else None

    @property
    def sentence(self) -> str | None:
        """The verdict in one sentence."""
        return self.validation.sentence if self.validation else None

    @property
    def coefficients(self) -> Coefficients | None:
        """What may be taken away."""
        return self.validation.coefficients if self.validation else None


def run(
    study: Study | str | Path | Mapping[str, Any],
    *,
    storage: Storage | str | None = None,
    workers: int = 1,
    accept: Collection[str] = (),
    out: str | Path | None = None,
    observer: Observer | None = None,
) -> Outcome:
    """Creates or resumes a study, works until its budget is spent, validates and reports.

    `study`: a study file's path, its tables as a dict, a name in the database, or what `load_study`
    returned. One that is extended in the meantime goes on. `storage`: a URL; None is the default.
    `workers`: so many processes, started by the study's launcher; the local one puts them
    on this machine, one after the other on its GPUs. `accept`: keys of the fingerprint that may
    differ. `out`: the folder of the results, by default runs/<study>. Raises QschedError.
    """
    observer = observer or Observer()
    if isinstance(study, Mapping) or (not isinstance(study, Study) and is_file(study)):
        study = load_study(study)
    database = storage if isinstance(storage, Storage) else Storage(storage)
    definition = study if isinstance(study, Study) else load(database, str(study)).definition
    name = definition.tables.execution.launcher
    with definition.code():
        launcher = launchers.launcher_named(name) if workers > 1 or name != LOCAL else None
    packages.require(definition)
    new = database.study(definition.name) is None
    stored = create(database, definition, accept=accept, on_change=observer.changed)
    try:
        return _worked(stored, workers, launcher, accept, out, observer)
    except Exception:
        if new:
            _withdraw(stored)
        raise


def _withdraw(study: StoredStudy) -> None:
    """Removes a study whose start has failed: nobody ever began a trial of it."""
    with suppress(QschedError):
        if not any(slot.attempt for slot in study.slots()):
            study.delete()


def _worked(
    stored: StoredStudy,
    workers: int,
    launcher: launchers.Launcher | None,
    accept: Collection[str],
    out: str | Path | None,
    observer: Observer,
) -> Outcome:
    """Works on a study until its budget is spent and its result is proven, or a signal stops it."""
    definition, folder = stored.definition, outputs.ready(_folder(stored, out))
    budget = stored.status().budget
    if budget > definition.trials:
        observer.extended(definition.trials, budget)
    while True:
        if launcher:
            finished = _by_crew(stored, workers, launcher, folder / "workers", accept, observer)
        else:
            finished = work(stored, accept=accept, observer=observer)
        if not finished:
            return Outcome(stored.status(), False, outcome.grid_images(definition))
        if stored.status().complete:
            result = validate(stored, accept=accept, out=folder, observer=observer)
            if stored.status().complete or not result.finished:
                return result


def _by_crew(
    study: StoredStudy,
    workers: int,
    launcher: launchers.Launcher,
    logs: Path,
    accept: Collection[str],
    observer: Observer,
) -> bool:
    """Works with several processes until the budget is spent; False if a signal stopped them.

    Raises StudyError, with the last line of a worker that failed, if none is left and there is work
    to do.
    """
    status = study.status()
    observer.working(status)
    if status.complete:
        return True
    anywhere = study.definition.tables.execution.device == "auto"
    accepted = [word for key in accept for word in ("--accept", key)]
    options = ("--idle-exit", "--grace", "0", "--log", str(logs), *accepted)
    crew = launchers.crew_of(study, workers, logs, *options, spread=anywhere)
    ended = launchers.work(
        study,
        crew,
        launcher,
        on_look=observer.working,
        on_stop=lambda: observer.stopping(0.0),
    )
    if ended.stopped:
        return False
    status = study.status()
    observer.working(status)
    if not status.complete:
        raise StudyError(
            f"study {study.name!r}: all {workers} workers ended and {status.waiting} trials wait; "
            f"{launchers.last_words(crew, ended.failed or 0)}"
        )
    return True


@_with_plugins
def cost(study: Study) -> dict[str, float]:
    """What a study will take at the most; the first network call of a prompt is made once."""
    prompts, steps = len(study.calibration), study.tables.sampling.steps
    plan, space = study.plan, study.parametrisation
    searched = space.dimension - len(space.pinned)
    measuring = gauge_images(searched, prompts) if plan else 0
    images = plan.images(study.trials) if plan else study.trials * prompts
    whole = len(plan.last(study.trials)) == 0 if plan else True
    candidates = study.tables.validation.candidates if whole else 1
    return {
        "trials": study.trials,
        "prompts": prompts,
        "prompts_per_trial": min(plan.per_trial, prompts) if plan else prompts,
        "images": images + measuring,
        "network_calls": prompts + (images + measuring) * (steps - 1),
        "held_out_images": (candidates + 3) * len(study.held_out),
        "grid_images": outcome.grid_images(study),
        "download_gb": _download_gb(study),
        "gpu_gb": model_entry(study.tables.model.name).gpu_gb,
        "disk_bytes": EMPTY_DATABASE + BYTES_A_SCORE * images * len(study.scorers),
    }


def _download_gb(study: Study) -> float:
    """The model, the scorers and the held-out metrics."""
    scorers = {*study.scorers, *study.tables.validation.metrics}
    sizes = [metric_entry(name).download_gb for name in scorers]
    return round(model_entry(study.tables.model.name).download_gb + sum(sizes), 1)


@_with_plugins
def work(
    study: StoredStudy,
    *,
    device: str | None = None,
    max_trials: int | None = None,
    stay: bool = False,
    grace: float = 0.0,
    accept: Collection[str] = (),
    observer: Observer | None = None,
) -> bool:
    """Works on a study as one worker; False if a signal stopped it before the end.

    `device`: another one than the study's. `max_trials`: stops after so many. `stay`: waits for
    more when the budget is spent. `grace`: seconds for the trial in hand after a signal. `accept`:
    keys of the fingerprint that may differ here. Raises QschedError, and StudyGone among it if the
    study is deleted in the meantime.
    """
    observer = observer or Observer()
    study.require_agreement(accept)
    status = study.status()
    observer.working(status)
    if status.complete and not stay:
        return True
    observer.loading("the model, the scorers")
    with quiet():
        from qsched.pipelines.devices import PeakMemory, device_for, hardware
        from qsched.pipelines.generator import ImageGenerator
        from qsched.pipelines.loading import load_model
        from qsched.scoring.scorers import load_scorers
        from qsched.service.evaluator import Evaluator
        from qsched.service.worker import Worker

    definition, tables = study.definition, study.definition.tables
    execution = tables.execution.model_copy(update={"device": device} if device else {})
    where, twin = device_for(tables.model, execution), tables.model.twin
    # What can't be had is an error now, not at the first image and not at the end.
    pictures = gallery.Gallery(study)
    scorers = load_scorers(definition.scorers, where, twin=twin)
    metrics = load_scorers(tables.validation.metrics, twin=twin)
    study.require_weights({**scorers.weights, **metrics.weights}, accept)
    del metrics
    loaded = load_model(tables.model, tables.quantization, execution=execution)
    observer.network(loaded.summary)
    generator = ImageGenerator(
        loaded.pipeline,
        tables.sampling,
        part=tables.model.part,
        batch_size=execution.batch_size,
    )
    settings = execution.model_dump(include={"offload", "vae_slicing"})
    _prepare(generator, study, hardware(where) | settings)
    if generator.tested and not generator.tested.off:  # which it has warned of
        observer.tested(generator.tested.sentence)
    shown = 0.0

    def on_trial() -> None:
        nonlocal shown
        if time.monotonic() - shown > STATUS_SECONDS:
            observer.working(study.status())
            shown = time.monotonic()

    worker = Worker(
        study,
        Evaluator(
            generator,
            scorers,
            definition.calibration,
            measures={"peak_memory_gb": PeakMemory(where)},
        ),
        hardware=hardware(where),
        grace=grace,
        on_batch=observer.batch,
        on_gauge=lambda gauge: observer.gauge(gauge.sentence),
        on_trial=on_trial,
        on_wait=lambda: observer.waiting(study.status()),
        gallery=pictures,
    )
    try:
        with _announced(worker.interrupts, lambda: observer.stopping(grace)):
            finished = worker.run(max_trials=max_trials, stay=stay)
    finally:
        gallery.publish(study)
    observer.working(study.status())
    return finished


@contextmanager
def _announced(interrupts: "Interrupts", say: Callable[[], None]) -> Iterator[None]:
    """While the context lasts, `say` is called once soon after a signal came, whose handler does no
    more than to set a flag, and long before the batch in hand is over."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LISTEN_SECONDS):
            if interrupts.asked:
                say()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _prepare(
    generator: "ImageGenerator", study: StoredStudy, conditions: Mapping[str, Any]
) -> None:
    """Readies a worker's generator by what a self-test found before under the same fingerprint,
    that of this machine, and the same hardware and settings; else what it finds now is stored."""
    from qsched.pipelines.self_test import SelfTest

    here = study.definition.here().fingerprint(read=False)
    key = digest(json.dumps(here, sort_keys=True))
    stored = study.storage.self_test(key, conditions)
    try:
        known = SelfTest.from_dict(stored) if stored else None
    except (TypeError, ValueError):  # what else may stand in a database
        known = None
    generator.prepare(study.definition.calibration, known)
    if generator.tested not in (None, known):
        study.storage.keep_self_test(key, conditions, generator.tested.to_dict())


@_with_plugins
def validate(
    study: StoredStudy,
    *,
    controls: Collection[str] = (),
    accept: Collection[str] = (),
    out: str | Path | None = None,
    observer: Observer | None = None,
) -> Outcome:
    """Proves or refutes the best candidates on held-out prompts, and writes the results to `out`.

    `controls`: names of `qsched.proof.controls.phrases`, or `all`: companion studies in the same
    database, made and worked first; a signal stops that, and the same call goes on from there.
    Those whose search is done are in every later validation. `accept`: keys of the fingerprint that
    may differ here. Raises StudyError if the budget isn't spent, nothing has been scored, or a
    control can't be had, and StudyGone if the study is deleted in the meantime.
    """
    observer = observer or Observer()
    study.require_agreement(accept)
    status = study.status()
    if status.done + status.parked < status.budget or status.identity is None:
        raise StudyError(
            f"study {study.name!r}: {status.done} of {status.budget} trials are done; "
            f"finish it first with qsched run"
        )
    folder = outputs.ready(_folder(study, out))
    for name in companions.chosen(study.definition, controls):
        companion = companions.companion(study, name, accept)
        observer.control(companion.name, companions.phrases(study.definition)[name])
        if not work(companion, observer=observer):
            return Outcome(companion.status(), False, outcome.grid_images(study.definition))
    with quiet():
        from qsched.proof import validation

    candidates = companions.candidates(study, study.definition.tables.validation.candidates)
    ready = companions.ready(study)
    total, made = validation.image_sets(candidates, ready) * len(study.definition.held_out), 0

    def on_images(images: int) -> None:
        nonlocal made
        made += images
        observer.validating(made, total)

    observer.validating(0, total)
    proof, pictures = validation.validate(
        study.definition,
        study.objective(),
        Proof.pending(study.definition, status),
        status.identity,
        candidates,
        ready,
        on_images=on_images,
        on_weights=lambda weights: study.require_weights(weights, accept),
    )
    if proof.best:
        proof = replace(proof, expected=study.expected(proof.best.slot))
    artifacts.conclude(study, proof, pictures)
    try:
        writing.write(folder, study, ~Part(0), pictures=pictures)
    except OutputError as error:
        raise OutputError(
            f"{error}; the verdict is stored: qsched report {study.name} and qsched export "
            f"{study.name} write it later"
        ) from error
    gallery.publish(study)
    return Outcome(status, True, proof.grid_images, folder, proof)


@_with_plugins
def take_away(study: StoredStudy, folder: str | Path, *, force: bool = False) -> list[Path]:
    """Writes coefficients.json, scheduler/ and README.md of a validated study; returns their paths.

    What is not proven isn't published: without the verdict `improved` the identity is written.
    `force` writes the best candidate all the same, and all three say so. Raises StudyError before
    the first validation.
    """
    return writing.write(Path(folder), study, Part.EXPORT, force=force).paths[Part.EXPORT]


def push(
    paths: Sequence[Path], folder: str | Path, repository: str, *, public: bool = False
) -> str:
    """Puts what `take_away` wrote to `folder` into a repository of the Hugging Face hub, and no
    other file; the address of the commit. A repository that isn't there is made, private unless
    `public`. Raises HubError."""
    names = [path.relative_to(folder).as_posix() for path in paths]
    return hub.push(repository, Path(folder), names, private=not public)


@_with_plugins
def preview(study: Study, out: str | Path | None = None) -> tuple[list[Path], dict[str, Any]]:
    """Draws the first four captions, full precision beside quantized, and says how they look.

    Writes preview.png and preview.html to `out`, by default runs/<study>; their paths, and what was
    found. Touches no database. Raises QschedError.
    """
    with quiet():
        from qsched.proof.preview import draw

    folder = outputs.ready(Path(out or Path("runs") / study.name).resolve())
    found = draw(study)
    paths = previews.write(folder, study, found.pictures, found.impressions, found.network)
    drawn = effective(study.tables.model, study.tables.sampling)
    return paths, {
        "study": study.name,
        "sentence": previews.sentence_of(study, found.impressions),
        "captions": found.pictures.captions,
        "effective": drawn.to_dict(),
        "network": found.network,
        "networks": {name: each.to_dict() for name, each in found.impressions.items()},
        "doubts": previews.doubts_of(found.impressions),
        "files": [str(path) for path in paths],
    }


@_with_plugins
def write_report(study: StoredStudy, folder: str | Path) -> tuple[list[Path], dict[str, Any]]:
    """Writes report.html and report.json of a study by what its database and artifacts hold; their
    paths, and the content of report.json. Before the validation it says that nothing is proven."""
    folder = outputs.ready(Path(folder))
    paths, proof = writing.write(folder, study, Part.PAGE)
    return paths[Part.PAGE], proof.report()


def compare(
    studies: Sequence[StoredStudy], out: str | Path | None = None
) -> tuple[Path, Comparison]:
    """Sets validated studies of the same held-out prompts beside the first of them: paired
    differences with their intervals, and compare.html with pictures side by side in `out`, by
    default runs/compare; its path, and what was compared. Draws and scores nothing. Raises
    StudyError.
    """
    found = comparison.compare(studies)
    folder = outputs.ready(Path(out or Path("runs") / "compare").resolve())
    kept = {
        study.name: artifacts.kept(study, each.proof)
        for study, each in zip(studies, found.studies, strict=True)
    }
    return comparisons.write(folder, found, kept), found


def generate(
    model: str,
    prompts: str | Path,
    out: str | Path,
    *,
    coefficients: str | Path | None = None,
    steps: int | None = None,
    quantization: str | None = None,
    count: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    twin: bool = False,
) -> tuple[Iterator[int], int]:
    """An iterator that makes the missing images of a set a batch at a time, and how many batches.

    `model`: a model's name, a folder, a hub repository, ``module:function``, or a study file, whose
    model, sampling and quantization are taken. `prompts`: a file of any kind that a study may name,
    or one on the hub; `count` of its captions in a seeded order, by default all in theirs.
    `coefficients`: a coefficients.json; without it the unmodified schedule of `steps` steps.

    Raises QschedError before the first image; `pipelines.image_sets` says what is written to `out`.
    """
    with quiet():
        from qsched.pipelines.image_sets import write_image_set

    found = coefficients_of(Path(coefficients)) if coefficients else None
    table, sampling, scheme = _settings(model, found.steps if found else steps, quantization, twin)
    for asked in (sampling.steps, steps):
        if found and asked not in (None, found.steps):
            raise ConfigError(
                f"{coefficients}: for {found.steps} steps, and {asked} are asked for; "
                f"take {found.steps} steps or other coefficients"
            )
    captions = read_captions(locate(str(prompts), Path(), where="--prompts"))
    chosen = choose(captions, count, seed=seed, where=str(prompts))
    return write_image_set(
        Path(out),
        with_seeds(chosen, seed=seed, split="images"),
        found or Coefficients.identity(sampling.steps),
        model=table,
        sampling=sampling,
        quantization=scheme,
        execution=checked(Execution, {"batch_size": batch_size}),
    )


def _settings(
    model: str, steps: int | None, quantization: str | None, twin: bool
) -> tuple[Model, Sampling, Quantization | None]:
    """What to load and how to sample it, from a study file or from the catalog."""
    chosen = Quantization(scheme=Scheme.parse(quantization).name) if quantization else None
    if model.endswith(".toml"):
        study = load_study(model, fetch=False)
        tables = (study.twin() if twin else study).tables
        return tables.model, tables.sampling, chosen or tables.quantization
    if steps is None:
        raise ConfigError("the number of steps is missing; pass --steps or --coefficients")
    table = model_named(model, steps)
    sampling = sampling_of(model, checked(Sampling, {"steps": steps}))
    if twin:
        table = table.model_copy(update={"twin": True, "dtype": "float32"})
        sampling = sampling.model_copy(update={"height": TWIN_SIDE, "width": TWIN_SIDE})
    return table, sampling, chosen


def _folder(study: StoredStudy, out: str | Path | None) -> Path:
    """Where a study's results go."""
    return Path(out or Path("runs") / study.name).resolve()
