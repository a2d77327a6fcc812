"""The reader of images: squares of pixels, decoded once, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jaxtyping import UInt8

from lorica.data.images import ImageArrays, ImageCache, ImageReader
from lorica.data.samples import Samples
from lorica.errors import DataError

CPU = torch.device("cpu")


class Damaged(ImageArrays):
    """Images of one colour, their number; two of them cannot be read."""

    def __init__(self) -> None:
        super().__init__(
            np.arange(5, dtype=np.uint8)[:, None, None].repeat(6, 1).repeat(6, 2), np.zeros(5, np.int64), "plain"
        )

    def decode(self, index: int, least: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
        if index in (1, 3):
            raise DataError(f"data.root: {self.describe(index)}: damaged")
        return super().decode(index)


def test_the_cache_names_every_image_of_a_batch_that_cannot_be_read() -> None:
    cache = ImageCache(Damaged(), 4, 1000)
    with pytest.raises(DataError) as caught:
        cache.squares(torch.arange(5), CPU)
    assert caught.value.problems == ("data.root: plain[1]: damaged", "data.root: plain[3]: damaged")
    assert cache.squares(torch.tensor([4, 0, 2, 4]), CPU)[:, 0, 0, 0].tolist() == [4, 0, 2, 4]


@pytest.mark.parametrize("crop_pct", [0.0, 1.5])
def test_a_share_that_no_crop_can_have(crop_pct: float) -> None:
    with pytest.raises(DataError, match=rf"^data\.crop_pct: expected more than 0 and at most 1, got {crop_pct}"):
        ImageReader(8, crop_pct=crop_pct)


def test_samples_that_are_no_images_are_refused() -> None:
    class Texts(Samples):
        def describe(self, index: int) -> str:
            return f"text {index}"

        def digest(self, index: int) -> bytes:
            return b""

    with pytest.raises(DataError, match=r"^data\.source: its samples are no images, and the backbone reads images"):
        ImageReader(8).open(Texts(np.zeros(2, np.int64)), 0)


def test_what_is_given_for_a_prediction_is_read_as_it_is_tested() -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (3, 20, 30, 3), np.uint8)
    reader = ImageReader(8, crop_pct=0.8)
    opened = reader.open(ImageArrays(pixels, np.zeros(3, np.int64), "test"), 10**6)
    assert torch.equal(reader.of(list(pixels)), opened.fetch(torch.arange(3), device=torch.device("cpu")))


def test_the_canvas_is_rounded_down_as_in_timm() -> None:
    reader = ImageReader(13, crop_pct=0.9)  # 14.4; and 9 / 0.8 = 11.25, 7 / 0.8 = 8.75
    assert reader.canvas == 14
    assert ImageReader(7, crop_pct=0.8).canvas == 8
