"""Images as numbers."""

import numpy as np
from numpy.typing import NDArray


def eight_bit(images: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Images in [0, 1], of any shape, as the whole grey levels that a file would hold."""
    return (images * 255).round().astype(np.uint8)
