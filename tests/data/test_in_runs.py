"""What a recipe says about data, through a whole run: order of classes, damaged and ignored files, transparency."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from lorica import cli
from lorica.errors import DataError, LoricaError
from lorica.progress import Silent
from lorica.run import check, evaluate, run


@pytest.fixture
def recipe(small_recipe: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Four numbered classes of five images, where the order of names matters, in two tasks."""
    random = np.random.RandomState(0)
    for name in ("1", "2", "10", "11"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for number in range(5):
            Image.fromarray(random.randint(0, 256, (32, 40, 3)).astype(np.uint8)).save(folder / f"{number}.jpg")
    data = {"source": "image_folder", "root": str(tmp_path / "data")}
    return small_recipe | {"data": data, "stream": {"tasks": 2, "seed": None}, "fit": {"epochs": 1, "batch_size": 8}}


class Remarks(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.stages: dict[str, list[int]] = {}

    def stage(self, description: str, steps: int) -> None:
        self.stages[description] = [steps, 0]

    def step(self, note: str = "") -> None:
        self.stages[list(self.stages)[-1]][1] += 1

    def say(self, remark: str) -> None:
        self.said.append(remark)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-300])


def test_a_saved_run_keeps_the_order_of_its_time(recipe: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(recipe, out=out, progress=False, stop_after=1, **{"data.class_order": "text"})
    saved = yaml.safe_load((out / "recipe.yaml").read_text())
    assert saved["data"].pop("class_order") == "text"
    (out / "recipe.yaml").write_text(yaml.safe_dump(saved))  # as it was before there was this key
    result = run(recipe, out=out, progress=False, resume=True)
    assert [task["classes"] for task in result.tasks] == [["1", "10"], ["11", "2"]]
    assert evaluate(out).accuracy == pytest.approx(result.accuracy[-1])
    with pytest.raises(
        LoricaError, match=r"data\.class_order was 'text', now 'natural'; give the same value to resume"
    ):
        run(recipe, out=out, progress=False, resume=True, **{"data.class_order": "natural"})
    assert [task.class_names for task in check(recipe)[1].tasks] == [("1", "2"), ("10", "11")]


def test_a_run_leaves_out_and_says_what_the_recipe_allows(recipe: dict[str, Any], tmp_path: Path) -> None:
    cut(tmp_path / "data" / "2" / "3.jpg")
    (tmp_path / "data" / "2" / "notes.txt").write_text("")
    reporter = Remarks()
    run(recipe, out=tmp_path / "run", progress=reporter, **{"data.unreadable": "skip"})
    assert reporter.said == [
        "data.root: passed over 1 files or folders: 1 *.txt (no image format)",
        "data.unreadable: left out 1 images that cannot be read",
    ]
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())["data"]
    assert (facts["unreadable"], facts["passed_over"]) == (1, {"*.txt (no image format)": 1})
    assert facts["train"] + facts["test"] == 19


def test_looking_at_images_is_shown(recipe: dict[str, Any], tmp_path: Path) -> None:
    remarks = Remarks()
    check(recipe, progress=remarks)
    assert remarks.stages == {"decoding every image": [20, 20]}
    remarks = Remarks()
    check(recipe, decode_all=False, progress=remarks)
    assert remarks.stages == {"reading the headers of images": [20, 20]}
    remarks = Remarks()
    run(recipe, out=tmp_path / "run", progress=remarks, stop_after=1)
    assert remarks.stages["reading the headers of images"] == [20, 20]


def test_check_decodes_and_fast_does_not(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(tmp_path / "data" / "2" / "3.jpg")
    (tmp_path / "data" / "2" / ".DS_Store").write_text("")
    with pytest.raises(DataError, match=r"3\.jpg: image file is truncated"):
        check(recipe)
    check(recipe, decode_all=False)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for options, words in (
        ([], "1 of 20 images cannot be read"),
        (["--fast"], "passed over 1 files or folders: 1 hidden"),
    ):
        monkeypatch.setattr(sys, "argv", ["lorica", "check", str(tmp_path / "recipe.yaml"), *options])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == (0 if options else 2)
        shown = capsys.readouterr()
        assert words in shown.out + shown.err
    with pytest.raises(DataError, match=r"^data\.background: expected a colour"):
        check(recipe, **{"data.background": "whit"})
