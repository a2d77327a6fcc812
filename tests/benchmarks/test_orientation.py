"""The streams that are hard for rotations are what they say."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_class_of_arrows_is_a_rotation_of_three_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    random = np.random.RandomState(0)
    for half in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "given" / half / name).mkdir(parents=True)
            picture = random.randint(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "given" / half / name / "one.png")
    importlib.import_module("orientation").main(tmp_path / "given", tmp_path / "out")

    def read(place: str) -> np.ndarray:
        return np.asarray(Image.open(tmp_path / place))

    assert sorted(path.name for path in (tmp_path / "out/arrows/test").iterdir()) == [
        f"{name}-{quarter}" for name in "ab" for quarter in range(4)
    ]
    for quarter in range(4):
        found = read(f"out/arrows/train/a-{quarter}/one.png")
        np.testing.assert_array_equal(found, np.rot90(read("given/train/a/one.png"), quarter))
    assert sorted(path.name for path in (tmp_path / "out/turned/train").iterdir()) == ["a", "b"]
    assert not np.array_equal(read("out/turned/train/a/one.png"), read("given/train/a/one.png"))
