"""Labelled images, in files or in memory, behind one small interface: labels, pixels of one image, and its name."""

from __future__ import annotations

import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from lorica.errors import DataError

WORKERS = min(16, os.cpu_count() or 1)  # threads that decode; Pillow releases the interpreter lock

# what Pillow raises for a damaged or foreign file
_IMAGE_FAULTS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_LISTED = 10  # files spelled out in one error


class Samples(ABC):
    """Images with their class numbers, read one at a time (from several threads at once)."""

    def __init__(self, labels: Int[np.ndarray, " n"]) -> None:
        self.labels = labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def decode(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels of one image, RGB. DataError when it cannot be read."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """What an error message or a report calls this image."""


class ImageFiles(Samples):
    """One file per image."""

    def __init__(self, paths: Sequence[Path], labels: Int[np.ndarray, " n"]) -> None:
        super().__init__(labels)
        self.paths = tuple(paths)

    def decode(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return read_image(self.paths[index])

    def describe(self, index: int) -> str:
        return str(self.paths[index])


class ImageArrays(Samples):
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
