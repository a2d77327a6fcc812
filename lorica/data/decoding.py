"""One image file, on disk or in memory, or one picture as RGB pixels: upright, bounded, with nothing guessed about its
range."""

from __future__ import annotations

import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from lorica.errors import DataError
from lorica.terminal import shown

# identified by Pillow, but without pixels of its own reading; EPS would run Ghostscript on the file
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})

# what the decoders raise for a damaged or foreign file: there is no family of its own
_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_DARK = 2**14  # a 16-bit picture that stays below a quarter of its range is more likely one of fewer bits


@dataclass(frozen=True)
class Decoding:
    """How pictures become 8-bit RGB; keys of the recipe's data section.

    Attributes:
        background: the colour under transparent pixels, by name or as "#rrggbb".
        bits: how many bits of a 16-bit picture are used (12 for most medical and scientific cameras); None = 16, and a
            picture that uses fewer is refused.
        max_megapixels: larger pictures are refused; a JPEG is decoded at a half, a quarter or an eighth of its size
            instead.
        jpeg_draft: a JPEG is decoded at such a fraction of its size wherever that is still as large as needed; faster,
            and the pixels are others, since the decoder leaves out frequencies block by block.

    Raises:
        DataError: a background that is no colour.
    """

    background: str = "white"
    bits: int | None = None
    max_megapixels: float = 36.0
    jpeg_draft: bool = False

    def __post_init__(self) -> None:
        try:
            ImageColor.getcolor(self.background, "RGB")
        except ValueError as error:
            raise DataError(
                f"data.background: expected a colour like white or '#f0f0f0', got {self.background!r}"
            ) from error

    def read(self, file: str | Path | BytesIO, least: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """The first picture in a file, by its path or its bytes, turned upright as its EXIF entry says. DataError when
        it cannot be read.

        Args:
            least: pixels of its short side that are needed, if not all of it is; only `jpeg_draft` makes use of it.
        """
        try:
            with _opened(file) as image:
                self._require_size(image, shrink=True, least=least)
                stored = _stored_as(image)
                ImageOps.exif_transpose(image, in_place=True)
                return self._rgb(image, stored)
        except _FAULTS as error:
            raise DataError(f"{_called(file)}: {_words(error)}") from error

    def convert(self, image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
        """A picture in memory, which stays as it is. DataError when it cannot be used."""
        try:
            self._require_size(image)
            stored = _stored_as(image)
            return self._rgb(ImageOps.exif_transpose(image), stored)
        except _FAULTS as error:
            raise DataError(f"{image!r:.200}: {_words(error)}") from error

    def fault(self, path: Path) -> str | None:
        """What is wrong with a file as far as its header and check sums tell (a JPEG has none: see `read`)."""
        try:
            with _opened(path) as image:
                self._require_size(image, shrink=True)
                image.verify()
        except _FAULTS as error:
            return f"{shown(path)}: {_words(error)}"
        return None

    def _require_size(self, image: Image.Image, *, shrink: bool = False, least: int | None = None) -> None:
        """And that the mode has a known range, which the header tells as well."""
        if image.mode in ("I", "F"):
            raise ValueError("32 bits per pixel, of unknown range; convert it to 8 bits")
        size, limit = image.size, self.max_megapixels * 1e6
        divisor = next((each for each in (1, 2, 4) if size[0] * size[1] <= limit * each**2), 8) if shrink else 1
        if self.jpeg_draft and least:
            divisor = max(divisor, next((each for each in (8, 4, 2) if min(size) >= each * least), 1))
        if divisor > 1:  # only a JPEG can; once, as drafts do not add up
            image.draft(None, (size[0] // divisor, size[1] // divisor))
        if image.width * image.height > limit:
            raise ValueError(
                f"{size[0]} x {size[1]} pixels, more than data.max_megapixels={self.max_megapixels:g} allows; raise "
                "it, or make the image smaller"
            )

    def _rgb(self, image: Image.Image, stored: str) -> UInt8[np.ndarray, "h w 3"]:
        if image.mode.startswith("I;16"):
            if "transparency" in image.info:
                raise ValueError("16 bits per pixel with a transparent value; convert it to 8 bits")
            grey = self._eight_bits(np.asarray(image), declared=12 if ";12" in stored else None)
            return np.repeat(grey[..., None], 3, axis=-1)
        # Pillow has dropped the lower bytes
        if ";16" in stored and self.bits != 16 and np.asarray(image.convert("RGB")).max() < _DARK >> 8:
            raise ValueError(
                f"16 bits per channel, {_FEW_BITS} convert it to 8 bits, or set data.bits=16 if it is so dark"
            )
        if image.has_transparency_data:
            covered = image.convert("RGBA")
            image = Image.new("RGB", image.size, self.background)
            image.paste(covered, mask=covered)
        return np.array(image.convert("RGB"))

    def _eight_bits(self, pixels: Shaped[np.ndarray, "h w"], declared: int | None) -> UInt8[np.ndarray, "h w"]:
        bits, largest = self.bits or declared, int(pixels.max())
        if bits is None and 0 < largest < _DARK:
            raise ValueError(f"16 bits per pixel, {_FEW_BITS} set data.bits (12?), or data.bits=16 if it is so dark")
        bits = bits or 16
        if largest >= 2**bits:
            raise ValueError(f"a pixel of {largest}, which has more than data.bits={bits} bits")
        return (pixels >> (bits - 8)).astype(np.uint8)


DEFAULT = Decoding()

DECODING = tuple(field.name for field in fields(Decoding))
"""The keys of the recipe's data section that a `Decoding` is made of."""

IN_MEMORY = "a file in memory"
"""What messages call a file that is given by its bytes."""

_FEW_BITS = "of which the highest two are not used, so that its range is unknown;"


@cache
def image_suffixes() -> frozenset[str]:
    """The endings of image files, in small letters with their dot: those of every format whose pixels Pillow can
    read."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in _formats())


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(kind for kind in Image.OPEN if kind not in _NOT_DECODED)


@contextmanager
def _opened(file: str | Path | BytesIO) -> Iterator[Image.Image]:
    if isinstance(file, BytesIO):
        size = len(file.getbuffer())
        file.seek(0)  # it may be read a second time
    else:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        size = status.st_size
    if not size:
        raise ValueError("zero bytes")
    with _UNWARNED:
        opened = Image.open(file, formats=_formats())
    with opened as image:
        yield image


class _Unwarned:
    """A `with` block in which Pillow does not warn of large pictures, since `Decoding.max_megapixels` is the bound
    here.

    Any number of threads may be in it, which `warnings.catch_warnings` does not allow for.
    """

    _FILTER = ("ignore", None, Image.DecompressionBombWarning, None, 0)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._is_ours = False

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1 and self._FILTER not in warnings.filters:
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                self._is_ours = True

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._is_ours:
                self._is_ours = False
                with suppress(ValueError):  # the caller has put other filters in its place
                    cast(list[Any], warnings.filters).remove(self._FILTER)


_UNWARNED = _Unwarned()


def _called(file: str | Path | BytesIO) -> str:
    return IN_MEMORY if isinstance(file, BytesIO) else shown(file)


def _stored_as(image: Image.Image) -> str:
    """How the pixels lie in the file ("RGB;16B"), as far as Pillow says before they are loaded."""
    return " ".join(str(tile[3]) for tile in getattr(image, "tile", []))


def _words(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} megapixels; make the image smaller"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or f"damaged ({type(error).__name__})"
