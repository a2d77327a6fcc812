"""scikit-learn's handwritten digits: nothing to download."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from lorica.data.images import ImageArrays
from lorica.data.sources.base import Source, held_out, make_source

DESCRIPTION = "scikit-learn's 1,797 handwritten digits, 8x8; nothing to download"
READS = ("test_fraction",)


def load(*, test_fraction: float, split_seed: int, **_: Any) -> Source:
    """See `lorica.data.sources`; there is no root."""
    return digits(test_fraction=test_fraction, split_seed=split_seed)


def digits(*, test_fraction: float = 0.25, split_seed: int = 0) -> Source:
    """scikit-learn's 1797 handwritten digits of 8 x 8 pixels in 10 classes, split class by class."""
    from sklearn.datasets import load_digits  # slow to import, and only this source needs it

    images, labels = cast(Any, load_digits(return_X_y=True))
    images = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # 0 … 16 -> 0 … 255
    kept, held = held_out(labels, test_fraction, split_seed)
    every = ImageArrays(images, labels, "digits")
    facts: dict[str, object] = {"split": "per class", "test_fraction": test_fraction, "split_seed": split_seed}
    return make_source("digits", [str(number) for number in range(10)], every.picked(kept), every.picked(held), facts)
