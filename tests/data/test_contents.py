"""Data is known again by its contents: what has changed since a run began is said, and never trained or tested on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorica.data.contents import Contents, contents_from, differences, digests_of, short_digest
from lorica.data.sources import Source, arrays
from lorica.data.sources.image_folder import image_folder
from lorica.errors import CheckpointError, DataError
from lorica.report.tables import summarise
from lorica.results import read_result
from lorica.run import evaluate, run


def contents_of(source: Source) -> Contents:
    return contents_from(source, digests_of(source))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for half, number in (("train", 4), ("test", 2)):
        for name in ("kite", "lark", "wren", "ibis"):
            (tmp_path / "data" / half / name).mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / half / name / f"{index}.png")
    return tmp_path / "data"


def recipe_of(folder: Path, small_recipe: dict[str, Any]) -> dict[str, Any]:
    return small_recipe | {
        "data": {"source": "image_folder", "root": str(folder)},
        "stream": {"tasks": 2, "seed": None},
        "fit": {"epochs": 1, "batch_size": 8},
    }


def test_the_place_of_data_does_not_count_and_its_contents_do(folder: Path, tmp_path: Path) -> None:
    before = contents_of(image_folder(folder))
    moved = shutil.move(folder, tmp_path / "elsewhere")
    assert contents_of(image_folder(moved)) == before
    assert {name: count for name, (count, _) in before["train"].items()} == dict.fromkeys(
        ["ibis", "kite", "lark", "wren"], 4
    )
    shutil.copy(moved / "train/lark/0.png", moved / "train/lark/1.png")
    now = contents_of(image_folder(moved))
    assert differences(before, now) == [
        "the training data of 1 of 4 classes is not what it was: lark (4 samples, other contents or names)"
    ]
    assert short_digest(now) != short_digest(before)
    (moved / "test/kite/0.png").rename(moved / "test/kite/9.png")
    (moved / "test/wren/0.png").unlink()
    assert differences(now, contents_of(image_folder(moved))) == [
        "the test data of 2 of 4 classes is not what it was: kite (2 samples, other contents or names), wren (2 "
        "samples, now 1)"
    ]


@pytest.mark.parametrize("half", ["train", "test"])
def test_arrays_are_known_by_their_numbers(half: str) -> None:
    pixels, labels = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8), np.arange(4)
    before = contents_of(arrays((pixels, labels), (pixels, labels)))
    other = pixels.copy()
    other[3, 0, 0] += 1
    halves = {"train": (pixels, labels), "test": (pixels, labels)} | {half: (other, labels)}
    [line] = differences(before, contents_of(arrays(halves["train"], halves["test"])))
    assert line.endswith("data of 1 of 4 classes is not what it was: 3 (1 samples, other contents or names)")
    relabelled = contents_of(arrays((pixels, labels[::-1].copy()), (pixels, labels)))
    assert "4 of 4 classes" in differences(before, relabelled)[0]


@pytest.mark.parametrize("change", ["replaced", "added", "split moved"])
def test_a_run_neither_goes_on_nor_is_tested_with_other_data(
    change: str, folder: Path, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    if change == "split moved":  # one folder per class, divided by the library
        for file in folder.glob("test/*/*.png"):
            shutil.move(file, folder / "train" / file.parent.name / f"1{file.name}")
        shutil.rmtree(folder / "test")
        shutil.copytree(folder / "train", folder, dirs_exist_ok=True)
        shutil.rmtree(folder / "train")
    recipe = recipe_of(folder, small_recipe)
    out = tmp_path / "run"
    run(recipe, out=out, progress=False, stop_after=1)
    held = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    wren = next(path for path in folder.rglob("wren") if path.is_dir())
    if change == "replaced":
        for file in wren.iterdir():
            Image.new("RGB", (16, 16), "red").save(file)
    else:
        for index in range(3):
            Image.new("RGB", (16, 16), "red").save(wren / f"0{index}-new.png")
    with pytest.raises(CheckpointError, match=r"since the run began, the .* data of 1 of 4 classes .* wren \("):
        run(recipe, out=out, progress=False, resume=True)
    with pytest.raises(CheckpointError, match="since the run began"):
        evaluate(out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == held


def test_a_run_that_did_not_note_its_data_goes_on(folder: Path, small_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe, out = recipe_of(folder, small_recipe), tmp_path / "run"
    run(recipe, out=out, progress=False, stop_after=1)
    environment = json.loads((out / "environment.json").read_text())
    assert environment["data"].pop("contents")
    (out / "environment.json").write_text(json.dumps(environment))
    assert run(recipe, out=out, progress=False, resume=True).complete


def test_unlike_data_or_weights_never_share_a_row(folder: Path, small_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = {**recipe_of(folder, small_recipe), "method": "prototypes"}
    shutil.copytree(folder, tmp_path / "copy")
    for index, root in enumerate((folder, tmp_path / "copy")):
        run(recipe, out=tmp_path / str(index), progress=False, seed=index, **{"data.root": str(root)})
    same = [read_result(tmp_path / name) for name in "01"]
    [row] = summarise(same)  # places may differ
    assert row.seeds == 2
    shutil.copy(folder / "test/wren/0.png", folder / "test/wren/1.png")
    run(recipe, out=tmp_path / "2", progress=False, seed=2)
    rows = summarise([*same, read_result(tmp_path / "2")])
    assert [row.seeds for row in rows] == [2, 1]
    assert "data contents=" in rows[1].label
    metrics = json.loads((tmp_path / "1" / "metrics.json").read_text())
    metrics["identity"]["backbone"] = "of other weights"
    (tmp_path / "1" / "metrics.json").write_text(json.dumps(metrics))
    assert [row.seeds for row in summarise([read_result(tmp_path / name) for name in "01"])] == [1, 1]


def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    source = image_folder(folder)
    (folder / "train/lark/0.png").unlink()
    with pytest.raises(DataError, match=r"0\.png: cannot be read: No such file"):
        contents_of(source)
