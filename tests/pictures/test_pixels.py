"""Images as whole grey levels."""

import numpy as np

from qsched.pictures.pixels import eight_bit


def test_the_nearest_grey_level_counts() -> None:
    images = np.array([0.0, 0.49 / 255, 0.51 / 255, 0.5, 1.0], dtype=np.float32)
    levels = eight_bit(images.reshape(1, 5, 1, 1))
    assert levels.dtype == np.uint8
    assert levels.shape == (1, 5, 1, 1)
    assert levels.ravel().tolist() == [0, 0, 1, 128, 255]
