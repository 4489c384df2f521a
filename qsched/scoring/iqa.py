"""Image quality without a reference: pyiqa's metrics, and the paper's CLIP-IQA on pyiqa's network.

pyiqa (PolyForm Noncommercial licence, in the extra `metrics`) has some fifty of them by name. Those
for which lower is better change their sign. They compute in the precision that pyiqa gives them,
because some of them are no networks; `CLIP-IQA` computes in half precision on a GPU.

Weights lie in torch's cache (`TORCH_HOME`) or the Hugging Face hub's (`HF_HOME`).
"""

import difflib
import functools
import hashlib
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qsched import hub
from qsched.errors import ScoreError
from qsched.libraries import quiet
from qsched.pipelines.twins import made
from qsched.plugins import may_run_others
from qsched.prompts import Prompt
from qsched.scoring.catalog import metric_entry
from qsched.scoring.clip import precision

QUALITY = ("Good photo.", "Bad photo.")
"""CLIP-IQA's "quality" pair (Wang et al. 2023), as torchmetrics and the Q-Sched code have it."""

RUNS_CODE = ("qalign*", "compare2score")
"""Metrics of pyiqa that have transformers run what a repository of the hub says."""

NO_WEIGHTS = ("piqe", "entropy")
"""Metrics of pyiqa that need no download."""


class NoReference:
    """A no-reference metric of pyiqa."""

    def __init__(self, metric: Any, *, lower_better: bool) -> None:
        self.direction = "minimize" if lower_better else "maximize"
        self._metric = metric
        self._device = torch.device("cpu")

    def prepare(self, device: torch.device) -> None:
        """Moves the metric."""
        self._device = device
        move(self._metric, self._device)

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N,). An image's score depends on nothing else."""
        with _same_random_numbers():
            values = self._metric(images.to(self._device).float().clamp(0, 1))
        scores: Tensor = values.float().reshape(len(images), -1).mean(dim=1)
        return scores


class ClipIqa:
    """CLIP-IQA with one pair of prompts: the softmax of exp(logit scale) * cosines, in [0, 1].

    Wang et al. 2023, eq. 2 and 3: a CLIP ResNet-50 without its position embedding, so that it sees
    images in their own size. `network`: pyiqa's CLIP; `prompts`: tokens of the good, then the bad.
    """

    direction = "maximize"

    def __init__(self, network: Any, prompts: Tensor, mean: Tensor, std: Tensor) -> None:
        self._network = network.eval().float()
        self._scale = network.logit_scale.exp().item()
        self._mean, self._std = mean, std
        with torch.no_grad():
            self._prompts = F.normalize(network.encode_text(prompts).float(), dim=-1)
        self._device = torch.device("cpu")

    def prepare(self, device: torch.device) -> None:
        """Moves the network."""
        self._device = device
        self._network.to(self._device, precision(self._device))

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N,)."""
        images = images.to(self._device).float()
        pixels = (images - self._mean.to(images)) / self._std.to(images)
        features = self._network.encode_image(pixels, pos_embedding=False).float()
        cosines = F.normalize(features, dim=-1) @ self._prompts.to(features).T
        likely: Tensor = (self._scale * cosines).softmax(dim=-1)
        return likely[:, 0]


def load_clip_iqa(*, twin: bool = False) -> ClipIqa:
    """CLIP-IQA with the "quality" pair."""
    with _loading():
        from pyiqa.archs.clip_imports import clip
        from pyiqa.archs.clipiqa_arch import CLIPIQA

        network = CLIPIQA(backbone=str(_twin_file() if twin else _openai_clip("RN50")))
    tokens = clip.tokenize(list(QUALITY))
    return ClipIqa(network.clip_model[0], tokens, network.default_mean, network.default_std)


def load_pyiqa(name: str, *, twin: bool = False) -> NoReference:
    """The no-reference metric `name` of pyiqa.

    `twin`: metrics that need a download are played by pyiqa's CLIP-IQA with a tiny random network.
    Raises ScoreError for a name that pyiqa does not know, and for metrics that compare images.
    """
    with _loading():
        from pyiqa import create_metric, list_models
        from pyiqa.default_model_configs import DEFAULT_CONFIGS

    entry = metric_entry(f"pyiqa:{name}")  # refuses in words those that are known not to fit
    if name not in DEFAULT_CONFIGS:
        near = difflib.get_close_matches(name, list_models("NR"), n=4, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise ScoreError(f"pyiqa:{name}: pyiqa has no such metric; {hint}", f"pyiqa:{name}")
    config = DEFAULT_CONFIGS[name]
    if config.get("metric_mode") != "NR":
        raise ScoreError(
            f"pyiqa:{name} compares with a reference image, which a trial has not; use one of "
            f"{', '.join(list_models('NR')[:8])} ...",
            f"pyiqa:{name}",
        )
    lower_better = bool(config.get("lower_better", False))
    cpu, trusted = torch.device("cpu"), twin or may_run_others(entry.name)
    if not trusted and any(fnmatchcase(name, pattern) for pattern in RUNS_CODE):
        raise ScoreError(
            f"{entry.name} runs code from the hub, of whoever may write there; it needs "
            f"--allow-code {entry.name}",
            entry.name,
        )
    with _loading(trusted=trusted), _only_weights(entry.name):
        if twin and name not in NO_WEIGHTS:
            metric = create_metric("clipiqa", device=cpu, backbone=str(_twin_file()))
        else:
            for network in entry.networks:
                if network.startswith("openai/"):
                    _openai_clip(network.removeprefix("openai/"))
                elif network.startswith("timm/"):
                    hub.fetch_file(network, "model.safetensors")
            metric = create_metric(name, device=cpu)
    return NoReference(metric, lower_better=lower_better)


def move(module: nn.Module, device: torch.device) -> None:
    """Moves a module, and those that pyiqa hides in lists from `Module.to`."""
    module.to(device)
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, list | tuple):
                for hidden in value:
                    if isinstance(hidden, nn.Module):
                        hidden.to(device)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Some metrics look at random crops: they see the same ones in every call."""
    state, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numbers)


@contextmanager
def _loading(*, trusted: bool = False) -> Iterator[None]:
    """pyiqa says nothing, and has its own files by `hub.fetch_url`, which asks nobody where
    HF_HUB_OFFLINE forbids it and never hangs. It unpickles them whole, by which a file can run
    anything: unless `trusted`, only weights are read. What it loads is told to `hub.noted`."""
    with quiet(), redirect_stdout(StringIO()):
        from pyiqa.utils import download_util

        load = torch.load if trusted else _load_weights
        with (
            _replaced(download_util, "download_url_to_file", _fetched),
            _replaced(torch, "load", _noting(load)),
            _replaced(torch.jit, "load", _noting(torch.jit.load)),
            _replaced(safetensors.torch, "load_file", _noting(safetensors.torch.load_file)),
        ):
            yield


def _noting(load: Callable[..., Any]) -> Callable[..., Any]:
    """A function that loads a file, given as a path or opened, and says which."""

    @functools.wraps(load)
    def loaded(file: Any, *arguments: Any, **named: Any) -> Any:
        place = file if isinstance(file, str | Path) else getattr(file, "name", None)
        if isinstance(place, str | Path):
            hub.note(Path(place))
        return load(file, *arguments, **named)

    return loaded


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


_torch_load = torch.load


def _load_weights(*arguments: Any, **named: Any) -> Any:
    """torch.load of weights alone, whatever the caller would take."""
    return _torch_load(*arguments, **named | {"weights_only": True})


@contextmanager
def _only_weights(name: str) -> Iterator[None]:
    try:
        yield
    except UnpicklingError as error:
        raise ScoreError(
            f"{name}: its file holds more than weights, so that loading it can run anything; "
            f"--allow-code {name} loads it all the same",
            name,
        ) from error


def _fetched(url: str, place: str, *options: Any, **named: Any) -> None:
    """What pyiqa calls to download a file; it keeps it in torch's cache (`TORCH_HOME`)."""
    hub.fetch_url(url, Path(place))


def _openai_clip(name: str) -> Path:
    """The file of a CLIP model of OpenAI, such as RN50 or ViT-B-32, where pyiqa keeps it."""
    from pyiqa.archs.clip_model import _MODELS

    url = _MODELS[name.replace("-B-", "-B/").replace("-L-", "-L/")]
    file = hub.fetch_url(url, Path(torch.hub.get_dir()) / "clip" / Path(url).name)
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != Path(url).parent.name:
            raise ScoreError(f"{file} is not OpenAI's {name}, by its digest; remove the file")
    return file


def _twin_file() -> Path:
    return made("pyiqa-clip", _make_clip) / "clip.pt"


def _make_clip(folder: Path) -> None:
    """A tiny CLIP ResNet in the format of OpenAI's files."""
    from pyiqa.archs.clip_model import CLIP

    network = CLIP(
        embed_dim=32,
        image_resolution=64,
        vision_layers=(1, 1, 1, 1),
        vision_width=8,
        vision_patch_size=None,
        context_length=77,
        vocab_size=49408,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=1,
    )
    with torch.no_grad():
        network.logit_scale.fill_(np.log(100))
        for name, parameter in network.named_parameters():
            if name.endswith("bn3.weight"):
                parameter.fill_(1.0)  # pyiqa starts from zero: images would hardly differ
    example = (torch.zeros(1, 3, 64, 64), torch.zeros(1, 77, dtype=torch.int64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have another format
        traced: Any = torch.jit.trace(network.eval(), example)
        traced.save(folder / "clip.pt")
