"""The distances of a discriminant against their definitions, and the tables of a small run."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

import lorica
from lorica.methods.rolda import RoLDA, RoLDAConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("unknowns")


def test_distances_are_those_to_means_in_the_metric_of_a_covariance(script: ModuleType, tiny_encoder: Any) -> None:
    method = RoLDA(RoLDAConfig(name="rolda", passes=0, layers=1, shrinkage=0.3), tiny_encoder())
    discriminant = method.discriminant
    random = np.random.RandomState(0)
    labels = np.repeat(np.arange(3), (5, 9, 6))
    samples = random.standard_normal((20, discriminant.width)) + 2 * labels[:, None]
    discriminant.grow(3)
    discriminant.add(torch.from_numpy(samples).float(), torch.from_numpy(labels))
    discriminant.solve(0.3)
    new = random.standard_normal((4, discriminant.width)).astype(np.float32)
    found = script.distances(method)(torch.from_numpy(new), discriminant(torch.from_numpy(new)))

    def inverse(centred: np.ndarray, free: int) -> np.ndarray:
        covariance = centred.T @ centred / free
        return np.linalg.inv(0.7 * covariance + 0.3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))

    means = np.stack([samples[labels == label].mean(axis=0) for label in range(3)])
    within, total = inverse(samples - means[labels], 17), inverse(samples - samples.mean(axis=0), 19)
    nearest = [min((one - mean) @ within @ (one - mean) for mean in means) for one in new]
    background = [(one - samples.mean(axis=0)) @ total @ (one - samples.mean(axis=0)) for one in new]
    np.testing.assert_allclose(found["mahalanobis"], -np.array(nearest), rtol=1e-4)
    np.testing.assert_allclose(found["relative"], np.array(background) - nearest, rtol=1e-4)


def test_tables_of_a_small_stream(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "FEW", (2,))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_recipe))
    app = typer.Typer()
    app.command()(script.main)
    given = ["small.yaml", "--methods", "rolda+enough=1,prototypes", "--seeds", "3"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "docs/results/small-unknowns.md").read_text()
    assert page.startswith("# Small: images of unknown classes, ")
    runs = json.loads((tmp_path / "docs/results/small-unknowns.json").read_text())["runs"]
    recipe = {**small_recipe, "method": {"name": "rolda", "enough": 1}, "stream": {"tasks": 3, "seed": 1996}}
    recipe["data"] = {**small_recipe["data"], "validation_fraction": 0.2}
    result = lorica.run(recipe, out=tmp_path / "alone", seed=3, stop_after=1, progress=False)
    assert runs[0]["accuracy"] == result.accuracy[0][0]
    assert runs[0]["images"] == {"aside": 4, "test": 12, "next": 24, "last": 12}  # 12 and 6 of each class, 2 set aside
    assert set(runs[0]["auroc"]) == {"probability", "logit", "energy", "mahalanobis", "relative"}
    assert set(runs[1]["auroc"]) == {"probability", "logit", "energy"}
    assert f"| rolda+enough=1 | relative | {100 * runs[0]['auroc_validation']['relative']:.1f} |" in page
    learned = next((tmp_path / "runs").rglob("*.safetensors"))
    before = learned.stat().st_mtime_ns
    assert CliRunner().invoke(app, given).exit_code == 0
    assert learned.stat().st_mtime_ns == before
    changed = CliRunner().invoke(app, [*given, "fit.epochs=1"])
    assert changed.exit_code == 2
    assert "move it away" in changed.output
