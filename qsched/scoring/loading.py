"""The judges that `metrics` declares, loaded by name. Whatever fails is said in one line.

Weights are looked for in the caches first, without a request. Only where they lack something, and
where HF_HUB_OFFLINE allows it and the hub answers, is anything downloaded.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qsched.demo.captions import alternatives
from qsched.errors import HubError, ScoreError, causes, in_one_line
from qsched.hub import explain, offline
from qsched.pipelines.catalog import DEMO_FOLDER
from qsched.scoring.catalog import MetricEntry
from qsched.scoring.clip import ClipAlignment
from qsched.scoring.clip_models import LOADERS as CLIP_LOADERS
from qsched.scoring.clip_models import load_open_clip, load_open_clip_scorer
from qsched.scoring.similarity import load_similarity, pixel_closeness

PATIENCE = 10.0
"""Seconds in which the hub has to answer."""


class Attributes:
    """The share of a demo caption's attributes (object, colour, place ...) that an image shows.

    An attribute counts as shown if the alignment model prefers the caption to every caption that
    differs from it in this attribute alone.
    """

    def __init__(self, alignment: ClipAlignment) -> None:
        self._alignment = alignment

    def to(self, device: torch.device | str) -> None:
        """Moves the alignment model."""
        self._alignment.to(device)

    def __call__(self, images: Tensor, captions: Sequence[str], reference: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] and N demo captions -> (N,), in [0, 1]."""
        shown = self.shown(images, captions)
        return torch.tensor([sum(row.values()) / len(row) for row in shown])

    @torch.no_grad()
    def shown(self, images: Tensor, captions: Sequence[str]) -> list[dict[str, bool]]:
        """For each image, {attribute that its caption names: whether it is shown}."""
        features = F.normalize(self._alignment.image_features(images), dim=-1)
        variants = [alternatives(caption) for caption in captions]
        all_texts = [text for named in variants for texts in named.values() for text in texts]
        self._alignment.text_features(all_texts)  # in one go, which is what takes the time
        return [
            {name: self._prefers_first(image, texts) for name, texts in named.items()}
            for image, named in zip(features, variants, strict=True)
        ]

    def _prefers_first(self, image: Tensor, texts: Sequence[str]) -> bool:
        features = F.normalize(self._alignment.text_features(texts), dim=-1)
        return bool((features @ image).argmax() == 0)


class DemoQuality:
    """The demo's critic: how undamaged a picture looks."""

    def __init__(self, critic: Any) -> None:
        self._critic = critic
        self._device = torch.device("cpu")

    def to(self, device: torch.device | str) -> None:
        """Moves the critic."""
        self._device = torch.device(device)
        self._critic.to(self._device)

    def __call__(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """(N, 3, 64, 64) in [0, 1] -> (N,), in (0, 1)."""
        scores: Tensor = self._critic(images.to(self._device))
        return scores


def load_judge(entry: MetricEntry, *, twin: bool = False) -> Any:
    """The judge of an entry, in the computer's memory: a Scorer, or a Metric if it is held out.

    `twin`: a tiny random network in place of the real one, without any request. Raises ScoreError.
    """
    for module in entry.needs:
        if find_spec(module) is None:
            raise ScoreError(f"{entry.name}: {_missing(module, entry)}", entry.name)
    try:
        with _without_network():
            return _load(entry.name, twin)
    except ScoreError:
        raise
    except ImportError as error:
        problem = _missing(error.name, entry) if error.name else str(error)
        raise ScoreError(f"{entry.name}: {problem}", entry.name) from error
    except Exception as error:
        if twin or offline() or not _is_absence(error):
            raise ScoreError(f"{entry.name}: {_unloadable(error, entry)}", entry.name) from error
    silence = _silence()
    try:
        if silence and "pyiqa" not in entry.needs:
            raise silence
        # Some of pyiqa's files lie elsewhere than on the hub, whose client would try for a minute.
        with _without_network(but_pyiqa=True) if silence else nullcontext():
            return _load(entry.name, twin)
    except Exception as error:
        cause = silence if silence and _is_absence(error) else error
        raise ScoreError(f"{entry.name}: {_unloadable(cause, entry)}", entry.name) from error


def _load(name: str, twin: bool) -> Any:
    kind, _, rest = name.partition(":")
    if name in CLIP_LOADERS:
        return CLIP_LOADERS[name](twin=twin)
    if kind == "open_clip":
        return load_open_clip_scorer(rest, twin=twin)
    if kind == "pyiqa":
        from qsched.scoring.iqa import load_pyiqa

        return load_pyiqa(rest, twin=twin)
    if name == "clip-iqa":
        from qsched.scoring.iqa import load_clip_iqa

        return load_clip_iqa(twin=twin)
    return OWN_LOADERS[name]()


def _is_absence(error: BaseException) -> bool:
    """Whether a file is missing, rather than wrong."""
    return isinstance(error, HubError) or any(isinstance(one, OSError) for one in causes(error))


def _unloadable(error: BaseException, entry: MetricEntry) -> str:
    """Why weights can't be had or used, and what to do."""
    if not _is_absence(error):
        return f"{entry.source} can't be loaded: {in_one_line(error)}"
    problem = explain(error, entry.source, entry.download_gb)
    if "pyiqa" in entry.needs:
        problem += "; pyiqa's own files lie in torch's cache (TORCH_HOME)"
    return problem


def _silence() -> ConnectionError | None:
    """Why the hub does not answer; None if it does."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # noqa: BLE001 - whatever the HTTP client raises
        return ConnectionError(str(error))
    return None


@contextmanager
def _without_network(*, but_pyiqa: bool = False) -> Iterator[None]:
    """Nothing asks the hub meanwhile, and pyiqa, unless it may, nobody else."""
    from huggingface_hub import constants

    flag, variable = constants.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE")
    constants.HF_HUB_OFFLINE = True
    if not but_pyiqa:
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = flag
        if variable is not None:
            os.environ["HF_HUB_OFFLINE"] = variable
        elif not but_pyiqa:
            del os.environ["HF_HUB_OFFLINE"]


def _missing(module: str, entry: MetricEntry) -> str:
    """Which package is missing, and how to have it."""
    remedy = f"pip install 'qsched[{entry.extra}]'" if entry.extra else "reinstall qsched"
    if module == "pkg_resources":
        return f"pyiqa needs pkg_resources, which setuptools has until version 80; {remedy}"
    return f"the package {module} is missing; {remedy}"


def _demo_quality() -> DemoQuality:
    from qsched.demo.critic import load_critic

    return DemoQuality(load_critic())


OWN_LOADERS: Mapping[str, Callable[[], Any]] = {
    "demo-alignment": lambda: load_open_clip(DEMO_FOLDER / "alignment"),
    "demo-quality": _demo_quality,
    "attributes": lambda: Attributes(load_open_clip(DEMO_FOLDER / "alignment")),
    "similarity": load_similarity,
    "pixels": lambda: pixel_closeness,
}
"""What needs no download; its own twin."""
