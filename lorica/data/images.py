"""Images: in files or in memory, and the reader that makes squares of pixels of them. Each is decoded once and kept as
bytes."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image
from torch import Tensor

from lorica.data.ahead import by_threads, sent
from lorica.data.decoding import DECODING, DEFAULT, Decoding
from lorica.data.samples import Samples
from lorica.data.transforms import AUGMENTATIONS, augment, centre_crop, enlarge_squares, fit_square, without_ends
from lorica.errors import DataError
from lorica.progress import Reporter, Silent

WORKERS = min(16, os.cpu_count() or 1)  # threads that decode; Pillow releases the interpreter lock


@cache
def _decoders() -> ThreadPoolExecutor:
    """They begin with the first image, and stay."""
    return ThreadPoolExecutor(WORKERS, "decode")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_decoders.cache_clear)  # threads are not copied with a process


class Images(Samples):
    """Images with their class numbers, read one at a time (from several threads at once)."""

    @abstractmethod
    def decode(self, index: int, least: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """The pixels of one image, RGB. DataError when it cannot be read.

        Args:
            least: pixels of its short side that are needed; see `Decoding.read`.
        """


class ImageFiles(Images):
    """One file per image."""

    each = ("paths",)

    def __init__(self, paths: Sequence[Path], labels: Int[np.ndarray, " n"], decoding: Decoding = DEFAULT) -> None:
        super().__init__(labels)
        self.paths: Sequence[Path] = tuple(paths)
        self.decoding = decoding

    def decode(self, index: int, least: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
        return self.decoding.read(self.paths[index], least)

    def describe(self, index: int) -> str:
        return str(self.paths[index])

    def name(self, index: int) -> str:
        return self.paths[index].as_posix()

    def digest(self, index: int) -> bytes:
        path = self.paths[index]
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        return hashlib.sha256(os.fsencode(path.name) + b"\0" + content).digest()


class ImageArrays(Images):
    """Images in memory: [n, h, w], [n, h, w, 1] or [n, h, w, 3]; uint8, or floats in [0, 1]. Else DataError.

    `of` ("train") is what messages call the array.
    """

    each = ("images",)

    def __init__(self, images: np.ndarray, labels: Int[np.ndarray, " n"], of: str) -> None:
        super().__init__(labels)
        self.of = of
        given = list(images.shape)
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:]:
            channels_first = images.ndim == 4 and images.shape[1] in (1, 3)
            remedy = "; move the channels to the end: numpy.moveaxis(x, 1, -1)" if channels_first else ""
            raise DataError(
                f"x_{of}: expected images of shape [n, h, w], [n, h, w, 1] or [n, h, w, 3], got {given}{remedy}"
            )
        if np.issubdtype(images.dtype, np.floating):
            if fault := _range_fault(images):
                raise DataError(f"x_{of}: {fault}")
            images = np.rint(images * 255).astype(np.uint8)
        if images.dtype != np.uint8:
            raise DataError(
                f"x_{of}: expected uint8, or floating point in [0, 1], got {images.dtype}; "
                "scale to 0 … 255 and use .astype(numpy.uint8)"
            )
        self.images = images

    def decode(self, index: int, least: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
        image = self.images[index]
        return image if image.shape[-1] == 3 else np.repeat(image, 3, axis=-1)

    def describe(self, index: int) -> str:
        return f"{self.of}[{self.name(index)}]"

    def digest(self, index: int) -> bytes:
        image = np.ascontiguousarray(self.images[index])
        return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()


class Pictures(Images):
    """Pictures as somebody holds them: files, images of Pillow, arrays or tensors, each as `pixels_of` takes it."""

    each = ("pictures",)

    def __init__(self, pictures: Sequence[Any], labels: Int[np.ndarray, " n"], decoding: Decoding = DEFAULT) -> None:
        super().__init__(labels)
        self.pictures, self.decoding = pictures, decoding

    def decode(self, index: int, least: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
        return pixels_of(self.pictures[index], self.decoding, least)

    def describe(self, index: int) -> str:
        picture = self.pictures[index]
        return str(picture) if isinstance(picture, str | Path) else f"image {index}"

    def digest(self, index: int) -> bytes:
        picture = self.pictures[index]
        if isinstance(picture, str | Path):
            return ImageFiles([Path(picture)], self.labels[:1]).digest(0)
        pixels = np.ascontiguousarray(self.decode(index))
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()


def pixels_of(picture: Any, decoding: Decoding = DEFAULT, least: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a file or an `io.BytesIO` of its contents, an image of Pillow, an array or a tensor: [h, w], [h, w,
    1 or 3], a tensor also [1 or 3, h, w]; uint8, or floats in [0, 1]; `least` as in `Decoding.read`. DataError for
    anything else, or what cannot be read."""
    if isinstance(picture, str | Path | BytesIO):
        return decoding.read(picture, least)
    if isinstance(picture, Image.Image):
        return decoding.convert(picture)
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu()
        if picture.ndim == 3 and picture.shape[0] in (1, 3) and picture.shape[-1] not in (1, 3):
            picture = picture.permute(1, 2, 0)
        picture = picture.numpy()
    if isinstance(picture, np.ndarray):
        return ImageArrays(picture[None], np.zeros(1, np.int64), "image").decode(0)
    raise DataError(
        "an image to predict: expected a file's path, an image of Pillow, an array or a tensor, got "
        f"{type(picture).__name__}"
    )


def read_image(path: str | Path, decoding: Decoding = DEFAULT) -> UInt8[np.ndarray, "h w 3"]:
    """An image file's pixels, turned upright as its EXIF entry says, RGB. DataError when it cannot be read."""
    return decoding.read(path)


def faults(
    pictures: Sequence[Any], decoding: Decoding, *, decode: bool, reporter: Reporter | None = None
) -> list[str | None]:
    """What is wrong with each image: found by decoding it, or as far as the header of its file tells, which is faster.
    One that is None is not there."""
    shown = reporter or Silent()
    shown.stage("decoding every image" if decode else "reading the headers of images", len(pictures))

    def fault(picture: Any) -> str | None:
        if picture is None:
            return "it has no image"
        if not decode:
            return decoding.fault(picture) if isinstance(picture, Path) else None
        try:
            pixels_of(picture, decoding)
        except DataError as error:
            return str(error)
        return None

    return by_threads(fault, pictures, _decoders(), after_each=shown.step)


def _range_fault(images: Shaped[np.ndarray, "n h w c"]) -> str | None:
    """Why floats cannot be pixels between black and white, and what to do."""
    if not len(images):
        return None
    low, high = float(images.min()), float(images.max())  # NaN where there is one
    if low >= 0 and high <= 1:
        return None
    remedy = "divide by 255" if high <= 255 else "divide by the largest value that the format has"
    if not (math.isfinite(low) and math.isfinite(high)):
        remedy = "some are NaN or infinite; look where they come from"
    elif low < 0:
        remedy = "these look normalised; undo it: x * std + mean"
    return f"floating-point images must lie in [0, 1], found {low:g} … {high:g}; {remedy}"


class ImageCache:
    """Samples as uint8 images, decoded by threads on first use and kept while `budget` bytes last: as squares of `size`
    pixels, or, if they have at most a quarter of these pixels, at their own size. The larger ones cost more time than
    they would save memory.

    What comes after that is decoded at every use: nothing is evicted, so cyclic reading does not thrash.
    """

    def __init__(self, samples: Images, size: int, budget: int) -> None:
        self._samples, self._size, self._left = samples, size, budget
        self._kept: dict[int, UInt8[np.ndarray, "3 h w"]] = {}
        self._keeping = threading.Lock()

    def images(self, indices: Int[Tensor, " n"]) -> list[UInt8[np.ndarray, "3 _ _"]]:
        """The images of these sample numbers, as they are kept. DataError naming all of them that cannot be read."""
        numbers = indices.tolist()
        absent = [number for number in dict.fromkeys(numbers) if number not in self._kept]
        decoded: dict[int, UInt8[np.ndarray, "3 _ _"]] = {}
        problems: list[str] = []
        for number, image in zip(absent, by_threads(self._decode, absent, _decoders()), strict=True):
            if isinstance(image, DataError):
                problems += image.problems
            else:
                decoded[number] = image
        if problems:
            raise DataError(problems)
        with self._keeping:
            for number, image in decoded.items():
                if number not in self._kept and image.nbytes <= self._left:
                    self._kept[number] = image
                    self._left -= image.nbytes
        return [decoded[number] if number in decoded else self._kept[number] for number in numbers]

    def squares(self, indices: Int[Tensor, " n"], device: torch.device) -> UInt8[Tensor, "n 3 s s"]:
        """The same on a device, all of them squares of `size` pixels: enlarged there by a GPU, else before; the bits
        are the same."""
        images = self.images(indices)
        if device.type == "cuda":
            return enlarged_on(device, images, self._size)
        return _enlarged(images, self._size).to(device)

    def _decode(self, index: int) -> UInt8[np.ndarray, "3 h w"] | DataError:
        try:
            image = self._samples.decode(index, self._size)
        except DataError as error:
            return error
        middle = without_ends(image)
        if 4 * middle.shape[0] * middle.shape[1] <= self._size**2:
            return middle.transpose(2, 0, 1).copy()
        return fit_square(image, self._size)


def enlarged_on(
    device: torch.device, images: Sequence[UInt8[np.ndarray, "3 _ _"]], size: int
) -> UInt8[Tensor, "n 3 {size} {size}"]:
    """Squares on a device, of images that are sent to it as they are."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        alike.setdefault(image.shape, []).append(place)
    parts = [
        enlarge_squares(sent(torch.from_numpy(np.stack([images[place] for place in places])), device), size)
        for places in alike.values()
    ]
    if len(parts) == 1:
        return parts[0]
    order = torch.tensor([place for places in alike.values() for place in places]).argsort()
    return torch.cat(parts)[sent(order, device)]


def _enlarged(images: Sequence[UInt8[np.ndarray, "3 _ _"]], size: int) -> UInt8[Tensor, "n 3 {size} {size}"]:
    """The same by Pillow in threads, which on a CPU is several times as fast."""
    squares = np.empty((len(images), 3, size, size), np.uint8)

    def fill(first: int) -> None:
        for place in range(first, len(images), WORKERS):
            image = images[place]
            squares[place] = image if image.shape[1:] == (size, size) else fit_square(image.transpose(1, 2, 0), size)

    by_threads(fill, range(min(WORKERS, len(images))), _decoders())
    return torch.from_numpy(squares)


class OpenedImages:
    """See `lorica.data.reader.Opened`: float32 squares in [0, 1], [n, 3, image_size, image_size]."""

    lengths = None
    facts: ClassVar[dict[str, int]] = {}

    def __init__(self, cache: ImageCache, image_size: int) -> None:
        self._cache, self._image_size = cache, image_size

    def fetch(self, indices: Int[Tensor, " n"], *, device: torch.device) -> Float[Tensor, "n 3 s s"]:
        return _fractions(centre_crop(self._cache.squares(indices, device), self._image_size))

    def augmented(
        self, indices: Int[Tensor, " n"], kind: str, generator: torch.Generator, *, device: torch.device
    ) -> Float[Tensor, "n 3 s s"]:
        squares = self._cache.squares(indices, device)
        if kind == "crop_flip":
            return augment(_fractions(squares), kind, self._image_size, generator)
        return _fractions(
            augment(squares, kind, self._image_size, generator)
        )  # whole pixels move: a quarter of the bytes


def _fractions(images: UInt8[Tensor, "n 3 s s"]) -> Float[Tensor, "n 3 s s"]:
    return images.float().div_(255)


class ImageReader:
    """Images for an encoder: decoded to squares of image_size / crop_pct pixels, rounded down as in timm, of which the
    centre `image_size` are used unless an augmentation crops. The other keys are those of `Decoding`, for what is to be
    predicted.

    Attributes:
        canvas: the side of the decoded squares.

    Raises:
        DataError: `crop_pct` is not above 0 and at most 1, or a background that is no colour.
    """

    options: ClassVar[tuple[str, ...]] = ("crop_pct", *DECODING)
    augmentations: ClassVar[tuple[str, ...]] = AUGMENTATIONS

    def __init__(self, image_size: int, *, crop_pct: float = 1.0, **decoding: Any) -> None:
        if not 0 < crop_pct <= 1:
            raise DataError(f"data.crop_pct: expected more than 0 and at most 1, got {crop_pct}")
        self.image_size = image_size
        self.crop_pct = crop_pct
        self.decoding = Decoding(**decoding)
        self.canvas = math.floor(image_size / crop_pct)

    def open(self, samples: Samples, budget: int) -> OpenedImages:
        """See `lorica.data.reader.Reader`. DataError for samples that are no images."""
        if not isinstance(samples, Images):
            raise DataError(
                "data.source: its samples are no images, and the backbone reads images; choose another of the two"
            )
        return OpenedImages(ImageCache(samples, self.canvas, budget), self.image_size)

    def of(self, given: Sequence[Any]) -> Float[Tensor, "n 3 s s"]:
        """From anything that `pixels_of` takes. DataError naming all that cannot be read."""
        squares, problems = [], []

        def square(picture: Any) -> UInt8[Tensor, "3 s s"] | DataError:
            try:
                return torch.from_numpy(fit_square(pixels_of(picture, self.decoding, self.canvas), self.canvas))
            except DataError as error:
                return error

        for each in by_threads(square, given, _decoders()) if len(given) > 1 else map(square, given):
            if isinstance(each, DataError):
                problems += each.problems
            else:
                squares.append(each)
        if problems:
            raise DataError(problems)
        return centre_crop(torch.stack(squares).float() / 255, self.image_size)


READER = ImageReader
