"""Images: in files or in memory, and the reader that makes squares of pixels of them. Each is decoded once and kept as bytes."""

from __future__ import annotations

import os
import struct
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lorica.data.samples import Samples
from lorica.data.transforms import augment, centre_crop, fit_square
from lorica.errors import DataError

WORKERS = min(16, os.cpu_count() or 1)  # threads that decode; Pillow releases the interpreter lock

# what Pillow raises for a damaged or foreign file
_IMAGE_FAULTS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_LISTED = 10  # files spelled out in one error


class Images(Samples):
    """Images with their class numbers, read one at a time (from several threads at once)."""

    @abstractmethod
    def decode(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels of one image, RGB. DataError when it cannot be read."""


class ImageFiles(Images):
    """One file per image."""

    def __init__(self, paths: Sequence[Path], labels: Int[np.ndarray, " n"]) -> None:
        super().__init__(labels)
        self.paths = tuple(paths)

    def decode(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return read_image(self.paths[index])

    def describe(self, index: int) -> str:
        return str(self.paths[index])


class ImageArrays(Images):
    """Images in memory: [n, h, w], [n, h, w, 1] or [n, h, w, 3]; uint8, or floats in [0, 1]. Else DataError.

    `name` ("train") is what messages call the array.
    """

    def __init__(self, images: np.ndarray, labels: Int[np.ndarray, " n"], name: str) -> None:
        super().__init__(labels)
        self.name = name
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:]:
            raise DataError(
                f"x_{name}: expected images of shape [n, h, w], [n, h, w, 1] or [n, h, w, 3], got {list(images.shape)}"
            )
        if np.issubdtype(images.dtype, np.floating):
            if not np.all((images >= 0) & (images <= 1)):
                raise DataError(f"x_{name}: floating-point images must lie in [0, 1]; divide by their largest value")
            images = np.rint(images * 255).astype(np.uint8)
        if images.dtype != np.uint8:
            raise DataError(f"x_{name}: expected uint8, or floating point in [0, 1], got {images.dtype}")
        self.images = images

    def decode(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        image = self.images[index]
        return image if image.shape[-1] == 3 else np.repeat(image, 3, axis=-1)

    def describe(self, index: int) -> str:
        return f"{self.name}[{index}]"


def read_image(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """An image file's pixels, turned upright as its EXIF entry says, RGB. DataError when it cannot be read."""
    try:
        with Image.open(path) as opened:
            _require_8_or_16_bits(opened)
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            elif image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            return np.array(image.convert("RGB"))
    except _IMAGE_FAULTS as error:
        raise DataError(f"{path}: {_fault_text(error)}") from error


def unreadable(paths: Sequence[Path]) -> list[str]:
    """A line for each image that cannot be opened, after a line with their number."""
    with ThreadPoolExecutor(WORKERS) as pool:
        faults = [f"{path}: {fault}" for path, fault in zip(paths, pool.map(_fault, paths), strict=True) if fault]
    if not faults:
        return []
    shown = f"; the first {_LISTED} are" if len(faults) > _LISTED else ""
    return [f"{len(faults)} of {len(paths)} images cannot be read{shown}", *faults[:_LISTED]]


def _fault(path: Path) -> str | None:
    """What is wrong with a file as far as its header and check sums tell (a JPEG has none: see `read_image`)."""
    try:
        if path.stat().st_size == 0:
            return "zero bytes"
        with Image.open(path) as image:
            _require_8_or_16_bits(image)
            image.verify()
    except _IMAGE_FAULTS as error:
        return _fault_text(error)
    return None


def _require_8_or_16_bits(image: Image.Image) -> None:
    if image.mode in ("I", "F"):
        raise ValueError("32 bits per pixel, of unknown range; convert it to 8 bits")


def _fault_text(error: Exception) -> str:
    return "not an image" if isinstance(error, UnidentifiedImageError) else str(error)


class ImageCache:
    """Samples as uint8 squares of `size` pixels, decoded by threads on first use and kept while `budget` bytes last.

    What comes after that is decoded at every use: nothing is evicted, so cyclic reading does not thrash.
    """

    def __init__(self, samples: Images, size: int, budget: int) -> None:
        self._samples = samples
        self._size = size
        capacity = min(len(samples), budget // (3 * size * size))
        self._store = torch.empty(capacity, 3, size, size, dtype=torch.uint8)  # the system gives the pages when written
        self._slots = torch.full((len(samples),), -1)
        self._used = 0

    def squares(self, indices: Int[Tensor, " n"]) -> UInt8[Tensor, "n 3 s s"]:
        """The images of these sample numbers. DataError naming all of them that cannot be read."""
        slots = self._slots[indices]
        if (slots >= 0).all():
            return self._store[slots]
        images = torch.empty(len(indices), 3, self._size, self._size, dtype=torch.uint8)
        images[slots >= 0] = self._store[slots[slots >= 0]]
        absent = (slots < 0).nonzero().flatten().tolist()
        with ThreadPoolExecutor(WORKERS) as pool:
            decoded = [pool.submit(self._decode, int(indices[position])) for position in absent]
        problems: list[str] = []
        for position, image in zip(absent, decoded, strict=True):
            try:
                images[position] = image.result()
            except DataError as error:
                problems += error.problems
                continue
            if self._used < len(self._store):
                self._store[self._used] = images[position]
                self._slots[indices[position]] = self._used
                self._used += 1
        if problems:
            raise DataError(problems)
        return images

    def _decode(self, index: int) -> UInt8[Tensor, "3 s s"]:
        return torch.from_numpy(fit_square(self._samples.decode(index), self._size))


class OpenedImages:
    """See `lorica.data.reader.Opened`: float32 squares in [0, 1], [n, 3, image_size, image_size]."""

    def __init__(self, cache: ImageCache, image_size: int) -> None:
        self._cache, self._image_size = cache, image_size

    def fetch(self, indices: Int[Tensor, " n"], *, device: torch.device) -> Float[Tensor, "n 3 s s"]:
        return centre_crop(self._canvases(indices, device), self._image_size)

    def augmented(
        self, indices: Int[Tensor, " n"], kind: str, generator: torch.Generator, *, device: torch.device
    ) -> Float[Tensor, "n 3 s s"]:
        return augment(self._canvases(indices, device), kind, self._image_size, generator)

    def _canvases(self, indices: Int[Tensor, " n"], device: torch.device) -> Float[Tensor, "n 3 c c"]:
        return self._cache.squares(indices).to(device).float().div_(255)


class ImageReader:
    """Images for an encoder: decoded to squares of round(image_size / crop_pct) pixels, of which the centre `image_size` are
    used unless an augmentation crops.

    Raises:
        DataError: `crop_pct` is not above 0 and at most 1.
    """

    options: ClassVar[tuple[str, ...]] = ("crop_pct",)

    def __init__(self, image_size: int, *, crop_pct: float = 1.0) -> None:
        if not 0 < crop_pct <= 1:
            raise DataError(f"data.crop_pct: expected more than 0 and at most 1, got {crop_pct}")
        self.image_size = image_size
        self._canvas = round(image_size / crop_pct)

    def open(self, samples: Samples, budget: int) -> OpenedImages:
        """See `lorica.data.reader.Reader`. DataError for samples that are no images."""
        if not isinstance(samples, Images):
            raise DataError(
                "data.source: its samples are no images, and the backbone reads images; choose another of the two"
            )
        return OpenedImages(ImageCache(samples, self._canvas, budget), self.image_size)

    def of(self, given: Sequence[Path | str | np.ndarray]) -> Float[Tensor, "n 3 s s"]:
        """From files, or arrays [h, w] or [h, w, 3] (uint8, or floats in [0, 1]). DataError for one that cannot be read."""
        squares = torch.stack([torch.from_numpy(fit_square(_pixels(image), self._canvas)) for image in given])
        return centre_crop(squares.float() / 255, self.image_size)


READER = ImageReader


def _pixels(image: Path | str | np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    if isinstance(image, np.ndarray):
        return ImageArrays(image[None], np.zeros(1, np.int64), "image").decode(0)
    return read_image(image)
