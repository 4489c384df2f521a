"""Whether a few images look like images at all."""

from dataclasses import replace

import pytest

from qsched.evidence.impression import Alignment, Impression

FITS = Alignment.of("clipscore", [[30, 10, 12, 11], [9, 28, 12, 10], [8, 9, 25, 10], [9, 9, 9, 31]])
IMAGES = Impression(contrast=0.2, saturation=0.2, sharpness=0.1, alignment=FITS)


def test_alignment_against_shuffled_captions() -> None:
    assert (FITS.own, FITS.as_good) == (28.5, 0.0)
    assert FITS.shuffled == pytest.approx(118 / 12)
    assert Alignment.of("x", [[1, 2], [2, 1]]).as_good == 1.0
    assert Alignment.of("x", [[1.0] * 4] * 4).as_good == 1.0, "a scorer that sees no difference"
    one_pair_alike = [[5, 5, 0, 0], [5, 5, 0, 0], [0, 0, 5, 0], [0, 0, 0, 5]]
    assert Alignment.of("x", one_pair_alike).as_good == pytest.approx(1 / 23)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (replace(IMAGES, contrast=0.01), "nearly one grey: contrast 0.010"),
        (replace(IMAGES, saturation=0.8), "glaring colours: saturation 0.80"),
        (replace(IMAGES, sharpness=0.9), "noise: sharpness 0.90"),
        (
            replace(IMAGES, alignment=Alignment.of("clipscore", [[1, 2], [2, 1]])),
            "nothing to do with their captions: 100% of the other orders",
        ),
    ],
)
def test_what_is_no_image_is_doubted(made: Impression, words: str) -> None:
    assert IMAGES.doubts == []
    (doubt,) = made.doubts
    assert doubt.startswith(words)
