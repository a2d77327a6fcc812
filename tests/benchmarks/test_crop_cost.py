"""What the two kinds of views can show of an image that is not square."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorica.config import read_recipe
from lorica.data.images import ImageArrays

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("cut", ["square", "original"])
def test_only_views_of_the_original_show_its_ends(cut: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    wide = np.zeros((40, 120, 3), np.uint8)
    for third in range(3):
        wide[:, 40 * third : 40 * third + 40, third] = 255  # red, green, blue
    for half in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / half / name).mkdir(parents=True)
            Image.fromarray(wide).save(tmp_path / half / name / "wide.png")
    recipe = read_recipe("caltech", {"data.root": str(tmp_path), "backbone.image_size": 16, "fit.epochs": 20})
    source = importlib.import_module("crop_cost").views(recipe, cut, seed=0)
    assert isinstance(source.train, ImageArrays)
    assert isinstance(source.test, ImageArrays)
    assert source.train.images.shape == (2 * 20, 16, 16, 3)
    assert source.train.labels.tolist() == [0] * 20 + [1] * 20
    shown = {colour for colour in range(3) if (source.train.images[..., colour] > 200).any()}
    assert shown == ({1} if cut == "square" else {0, 1, 2})
    assert source.test.images.shape == (2, 16, 16, 3)
    assert len(np.unique(source.train.images, axis=0)) > 10  # drawn anew each time
