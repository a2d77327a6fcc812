"""What is refused for a user's mistake leaves nothing new behind, no empty folder either, whichever command it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from lorica.files import taken, without_empty
from lorica.learner import Learner
from lorica.results import Result
from tests.test_cli import Lorica, lorica

__all__ = ["lorica"]  # the fixture

NEW = "new/deeper"
REFUSED = {
    "run, data that is not there": "run small.yaml data.source=image_folder data.root=nowhere --out NEW",
    "run, a manifest without validation samples": "run held.yaml stream.manifest=old.jsonl --out NEW",
    "run, resumed": "run small.yaml --resume data.root=nowhere --out NEW",
    "learn, data that is not there": "learn NEW --data nowhere backbone.name=lorica_tiny",
    "learn, images of one class twice": "learn NEW --data twice backbone.name=lorica_tiny",
    "learn, a recipe for runs": "learn NEW --data images backbone.name=lorica_tiny track=tensorboard",
    "learn, a method that cannot": "learn NEW --data images backbone.name=lorica_tiny method=joint",
    "learn, weights that are none": "learn NEW --data images backbone.name=test_vit backbone.weights=small.yaml",
    "learn, tested on others": "learn NEW --data images --test others backbone.name=lorica_tiny method=prototypes",
    "learn, diverged": "learn NEW --data images backbone.name=lorica_tiny method=sd_lora fit.learning_rate=1e30",
    "predict": "predict NEW small.yaml",
    "history": "history NEW",
    "rollback": "rollback NEW --to 1",
    "forget": "forget NEW wren",
    "purge": "purge NEW --yes",
    "join": "join NEW run",
    "merge, no such rule": "merge run --rule mean --out NEW",
    "merge, other data": "merge run --rule average --set data.root=nowhere --out NEW",
    "merge, no run": "merge NEW --rule average",
    "export, no such checkpoint": "export run --to timm --tasks 9 --out NEW",
    "export, images that are none": "export run --to timm --images small.yaml --out NEW",
    "report, no runs": "report images --out NEW",
    "report, against nobody": "report run --against nobody --out NEW",
    "table, figures of no runs": "table images --figures NEW",
    "evaluate, images that are none": "evaluate run --data nowhere --figures NEW",
    "analyze, no runs": "analyze images --out NEW",
    "theorem, diverged": "theorem --out NEW --learning-rate 1000",
    "import": "import small.yaml",
    "demo, images that are not there": "demo --images nowhere --out NEW",
    "demo, too few classes": "demo --images images --out NEW",
    "demo, a key that is none": "demo --text method.rnak=3 --out NEW",
    "sweep, a key that is none": "sweep sweep.yaml method.rnak=3",
    "sweep, a file in the way": "sweep blocked.yaml",
    "sweep, a database that is none": "sweep stored.yaml",
    "sweep, a method that cannot learn the data": "sweep other.yaml stream.tasks=1 stream.recurring=0.5",
    "sweep, data that is not there": "sweep sweep.yaml data.source=image_folder data.root=nowhere",
}


@pytest.fixture
def place(finished_run: Result, small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a run, a recipe, files of sweeps and images are."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(str(finished_run.path), "run")
    shutil.copy("run/stream.jsonl", "old.jsonl")
    Path("small.yaml").write_text(yaml.safe_dump(small_recipe))
    held = {"evaluate_on": "validation", "validation_fraction": 0.2}
    Path("held.yaml").write_text(yaml.safe_dump(small_recipe | {"data": small_recipe["data"] | held}))
    sweep = {"recipe": "small.yaml", "methods": ["linear_probe"], "folder": NEW}
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep))
    Path("blocked.yaml").write_text(yaml.safe_dump(sweep | {"out": "mine"}))
    Path("stored.yaml").write_text(yaml.safe_dump(sweep | {"storage": "nothing://x"}))
    Path("other.yaml").write_text(yaml.safe_dump(sweep | {"methods": ["linear_probe", "cl_lora"]}))
    Path("mine.md").write_text("my own\n")
    for folder, names in {"images": ("lark", "wren"), "others": ("kite", "tern"), "twice": ("lark", "wren")}.items():
        for number, name in enumerate(names):
            (tmp_path / folder / name).mkdir(parents=True)
            for index in range(4):
                pixels = np.full((32, 32, 3), 20 * index + (0 if folder == "twice" else 90 * number), np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / name / f"{index}.png")
    return tmp_path


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("what", REFUSED)
def test_a_command_that_is_refused_leaves_no_folder(what: str, lorica: Lorica, place: Path) -> None:
    before = everything(place)
    code, _, err = lorica(*REFUSED[what].replace("NEW", NEW).split())
    assert code in (1, 2), err
    assert err
    assert "Traceback" not in err
    assert everything(place) == before


def test_a_learner_that_is_refused_leaves_no_folder(place: Path) -> None:
    for refused in (
        lambda: Learner(NEW, recipe={"method": {"name": "nobody"}}),
        lambda: Learner(NEW, backbone="lorica_tiny").predict(["images/wren/0.png"]),
        lambda: Learner(NEW, backbone="lorica_tiny").learn("nowhere"),
        lambda: Learner(backbone="lorica_tiny").save(NEW),
    ):
        before = everything(place)
        with pytest.raises(Exception, match=r"."):
            refused()
        assert everything(place) == before


@pytest.mark.parametrize("make", [taken, without_empty])
def test_folders_that_were_there_or_are_in_use_stay(make: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for folder, stays in (("mine", False), ("mine/a/b", False), ("mine/c/d", True)):
        with make(tmp_path / folder):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            if stays:
                (tmp_path / folder).with_name("beside").write_text("")
    assert everything(tmp_path) == ["mine", "mine/c", "mine/c/beside"]
