"""The prediction benchmark at a scale that says nothing about time: that it times what it says."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_all_predict_the_same_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    prediction_time = importlib.import_module("prediction_time")
    learner = prediction_time.learned(tmp_path, "prototypes", {"backbone": {"name": "lorica_tiny"}})
    work = prediction_time.contenders({"prototypes": learner}, 3)
    assert set(work) == {(kind, name) for kind in ("forward", "images") for name in ("", "plain", "prototypes")}
    found = {key: each() for key, each in work.items()}
    assert all(logits.shape == (3, 20) for logits in found.values())
    assert torch.allclose(found["forward", "prototypes"], found["images", "prototypes"], atol=1e-5)
    taken = prediction_time.timed(work, 3, lambda: None)
    assert {len(each) for each in taken.values()} == {3}
    assert prediction_time.quartiles([2.0, 6.0, 4.0], [1.0, 2.0, 1.0]) == {"ratio": 3.0, "lower": 2.5, "upper": 3.5}
