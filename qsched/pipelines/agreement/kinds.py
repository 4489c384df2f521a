"""Which pipeline classes can be calibrated: text in, images out, by one network a step.

    refusal(of_diffusers("WanPipeline"))        # "it makes videos, ..."
    refusal(of_diffusers("FluxPipeline"))       # None
    denoisers(of_diffusers("FluxPipeline"))     # ("transformer",)

Read from a class's source: what it takes, what it returns, and what it calls in its loop. Only what
the source shows refuses a class; one's own may hide behind `**kwargs`, and is tested when it draws.
"""

import ast
from collections.abc import Iterator, Mapping

from qsched.signatures import ClassSource, Parameter, of_diffusers

IMAGES = frozenset({"images", "image"})
"""The fields of a text-to-image pipeline's output, of which it has one."""

_MEDIA = {
    **dict.fromkeys(("frames", "video", "videos", "keyframes"), "videos"),
    **dict.fromkeys(("audios", "audio"), "sound"),
    **dict.fromkeys(("rgb", "prediction"), "maps of depth and the like"),
    "texts": "text",
}
"""What fields of an output hold, in words; of any other its name tells."""

_OF_IMAGES = ("mask_image", "control_image", "reference_image", "gligen_boxes")
"""Arguments of pipelines that begin from an image, or are told where things stand."""

_OF_FRAMES = ("num_frames", "video_length", "frame_size")
"""Arguments of pipelines whose images are the frames of one thing."""

_GUIDING = ("controlnet", "adapter")
"""Networks that read an image beside the denoiser."""

_CHANGES = ("Edit", "Pix2Pix", "Upscale", "SuperResolution", "Refiner", "Layered", "Img2Img")
"""Parts of the names of diffusers' classes whose `image` has no use as None."""

_OTHER_SCHEDULERS = ("low_res_scheduler", "image_noising_scheduler", "inverse_scheduler")
"""Schedulers that add noise to what a pipeline is given; it samples with another one."""


def refusal(kind: ClassSource) -> str | None:
    """Why no pipeline of a class can be calibrated, and what it would take; None if one can."""
    call = kind.parameters("__call__")
    made = _made(kind, call)
    if made is not None:
        return (
            f"it makes {made}, of which qsched has no scorers; take a class that makes images, one "
            "for each caption"
        )
    if "Onnx" in kind.name:
        return "its networks are not torch's; take the class of the same model without Onnx"
    if not call and kind.names[:1] == (kind.name,):
        return "it has no __call__; take the class that the model's index names"
    stages = _stages(kind)
    if len(stages) > 1:
        return (
            f"it samples in {len(stages)} stages ({', '.join(stages)}), of which a study corrects "
            "one; take a pipeline of one stage"
        )
    if (needed := _needed(kind, call)) is not None:
        return (
            f"it draws from more than a caption ({needed}), and a study has nothing else; take the "
            "text-to-image class of the same model"
        )
    if call and "prompt" not in call:
        return "it takes no prompt; take a text-to-image class"
    networks = denoisers(kind)
    if len(networks) > 1:
        return (
            f"its steps call {' and '.join(networks)}, and a study quantizes one of them; take a "
            "class with one denoiser"
        )
    return None


def denoisers(kind: ClassSource) -> tuple[str, ...]:
    """The components that a pipeline calls in the loop over its steps, in order of their names.

    Empty where the class's source doesn't show it, as where another object runs the loop.
    """
    components = kind.parameters("__init__")
    for function in kind.methods("__call__"):
        found = {
            name
            for loop in ast.walk(function)
            if isinstance(loop, ast.For | ast.While)
            for name in _called(loop)
            if name in components and _is_network(components[name])
        }
        if found:
            return tuple(sorted(found))
    return ()


def _called(loop: ast.AST) -> Iterator[str]:
    """`x` of each `self.x(...)`, and of each `network = self.x`, within a loop."""
    for node in ast.walk(loop):
        value = node.func if isinstance(node, ast.Call) else None
        if isinstance(node, ast.Assign):
            value = node.value
        if isinstance(value, ast.Attribute) and ast.unparse(value.value) == "self":
            yield value.attr


def _is_network(component: Parameter) -> bool:
    """Whether a component may be a denoiser, by its name and the type it is declared with."""
    if component.name.startswith(("text_encoder", "tokenizer", "vae", "safety_checker")):
        return False
    return any(
        part in kind
        for kind in component.kinds
        for part in ("Model", "Module", "UNet", "Transformer", "Prior", "DiT")
    )


def _made(kind: ClassSource, call: Mapping[str, Parameter]) -> str | None:
    """What a pipeline makes other than images, in words; None for images, or if nothing tells."""
    fields = _output(kind)
    if fields and not fields & IMAGES:
        return " and ".join(sorted({_MEDIA[name] for name in fields & _MEDIA.keys()} or fields))
    return "the frames of one thing" if any(name in call for name in _OF_FRAMES) else None


def _output(kind: ClassSource) -> frozenset[str]:
    """The fields of the object that `__call__` returns; empty where the source doesn't say."""
    for function in kind.methods("__call__"):
        fields = {
            field
            for node in ast.walk(function)
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Call)
            for field in _fields(ast.unparse(node.value.func))
        }
        if fields:
            return frozenset(fields)
    return frozenset()


def _fields(name: str) -> Iterator[str]:
    output = of_diffusers(name) if name.endswith("Output") else None
    for body in output.bodies if output else ():
        for line in body.body:
            if isinstance(line, ast.AnnAssign):
                yield ast.unparse(line.target)


def _stages(kind: ClassSource) -> list[str]:
    """The schedulers that a pipeline samples with."""
    return [
        name
        for name in kind.parameters("__init__")
        if name.endswith("scheduler") and name not in _OTHER_SCHEDULERS
    ]


def _needed(kind: ClassSource, call: Mapping[str, Parameter]) -> str | None:
    """An argument, or a component, that makes nothing of a caption alone."""
    found = ["strength"] if {"strength", "image"} <= call.keys() else []
    found += [name for name in _OF_IMAGES if name in call]
    found += [name for name in kind.parameters("__init__") if name in _GUIDING]
    known = [name for name in kind.names if of_diffusers(name)]  # one's own has any name
    changes = any(part in name for name in known for part in _CHANGES)
    for name, parameter in call.items():
        if parameter.required and any(part in name for part in ("image", "video", "embed")):
            found.append(name)
        if changes and name in ("image", "images"):
            found.append(name)
    return found[0] if found else None
