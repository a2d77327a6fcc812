"""One image file as pixels: transparency, depth, size, and what no decoder should be given."""

from __future__ import annotations

import os
import struct
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lorica.data.decoding import Decoding, image_suffixes
from lorica.data.transforms import fit_square
from lorica.errors import DataError


def png16(path: Path, pixels: np.ndarray) -> Path:
    """A PNG of 16 bits per channel, which Pillow cannot write in colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


# ---- transparency


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize(("background", "colour"), [("white", 255), ("#000000", 0), ("gray", 128)])
def test_a_shape_that_only_transparency_shows_lies_on_the_background(
    mode: str, background: str, colour: int, tmp_path: Path
) -> None:
    alpha = Image.new("L", (8, 8), 0)
    ImageDraw.Draw(alpha).rectangle((2, 2, 5, 5), fill=255)
    image = Image.new("RGBA", (8, 8), (60, 60, 60, 0))
    image.putalpha(alpha)
    if mode == "P":
        image = alpha.point(lambda value: value // 255).convert("P")
        image.putpalette([60, 60, 60, 60, 60, 60])
        image.save(tmp_path / "a.png", transparency=b"\x00\xff")
    else:
        image.convert(mode).save(tmp_path / "a.png")
    expected = np.full((8, 8, 3), colour)
    expected[2:6, 2:6] = 60
    np.testing.assert_array_equal(Decoding(background=background).read(tmp_path / "a.png"), expected)


def test_half_transparent_pixels_are_mixed_with_the_background(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (100, 0, 200, 51)).save(tmp_path / "a.webp", lossless=True)
    assert Decoding().read(tmp_path / "a.webp")[0, 0].tolist() == [224, 204, 244]  # a fifth of it on white


def test_a_background_that_is_no_colour() -> None:
    with pytest.raises(DataError, match=r"^data\.background: expected a colour like white or '#f0f0f0', got 'whit'"):
        Decoding(background="whit")


# ---- depth


@pytest.mark.parametrize("ending", ["png", "tiff"])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_bits_in_16_bit_files_are_refused_until_the_recipe_says_how_many(
    bits: int, ending: str, tmp_path: Path
) -> None:
    values = np.linspace(0, 2**bits - 1, 64).astype(np.uint16).reshape(8, 8)
    file = tmp_path / f"a.{ending}"
    Image.fromarray(values).save(file)
    with pytest.raises(DataError, match=r"16 bits per pixel, of which the highest two are not used.* set data\.bits"):
        Decoding().read(file)
    read = Decoding(bits=bits).read(file)
    np.testing.assert_array_equal(read[..., 0], values // 2 ** (bits - 8))
    assert read.max() == 255
    np.testing.assert_array_equal(Decoding(bits=16).read(file)[..., 2], values // 256)


def test_a_value_above_the_bits_of_the_recipe_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 4096]], np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a pixel of 4096, which has more than data\.bits=12 bits"):
        Decoding(bits=12).read(tmp_path / "a.png")


def test_a_black_16_bit_image_is_black(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "a.png")
    assert Decoding().read(tmp_path / "a.png").max() == 0


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_fewer_bits_in_16_bit_colours_are_refused(channels: int, tmp_path: Path) -> None:
    values = np.random.RandomState(0).randint(0, 4096, (4, 4, channels))
    file = png16(tmp_path / "a.png", values)
    with pytest.raises(DataError, match="16 bits per channel, of which the highest two are not used"):
        Decoding().read(file)
    full = png16(tmp_path / "b.png", values[..., :1].repeat(3, -1) * 16)
    np.testing.assert_array_equal(Decoding().read(full)[..., 0], values[..., 0] // 16)


# ---- size


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [6001, 13300])
def test_a_small_file_of_many_pixels_is_refused_without_decoding_it(side: int, tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    Image.new("1", (side, side)).save(file)
    tracemalloc.start()
    with pytest.raises(DataError, match=rf"{side} x {side} pixels, more than data\.max_megapixels=36 allows; raise it"):
        Decoding().read(file)
    assert Decoding().fault(file) is not None
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((1000, 800)).convert("RGB").save(tmp_path / "a.jpg")
    whole = Decoding().read(tmp_path / "a.jpg")
    assert whole.shape == (800, 1000, 3)
    half = Decoding(max_megapixels=0.3).read(tmp_path / "a.jpg")
    assert half.shape == (400, 500, 3)
    assert np.abs(half.astype(int) - whole[::2, ::2]).max() <= 2
    assert Decoding(max_megapixels=0.0126).read(tmp_path / "a.jpg").shape == (100, 125, 3)
    with pytest.raises(DataError, match=r"1000 x 800 pixels, more than data\.max_megapixels=0\.0124 allows"):
        Decoding(max_megapixels=0.0124).read(tmp_path / "a.jpg")
    for least, side in ((300, 400), (200, 200)):  # the smaller of two fractions
        drafted = Decoding(max_megapixels=0.3, jpeg_draft=True).read(tmp_path / "a.jpg", least)
        assert drafted.shape == (side, side * 5 // 4, 3)


@pytest.mark.parametrize("shape", [(1, 20000), (20000, 1), (3, 9000)])
def test_an_extreme_shape_takes_little_memory(shape: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    middle = (shape[0] // 2, shape[1] // 2)
    image[max(0, middle[0] - 8) : middle[0] + 8, max(0, middle[1] - 8) : middle[1] + 8] = 200
    tracemalloc.start()
    square = fit_square(image, 224)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()
    assert square.shape == (3, 224, 224)
    assert square.min() == 200


# ---- what is no image


def test_pipes_devices_and_folders_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for place, words in (
        (tmp_path / "pipe.png", "not a regular file"),
        (tmp_path, "a folder"),
        ("/dev/zero", "not a reg"),
    ):
        with pytest.raises(DataError, match=words):
            Decoding().read(place)


def test_postscript_under_another_name_is_no_image(tmp_path: Path) -> None:
    """Pillow would run Ghostscript on it."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: not an image$"):
        Decoding().read(tmp_path / "a.png")
    assert ".eps" not in image_suffixes()


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about what it mends
@pytest.mark.parametrize("ending", ["jpg", "avif", "dds", "gif", "jp2", "tga", "webp", "qoi", "icns", "pcx", "sgi"])
def test_a_damaged_file_of_any_format_is_an_error_of_the_data(ending: str, tmp_path: Path) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    file = tmp_path / f"a.{ending}"
    Image.fromarray(noise).save(file)
    whole = file.read_bytes()
    assert Decoding().read(file).shape[2] == 3
    file.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(DataError, match=rf"a\.{ending}: ."):
        Decoding().read(file)


def test_a_dds_of_unknown_kind_under_another_name(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(file, format="DDS")
    content = bytearray(file.read_bytes())
    content[80:84] = struct.pack("<I", 4)  # compressed, by a method that does not exist
    content[84:88] = b"NONE"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png: .+"):
        Decoding().read(file)


def test_a_name_that_would_reach_the_terminal_is_written_out(tmp_path: Path) -> None:
    file = tmp_path / "a\x1b[31m.png"
    file.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        Decoding().read(file)
    assert "\x1b" not in str(caught.value)
    assert r"a\x1b[31m.png: zero bytes" in str(caught.value)


def test_pillows_warning_about_large_pictures_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`max_megapixels` is the bound; and from many threads at once the caller's filters stay as they are."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # a warning above it, an error above twice as many
    file = tmp_path / "large.png"
    Image.new("RGB", (12, 12)).save(file)
    before = list(warnings.filters)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(file).close()
    with warnings.catch_warnings(record=True) as seen, ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("always")
        found = list(pool.map(lambda _: Decoding().read(file).shape, range(200)))
        assert Decoding().fault(file) is None
        with pytest.warns(Image.DecompressionBombWarning):
            Image.open(file).close()
    assert set(found) == {(12, 12, 3)}
    assert not seen
    assert list(warnings.filters) == before


def test_a_filter_of_the_callers_for_that_warning_stays(tmp_path: Path) -> None:
    Image.new("RGB", (12, 12)).save(tmp_path / "image.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        before = list(warnings.filters)
        Decoding().read(tmp_path / "image.png")
        assert list(warnings.filters) == before


# ---- a file's bytes


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "tif", "jp2"])
def test_a_file_in_memory_reads_as_the_same_file_on_disk(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{ending}"
    Image.radial_gradient("L").convert("RGB").save(file)
    content = BytesIO(file.read_bytes())
    content.seek(5)
    for _ in range(2):
        np.testing.assert_array_equal(Decoding().read(content), Decoding().read(file))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "zero bytes"), (b"hello", "not an image"), (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image")],
)
def test_a_file_in_memory_that_is_no_image(content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=f"^a file in memory: {words}$"):
        Decoding().read(BytesIO(content))
