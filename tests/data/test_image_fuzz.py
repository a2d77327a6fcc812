"""Damaged images of every format: an error of the data or pixels, never anything else, quickly and in little memory."""

from __future__ import annotations

import io
import resource
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from damage import damaged
from PIL import Image

from lorica.data.decoding import Decoding, image_suffixes
from lorica.data.transforms import fit_square
from lorica.errors import LoricaError

MODES = ("RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16")


def whole_images() -> list[bytes]:
    """A picture of noise and a smooth one in every format and mode that Pillow writes and lorica reads."""
    noise = np.random.RandomState(0).randint(0, 256, (48, 40, 3)).astype(np.uint8)
    smooth = Image.linear_gradient("L").resize((40, 48)).convert("RGB")
    kinds = {Image.registered_extensions()[suffix] for suffix in image_suffixes()} & Image.SAVE.keys()
    made = []
    for kind in sorted(kinds):
        for mode in MODES:
            for picture in (Image.fromarray(noise), smooth):
                file = io.BytesIO()
                try:
                    given = (
                        Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
                        if mode == "I;16"
                        else picture.convert(mode)
                    )
                    given.save(file, kind)
                except (OSError, ValueError, KeyError):  # a mode that the format does not have
                    continue
                made.append(file.getvalue())
    return made


@pytest.mark.filterwarnings("ignore")  # Pillow's, about what it mends by itself
@pytest.mark.parametrize("number", [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_images(number: int, tmp_path: Path) -> None:
    random, decoding, outcomes = np.random.RandomState(number), Decoding(), Counter[str]()
    originals, slowest, longest = whole_images(), 0.0, 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    suffixes = sorted(image_suffixes())
    for _ in range(number):
        content = damaged(originals[random.randint(len(originals))], random)
        file = tmp_path / f"image{random.choice(suffixes)}"
        file.write_bytes(content)
        began = time.perf_counter()
        fault = decoding.fault(file)
        try:
            assert fit_square(decoding.read(file), 32).shape == (3, 32, 32)
            outcomes["read"] += 1
        except LoricaError as error:
            outcomes["refused" if fault else "refused when decoded"] += 1
            longest = max(longest, len(str(error)))
        slowest = max(slowest, time.perf_counter() - began)
        file.unlink()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20  # GiB on Linux, less elsewhere
    assert slowest < 5
    assert grown < 1
    assert longest < 600
    assert min(outcomes.values()) > number // 50, outcomes  # damage of every degree
