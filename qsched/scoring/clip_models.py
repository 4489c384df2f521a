"""The CLIP models of the scorers by name: published checkpoints, and tiny twins of them.

Weights are fetched from the Hugging Face hub, once, into its cache (`HF_HOME`), and loaded from
there. Loaders raise what the libraries raise; `loading` says it in one line.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file

from qsched.errors import HubError, ScoreError, causes
from qsched.hub import fetch_file, fetch_files, fetch_url, note
from qsched.libraries import quiet
from qsched.pipelines.twins import made
from qsched.pipelines.twins.text import clip_words
from qsched.scoring.catalog import HPS_WEIGHTS, PICKSCORE_PROCESSOR, PICKSCORE_WEIGHTS
from qsched.scoring.clip import (
    AqMap,
    ClipAlignment,
    ClipEncoder,
    OpenClipTowers,
    Preprocess,
    TransformersTowers,
    preprocess_of,
)

SCENE_TEMPLATES = (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
"""What AQ-Map's ensemble adds to the 80 ImageNet templates that OpenAI published with CLIP."""

_PREPROCESS = ("mean", "std", "interpolation", "resize_mode")
"""What open_clip's table says of a tag's images."""

_TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json")
"""The files of a tokenizer of transformers."""


def load_clipscore(*, twin: bool = False) -> ClipAlignment:
    """CLIPScore under OpenAI's CLIP ViT-L/14."""
    found = _open_clip(_twin("clipscore")) if twin else _open_clip("ViT-L-14", "openai")
    return ClipAlignment(*found)


def load_aq_map(*, twin: bool = False) -> AqMap:
    """AQ-Map's alignment score under OpenAI's CLIP ViT-B/16."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    noun_templates = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    found = _open_clip(_twin("aq-map")) if twin else _open_clip("ViT-B-16", "openai")
    return AqMap(ClipEncoder(*found), [*noun_templates, *SCENE_TEMPLATES])


def load_hps(*, twin: bool = False) -> ClipAlignment:
    """HPSv2.1: the cosine under its ViT-H-14. It pads images that are not square."""
    import open_clip

    if twin:
        architecture, checkpoint = _twin("hpsv2.1"), _twin_folder("hpsv2.1") / "hps.pt"
    else:
        architecture = "ViT-H-14"
        checkpoint = _pinned(HPS_WEIGHTS)
    with quiet():
        network = open_clip.create_model(architecture, load_weights=False)
        open_clip.load_checkpoint(network, str(checkpoint))
        towers = OpenClipTowers(network, open_clip.get_tokenizer(architecture))
    config = {**network.visual.preprocess_cfg, "resize_mode": "longest"}
    return ClipAlignment(towers, preprocess_of(config, architecture), scale=1.0, floor=None)


def load_pickscore(*, twin: bool = False) -> ClipAlignment:
    """PickScore: the cosine times the model's own logit scale."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    if twin:
        folder = made("pickscore", _make_pickscore)
        model, processor = folder / "model", folder / "processor"
    else:
        model = _pinned(PICKSCORE_WEIGHTS, "config.json").parent
        processor = _pinned(PICKSCORE_PROCESSOR, *_TOKENIZER).parent
    with quiet():
        network = CLIPModel.from_pretrained(model, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(processor)
        images = CLIPImageProcessor.from_pretrained(processor)
    preprocess = Preprocess(
        images.crop_size["height"], tuple(images.image_mean), tuple(images.image_std)
    )
    scale = network.logit_scale.exp().item()
    towers = TransformersTowers(network, tokenizer)
    return ClipAlignment(towers, preprocess, scale=scale, floor=None)


def load_open_clip_scorer(name: str, *, twin: bool = False) -> ClipAlignment:
    """CLIPScore under another model of open_clip; `name`: what a study file has after `open_clip:`.

    A local folder is its own twin. Raises ScoreError for a model or a tag that open_clip does not
    know, with the nearest ones.
    """
    import open_clip

    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise ScoreError(
                f"open_clip:{name}: no open_clip_config.json there; expected a folder with a model "
                "as open_clip pushes it to the hub",
                f"open_clip:{name}",
            )
        return ClipAlignment(*_open_clip(name))
    if name.startswith("hf-hub:"):
        place = _twin(name) if twin else _repository(name.removeprefix("hf-hub:"))
        return ClipAlignment(*_open_clip(place))
    model, _, tag = name.partition("/")
    _known(model, open_clip.list_models(), "model", f"open_clip:{name}")
    if not Path(tag).is_file():
        tags = open_clip.list_pretrained_tags_by_model(model)
        _known(tag, tags, f"pretrained tag of {model}", f"open_clip:{name}")
    return ClipAlignment(*(_open_clip(_twin(name)) if twin else _open_clip(model, tag)))


def load_open_clip(folder: Path) -> ClipAlignment:
    """The demo's alignment model: a folder of its config, weights and vocabulary, in float32.

    Raises ScoreError for a file that is missing.
    """
    import open_clip

    weights = folder / "open_clip_model.safetensors"
    if not weights.is_file():
        raise ScoreError(f"{weights}: missing; reinstall qsched")
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    shape, normalise = config["model_cfg"], config["preprocess_cfg"]
    network = open_clip.CLIP(**shape)
    network.load_state_dict({name: one.float() for name, one in load_file(weights).items()})
    tokenizer = open_clip.tokenizer.SimpleTokenizer(
        bpe_path=str(folder / "bpe.txt.gz"), context_length=shape["text_cfg"]["context_length"]
    )
    return ClipAlignment(
        OpenClipTowers(network, tokenizer),
        Preprocess(
            shape["vision_cfg"]["image_size"], tuple(normalise["mean"]), tuple(normalise["std"])
        ),
        half=False,
    )


def _open_clip(model: str, tag: str | None = None) -> tuple[OpenClipTowers, Preprocess]:
    """A model of open_clip with its weights: by name and tag or file, or by scheme:place."""
    import open_clip

    # OpenAI's models use another GELU. Their tag says so; the plain architecture does not, and
    # open_clip only warns of it.
    config = open_clip.get_pretrained_cfg(model, tag) if tag else {}
    weights = tag if tag is None or Path(tag).is_file() else str(_weights(config))
    with quiet():
        network = open_clip.create_model(
            model,
            pretrained=weights,
            force_quick_gelu=bool(config.get("quick_gelu")),
            force_preprocess_cfg={key: config[key] for key in _PREPROCESS if key in config},
            require_pretrained=True,
        )
        tokenizer = open_clip.get_tokenizer(model)
    return OpenClipTowers(network, tokenizer), preprocess_of(network.visual.preprocess_cfg, model)


def _weights(config: Mapping[str, Any]) -> Path:
    """The file of a pretrained tag, by open_clip's table of them. Raises HubError."""
    if "file" in config:
        return note(Path(config["file"]))
    repository, _, name = config.get("hf_hub", "").rpartition("/")
    if repository:
        return fetch_file(repository, name) if name else _checkpoint(repository)
    url = config["url"]
    return fetch_url(url, Path.home() / ".cache" / "clip" / Path(url).name)


def _checkpoint(repository: str) -> Path:
    """The weights of a repository of open_clip's: safetensors, or what older ones have."""
    try:
        return fetch_file(repository, "open_clip_model.safetensors")
    except HubError as error:
        if not any(isinstance(each, EntryNotFoundError) for each in causes(error)):
            raise
        return fetch_file(repository, "open_clip_pytorch_model.bin")


def _pinned(source: str, *beside: str) -> Path:
    """The file of OWNER/NAME@REVISION/FILE, once those of the names `beside` it are here too."""
    place, _, file = source.rpartition("/")
    repository, _, revision = place.partition("@")
    return fetch_files(repository, (file, *beside), revision=revision) / file


def _repository(repository: str) -> str:
    """open_clip's name of a repository on the hub, once its files are here."""
    config = fetch_file(repository, "open_clip_config.json")
    _checkpoint(repository)
    text = json.loads(config.read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
    if text.get("hf_tokenizer_name"):
        fetch_files(repository, _TOKENIZER)
    return f"local-dir:{config.parent}"


def _known(name: str, names: Sequence[str], kind: str, where: str) -> None:
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=4, cutoff=0.4) or sorted(names)[:8]
    raise ScoreError(f"{where}: open_clip has no {kind} {name!r}; it has {', '.join(near)}", where)


def _twin(name: str) -> str:
    """open_clip's name of a tiny random model that stands in for `name`."""
    return f"local-dir:{_twin_folder(name)}"


def _twin_folder(name: str) -> Path:
    return made(f"open_clip-{re.sub(r'[^A-Za-z0-9.+-]', '_', name)}", _make_open_clip)


def _make_open_clip(folder: Path) -> None:
    """A model in open_clip's format, and its weights once more as HPSv2's checkpoint has them.

    All features share a direction, so that cosines are far above zero, as those of real models are.
    """
    import open_clip

    tower = {"width": 32, "layers": 2}
    shape: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {**tower, "image_size": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {**tower, "context_length": 77, "vocab_size": 49408, "heads": 2},
    }
    network = open_clip.CLIP(**shape)
    with torch.no_grad():
        for norm, projection in (
            (network.visual.ln_post, network.visual.proj),
            (network.ln_final, network.text_projection),
        ):
            norm.bias.fill_(0.5)
            projection.copy_(torch.randn_like(projection).abs())
    weights = {name: one.half().contiguous() for name, one in network.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    torch.save({"state_dict": weights}, folder / "hps.pt")
    config = {"model_cfg": shape, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def _make_pickscore(folder: Path) -> None:
    """A CLIPModel of transformers, and the processor that lies elsewhere, as PickScore's does."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    words = clip_words(folder / "words")
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2, "projection_dim": 16}
    text = {**tower, "vocab_size": len(words), "max_position_embeddings": 77}
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    config = CLIPConfig(
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        text_config={**text, **ends, "pad_token_id": words.eos_token_id},
        projection_dim=16,
    )
    network = CLIPModel(config)
    with torch.no_grad():
        for projection in (network.visual_projection, network.text_projection):
            torch.nn.init.normal_(projection.weight)
        for norm in (network.vision_model.post_layernorm, network.text_model.final_layer_norm):
            torch.nn.init.normal_(norm.bias)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    with quiet():
        network.save_pretrained(folder / "model")
        words.save_pretrained(folder / "processor")
        images.save_pretrained(folder / "processor")
