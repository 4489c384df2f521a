"""Which of diffusers' pipeline classes can be calibrated: each is one, or refused with a reason."""

import re
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest

from qsched.errors import ModelError
from qsched.pipelines.agreement.kinds import denoisers, refusal
from qsched.pipelines.agreement.settings import problems
from qsched.pipelines.generator import ImageGenerator
from qsched.pipelines.loading import denoiser, load_pipeline
from qsched.pipelines.table import Model, Sampling, with_entry
from qsched.pipelines.twins import pipeline_twin
from qsched.signatures import names_in_diffusers, of_class, of_diffusers

SAMPLING = Sampling(steps=2)

TEXT_TO_IMAGE = set(
    re.findall(
        r"\w+",
        """
    AltDiffusion Amused AuraFlow BriaFibo2 BriaFibo Bria Chroma CogView3Plus CogView4
    Cosmos2TextToImage DreamLiteMobile DreamLite ErnieImage Flux2KleinKV Flux2Klein Flux2
    FluxKontext Flux GlmImage HiDreamImage HunyuanDiTPAG HunyuanDiT HunyuanImage IF Kandinsky3
    Kandinsky5T2I KolorsPAG Kolors Krea2 LDMTextToImage LatentConsistencyModel LongCatImage Lumina2
    Lumina NucleusMoEImage OmniGen OvisImage PRX PRXPixel PixArtAlpha PixArtSigmaPAG PixArtSigma
    QwenImage21 QwenImage SanaPAG Sana SanaSprint SemanticStableDiffusion StableDiffusion3PAG
    StableDiffusion3 StableDiffusionAttendAndExcite StableDiffusionModelEditing StableDiffusionPAG
    StableDiffusionPanorama StableDiffusionParadigms StableDiffusion StableDiffusionPix2PixZero
    StableDiffusionSAG StableDiffusionXLPAG StableDiffusionXL UniDiffuser VQDiffusion
    VersatileDiffusionTextToImage ZImageOmni ZImage
    """,
    )
)
"""The classes that draw images of captions by one network a step; some need an argument that
`check` asks for, or have a scheduler of their own that is refused."""


@pytest.mark.slow
def test_every_class_of_diffusers_is_one_or_refused_with_a_reason() -> None:
    taken = set()
    for name in names_in_diffusers("Pipeline"):
        kind = of_diffusers(name)
        assert kind is not None
        why = refusal(kind)
        if why is None:
            taken.add(name.removesuffix("Pipeline"))
            assert len(denoisers(kind)) <= 1
        else:
            assert "\n" not in why
            assert "; take " in why
    assert taken == TEXT_TO_IMAGE


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("WanPipeline", "it makes videos, of which qsched has no scorers"),
        ("LTX2Pipeline", "it makes sound and videos"),
        ("StableAudioPipeline", "it makes sound"),
        ("TextToVideoZeroPipeline", "it makes the frames of one thing"),
        ("KandinskyV22PriorPipeline", "it makes image_embeds"),
        ("StableCascadeDecoderPipeline", r"more than a caption \(image_embeddings\)"),
        ("StableCascadeCombinedPipeline", "it samples in 2 stages"),
        ("Ideogram4Pipeline", "its steps call transformer and unconditional_transformer"),
        ("FluxImg2ImgPipeline", r"more than a caption \(strength\)"),
        ("StableDiffusionXLControlNetPipeline", r"more than a caption \(controlnet\)"),
        ("StableDiffusionUpscalePipeline", r"more than a caption \(image\)"),
        ("HunyuanImageRefinerPipeline", r"more than a caption \(image\)"),
        ("QwenImageEditPipeline", r"more than a caption \(image\)"),
        ("DiTPipeline", "it takes no prompt"),
        ("OnnxStableDiffusionPipeline", "its networks are not torch's"),
        ("DiffusionPipeline", "it has no __call__"),
    ],
)
def test_check_says_why_a_class_is_refused(name: str, words: str) -> None:
    (problem,) = problems(with_entry(Model(name="a/b", pipeline=name), 2), SAMPLING)
    with pytest.raises(AssertionError, match=rf"model\.pipeline = '{name}': .*{words}"):
        raise AssertionError(problem)


@pytest.mark.parametrize(
    ("pipeline", "part"),
    [
        ("FluxPipeline", "transformer"),
        ("StableDiffusionXLPipeline", "unet"),
        ("VersatileDiffusionTextToImagePipeline", "image_unet"),
    ],
)
def test_the_denoiser_is_what_the_loop_calls(pipeline: str, part: str) -> None:
    kind = of_diffusers(pipeline)
    assert kind is not None
    assert denoisers(kind) == (part,)
    table = with_entry(Model(name="a/b", pipeline=pipeline, part=part), 2)
    assert list(problems(table, SAMPLING)) == []
    for other in ("vae", "dit"):
        (problem,) = problems(table.model_copy(update={"part": other}), SAMPLING)
        assert problem.startswith(f"model.part = '{other}': the steps of {pipeline} call {part}")


@pytest.fixture
def image_to_image(tmp_path: Path) -> Path:
    """A folder of the second stage of a model."""
    folder = tmp_path / "stage"
    shutil.copytree(pipeline_twin("StableDiffusionXLPipeline") / "pipeline", folder)
    index = folder / "model_index.json"
    text = index.read_text().replace("XLPipeline", "XLImg2ImgPipeline")
    index.write_text(text)
    return folder


def test_a_folder_of_a_second_stage_is_refused_before_and_at_loading(image_to_image: Path) -> None:
    says = r"StableDiffusionXLImg2ImgPipeline: it draws from more than a caption \(strength\)"
    (problem,) = problems(with_entry(Model(name=str(image_to_image)), 2), SAMPLING)
    with pytest.raises(AssertionError, match=f"the folder's {says}"):
        raise AssertionError(problem)
    with pytest.raises(ModelError, match=says):
        load_pipeline(str(image_to_image))
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(image_to_image)
    with pytest.raises(ModelError, match=says):
        ImageGenerator(pipeline, SAMPLING)


class Renamed(diffusers.FluxPipeline):  # type: ignore[misc]
    """A pipeline of one's own: its denoiser has another name, and its source tells."""

    def __init__(self, dit: diffusers.FluxTransformer2DModel, **components: Any) -> None:
        super().__init__(transformer=None, **components)
        self.register_modules(dit=dit)

    def __call__(self, prompt: Any, num_inference_steps: int = 4) -> Any:
        for _ in range(num_inference_steps):
            prompt = self.dit(prompt)
        return prompt


def test_a_denoiser_of_another_name_is_found() -> None:
    assert denoisers(of_class(Renamed)) == ("dit",)
    stock = diffusers.FluxPipeline.from_pretrained(pipeline_twin("FluxPipeline") / "pipeline")
    components = dict(stock.components)
    network = components.pop("transformer")
    components.pop("image_encoder", None)
    components.pop("feature_extractor", None)
    pipeline = Renamed(dit=network, **components)
    assert denoiser(pipeline) is network
    assert denoiser(pipeline, "dit") is network
    with pytest.raises(ModelError, match=r"has no unet; set model\.part"):
        denoiser(pipeline, "unet")
