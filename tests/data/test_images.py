"""The reader of images: squares of pixels, decoded once, and what it refuses."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from PIL import Image

from lorica.data.images import WORKERS, ImageArrays, ImageCache, ImageFiles, ImageReader, Images, enlarged_on
from lorica.data.samples import Samples
from lorica.data.transforms import fit_square
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


class Noise(Images):
    """Noise of the given heights and widths; notes which threads decode, and what."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        super().__init__(np.zeros(len(sizes), np.int64))
        random = np.random.RandomState(0)
        self.images = [random.randint(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
        self.decoded: list[int] = []
        self.threads: set[str] = set()

    def decode(self, index: int, least: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
        self.decoded.append(index)
        self.threads.add(threading.current_thread().name)
        return self.images[index]

    def describe(self, index: int) -> str:
        return f"noise {index}"

    def digest(self, index: int) -> bytes:
        return bytes([index])

    def squares(self, size: int) -> UInt8[torch.Tensor, "n 3 {size} {size}"]:
        return torch.from_numpy(np.stack([fit_square(image, size) for image in self.images]))


SIZES = [(8, 8), (40, 40), (8, 8), (20, 11), (1, 60), (21, 20), (20, 20), (90, 70), (20, 11)]


def test_small_images_are_kept_at_their_own_size_and_enlarged_to_the_same_bits() -> None:
    samples, every = Noise(SIZES), torch.arange(len(SIZES))
    cache = ImageCache(samples, 40, 10**6)
    for _ in range(2):
        assert torch.equal(cache.squares(every, CPU), samples.squares(40))
    kept = cache.images(every)
    # at most a quarter of 1600 pixels: not 420; of 1 x 60, the ends are cut off
    assert [image.shape[1:] for image in kept] == [
        (8, 8), (40, 40), (8, 8), (20, 11), (1, 16), (40, 40), (20, 20), (40, 40), (20, 11)
    ]  # fmt: skip
    assert torch.equal(enlarged_on(CPU, kept, 40), samples.squares(40))  # as on a GPU
    assert torch.equal(enlarged_on(CPU, kept[:1], 40), samples.squares(40)[:1])
    assert sorted(samples.decoded) == every.tolist()


def test_the_budget_is_of_the_bytes_that_are_kept() -> None:
    samples = Noise([(8, 8)] * 6 + [(40, 40)] * 2)
    cache = ImageCache(samples, 40, 4 * 192 + 4800)  # four small ones and a square
    for _ in range(3):
        for chosen in ([0, 1, 0], [2, 3], [6, 6], [4, 5, 7]):
            assert torch.equal(cache.squares(torch.tensor(chosen), CPU), samples.squares(40)[chosen])
    assert Counter(samples.decoded) == {0: 1, 1: 1, 2: 1, 3: 1, 6: 1, 4: 3, 5: 3, 7: 3}


def test_the_threads_that_decode_stay() -> None:
    samples = Noise([(6, 6)] * 40)
    for _ in range(5):
        ImageCache(samples, 6, 0).squares(torch.arange(40), CPU)
        assert torch.equal(ImageReader(6).of(samples.images[:2]) * 255, samples.squares(6)[:2].float())
    assert len(samples.threads) <= WORKERS
    assert {name.partition("_")[0] for name in samples.threads} == {"decode"}


def test_a_copy_of_the_process_decodes_with_threads_of_its_own() -> None:
    samples = Noise([(6, 6)] * 4)
    ImageCache(samples, 6, 0).squares(torch.arange(4), CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this process has threads, which is the point
        child = os.fork()
    if not child:
        signal.alarm(20)  # ends a child that waits for threads that are not there
        os._exit(0 if len(ImageCache(samples, 6, 0).squares(torch.arange(4), CPU)) == 4 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_jpeg_is_decoded_at_a_fraction_of_its_size_if_asked_to(tmp_path: Path) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (30, 40, 3)).astype(np.uint8)
    smooth = Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.jpg")
    smooth.save(tmp_path / "a.png")
    whole, drafts = ImageReader(96, crop_pct=0.8), ImageReader(96, crop_pct=0.8, jpeg_draft=True)
    for least, short in ((241, 480), (240, 240), (121, 240), (120, 120), (61, 120), (20, 60)):
        assert drafts.decoding.read(tmp_path / "a.jpg", least).shape == (short, short * 4 // 3, 3)
        assert whole.decoding.read(tmp_path / "a.jpg", least).shape == (480, 640, 3)
        assert drafts.decoding.read(tmp_path / "a.png", least).shape == (480, 640, 3)
    assert drafts.decoding.read(tmp_path / "a.jpg").shape == (480, 640, 3)
    paths = [tmp_path / "a.jpg", tmp_path / "a.png"]
    read = {reader: reader.of(paths) for reader in (whole, drafts)}
    assert torch.equal(read[whole][1], read[drafts][1])
    assert 0 < (read[whole][0] - read[drafts][0]).abs().mean() < 2 / 255
    files = ImageFiles(paths, np.zeros(2, np.int64), drafts.decoding)
    opened = drafts.open(files, 10**6)
    assert torch.equal(opened.fetch(torch.arange(2), device=CPU), read[drafts])


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
