"""Geometry of images (of one with Pillow, or of many on their device, to the same bits) and augmentation (one batch,
every step).

A sample's random numbers are one row of a single draw from a CPU generator: they depend neither on the device nor on
what else is in the batch.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int, Real, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from lorica.data.ahead import sent
from lorica.errors import DataError
from lorica.sharing import per_sample

AUGMENTATIONS = ("none", "shift", "flip", "crop_flip")

_BITS = 22  # of a weight, in Pillow
_CROP_AREA = (0.05, 1.0)  # fraction of the canvas
_CROP_RATIO = (3 / 4, 4 / 3)  # width / height
_CROP_TRIES = 10  # area and ratio are drawn again when the crop does not fit; after that, the whole canvas


def fit_square(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "3 {size} {size}"]:
    """The centre square of an image whose short side has been resized to `size` pixels.

    Bicubic with antialiasing, whether shrinking or enlarging; pixel for pixel torchvision's `Resize` and `CenterCrop`.
    Of an image more than 16 times as long as it is wide, the ends are cut off first.
    """
    short = min(image.shape[:2])
    image = without_ends(image)
    height, width = image.shape[:2]
    new_height, new_width = int(size * height / short), int(size * width / short)
    if (new_height, new_width) != (height, width):
        image = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC))
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    return image[top : top + size, left : left + size].transpose(2, 0, 1).copy()


def without_ends(image: UInt8[np.ndarray, "a b 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The middle of an image, at most 16 times as long as it is wide."""
    longest = 16 * min(image.shape[:2])
    return _middle(_middle(image, longest).swapaxes(0, 1), longest).swapaxes(0, 1)


def _middle(image: UInt8[np.ndarray, "a b 3"], rows: int) -> UInt8[np.ndarray, "c b 3"]:
    """At most that many rows, from the middle."""
    start = max(0, (len(image) - rows) // 2)
    return image[start : start + rows]


def enlarge_squares(images: UInt8[Tensor, "n 3 h w"], size: int) -> UInt8[Tensor, "n 3 {size} {size}"]:
    """`fit_square` of images of one size, bit for bit, on their device: of such as `without_ends` leaves and `size`
    enlarges.

    Pillow's arithmetic in whole numbers: along each axis, weights of 22 bits, then a rounding to 8. The functions of
    torch round otherwise, and on a GPU not between the axes: CIFAR-100 at 224 pixels would differ by up to 11 levels of
    255.
    """
    short = min(images.shape[-2:])
    for axis in (-1, -2):  # of an image that is made smaller, Pillow may begin with the other one
        side = images.shape[axis]
        longer = int(size * side / short)
        start = round((longer - size) / 2)
        if longer == side:
            images = images.narrow(axis, start, size)
            continue
        places, weights = (sent(each[:, start : start + size], images.device) for each in _taps(side, longer))
        total = images.new_full((), 1 << (_BITS - 1), dtype=torch.int32)
        for place, weight in zip(places, weights, strict=True):
            total = total + images.index_select(axis, place) * (weight if axis == -1 else weight[:, None])
        images = (total >> _BITS).clamp_(0, 255).to(torch.uint8)
    return images


@cache
def _taps(old: int, new: int) -> tuple[Int[Tensor, "taps {new}"], Int[Tensor, "taps {new}"]]:
    """Which pixels of a row of `old` make each pixel of a longer row, and their weights in units of 2^-22: Keys' cubic
    with a = -1/2, cut off at the edges and scaled to sum to 1."""
    centres = (np.arange(new) + 0.5) * (old / new)
    first = np.maximum(0, (centres - 1.5).astype(int))
    stop = np.minimum(old, (centres + 2.5).astype(int))
    places = first[:, None] + np.arange((stop - first).max())
    x = np.abs(places - centres[:, None] + 0.5)
    near, far = ((1.5 * x - 2.5) * x) * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0)) * (places < stop[:, None])
    weights /= weights.cumsum(1)[:, -1:]  # added up in their order, which decides the last bit
    rounded = np.trunc(weights * (1 << _BITS) + np.copysign(0.5, weights)).astype(np.int32)
    return torch.from_numpy(np.minimum(places, old - 1).T.copy()), torch.from_numpy(rounded.T.copy())


def centre_crop(images: Real[Tensor, "n 3 s s"], size: int) -> Real[Tensor, "n 3 {size} {size}"]:
    """The centre `size` x `size` pixels. DataError when the images are smaller."""
    side = images.shape[-1]
    if side < size:
        raise DataError(f"backbone.image_size: cannot cut {size} x {size} pixels out of images of {side} x {side}")
    start = round((side - size) / 2)
    return images[..., start : start + size, start : start + size]


def augment(
    images: Real[Tensor, "n 3 s s"], kind: str, image_size: int, generator: torch.Generator
) -> Real[Tensor, "n 3 {image_size} {image_size}"]:
    """Squares in [0, 1] (or, but for `crop_flip`, in bytes) of at least `image_size` pixels, augmented on their device,
    each by its own random numbers.

    `none`: centre crop. `shift`: centre crop, then moved by up to a tenth of the side (whole pixels) along each axis,
    the edge replicated. `flip`: centre crop, mirrored left to right half of the time. `crop_flip`: a rectangle of 5 to
    100 % of the area and a width/height of 3/4 to 4/3, resized bilinearly, and `flip`. DataError for any other kind.

    `crop_flip` cuts out of the square, not out of the original as the references do: of an image that is not square,
    the ends are never seen (a quarter of a 4:3 photograph), and a small crop is as sharp as the square, which may be
    less than the file.
    """
    if kind not in AUGMENTATIONS:
        raise DataError(f"fit.augment: unknown augmentation {kind!r}; expected one of {', '.join(AUGMENTATIONS)}")
    if kind == "crop_flip":
        return _crop_flip(images, image_size, generator)
    images = centre_crop(images, image_size)
    if kind == "shift":
        return _shift(images, image_size // 10, generator)
    if kind == "flip":
        mirrored = sent(per_sample(len(images), lambda n: torch.rand(n, generator=generator)) < 0.5, images.device)
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    return images


def _shift(images: Real[Tensor, "n 3 s s"], reach: int, generator: torch.Generator) -> Real[Tensor, "n 3 s s"]:
    """Each image moved down and right by whole numbers of pixels drawn from -reach … reach."""
    side = images.shape[-1]
    uniform = per_sample(len(images), lambda n: torch.rand(n, 2, generator=generator))
    offsets = (uniform * (2 * reach + 1)).long() - reach
    origin = sent((torch.arange(side) - offsets[:, :, None]).clamp(0, side - 1), images.device)  # [n, 2, s]
    rows = origin[:, 0, None, :, None].expand_as(images)
    columns = origin[:, 1, None, None, :].expand_as(images)
    return images.gather(2, rows).gather(3, columns)


def _crop_flip(
    images: Float[Tensor, "n 3 s s"], size: int, generator: torch.Generator
) -> Float[Tensor, "n 3 {size} {size}"]:
    """Random resized crop and mirroring as one affine map per image; extents and centres are fractions of the side."""
    n, tries = len(images), _CROP_TRIES
    uniform = per_sample(n, lambda n: torch.rand(n, 2 * tries + 3, generator=generator))
    area = _CROP_AREA[0] + (_CROP_AREA[1] - _CROP_AREA[0]) * uniform[:, :tries]
    narrow, wide = math.log(_CROP_RATIO[0]), math.log(_CROP_RATIO[1])
    ratio = torch.exp(narrow + (wide - narrow) * uniform[:, tries : 2 * tries])
    extents = torch.stack([torch.sqrt(area * ratio), torch.sqrt(area / ratio)], dim=-1)  # [n, tries, (width, height)]
    fits = (extents <= 1).all(dim=-1)
    extent = extents[torch.arange(n), fits.int().argmax(dim=1)]  # the first that fits
    extent = torch.where(fits.any(dim=1, keepdim=True), extent, torch.ones_like(extent))
    centre = extent / 2 + (1 - extent) * uniform[:, -3:-1]
    mirror = torch.where(uniform[:, -1] < 0.5, -1.0, 1.0)

    maps = torch.zeros(n, 2, 3)  # output coordinates to input coordinates, both -1 … 1 from edge to edge
    maps[:, 0, 0] = extent[:, 0] * mirror
    maps[:, 1, 1] = extent[:, 1]
    maps[:, :, 2] = 2 * centre - 1
    grid = functional.affine_grid(sent(maps, images.device).to(images.dtype), [n, 3, size, size], align_corners=False)
    sampled = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.clamp(0, 1)  # a rounding error may leave the range
