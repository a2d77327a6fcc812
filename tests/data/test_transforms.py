"""Geometry against torchvision, augmentations against offsets worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from lorica.data.transforms import AUGMENTATIONS, augment, centre_crop, enlarge_squares, fit_square, without_ends
from lorica.errors import DataError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int, side: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, side, side, generator=generator(seed))


def displacement(before: Tensor, after: Tensor, reach: int) -> tuple[int, int]:
    """The one (down, right) that maps an image onto its shifted copy, found by trying all of them on the interior."""
    side = before.shape[-1]
    inner = slice(reach, side - reach)
    matches = [
        (down, right)
        for down in range(-reach, reach + 1)
        for right in range(-reach, reach + 1)
        if torch.equal(
            after[:, inner, inner],
            before[:, reach - down : side - reach - down, reach - right : side - reach - right],
        )
    ]
    assert len(matches) == 1
    return matches[0]


@pytest.mark.parametrize(("height", "width", "size"), [(50, 37, 20), (8, 8, 21), (33, 90, 33), (21, 64, 30), (1, 3, 1)])
def test_fit_square_is_torchvisions_resize_and_centre_crop(height: int, width: int, size: int) -> None:
    image = np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)
    expected = CenterCrop(size)(Resize(size, InterpolationMode.BICUBIC)(Image.fromarray(image)))
    np.testing.assert_array_equal(fit_square(image, size), np.asarray(expected).transpose(2, 0, 1))


def test_fit_square_returns_memory_of_its_own() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    fit_square(image, 4)[:] = 1
    assert image.max() == 0


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    factor=st.floats(1, 8),
    seed=st.integers(0, 99),
    stark=st.booleans(),
)
def test_images_enlarged_on_a_device_are_those_of_pillow(
    height: int, width: int, factor: float, seed: int, stark: bool
) -> None:
    """Also black beside white, where the cubic leaves the range between the two axes."""
    images = np.random.RandomState(seed).randint(0, 256, (2, height, width, 3)).astype(np.uint8)
    if stark:
        images = images // 128 * 255
    images = np.stack([without_ends(image) for image in images])
    size = int(factor * min(height, width))
    found = enlarge_squares(torch.from_numpy(images).permute(0, 3, 1, 2), size)
    np.testing.assert_array_equal(found.numpy(), np.stack([fit_square(image, size) for image in images]))


def test_bytes_are_moved_as_fractions_are() -> None:
    pixels = torch.randint(0, 256, (9, 3, 20, 20), generator=generator(), dtype=torch.uint8)
    for kind in ("none", "shift", "flip"):
        expected = augment(pixels.float() / 255, kind, 16, generator(3))
        assert torch.equal(augment(pixels, kind, 16, generator(3)).float() / 255, expected)


def test_centre_crop() -> None:
    images = torch.arange(25.0).reshape(1, 1, 5, 5).expand(1, 3, 5, 5)
    assert centre_crop(images, 3)[0, 0].tolist() == [[6, 7, 8], [11, 12, 13], [16, 17, 18]]
    with pytest.raises(DataError, match=r"^backbone\.image_size: cannot cut 6 x 6 pixels out of images of 5 x 5"):
        centre_crop(images, 6)


def test_none_is_the_centre_crop() -> None:
    images = noise(3, 16)
    assert torch.equal(augment(images, "none", 12, generator()), images[..., 2:14, 2:14])


def test_shift_moves_by_the_drawn_offsets_and_replicates_the_edge() -> None:
    images = noise(8, 20)
    moved = augment(images, "shift", 20, generator(1))
    draws = torch.rand(8, 2, generator=generator(1))
    for image, result, draw in zip(images, moved, draws, strict=True):
        down, right = (int(draw[axis] * 5) - 2 for axis in range(2))  # a fifth of [0, 1) for each of -2 … 2
        assert displacement(image, result, 2) == (down, right)
        for row in range(20):
            for column in range(20):
                origin = min(max(row - down, 0), 19), min(max(column - right, 0), 19)
                assert torch.equal(result[:, row, column], image[:, origin[0], origin[1]])


def test_shift_reaches_a_tenth_of_the_side_in_every_direction() -> None:
    marked = torch.zeros(400, 3, 96, 96)
    marked[..., 48, 48] = 1.0
    spots = augment(marked, "shift", 96, generator())[:, 0].flatten(1).argmax(1)
    downs, rights = spots // 96 - 48, spots % 96 - 48
    assert set(downs.tolist()) == set(rights.tolist()) == set(range(-9, 10))


def test_shift_starts_from_the_centre_crop() -> None:
    images = noise(4, 25)
    assert torch.equal(
        augment(images, "shift", 20, generator()), augment(centre_crop(images, 20), "shift", 20, generator())
    )


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_others() -> None:
    images = noise(200, 6)
    result = augment(images, "flip", 6, generator())
    mirrored = (result == images.flip(-1)).flatten(1).all(1)
    untouched = (result == images).flatten(1).all(1)
    assert (mirrored ^ untouched).all()
    assert 60 < int(mirrored.sum()) < 140


def test_crop_flip_samples_rectangles_of_the_whole_canvas() -> None:
    """A canvas whose red is the column and whose green is the row shows which rectangle was cut."""
    side, size, n = 64, 32, 2000
    ramp = (torch.arange(side) + 0.5) / side
    canvas = torch.stack([ramp.expand(side, side), ramp[:, None].expand(side, side), torch.zeros(side, side)])
    result = augment(canvas.expand(n, 3, side, side), "crop_flip", size, generator())
    inner = slice(2, size - 2)  # clear of the replicated border
    across = (result[:, 0, 16, inner.stop - 1] - result[:, 0, 16, inner.start]) * size / (size - 5)
    height = (result[:, 1, inner.stop - 1, 16] - result[:, 1, inner.start, 16]) * size / (size - 5)
    mirrored, width = across < 0, across.abs()
    assert 0.45 < mirrored.float().mean() < 0.55
    area, ratio = width * height, width / height
    assert 0.045 < area.min() < 0.1
    assert 0.9 < area.max() < 1.01
    assert 0.74 < ratio.min() < 0.77
    assert 1.30 < ratio.max() < 1.35
    centre = result[:, :2, 15:17, 15:17].mean((2, 3))
    assert (centre - torch.stack([width, height], 1) / 2 > -0.01).all()  # inside the canvas
    assert (centre + torch.stack([width, height], 1) / 2 < 1.01).all()


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_shape_range_and_determinism(kind: str) -> None:
    images = torch.cat([noise(5, 36), torch.ones(2, 3, 36, 36), torch.zeros(2, 3, 36, 36)])
    result = augment(images, kind, 32, generator(3))
    assert result.shape == (9, 3, 32, 32)
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1
    torch.testing.assert_close(result[5:7], torch.ones(2, 3, 32, 32))
    assert torch.equal(result, augment(images, kind, 32, generator(3)))
    assert kind == "none" or not torch.equal(result, augment(images, kind, 32, generator(4)))


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_an_image_is_augmented_independently_of_the_others_in_its_batch(kind: str) -> None:
    images, others = noise(6, 24), noise(6, 24, seed=9)
    others[2] = images[2]
    in_one = augment(images, kind, 20, generator())[2]
    torch.testing.assert_close(in_one, augment(others, kind, 20, generator())[2], rtol=0, atol=0)
    torch.testing.assert_close(in_one, augment(images[:3], kind, 20, generator())[2], rtol=0, atol=1e-6)


def test_unknown_augmentation() -> None:
    with pytest.raises(DataError, match=r"^fit\.augment: unknown augmentation 'flop'; expected one of none, shift"):
        augment(noise(1, 8), "flop", 8, generator())
