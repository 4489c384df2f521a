"""Held-out pictures for people: side by side with captions, and the sheet that is kept of them."""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

ROWS = {
    "full_precision": "full precision",
    "identity": "quantized",
    "calibrated": "calibrated",
}
"""The rows of a grid, from the top."""

KEPT_SIDE, PAGE_SIDE = 512, 320
"""Larger images are kept, and shown in the report, at this size; smaller ones as they are."""

LABEL = "qsched"
"""Where a sheet carries what it shows."""


@dataclass(frozen=True)
class Pictures:
    """The images of a few held-out prompts, the same noise for each.

    `rows`: uint8 arrays (K, H, W, 3) by row, those of ROWS among them. `captions`: K of them.
    `coefficients`: the calibrated rows', as a Candidate's `to_dict` has them.
    """

    captions: tuple[str, ...]
    rows: Mapping[str, np.ndarray]
    coefficients: Mapping[str, Any]

    def write_sheet(self, path: Path) -> None:
        """A lossless PNG, a row a model and a column a prompt, that `read_sheet` takes apart."""
        rows = {name: [_within(image, KEPT_SIDE) for image in row] for name, row in self.items()}
        label = {
            "captions": self.captions,
            "rows": list(rows),
            "coefficients": dict(self.coefficients),
        }
        text = PngInfo()
        text.add_itxt(LABEL, json.dumps(label))
        pixels = np.concatenate([np.concatenate(row, axis=1) for row in rows.values()])
        Image.fromarray(pixels).save(path, "PNG", pnginfo=text, optimize=True)

    @classmethod
    def read_sheet(cls, file: BinaryIO) -> Self:
        """What `write_sheet` wrote. Raises ValueError for any other file."""
        try:
            picture = Image.open(file)
            if picture.format != "PNG":
                raise ValueError(f"{picture.format} instead of PNG")
            pixels = np.asarray(picture.convert("RGB"))
            label = json.loads(picture.info[LABEL])
            names, captions = label["rows"], tuple(label["captions"])
            rows = [
                np.stack(np.split(row, len(captions), axis=1))
                for row in np.split(pixels, len(names))
            ]
            found = dict(zip(names, rows, strict=True))
            if not found.keys() >= ROWS.keys():
                raise ValueError("rows are missing")
            return cls(captions, found, label["coefficients"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a sheet of held-out pictures: {error}") from error

    def items(self) -> list[tuple[str, np.ndarray]]:
        """Row by row: its name, and its images."""
        return list(self.rows.items())

    def embedded(self, row: str) -> list[str]:
        """The images of a row as data: URIs: small ones lossless, their pixels enlarged by a whole
        factor; large ones reduced to PAGE_SIDE."""
        return [_data_uri(image) for image in self.rows[row]]

    def write(self, path: Path, *, side: int = 160) -> None:
        """A grid of those of ROWS that there are: a row a model, a column a prompt, captions above.

        Pixels are enlarged by a whole factor without blur until an image is about `side` wide;
        larger images are reduced to it.
        """
        shown = [(label, self.rows[row]) for row, label in ROWS.items() if row in self.rows]
        height, width = shown[0][1].shape[1:3]
        factor = max(1, side // width)
        size = (
            (width * factor, height * factor) if width <= side else (side, side * height // width)
        )
        gap, left = max(6, size[0] // 20), 150
        letters = font(15)
        columns = len(self.captions)
        captions = [_wrapped(text, letters, size[0]) for text in self.captions]
        top = gap + 20 * max(len(lines) for lines in captions) + gap
        sheet = Image.new(
            "RGB",
            (left + columns * (size[0] + gap) + gap, top + len(shown) * (size[1] + gap) + gap),
            "white",
        )
        draw = ImageDraw.Draw(sheet)
        for column, lines in enumerate(captions):
            x = left + column * (size[0] + gap)
            for line, text in enumerate(lines):
                y = top - gap - 20 * (len(lines) - line)
                draw.text((x, y), text, fill="#222222", font=letters)
        for row, (label, pictures) in enumerate(shown):
            y = top + row * (size[1] + gap)
            lines = _wrapped(label, letters, left - 2 * gap)
            for line, text in enumerate(lines):
                offset = size[1] // 2 - 10 * len(lines) + 20 * line
                draw.text((gap, y + offset), text, fill="#222222", font=letters)
            for column, pixels in enumerate(pictures):
                picture = Image.fromarray(np.ascontiguousarray(pixels))
                resample = Image.Resampling.NEAREST if width <= side else Image.Resampling.LANCZOS
                place = (left + column * (size[0] + gap), y)
                sheet.paste(picture.resize(size, resample), place)
        sheet.save(path, optimize=True)


def font(size: int) -> ImageFont.FreeTypeFont:
    """A scalable font that comes with matplotlib, so that every machine draws the same."""
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


def _within(image: np.ndarray, side: int) -> np.ndarray:
    """An image (H, W, 3), reduced until it is at most `side` wide and high."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _data_uri(image: np.ndarray) -> str:
    factor = max(1, PAGE_SIDE // max(image.shape[:2]))
    small = max(image.shape[:2]) <= PAGE_SIDE
    shown = image.repeat(factor, axis=0).repeat(factor, axis=1) if small else image
    buffer = io.BytesIO()
    picture = Image.fromarray(_within(shown, PAGE_SIDE))
    picture.save(buffer, "WEBP", lossless=small, quality=90)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """`text` in lines that are at most `width` pixels wide, as far as words allow."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
