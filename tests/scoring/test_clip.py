"""CLIP scorers beside the code of others on the same weights; tiny random ones, nothing is fetched.

What is compared: torchmetrics' CLIPScore and transformers' CLIP, with the weights of open_clip
copied over; open_clip's own preprocessing; HPSv2's and PickScore's published formulas; AQ-Map's
formula written out.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from qsched.errors import ScoreError
from qsched.libraries import quiet
from qsched.pipelines.catalog import DEMO_FOLDER
from qsched.pipelines.twins import made
from qsched.prompts import Prompt
from qsched.scoring import clip, clip_models
from qsched.scoring.catalog import metric_entry
from qsched.scoring.clip import AqMap, ClipAlignment, ClipEncoder, OpenClipTowers, Preprocess
from qsched.scoring.clip_models import (
    load_open_clip,
    load_open_clip_scorer,
    load_pickscore,
)
from qsched.scoring.loading import load_scorer
from qsched.scoring.scorers import load_scorers

LONG = "a photograph of a red fox beside a tall house in the snow, " * 20
CAPTIONS = ["a red fox", "An owl & a HOUSE, on snow!", "", LONG]
ROUNDING = 0.02
"""What rounding a resized image to 8 bits may change of a score of 100 (torchmetrics does)."""


def smooth(height: int, width: int, count: int = 4) -> Tensor:
    """Images such as a file would hold: smooth, in whole grey levels."""
    generator = torch.Generator().manual_seed(height * width)
    coarse = torch.rand(count, 3, 7, 7, generator=generator)
    fine = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    return (fine.clamp(0, 1) * 255).round() / 255


def pictures(images: Tensor) -> list[Image.Image]:
    arrays = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array) for array in arrays]


SEEING = ("clipscore", "aq-map", "hpsv2.1", "pickscore")


def scored(scorer: Any, images: Tensor, captions: Sequence[str]) -> Tensor:
    with torch.inference_mode():
        values: Tensor = scorer.score(images, [Prompt(caption, 0) for caption in captions])
    return values


@pytest.fixture(scope="module")
def folder() -> Path:
    """A tiny model in open_clip's format."""
    return Path(clip_models._twin("clipscore").removeprefix("local-dir:"))


@pytest.fixture(scope="module")
def network(folder: Path) -> Any:
    with quiet():
        return open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).eval()


def transformers_copy(network: Any, folder: Path) -> tuple[Any, Any]:
    """(CLIPModel, CLIPProcessor) of transformers with the weights and words of open_clip."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    tower = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2, "projection_dim": 16}
    config = CLIPConfig(
        vision_config={**tower, "hidden_act": "gelu", "image_size": 32, "patch_size": 8},
        text_config={
            **tower,
            "hidden_act": "gelu",
            "vocab_size": 49408,
            "max_position_embeddings": 77,
        },
        projection_dim=16,
    )
    ours = network.state_dict()
    theirs = {"logit_scale": ours["logit_scale"]}
    theirs["visual_projection.weight"] = ours["visual.proj"].T
    theirs["text_projection.weight"] = ours["text_projection"].T
    vision, text = "vision_model.", "text_model."
    theirs[f"{vision}embeddings.class_embedding"] = ours["visual.class_embedding"]
    theirs[f"{vision}embeddings.patch_embedding.weight"] = ours["visual.conv1.weight"]
    theirs[f"{vision}embeddings.position_embedding.weight"] = ours["visual.positional_embedding"]
    theirs[f"{text}embeddings.token_embedding.weight"] = ours["token_embedding.weight"]
    theirs[f"{text}embeddings.position_embedding.weight"] = ours["positional_embedding"]
    layers = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    layers |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    norms = {"visual.ln_pre": f"{vision}pre_layrnorm", "visual.ln_post": f"{vision}post_layernorm"}
    names = norms | {"ln_final": f"{text}final_layer_norm"}
    for mine, other in (("visual.transformer.", vision), ("transformer.", text)):
        for index in range(2):
            block, layer = f"{mine}resblocks.{index}.", f"{other}encoder.layers.{index}."
            names |= {f"{block}{one}": f"{layer}{name}" for one, name in layers.items()}
            for kind in ("weight", "bias"):
                parts = ours[f"{block}attn.in_proj_{kind}"].chunk(3)
                for name, part in zip("qkv", parts, strict=True):
                    theirs[f"{layer}self_attn.{name}_proj.{kind}"] = part
    for one, name in names.items():
        theirs |= {f"{name}.{kind}": ours[f"{one}.{kind}"] for kind in ("weight", "bias")}

    class Model(CLIPModel):
        """torchmetrics 1.9 expects tensors, which transformers 5 wraps."""

        def get_image_features(self, *args: Any, **options: Any) -> Any:
            return super().get_image_features(*args, **options).pooler_output

        def get_text_features(self, *args: Any, **options: Any) -> Any:
            return super().get_text_features(*args, **options).pooler_output

    model = Model(config).eval()
    unused = model.load_state_dict(theirs, strict=False)
    assert not unused.unexpected_keys
    assert all("position_ids" in key for key in unused.missing_keys), unused.missing_keys
    words = open_clip.tokenizer.SimpleTokenizer()
    ends = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {ends.get(word, word): index for word, index in words.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [" ".join(pair) for pair in words.bpe_ranks]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size=size, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    return model, CLIPProcessor(images, tokenizer)


@pytest.mark.parametrize(
    ("size", "tolerance"), [((32, 32), 1e-3), ((256, 256), ROUNDING), ((96, 160), ROUNDING)]
)
def test_clipscore_is_that_of_torchmetrics(
    folder: Path, network: Any, tmp_path: Path, size: tuple[int, int], tolerance: float
) -> None:
    multimodal = pytest.importorskip("torchmetrics.multimodal.clip_score")
    copy = transformers_copy(network, tmp_path)
    metric = multimodal.CLIPScore(model_name_or_path=lambda: copy)
    images = smooth(*size)
    captions = [*CAPTIONS[:3], "a fox"]  # torchmetrics cuts a long caption's end token off
    ours = scored(load_open_clip_scorer(f"local-dir:{folder}"), images, captions)
    for index, caption in enumerate(captions):
        metric.reset()
        metric.update((images[index] * 255).round().to(torch.uint8), caption)
        assert float(ours[index]) == pytest.approx(float(metric.compute()), abs=tolerance)
    assert ours.std() > 0.3, "so small a difference would hide a wrong caption"


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(64, 64), (96, 160), (161, 90), (20, 24), (32, 32)])
def test_images_are_prepared_as_open_clip_does(mode: str, size: tuple[int, int]) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    config = PreprocessCfg(size=32, mean=mean, std=std, resize_mode=mode)
    published = image_transform_v2(config, is_train=False)
    images = smooth(*size)
    expected = torch.stack([published(picture) for picture in pictures(images)])
    ours = Preprocess(32, mean, std, mode)(images)
    assert ours.shape == expected.shape
    # In grey levels. PIL rounds, and cuts what shoots over, once in each direction.
    difference = (ours - expected).abs() * torch.tensor(std).view(3, 1, 1) * 255
    assert difference.mean() < 0.6
    assert difference.max() < 4.0


def test_hps_is_the_cosine_of_padded_images(folder: Path) -> None:
    """hpsv2.score: diagonal of image_features @ text_features.T, each normalised."""
    images = smooth(64, 96)
    hps = load_scorer(metric_entry("hpsv2.1"), twin=True)
    place = clip_models._twin("hpsv2.1")
    with quiet():
        network = open_clip.create_model(place).eval()
    pad = image_transform_v2(
        PreprocessCfg(size=32, mean=(0.5,) * 3, std=(0.25,) * 3, resize_mode="longest"), False
    )
    pixels = torch.stack([pad(picture) for picture in pictures(images)])
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer(place)(CAPTIONS)
        seen, read, _ = network(pixels, tokens)
    expected = torch.diagonal(seen @ read.T)
    assert torch.allclose(scored(hps, images, CAPTIONS), expected, atol=ROUNDING / 100)


def test_pickscore_is_the_published_formula() -> None:
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel, CLIPProcessor

    pickscore = load_pickscore(twin=True)
    folder = made("pickscore", clip_models._make_pickscore)
    with quiet():
        model = CLIPModel.from_pretrained(folder / "model").eval()
        images = CLIPImageProcessor.from_pretrained(folder / "processor")
        tokenizer = AutoTokenizer.from_pretrained(folder / "processor")
    processor = CLIPProcessor(images, tokenizer)
    shown = smooth(48, 80)
    with torch.no_grad():
        pixels = processor(images=pictures(shown), return_tensors="pt")
        tokens = processor(
            text=CAPTIONS, padding=True, truncation=True, max_length=77, return_tensors="pt"
        )
        seen = F.normalize(model.get_image_features(**pixels).pooler_output, dim=-1)
        read = F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
        expected = model.logit_scale.exp() * (seen * read).sum(-1)
    ours = scored(pickscore, shown, CAPTIONS)
    assert torch.allclose(ours, expected, atol=0.05)
    assert expected.std() > 0.2


def test_aq_map_is_its_formula(network: Any, folder: Path) -> None:
    """By hand: two templates, two phrases, one image."""
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    preprocess = Preprocess(32, (0.5,) * 3, (0.25,) * 3)
    templates = ("a photo of a {}.", "there is the {} in the scene.")
    scorer = AqMap(ClipEncoder(OpenClipTowers(network, tokenizer), preprocess), templates)
    image = smooth(32, 32, count=1)

    def read(phrase: str) -> Tensor:
        texts = [template.format(phrase) for template in templates]
        features = network.encode_text(tokenizer(texts))
        features = features / features.norm(dim=1, keepdim=True)
        mean = features.mean(dim=0)
        unit: Tensor = mean / mean.norm()
        return unit

    with torch.no_grad():
        seen = network.encode_image((image - 0.5) / 0.25)[0]
        seen = seen / seen.norm()
        points = [seen @ (read(phrase) - read("")) for phrase in ("red fox", "house")]
        expected = sum(1 / (1 + np.exp(-10 * float(point))) for point in points) / 2
    ours = scored(scorer, image, ["a red fox behind the house"])
    assert float(ours[0]) == pytest.approx(expected, abs=1e-5)
    whole = scored(scorer, image, ["running quickly"])
    with torch.no_grad():
        point = seen @ (read("running quickly") - read(""))
    assert float(whole[0]) == pytest.approx(float(torch.sigmoid(10 * point)), abs=1e-5)


def test_aq_map_asks_with_the_published_templates() -> None:
    scorer = load_scorer(metric_entry("aq-map"), twin=True)
    assert isinstance(scorer, AqMap)
    assert len(scorer._templates) == 85
    assert all(template.count("{}") == 1 for template in scorer._templates)


@pytest.mark.parametrize("name", SEEING)
def test_an_image_is_scored_alone_as_in_a_batch(name: str) -> None:
    images = torch.cat([smooth(64, 64), smooth(64, 64).flip(1)])
    captions = [*CAPTIONS, *reversed(CAPTIONS)]
    together = scored(load_scorer(metric_entry(name), twin=True), images, captions)
    alone = load_scorer(metric_entry(name), twin=True)
    for index, caption in enumerate(captions):
        value = scored(alone, images[index : index + 1], [caption])
        assert float(value[0]) == pytest.approx(float(together[index]), rel=1e-4, abs=1e-5)
    assert together.std() > 0


@pytest.mark.parametrize("name", SEEING)
def test_large_images_are_taken(name: str) -> None:
    values = scored(
        load_scorer(metric_entry(name), twin=True), smooth(1024, 768, count=1), ["a fox"]
    )
    assert values.shape == (1,)
    assert values.dtype == torch.float32


@pytest.mark.parametrize("name", SEEING)
def test_half_precision_changes_little(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = smooth(64, 64)
    full = scored(load_scorer(metric_entry(name), twin=True), images, CAPTIONS)
    monkeypatch.setattr(clip, "precision", lambda device: torch.float16)
    half = scored(load_scorer(metric_entry(name), twin=True), images, CAPTIONS)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert torch.allclose(half, full, rtol=2e-3, atol=2e-3)


def test_half_precision_is_for_gpus_only() -> None:
    assert clip.precision(torch.device("cuda")) == torch.float16
    assert clip.precision(torch.device("cpu")) == torch.float32


def test_each_caption_is_encoded_once() -> None:
    class Counted:
        def __init__(self) -> None:
            self.read: list[set[str]] = []

        def to(self, device: torch.device, dtype: torch.dtype) -> None:
            pass

        def images(self, pixels: Tensor) -> Tensor:
            return pixels.flatten(1)

        def texts(self, texts: Sequence[str], device: torch.device) -> Tensor:
            self.read.append(set(texts))
            return torch.ones(len(texts), 3)

    towers = Counted()
    scorer = ClipAlignment(towers, Preprocess(1, (0.0,) * 3, (1.0,) * 3))
    image = torch.full((2, 3, 1, 1), 0.5)
    for captions in (["a", "b"], ["b", "c"], ["a", "a"]):
        assert scored(scorer, image, captions).tolist() == pytest.approx([100, 100])
    assert towers.read == [{"a", "b"}, {"c"}]


def test_a_captions_features_do_not_depend_on_its_company() -> None:
    captions = [f"a small red circle number {index}" for index in range(21)]
    together, alone = (load_open_clip(DEMO_FOLDER / "alignment") for _ in range(2))
    features = together.text_features(captions)
    for caption, row in reversed(list(zip(captions, features, strict=True))):
        assert torch.equal(alone.text_features([caption])[0], row)


def test_a_cosine_below_zero_scores_zero() -> None:
    class Opposed:
        def to(self, device: torch.device, dtype: torch.dtype) -> None:
            pass

        def images(self, pixels: Tensor) -> Tensor:
            return torch.ones(len(pixels), 2)

        def texts(self, texts: Sequence[str], device: torch.device) -> Tensor:
            return -torch.ones(len(texts), 2)

    preprocess = Preprocess(1, (0.0,) * 3, (1.0,) * 3)
    image = torch.zeros(1, 3, 1, 1)
    assert scored(ClipAlignment(Opposed(), preprocess), image, ["a"]).tolist() == [0.0]
    below = ClipAlignment(Opposed(), preprocess, scale=2.0, floor=None)
    assert scored(below, image, ["a"]).tolist() == pytest.approx([-2.0])


@pytest.fixture
def registered(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The tiny model as an architecture of open_clip with a tag, trained with OpenAI's GELU."""
    config = json.loads((folder / "open_clip_config.json").read_text())
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-tiny", config["model_cfg"])
    tag = {
        "file": str(folder / "open_clip_model.safetensors"),
        "quick_gelu": True,
        "mean": (0.1, 0.2, 0.3),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-tiny", {"openai": tag})
    return "ViT-tiny"


def test_a_model_by_name_and_tag_is_used_as_it_was_trained(registered: str) -> None:
    """The activation and the preprocessing are the tag's, which open_clip merely warns about."""
    scorer = load_open_clip_scorer(f"{registered}/openai")
    towers = scorer._towers
    assert isinstance(towers, OpenClipTowers)
    activations = {type(one).__name__ for one in towers._model.modules() if "GELU" in repr(one)}
    assert "QuickGELU" in activations
    assert scorer._preprocess == Preprocess(
        32, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5), "squash", "bilinear"
    )


def test_what_it_was_loaded_from_is_told(registered: str, folder: Path) -> None:
    """A tag names no revision, so that two machines may have two files under it."""
    name = f"open_clip:{registered}/openai"
    file = folder / "open_clip_model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert load_scorers([name, "pixels"]).weights == {name: {file.name: digest}}
    assert load_scorers([name], twin=True).weights == {}


def test_a_checkpoint_of_ones_own_is_loaded_by_file(registered: str, folder: Path) -> None:
    images = smooth(32, 32)
    file = folder / "open_clip_model.safetensors"
    found = scored(load_open_clip_scorer(f"{registered}/{file}"), images, CAPTIONS)
    assert found.shape == (4,)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ViT-B-33/openai", "no model 'ViT-B-33'; it has ViT-B-32"),
        ("ViT-B-32/opnai", "no pretrained tag of ViT-B-32 'opnai'; it has openai"),
        ("ViT-B-32//nowhere/weights.pt", "no pretrained tag"),
        ("local-dir:/nowhere", "no open_clip_config.json there"),
    ],
)
def test_an_unknown_model_is_refused_with_the_nearest(name: str, words: str) -> None:
    with pytest.raises(ScoreError, match=words):
        load_open_clip_scorer(name)


def test_only_square_models_are_taken() -> None:
    config = {"size": (32, 64), "mean": (0,) * 3, "std": (1,) * 3, "resize_mode": "shortest"}
    with pytest.raises(ScoreError, match="32 x 64"):
        clip.preprocess_of({**config, "interpolation": "bicubic"}, "wide")
