"""A model in a folder: what it learns and keeps, what it refuses, how it goes back, and that nothing half-done is
left."""

from __future__ import annotations

import copy
import gc
import hashlib
import itertools
import json
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import damaged
from PIL import Image
from safetensors.torch import load_file
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted

from lorica.calibration import Calibration, fit, probabilities
from lorica.data.stream import Split
from lorica.descent import Descent
from lorica.errors import CheckpointError, DataError, LoricaError, RegressionError, TrainingError
from lorica.export import export
from lorica.files import RunFolder
from lorica.learner import Learner, load
from lorica.predictor import Predictor
from lorica.results import Result
from lorica.run import run
from lorica.session import Session
from lorica.statistics import RidgeHead
from tests.conftest import CLASS_NAMES, COLOURS

Values = dict[str, Any]
METHODS: dict[str, Values] = {
    "rolda": {"name": "rolda", "rank": 2, "passes": 1, "enough": 1, "layers": 2},
    "sd_lora": {"name": "sd_lora"},
    "prototypes": {"name": "prototypes"},
}


@pytest.fixture(scope="module")
def recipe(small_recipe: Values) -> Values:
    """Discriminant on test_vit: nothing is trained, so that a change takes a blink."""
    method = {"name": "rolda", "passes": 0, "layers": 1}
    return {key: small_recipe[key] for key in ("backbone", "device", "fit")} | {"method": method}


@pytest.fixture(scope="module")
def forgetful(recipe: Values) -> Values:
    """One that forgets at once what it learned before."""
    return recipe | {
        "method": {"name": "full_finetune", "cross_entropy": "all_seen"},
        "fit": {"epochs": 3, "batch_size": 6, "learning_rate": 0.01},
    }


@pytest.fixture(scope="module")
def grown(recipe: Values, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three versions, two classes each; tests copy it before they change anything."""
    folder = tmp_path_factory.mktemp("models") / "grown"
    learner = Learner(folder, recipe=recipe, keep=2)
    for first in (0, 2, 4):
        learner.learn(of_classes(first, first + 1))
    return folder


@pytest.fixture
def model(grown: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(grown, tmp_path / "model"))


def coloured(number: int, images: int = 12, seed: int = 0) -> np.ndarray:
    """Noisy squares in the colour of a class, [images, 32, 32, 3]."""
    noise = np.random.RandomState(100 * seed + number).randint(-25, 26, (images, 32, 32, 3))
    return (np.array(COLOURS[number]) + noise).clip(0, 255).astype(np.uint8)


def of_classes(*numbers: int, images: int = 12, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    together = np.concatenate([coloured(number, images, seed) for number in numbers])
    return together, [CLASS_NAMES[number] for number in numbers for _ in range(images)]


def written(folder: Path, *numbers: int, images: int = 12, seed: int = 0) -> Path:
    """The same in a folder for each class."""
    for number in numbers:
        (folder / CLASS_NAMES[number]).mkdir(parents=True, exist_ok=True)
        for place, image in enumerate(coloured(number, images, seed)):
            Image.fromarray(image).save(folder / CLASS_NAMES[number] / f"{seed}-{place:02}.png")
    return folder


def files_of(folder: Path) -> dict[str, str]:
    """Every file, by the hash of its contents."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def kept_in(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that a model has set aside, and their labels, as its files have them."""
    found = [load_file(file) for file in sorted((folder / "checkpoints").glob("*-images.safetensors"))]
    found = [each for each in found if "kept" in each]
    return torch.cat([each["kept"] for each in found]), torch.cat([each["kept_labels"] for each in found])


PROBE = np.concatenate([coloured(number, 2, seed=9) for number in range(6)])


def logits(folder: Path, version: int | None = None) -> torch.Tensor:
    found = load(folder, version=version)
    return found.logits(PROBE)


class Sayings:
    """A reporter that remembers what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, title: str, steps: int) -> None:
        pass

    def step(self, text: str = "", steps: int = 1) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)


# ---- what is learned


@pytest.mark.parametrize("method", METHODS)
def test_a_stream_gives_the_same_bits_as_a_run(method: str, small_recipe: Values, tmp_path: Path) -> None:
    """Task by task, from folders and from arrays, in one Learner and in a new one for each task."""
    values = small_recipe | {"method": METHODS[method]}
    names = sorted(CLASS_NAMES)  # the natural order
    numbers = [CLASS_NAMES.index(name) for name in names]
    written(tmp_path / "data/train", *numbers)
    written(tmp_path / "data/test", *numbers, images=1, seed=1)
    data = {"source": "image_folder", "root": str(tmp_path / "data")}
    run(values | {"data": data, "stream": {"tasks": 3, "seed": None}}, out=tmp_path / "run", progress=False)
    staying = Learner(tmp_path / "staying", recipe=values, keep=0)
    for task in range(3):
        mine = numbers[2 * task : 2 * task + 2]
        staying.learn(of_classes(*mine))
        for name in names[2 * task : 2 * task + 2]:
            shutil.copytree(tmp_path / "data/train" / name, tmp_path / f"task{task}" / name)
        Learner(tmp_path / "anew", recipe=values, keep=0).learn(tmp_path / f"task{task}")
    expected = {name: digest for name, digest in files_of(tmp_path / "run").items() if name.endswith(".safetensors")}
    assert len(expected) >= 3
    for folder in ("staying", "anew"):
        found = files_of(tmp_path / folder)
        assert {name: found.get(name) for name in expected} == expected
        assert found.get("history.jsonl") == files_of(tmp_path / "run").get("history.jsonl")
        assert torch.equal(logits(tmp_path / folder), logits(tmp_path / "run"))
    assert staying.class_names == tuple(names)


def test_new_classes_more_of_old_ones_and_both(recipe: Values, tmp_path: Path) -> None:
    learner = Learner(tmp_path / "m", recipe=recipe, keep=0)
    learner.learn(of_classes(1, 0))
    assert learner.class_names == ("green", "red")
    more = learner.learn(of_classes(0, images=5, seed=1))
    assert more is not None
    assert (more.number, more.classes, more.images) == (2, ("red",), 5)
    both = learner.learn(of_classes(3, 1, 2, images=3, seed=2))
    assert both is not None
    assert (both.classes, both.images) == (("green", "blue", "yellow"), 9)
    assert learner.class_names == ("green", "red", "blue", "yellow")
    assert learner.method.discriminant.counts.tolist() == [15, 17, 3, 3]
    expected = [CLASS_NAMES[number] for number in range(4) for _ in range(2)]
    assert learner.predict(PROBE[:8]).tolist() == expected
    assert learner.score(PROBE[:8], expected) == 1.0
    with pytest.raises(DataError, match=r"labels: expected one for each of 8 images, got shape \[7\]"):
        learner.score(PROBE[:8], expected[:7])


def test_the_division_into_changes_does_not_matter_to_a_discriminant(recipe: Values) -> None:
    """Given the trunk, what is learned is that of all images at once."""
    parts, whole = Learner(recipe=recipe, keep=0), Learner(recipe=recipe, keep=0)
    images, labels = of_classes(0, 1, images=8)
    for chosen in (slice(0, 16, 2), slice(1, 16, 2)):
        parts.learn((images[chosen], labels[chosen]))
    whole.learn((images, labels))
    torch.testing.assert_close(parts.logits(PROBE), whole.logits(PROBE), atol=1e-3, rtol=1e-3)


def test_a_class_from_one_image(recipe: Values) -> None:
    learner = Learner(recipe=recipe)
    learner.learn(of_classes(0, 1))
    change = learner.learn(of_classes(2, images=1))
    assert change is not None
    assert (change.images, change.set_aside, change.accuracy) == (1, 0, None)
    assert learner.predict(coloured(2, 3, seed=4)).tolist() == ["blue"] * 3


def test_copies_that_come_together_are_not_called_learned_already(recipe: Values, tmp_path: Path) -> None:
    """Files of one name and contents in two folders of a class, and the same array twice; then all of them again."""
    folder = written(tmp_path / "photos", 0, 1)
    copied = next((folder / "red").iterdir())
    (folder / "red" / "more").mkdir()
    shutil.copy(copied, folder / "red" / "more" / copied.name)
    learner, said = Learner(tmp_path / "m", recipe=recipe), Sayings()
    change = learner.learn(folder, progress=said)
    assert change is not None
    assert change.images + change.set_aside == 24
    assert said.said == ["1 images are copies of others that have come with them, and are passed over"]
    said.said.clear()
    assert learner.learn(folder, progress=said) is None
    assert said.said == ["25 images have been learned already, and are passed over"]
    images, labels = of_classes(2, 3, images=4, seed=2)
    said.said.clear()
    learner.learn((np.concatenate([images, images[:3]]), labels + labels[:3]), progress=said)
    assert said.said == ["3 images are copies of others that have come with them, and are passed over"]


def test_images_learned_already_are_passed_over(recipe: Values, tmp_path: Path) -> None:
    folder = written(tmp_path / "photos", 0, 1)
    learner, said = Learner(tmp_path / "m", recipe=recipe), Sayings()
    learner.learn(folder)
    before = files_of(tmp_path / "m")
    assert learner.learn(folder, progress=said) is None
    assert said.said == ["24 images have been learned already, and are passed over"]
    assert files_of(tmp_path / "m") == before
    written(folder, 0, 2, images=4, seed=1)
    change = learner.learn(folder, progress=said)
    assert change is not None
    assert (change.number, change.classes, change.images + change.set_aside) == (2, ("red", "blue"), 8)
    assert Learner(tmp_path / "m").learn(folder) is None
    assert len(learner.history()) == 2


def test_an_image_twice_counts_once(recipe: Values) -> None:
    learner, images = Learner(recipe=recipe, keep=0), coloured(0, 3)
    change = learner.learn((np.concatenate([images, images]), ["red"] * 6))
    assert change is not None
    assert change.images == 3


def test_an_image_that_was_another_class(recipe: Values) -> None:
    learner, said = Learner(recipe=recipe, keep=0), Sayings()
    images, labels = of_classes(0, 1)
    learner.learn((images, labels))
    change = learner.learn((images[:2], ["green"] * 2), progress=said)
    assert change is not None
    assert change.images == 2
    assert said.said == ["2 of the images were learned as another class before"]
    assert learner.learn((images[:2], ["green"] * 2)) is None
    with pytest.raises(DataError, match=r"x\[1\]: the same image is there as another class, x\[0\]; remove one"):
        learner.learn((images[[0, 0]], ["red", "green"]))


def test_names_that_look_the_same_are_one_class(recipe: Values) -> None:
    composed, apart = (unicodedata.normalize(form, "Mésange") for form in ("NFC", "NFD"))
    assert composed != apart
    learner = Learner(recipe=recipe, keep=0)
    learner.learn((coloured(0), [composed] * 12))
    change = learner.learn((coloured(0, seed=1), [apart] * 12))
    assert change is not None
    assert learner.class_names == change.classes == (composed,)
    learner.learn((coloured(1), ["b"] * 12), test=(coloured(0, seed=2), [apart] * 12), max_drop=0.0)
    assert learner.class_names == (composed, "b")
    with pytest.raises(DataError, match="look the same"):
        learner.learn((coloured(2), [composed, apart] * 6))


def test_classes_that_differ_from_known_ones_in_case_are_told(recipe: Values) -> None:
    learner, said = Learner(recipe=recipe, keep=0), Sayings()
    told = "classes that differ only in case or in how a number is written: {}; if they are one, rename them"
    learner.learn((coloured(0), ["red"] * 12), progress=said)
    assert said.said == []
    learner.learn((coloured(1), ["Red"] * 12), progress=said)
    assert said.said == [told.format("red and Red")]
    said.said.clear()
    learner.learn((coloured(2), ["1"] * 6 + ["1.0"] * 6), progress=said)
    assert said.said == [told.format("1 and 1.0")]


# ---- what is set aside


@pytest.mark.parametrize(("keep", "images", "expected"), [(0, 12, 0), (2, 12, 2), (5, 12, 2), (5, 4, 0), (1, 5, 1)])
def test_how_many_are_set_aside(keep: int, images: int, expected: int, recipe: Values, tmp_path: Path) -> None:
    change = Learner(tmp_path, recipe=recipe, keep=keep).learn(of_classes(0, 1, images=images))
    assert change is not None
    assert (change.set_aside, change.images) == (2 * expected, 2 * (images - expected))
    assert (change.accuracy is None) == (expected == 0)
    stored = load_file(tmp_path / "checkpoints/task_0000-images.safetensors")
    assert ("kept" in stored) == (expected > 0)
    assert stored["digests"].shape == (2 * images, 16)


def test_a_class_keeps_no_more_than_asked_for(recipe: Values, tmp_path: Path) -> None:
    learner = Learner(tmp_path, recipe=recipe, keep=3)
    found = [learner.learn(of_classes(0, images=10, seed=seed)) for seed in range(3)]
    assert [change.set_aside for change in found if change] == [2, 1, 0]


def test_what_is_set_aside_is_never_trained_on(recipe: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[torch.Tensor] = []
    learn = Session.learn

    def watched(session: Session, task: Any, data: Any, **options: Any) -> None:
        assert isinstance(data, Split)
        trained.extend(batch.inputs for batch in data.batches(5, device=torch.device("cpu")))
        learn(session, task, data, **options)

    monkeypatch.setattr(Session, "learn", watched)
    given, labels = of_classes(0, 1)
    Learner(tmp_path, recipe=recipe, keep=2).learn((given, labels))
    kept, kept_labels = kept_in(tmp_path)
    assert kept.dtype == torch.uint8
    assert kept_labels.tolist() == [1, 1, 0, 0]
    by_bytes = {image.tobytes(): label for image, label in zip(given, labels, strict=True)}
    held = [image.permute(1, 2, 0).contiguous().numpy().tobytes() for image in kept]
    # as the encoder reads them: these images have its size already
    assert [by_bytes[image] for image in held] == ["red", "red", "green", "green"]
    shown = {(255 * image).round().byte().permute(1, 2, 0).numpy().tobytes() for image in torch.cat(trained)}
    assert len(shown) == 20
    assert shown.isdisjoint(held)
    assert shown | set(held) == set(by_bytes)


def test_kept_images_are_cropped_and_small(recipe: Values, tmp_path: Path) -> None:
    large = np.random.RandomState(0).randint(0, 256, (10, 80, 64, 3)).astype(np.uint8)
    learner = Learner(tmp_path, recipe=recipe, keep=1, **{"data.crop_pct": 0.8})
    learner.learn((large, ["a"] * 10))
    kept, _ = kept_in(tmp_path)
    expected = (learner.reader.of(list(large)) * 255).round().byte()
    assert kept.shape == (1, 3, 32, 32)
    assert (expected == kept).flatten(1).all(1).sum() == 1


def test_history_says_what_the_images_set_aside_say(forgetful: Values, tmp_path: Path) -> None:
    learner = Learner(tmp_path, recipe=forgetful, keep=2)
    learner.learn(of_classes(0, 1, 2, images=15))
    learner.learn(of_classes(3, 4, images=15))
    learner.learn(of_classes(0, images=10, seed=1))
    kept, labels = kept_in(tmp_path)
    names = np.array(["blue", "green", "red", "magenta", "yellow"])
    assert learner.class_names == tuple(names)

    def rights(version: int, images: int, classes: int) -> np.ndarray:
        inputs = [image.permute(1, 2, 0).numpy() for image in kept[:images]]
        found = load(tmp_path, version=version).logits(inputs)
        assert found.shape == (images, classes)
        return (found.argmax(dim=1) == labels[:images]).numpy()

    first, second, third = learner.history()
    one, two, three = rights(1, 6, 3), rights(2, 10, 5), rights(3, 10, 5)
    assert (first.accuracy, first.lost, first.won, first.fell) == (one.mean(), 0, 0, ())
    assert second.accuracy == two[6:].mean()
    assert second.accuracy_now == three[6:].mean()
    assert first.accuracy_now == three[:6].mean()
    assert third.accuracy == third.accuracy_now == three[labels.numpy() == 2].mean()
    assert second.lost == (one & ~two[:6]).sum() > 0
    assert second.won == (~one & two[:6]).sum()
    assert third.lost == (two & ~three).sum()
    own = labels.numpy()
    for change, before, after in ((second, one, two[:6]), (third, two, three)):
        fell = {n for n in range(5) if after[own[: len(after)] == n].sum() < before[own[: len(before)] == n].sum()}
        assert set(change.fell) == {str(names[n]) for n in fell}
    assert [version.is_present for version in learner.history()] == [False, False, True]
    assert all(version.date and version.kind == "learned" for version in learner.history())


# ---- what is refused before it becomes the model


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"max_drop": 0.0}, "max_drop: 0 points are allowed, and old classes would lose"),
        ({"max_flips": 0}, "max_flips: 0 images are allowed, and"),
    ],
)
@pytest.mark.parametrize("by", ["kept", "test"])
def test_a_change_that_loses_too_much_is_refused(
    bounds: Values, words: str, by: str, forgetful: Values, tmp_path: Path
) -> None:
    learner = Learner(tmp_path / "m", recipe=forgetful, keep=2 if by == "kept" else 0)
    learner.learn(of_classes(0, 1))
    before, expected = files_of(tmp_path / "m"), learner.logits(PROBE)
    test = written(tmp_path / "test", 0, 1, 2, images=3, seed=3) if by == "test" else None
    with pytest.raises(RegressionError) as caught:
        learner.learn(of_classes(2), test=test, **bounds)
    assert caught.value.problems[0].startswith(words)
    assert caught.value.problems[1] == "the model is left as it was"
    assert caught.value.problems[2].split(": ")[0] in ("red", "green")
    assert files_of(tmp_path / "m") == before
    assert torch.equal(learner.logits(PROBE), expected)
    assert torch.equal(logits(tmp_path / "m"), expected)
    change = learner.learn(of_classes(2), test=test, max_drop=100.0, max_flips=100)
    assert change is not None
    assert change.lost > 0
    assert len(learner.history()) == 2


def test_bounds_need_something_to_judge_by(recipe: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(tmp_path, recipe=recipe, keep=0)
    learner.learn(of_classes(0, 1), max_drop=0.0)  # there are no old classes
    before = files_of(tmp_path)
    monkeypatch.setattr(Session, "learn", None)  # nothing is trained
    with pytest.raises(LoricaError, match=r"max_drop, max_flips: no image of the classes so far is there to judge by"):
        learner.learn(of_classes(2), max_flips=0)
    with pytest.raises(LoricaError, match=r"no image of the classes so far"):
        learner.learn(of_classes(2), test=of_classes(2, seed=1), max_drop=1.0)
    with pytest.raises(DataError, match=r"test images: of classes that nobody has learned: cyan"):
        learner.learn(of_classes(2), test=of_classes(0, 5), max_drop=1.0)
    with pytest.raises(LoricaError) as caught:
        learner.learn(of_classes(2), max_drop=-1.0, max_flips=-2)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["max_drop", "max_flips"]
    assert files_of(tmp_path) == before


def test_a_first_change_that_fails_leaves_nothing(forgetful: Values, tmp_path: Path) -> None:
    hopeless = forgetful | {"fit": {"epochs": 2, "learning_rate": 1e30, "optimizer": "sgd"}}
    learner = Learner(tmp_path, recipe=hopeless)
    with pytest.raises(LoricaError, match=r"the loss became nan"):
        learner.learn(of_classes(0, 1))
    assert files_of(tmp_path) == {}
    assert Learner(tmp_path, recipe=forgetful).learn(of_classes(0, 1)) is not None


def test_a_training_that_fails_leaves_the_model_as_it_was(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, before = Learner(model), files_of(model)

    def failing(session: Session, task: Any, data: Any, **options: Any) -> None:
        session._under_way = True
        session._write_row({"task": 3})
        session.folder.snapshot.write_bytes(b"half")
        raise TrainingError("not finite")

    monkeypatch.setattr(Session, "learn", failing)
    with pytest.raises(TrainingError):
        learner.learn(of_classes(0, seed=1))
    assert files_of(model) == before


# ---- going back


@pytest.mark.parametrize("method", METHODS)
def test_going_back_and_forward_is_exact(method: str, recipe: Values, tmp_path: Path) -> None:
    learner = Learner(tmp_path, recipe=recipe | {"method": METHODS[method]}, keep=1)
    found = []
    for number in range(3):
        learner.learn(of_classes(2 * number, 2 * number + 1))
        found.append(learner.logits(PROBE))
    back = learner.rollback(1)
    assert (back.number, back.kind, back.restores, back.classes, back.images) == (4, "rolled back", 1, (), 0)
    assert torch.equal(learner.logits(PROBE), found[0])
    assert torch.equal(logits(tmp_path), found[0])
    assert learner.class_names == ("green", "red")
    assert [version.is_present for version in learner.history()] == [True, False, False, True]
    learner.rollback(2)
    assert torch.equal(learner.logits(PROBE), found[1])
    learner.rollback(3)
    assert torch.equal(logits(tmp_path), found[2])
    for number, expected in enumerate([*found, found[0], found[1], found[2]], start=1):
        assert torch.equal(logits(tmp_path, number), expected)
    # exploring costs nothing: the newest one still learns on
    assert learner.learn(of_classes(0, 1, images=3, seed=1)) is not None


@pytest.mark.parametrize("method", ["rolda", "sd_lora"])
def test_a_branch_is_what_it_would_have_been_without_the_other(method: str, recipe: Values, tmp_path: Path) -> None:
    values = recipe | {"method": METHODS[method]}
    branched, straight = (Learner(tmp_path / name, recipe=values, keep=1) for name in ("branched", "straight"))
    for learner in (branched, straight):
        learner.learn(of_classes(0, 1))
    branched.learn(of_classes(2, 3))
    branched.rollback(1)
    for learner in (branched, straight):
        change = learner.learn(of_classes(4, 3))
        assert change is not None
    assert branched.class_names == straight.class_names == ("green", "red", "magenta", "yellow")
    assert torch.equal(branched.logits(PROBE), straight.logits(PROBE))
    assert torch.equal(logits(tmp_path / "branched"), straight.logits(PROBE))
    assert branched.history()[-1].number == 4
    one, other = branched.history()[-1], straight.history()[-1]
    assert replace(one, number=2, date="") == replace(other, date="")
    rows = (tmp_path / "straight/history.jsonl").read_bytes().splitlines()
    assert {*rows} <= {
        *(tmp_path / "branched/history.jsonl").read_bytes().splitlines()
    }  # nothing is lost by going back
    # what was learned on the other branch alone is not known on this one
    change = branched.learn(of_classes(2, 5))
    assert change is not None
    assert (change.classes, change.images + change.set_aside) == (("blue", "cyan"), 24)


def test_going_back_to_where_it_cannot(model: Path, tmp_path: Path, recipe: Values) -> None:
    learner, before = Learner(model), files_of(model)
    with pytest.raises(LoricaError, match=r"has no version 4; there are 1 to 3"):
        learner.rollback(4)
    with pytest.raises(LoricaError, match=r"has no version 0"):
        learner.rollback(0)
    with pytest.raises(LoricaError, match=r"is what it was after version 3; nothing to do"):
        learner.rollback(3)
    assert files_of(model) == before
    learner.rollback(2)
    with pytest.raises(LoricaError, match=r"is what it was after version 2; nothing to do"):
        learner.rollback(2)
    with pytest.raises(LoricaError, match=r"is what it was after version 4"):
        learner.rollback(4)
    with pytest.raises(LoricaError, match=r"has no version 1; there are none yet"):
        Learner(tmp_path / "empty", recipe=recipe).rollback(1)


def test_a_version_whose_sums_are_gone_predicts_and_does_not_learn_on(model: Path) -> None:
    learner = Learner(model)
    learner.rollback(1)
    assert set(learner.predict(PROBE)) <= {"green", "red"}
    before = files_of(model)
    with pytest.raises(
        CheckpointError, match=r"predicts, but does not learn on, .* \(rollback\), or make models with checkp"
    ):
        learner.learn(of_classes(0, seed=1))
    assert files_of(model) == before
    learner.rollback(2)
    assert learner.learn(of_classes(0, seed=1)) is not None
    for number in (3, 2, 1, 2, 3):  # of the versions that were left, the newest two go on learning
        learner.rollback(number)
    assert learner.learn(of_classes(1, seed=1)) is not None


def test_every_version_learns_on_where_everything_is_kept(recipe: Values, tmp_path: Path) -> None:
    learner = Learner(tmp_path, recipe=recipe, checkpoints="everything", keep=0)
    for number in range(4):
        learner.learn(of_classes(number))
    learner.rollback(1)
    change = learner.learn(of_classes(5))
    assert change is not None
    assert learner.class_names == ("red", "cyan")


def test_an_earlier_version_by_load(model: Path) -> None:
    first = load(model, version=1)
    assert first.class_names == ("green", "red")
    assert first.logits(PROBE).shape == (12, 2)
    assert isinstance(load(model), Learner)
    for none in (0, 4, -1):
        with pytest.raises(LoricaError, match=rf"has no version {none}; there are 1 to 3"):
            load(model, version=none)


# ---- probabilities


def test_the_calibration_is_that_of_the_images_set_aside(model: Path) -> None:
    learner = Learner(model)
    kept, labels = kept_in(model)
    of_kept = learner.logits([image.permute(1, 2, 0).numpy() for image in kept])
    expected = fit(of_kept, labels)
    lines = [json.loads(line) for line in (model / "checkpoints/journal.jsonl").read_text().splitlines()]
    stored = Calibration.model_validate(lines[-1]["change"]["note"]["calibration"])
    assert stored.temperature == pytest.approx(expected.temperature, rel=1e-4)
    assert stored.threshold == pytest.approx(expected.threshold, rel=1e-4)
    assert (stored.images, stored.classes, stored.among) == (12, 6, 6)
    found = learner.predict_proba(PROBE)
    assert found.shape == (12, 6)
    assert np.allclose(found.sum(1), 1)
    assert torch.equal(torch.from_numpy(found), probabilities(learner.logits(PROBE), stored))
    answers = learner.classify(PROBE)
    assert [answer.class_name for answer in answers] == learner.predict(PROBE).tolist()
    assert [answer.probability for answer in answers] == pytest.approx(found.max(1).tolist())
    assert [learner.class_names.index(answer.class_name) for answer in answers] == found.argmax(1).tolist()
    noise = np.random.RandomState(0).randint(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    below = learner.logits(noise).amax(1) < stored.threshold
    assert [answer.unknown for answer in learner.classify(noise)] == below.tolist()


def test_without_images_set_aside_nothing_is_unknown(recipe: Values) -> None:
    learner = Learner(recipe=recipe, keep=0)
    learner.learn(of_classes(0, 1))
    assert not any(answer.unknown for answer in learner.classify(PROBE))
    expected = learner.logits(PROBE).double().softmax(1).numpy()
    assert np.allclose(learner.predict_proba(PROBE), expected, atol=1e-6)


# ---- settings, and whose folder it is


def test_a_model_keeps_its_settings(model: Path, recipe: Values) -> None:
    learner = Learner(model)
    assert learner.method.config.layers == 1
    other = Learner(model, recipe=recipe | {"method": {"name": "prototypes"}})  # of a new model only
    assert other.method.name == "rolda"
    for given in ({"backbone": "lorica_tiny"}, {"method": {"rank": 4}}, {"fit.epochs": 9}):
        with pytest.raises(LoricaError, match=r"a run keeps its own"):
            Learner(model, **given)
    weights = Path(recipe["backbone"]["weights"])
    moved = Learner(model, **{"backbone.weights": weights})
    assert torch.equal(moved.logits(PROBE), learner.logits(PROBE))


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    for given, words in (
        ({"keep": -1}, "keep: expected a number of samples from 0 on, got -1"),
        ({"keep": True}, "keep: expected a number"),
        ({"nonsense": 1}, "nonsense: unknown key"),
        ({"method": {"name": "joint"}}, "method.name: joint learns all classes at once"),
        (
            {"track": "tensorboard"},
            "track: tensorboard follows a run, and not a model that goes on learning; leave it out",
        ),
    ):
        with pytest.raises(LoricaError, match=words):
            Learner(tmp_path / "m", **({"recipe": "digits"} | given)).learn(of_classes(0, 1))
    assert not (tmp_path / "m").exists() or files_of(tmp_path / "m") == {}


def test_a_run_does_not_take_a_models_place(model: Path, small_recipe: Values) -> None:
    before = files_of(model)
    for lost in (None, "model.json"):
        if lost:
            (model / lost).write_text("{}")
            before = files_of(model)
        for given in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(LoricaError, match=r"holds a model that goes on learning"):
                run(small_recipe, out=model, progress=False, **given)
        assert files_of(model) == before


def test_a_models_place_is_not_a_runs(finished_run: Result, recipe: Values, tmp_path: Path) -> None:
    assert finished_run.path is not None
    folder = Path(shutil.copytree(finished_run.path, tmp_path / "run"))
    before = files_of(folder)
    with pytest.raises(LoricaError, match=r"holds a run, and no model that goes on learning; choose another folder"):
        Learner(folder, recipe=recipe).learn(of_classes(0, 1))
    assert files_of(folder) == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": {"name": "ease"}, "evaluate": {"readout": "ridge"}}, r"evaluate\.readout: ease gives no features"),
        ({"evaluate": {"readout": "discriminant"}}, r"evaluate\.readout: rolda predicts by discriminant of these"),
        ({"method": {"name": "cl_lora"}, "fit": {"accumulate": 2}}, r"fit\.accumulate: .* cannot be computed in parts"),
        ({"data": {"max_tokens": 8}}, r"data\.max_tokens: the backbone reads no texts"),
    ],
)
def test_what_a_run_refuses_of_its_recipe_a_model_does(
    given: Values, message: str, recipe: Values, tmp_path: Path
) -> None:
    with pytest.raises(LoricaError, match=message):
        Learner(tmp_path / "model", recipe=recipe | given).learn(of_classes(0, 1))
    assert not (tmp_path / "model" / "recipe.yaml").exists()


@pytest.mark.parametrize("name", ["recipe.yaml", "model.json", "history.jsonl", "checkpoints/task_0000.safetensors"])
def test_a_file_of_the_users_stays(name: str, recipe: Values, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("my own\n")
    before = files_of(tmp_path)
    with pytest.raises(LoricaError, match=r"is in the way and not lorica's"):
        Learner(tmp_path, recipe=recipe).learn(of_classes(0, 1))
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("readout", ["head", "discriminant"])
def test_what_a_method_cannot_learn_is_refused_however_it_is_read(readout: str, recipe: Values) -> None:
    learner = Learner(recipe=recipe | {"method": METHODS["sd_lora"], "evaluate": {"readout": readout}})
    learner.learn(of_classes(0, 1))
    with pytest.raises(LoricaError, match=r"method\.cross_entropy: task 2 has a single class"):
        learner.learn(of_classes(2))
    assert len(learner.class_names) == 2


def test_files_beside_the_models_are_left_alone(recipe: Values, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("my own")
    learner = Learner(tmp_path, recipe=recipe)
    learner.learn(of_classes(0, 1))
    learner.learn(of_classes(2))
    assert (tmp_path / "notes.txt").read_text() == "my own"


# ---- scikit-learn's manners


def test_partial_fit_with_numbers(recipe: Values, tmp_path: Path) -> None:
    learner = Learner(tmp_path, recipe=recipe)
    assert learner.classes_.shape == (0,)
    images, _ = of_classes(0, 1)
    assert learner.partial_fit(images, np.repeat([7, -3], 12), classes=[7, -3, 11]) is learner
    learner.partial_fit(coloured(2), [11] * 12)
    assert learner.classes_.dtype == np.int64
    assert learner.classes_.tolist() == [7, -3, 11]
    assert learner.predict(PROBE[:6]).tolist() == [7, 7, -3, -3, 11, 11]
    assert learner.predict(PROBE[:6]).dtype == np.int64
    assert learner.predict([]).dtype.kind in "iU"
    assert learner.score(PROBE[:6], np.repeat([7, -3, 11], 2)) == 1.0
    assert load(tmp_path).classes_.tolist() == [7, -3, 11]
    learner.partial_fit(coloured(3), ["yellow"] * 12)  # names among them: all are
    assert learner.classes_.tolist() == ["7", "-3", "11", "yellow"]


def test_partial_fit_with_names_that_are_digits(recipe: Values) -> None:
    learner = Learner(recipe=recipe)
    learner.partial_fit(of_classes(0, 1)[0], np.repeat(["007", "7"], 12))
    assert learner.classes_.dtype.kind == "U"
    assert sorted(learner.classes_) == ["007", "7"]
    numbered = Learner(recipe=recipe).partial_fit(coloured(0), [7] * 12)
    numbered.partial_fit(coloured(1), ["007"] * 12)  # two classes, which must not become one number
    assert numbered.classes_.tolist() == ["7", "007"]
    forgot = Learner(recipe=recipe).partial_fit(of_classes(0, 1)[0], [7] * 12 + [8] * 12)
    forgot.forget(forgot.classes_[0], hide=True)
    assert forgot.classes_.size == 1


@pytest.mark.parametrize("form", ["list", "tensor", "pictures", "files", "floats", "generator"])
def test_forms_of_images(form: str, recipe: Values, tmp_path: Path) -> None:
    images, labels = of_classes(0, 1)
    folder = written(tmp_path / "photos", 0, 1)
    given: Any = {
        "list": lambda: list(images),
        "tensor": lambda: torch.from_numpy(images).permute(0, 3, 1, 2),
        "pictures": lambda: [Image.fromarray(image) for image in images],
        "files": lambda: [folder / name / f"0-{place:02}.png" for name in ("red", "green") for place in range(12)],
        "floats": lambda: images / 255,
        "generator": lambda: (image for image in images),
    }[form]()
    learner = Learner(recipe=recipe, keep=0).partial_fit(given, labels)
    expected = Learner(recipe=recipe, keep=0).partial_fit(images, labels)
    assert torch.equal(learner.logits(PROBE), expected.logits(PROBE))


def test_fit_begins_anew_in_memory_alone(recipe: Values, model: Path) -> None:
    learner = Learner(recipe=recipe).fit(*of_classes(0, 1))
    learner.fit(*of_classes(2, 3))
    assert learner.classes_.tolist() == ["blue", "yellow"]
    assert len(learner.history()) == 1
    learner.fit(of_classes(0, 1)[0], np.repeat([1, 2], 12))
    assert learner.classes_.tolist() == [1, 2]
    before = files_of(model)
    with pytest.raises(LoricaError, match=r"fit would begin anew and lose what was learned; use partial_fit or learn"):
        Learner(model).fit(*of_classes(0, 1))
    assert files_of(model) == before


def test_parameters_and_clones(recipe: Values, tmp_path: Path) -> None:
    learner = Learner(tmp_path / "m", recipe=recipe, keep=3, **{"method.layers": 2})
    assert learner.get_params() == {
        "folder": tmp_path / "m",
        "recipe": recipe,
        "device": None,
        "precision": None,
        "keep": 3,
        "forgettable": None,
        "method_file": None,
        "method.layers": 2,
    }
    assert learner.set_params(keep=1).get_params()["keep"] == 1
    with pytest.raises(NotFittedError):
        check_is_fitted(learner)
    learner.fit(*of_classes(0, 1))
    check_is_fitted(learner)
    assert learner.method.config.layers == 2
    other = clone(learner)
    assert other.get_params() == learner.get_params() | {"folder": None}
    assert other.class_names == ()
    other.fit(*of_classes(0, 1))
    assert torch.equal(other.logits(PROBE), learner.logits(PROBE))
    with pytest.raises(LoricaError, match=r"has learned, and keeps its settings; make another Learner"):
        learner.set_params(keep=2)


def test_a_pipeline(recipe: Values) -> None:
    brighter = FunctionTransformer(lambda images: np.asarray(images) // 2 + 100)
    pipeline = Pipeline([("brighter", brighter), ("learner", Learner(recipe=recipe))])
    assert is_classifier(pipeline)
    images, labels = of_classes(0, 1)
    pipeline.set_params(learner__keep=2).fit(images, labels)
    assert pipeline.score(PROBE[:4], ["red", "red", "green", "green"]) == 1.0
    assert pipeline.predict_proba(PROBE).shape == (12, 2)
    assert pipeline.classes_.tolist() == ["green", "red"]
    assert clone(pipeline).fit(images, labels).predict(PROBE[:1]).tolist() == ["red"]


@pytest.mark.parametrize("way", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_is_saved_and_not_pickled(way: Callable[[Any], Any], recipe: Values) -> None:
    with pytest.raises(LoricaError, match=r"a Learner is not pickled, .*; use save, and lorica\.load"):
        way(Learner(recipe=recipe))


def test_saving(recipe: Values, tmp_path: Path, model: Path) -> None:
    learner = Learner(recipe=recipe)
    with pytest.raises(LoricaError, match=r"a model in memory: has learned nothing yet"):
        learner.save(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    learner.fit(*of_classes(0, 1))
    (tmp_path / "empty").mkdir()
    for target in ("saved", "within/a/folder", "empty"):
        learner.save(tmp_path / target)
        found = load(tmp_path / target)
        assert torch.equal(found.logits(PROBE), learner.logits(PROBE))
        assert isinstance(found, Learner)
        assert found.learn(of_classes(2)) is not None
    assert learner.class_names == ("green", "red")
    before = files_of(model)
    with pytest.raises(LoricaError, match=r"is there already; name a folder that is not"):
        learner.save(model)
    assert files_of(model) == before
    assert not list(tmp_path.glob(".*"))


def test_what_was_in_memory_is_gone_with_it(recipe: Values) -> None:
    learner = Learner(recipe=recipe).fit(*of_classes(0, 1))
    folder = learner.folder.path
    assert folder.is_dir()
    del learner
    gc.collect()
    assert not folder.exists()


def test_it_says_what_it_is(model: Path, recipe: Values) -> None:
    assert repr(Learner(model)) == f"Learner({model}: 6 classes)"
    assert repr(Learner(recipe=recipe)) == "Learner(a model in memory: 0 classes)"
    with pytest.raises(LoricaError, match=r"has learned nothing yet; give it images with their classes: learn"):
        Learner(recipe=recipe).predict(PROBE)


# ---- bad input


def _unreadable(folder: Path) -> Path:
    (written(folder, 0) / "red" / "note.png").write_text("no image")
    return folder


def _without_classes(folder: Path) -> Path:
    folder.mkdir()
    Image.fromarray(coloured(0)[0]).save(folder / "a.png")
    return folder


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda folder: folder / "absent", "is not a folder"),
        (lambda folder: (folder / "empty").mkdir() or folder / "empty", "has no class folders"),
        (lambda folder: _without_classes(folder / "flat"), "has no class folders"),
        (lambda folder: _unreadable(folder / "photos"), "note.png"),
        (
            lambda folder: (["book a flight", "play music" * 99], ["travel", "music"]),
            r"x: none of the 2 strings is the path of a file, 'book a flight' for one; .* recipe=\"own_texts\"",
        ),
        (lambda folder: (coloured(0), ["red"] * 11), r"x has 12 images, y shape \[11\]: expected one label per image"),
        (lambda folder: (np.full((2, 8, 8), np.nan), ["a", "b"]), "some are NaN or infinite"),
        (lambda folder: (np.zeros((0, 8, 8, 3), np.uint8), []), "no images"),
        (lambda folder: (coloured(0), [0.5] * 12), "y: expected integers or strings, got float64"),
        (lambda folder: (coloured(0), ["a\x1b"] * 12), "control characters"),
        (lambda folder: coloured(0),
         "expected a folder of class folders, or a pair of images and labels, got a ndarray"),
        (lambda folder: 7, "expected a folder of class folders, or a pair of images and labels, got a int"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned(given: Callable[[Path], Any], words: str, model: Path, tmp_path: Path) -> None:
    learner, before, source = Learner(model), files_of(model), given(tmp_path)
    with pytest.raises(DataError, match=words):
        learner.learn(source)
    with pytest.raises(DataError, match=words):
        learner.learn(of_classes(0, seed=1), test=source)
    assert files_of(model) == before


def test_an_image_whose_damage_only_decoding_shows(model: Path, tmp_path: Path) -> None:
    folder = written(tmp_path / "photos", 0, seed=1)
    Image.fromarray(coloured(0)[0]).resize((200, 200)).save(folder / "red" / "cut.jpg")
    content = (folder / "red" / "cut.jpg").read_bytes()
    (folder / "red" / "cut.jpg").write_bytes(content[: len(content) // 2])
    learner, before = Learner(model), files_of(model)
    with pytest.raises(DataError, match=r"cut\.jpg"):
        learner.learn(folder)
    assert files_of(model) == before


def test_a_place_that_cannot_be_a_folder(recipe: Values, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("my own")
    with pytest.raises(LoricaError, match=r"file"):
        Learner(tmp_path / "file" / "m", recipe=recipe).learn(of_classes(0, 1))
    assert (tmp_path / "file").read_text() == "my own"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom the system refuses something")
def test_a_folder_that_cannot_be_written_predicts(model: Path) -> None:
    expected = logits(model)
    for folder in (model, model / "checkpoints"):
        folder.chmod(0o500)
    try:
        assert torch.equal(logits(model), expected)
        with pytest.raises(LoricaError, match=r"Permission denied"):
            Learner(model).learn(of_classes(0, seed=1))
    finally:
        for folder in (model, model / "checkpoints"):
            folder.chmod(0o700)


@pytest.mark.parametrize("place", range(4))  # tensors, what is known of images, sums, the line
def test_a_disk_that_is_full_leaves_the_model(place: int, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, before, expected = Learner(model), files_of(model), logits(model)
    fsync, calls = os.fsync, itertools.count()

    def full(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode) and next(calls) == place:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LoricaError, match=r"No space left"):
        learner.learn(of_classes(0, seed=1))
    monkeypatch.undo()
    assert torch.equal(learner.logits(PROBE), expected)
    assert torch.equal(logits(model), expected)
    assert {name: digest for name, digest in files_of(model).items() if name in before} == before


def test_two_at_once(model: Path) -> None:
    program = (
        "import sys, time; from lorica.files import taken; from pathlib import Path\nwith taken(Path(sys.argv[1])): "
        "print(1, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(model)], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"1\n"
        with pytest.raises(LoricaError, match=rf"process {other.pid} on .* is at work in it; wait for it"):
            load(model)
    finally:
        other.kill()
        other.communicate()
    assert load(model).logits(PROBE).shape == (12, 6)


def test_one_learner_after_another_on_one_folder(model: Path) -> None:
    """Each goes on from what is on the disk."""
    one, other = Learner(model), Learner(model)
    one.learn(of_classes(0, images=3, seed=1))
    change = other.learn(of_classes(1, images=3, seed=1))
    assert change is not None
    assert change.number == 5
    assert other.method.discriminant.counts[1] == 10 + 3


def test_predictions_while_it_learns_are_the_old_ones_or_the_new_ones(recipe: Values) -> None:
    learner = Learner(recipe=recipe | {"method": METHODS["rolda"]})
    learner.learn(of_classes(0, 1))
    found: list[torch.Tensor] = []
    errors: list[BaseException] = []
    stop = threading.Event()

    def predict() -> None:
        try:
            while not stop.is_set():
                found.append(learner.logits(PROBE))
        except BaseException as error:
            errors.append(error)

    expected = [learner.logits(PROBE)]
    threads = [threading.Thread(target=predict) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in (2, 3):
        learner.learn(of_classes(number))
        expected.append(learner.logits(PROBE))
    learner.rollback(1)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert {each.shape[1] for each in found} >= {2, 3}
    for each in found:
        assert any(torch.equal(each, one) for one in expected)


def test_learning_from_two_threads_takes_turns(recipe: Values) -> None:
    learner = Learner(recipe=recipe)
    threads = [threading.Thread(target=learner.learn, args=(of_classes(number),)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(learner.class_names) == ["blue", "green", "red"]
    assert len(learner.history()) == 3


# ---- stopped within a change


class _Stopped(BaseException):
    """Stands for the end of a process."""


@pytest.fixture
def trained(recipe: Values) -> Values:
    fitted = {"epochs": 4, "batch_size": 6, "learning_rate": 0.01, "augment": "shift"}
    return recipe | {"method": METHODS["sd_lora"], "fit": fitted, "snapshot_seconds": 1e-9}


@pytest.fixture
def stopped(trained: Values, tmp_path: Path) -> Iterator[Path]:
    """A model of one version whose process ended in the second, after a snapshot."""
    Learner(tmp_path / "m", recipe=trained, keep=2).learn(of_classes(0, 1))
    between = Session._between_steps

    def stopping(session: Session, descent: Descent) -> None:
        between(session, descent)
        if descent.taken == 5:
            raise _Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_between_steps", stopping)
        with pytest.raises(_Stopped):
            Learner(tmp_path / "m", keep=2).learn(of_classes(2, 3))
    assert len(list((tmp_path / "m").glob("snapshot-*.safetensors"))) == 1
    yield tmp_path / "m"
    assert not list((tmp_path / "m").glob("snapshot-*"))


def steps_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fills with the steps that are taken."""
    steps: list[int] = []
    between = Session._between_steps

    def counting(session: Session, descent: Descent) -> None:
        steps.append(descent.taken)
        between(session, descent)

    monkeypatch.setattr(Session, "_between_steps", counting)
    return steps


def test_the_same_data_goes_on_from_the_snapshot(
    stopped: Path, trained: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Learner(tmp_path / "whole", recipe=trained, keep=2)
    whole.learn(of_classes(0, 1))
    expected = whole.learn(of_classes(2, 3))
    steps = steps_of(monkeypatch)
    assert logits(stopped).shape == (12, 2)
    learner = Learner(stopped, keep=2)
    change = learner.learn(of_classes(2, 3))
    assert steps[0] == 6
    assert change is not None
    assert expected is not None
    assert replace(change, date="") == replace(expected, date="")
    assert torch.equal(learner.logits(PROBE), whole.logits(PROBE))
    assert files_of(stopped)["history.jsonl"] == files_of(tmp_path / "whole")["history.jsonl"]


@pytest.mark.parametrize("other", ["images", "classes", "keep", "another branch"])
def test_other_data_begins_anew(
    other: str, stopped: Path, trained: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Learner(tmp_path / "whole", recipe=trained, keep=2)
    whole.learn(of_classes(0, 1))
    keep = 1 if other == "keep" else 2
    images, labels = of_classes(2, 3, seed=1 if other == "images" else 0)
    if other == "classes":
        labels = ["blue"] * 6 + ["yellow"] * 18
    if other == "another branch":  # as many tasks, and another first one
        for place in (stopped, tmp_path / "whole"):
            learner = Learner(place, keep=2)
            snapshot = {file: file.read_bytes() for file in place.glob("snapshot-*")}
            learner.learn(of_classes(4, 5))
            learner.rollback(1)
            for file, content in snapshot.items():
                file.write_bytes(content)
    expected = Learner(tmp_path / "whole", keep=keep)
    expected.learn((images, labels))
    steps = steps_of(monkeypatch)
    learner = Learner(stopped, keep=keep)
    learner.learn((images, labels))
    assert steps[0] == 1
    assert torch.equal(learner.logits(PROBE), expected.logits(PROBE))


def test_other_settings_begin_anew(trained: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that has learned nothing yet: its settings are still open."""

    def stopping(session: Session, descent: Descent) -> None:
        between(session, descent)
        raise _Stopped

    between = Session._between_steps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_between_steps", stopping)
        with pytest.raises(_Stopped):
            Learner(tmp_path / "m", recipe=trained).learn(of_classes(0, 1))
    assert list((tmp_path / "m").glob("snapshot-*"))
    slower = trained | {"fit": trained["fit"] | {"learning_rate": 0.001}}
    steps = steps_of(monkeypatch)
    learner = Learner(tmp_path / "m", recipe=slower)
    learner.learn(of_classes(0, 1))
    assert steps[0] == 1
    expected = Learner(recipe=slower)
    expected.learn(of_classes(0, 1))
    assert torch.equal(learner.logits(PROBE), expected.logits(PROBE))
    assert load(tmp_path / "m").classes_.tolist() == ["green", "red"]


def test_a_first_line_without_a_version_holds_nobody_to_its_settings(recipe: Values, tmp_path: Path) -> None:
    """A process may be killed between the two."""
    learner = Learner(tmp_path, recipe=recipe)
    learner.learn(of_classes(0, 1))
    journal = tmp_path / "checkpoints/journal.jsonl"
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    other = Learner(tmp_path, recipe=recipe, **{"method.layers": 2})
    other.learn(of_classes(2, 3))
    assert load(tmp_path).class_names == ("blue", "yellow")
    assert load(tmp_path).method.config.layers == 2


# ---- damage


@pytest.mark.parametrize("name", ["recipe.yaml", "model.json", "checkpoints/journal.jsonl"])
@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_file_is_named_or_harmless(name: str, seed: int, model: Path) -> None:
    expected = [logits(model, number) for number in (1, 2, 3)]
    file, random = model / name, np.random.RandomState(seed)
    whole = file.read_bytes()
    content = damaged(whole, random)
    file.write_bytes(content)
    found, said = None, ""
    try:
        found = load(model).logits(PROBE)
    except LoricaError as error:
        said = str(error)
    if found is None:
        assert file.name in said or "has learned nothing yet" in said
        return
    if name.endswith("jsonl"):  # without the end of a line it is one that a killed process began
        complete = content[: content.rfind(b"\n") + 1]
        assert whole.startswith(complete)
        assert torch.equal(found, expected[complete.count(b"\n") - 2])
    else:
        assert torch.equal(found, expected[-1])


def test_a_damaged_last_line_is_not_passed_over(model: Path) -> None:
    journal = model / "checkpoints/journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'"cyan"', b'"cyam"'))
    for use in (load, lambda folder: load(folder, version=3)):
        with pytest.raises(CheckpointError, match=r"journal.jsonl: line 4 is truncated or altered"):
            use(model)
    journal.write_bytes(b"{}\n")
    with pytest.raises(CheckpointError, match=r"journal.jsonl"):
        load(model)


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damaged_images_are_refused_when_they_are_needed(damage: str, model: Path) -> None:
    expected = logits(model)
    file = model / "checkpoints/task_0001-images.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content[:-50] if damage == "truncated" else content)
    if damage == "missing":
        file.unlink()
    before = files_of(model)
    with pytest.raises(
        CheckpointError, match=r"task_0001-images.safetensors: missing, truncated or altered; restore it"
    ):
        Learner(model).learn(of_classes(0, seed=1))
    assert files_of(model) == before
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: text.replace('"format": 1', '"format": 2'), r"model.json: format is 2, expected 1"),
        (lambda text: text.replace("names", "texts"), r"model.json: labels is 'texts', expected"),
        (lambda text: "{}", r"model.json: format is missing"),
        (lambda text: text[:-4], r"model.json: truncated or altered"),
        (lambda text: None, r"model.json: cannot be read: No such file"),
    ],
)
def test_a_damaged_model_json(edit: Callable[[str], str | None], words: str, model: Path) -> None:
    file = model / "model.json"
    text = edit(file.read_text())
    file.unlink() if text is None else file.write_text(text)
    for use in (Learner, load):
        with pytest.raises(LoricaError, match=words):
            use(model)


@pytest.mark.parametrize(
    ("old", "new"), [("crop_pct: 1.0", "crop_pct: 0.5"), ("background: white", "background: black"), ("layers: 1",
     "layers: 2")]
)  # fmt: skip
def test_an_altered_recipe_is_no_other_model(old: str, new: str, model: Path) -> None:
    file = model / "recipe.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(
        LoricaError, match=r"recipe.yaml: is not what model.json says of it; one of the two has been alt"
    ):
        load(model)


def test_a_device_may_change_by_hand(model: Path) -> None:
    file = model / "recipe.yaml"
    file.write_text(file.read_text().replace("snapshot_seconds: 60.0", "snapshot_seconds: 5.0"))
    assert logits(model).shape == (12, 6)


def test_tensors_of_the_newest_version_that_are_damaged(model: Path) -> None:
    file = RunFolder(model).checkpoints / "task_0002.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    damaged = r"task_0002.safetensors: missing, truncated or altered; restore it, or go back to version 2 \(rollback\)"
    for ask in (
        load,
        lambda folder: Learner(folder).predict(PROBE),
        lambda folder: Learner(folder).learn(of_classes(0, seed=2)),
    ):
        with pytest.raises(CheckpointError, match=damaged):
            ask(model)
    learner, expected = Learner(model), logits(model, version=2)
    assert len(learner.history()) == 3
    learner.rollback(2)
    assert torch.equal(load(model).logits(PROBE), expected)
    assert learner.learn(of_classes(5, seed=2)) is not None


def test_a_method_from_a_file(recipe: Values, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from lorica.methods.prototypes import Prototypes\n\n\nclass Mine(Prototypes):\n    name = 'mine'\n"
    )
    learner = Learner(tmp_path / "m", recipe=recipe | {"method": {}}, method_file=file)
    learner.learn(of_classes(0, 1))
    for ask in (load, Learner):
        with pytest.raises(LoricaError, match="--method-file FILE, or in Python method_file=FILE"):
            ask(tmp_path / "m")
        again = ask(tmp_path / "m", method_file=file)
        assert torch.equal(again.logits(PROBE), learner.logits(PROBE))
    Learner(tmp_path / "m", method_file=file).learn(of_classes(2))
    assert len(load(tmp_path / "m", method_file=file).class_names) == 3
    file.write_text(file.read_text() + "# altered\n")
    with pytest.raises(LoricaError, match=r"mine\.py"):
        load(tmp_path / "m", method_file=file)


# --- frozen changes, forgetting, joining ---


def middle(logits: torch.Tensor) -> torch.Tensor:
    """Less the mean of each image's: a discriminant leaves that open."""
    return logits - logits.mean(dim=1, keepdim=True)


def test_a_class_that_is_forgotten_was_never_there(recipe: Values, tmp_path: Path) -> None:
    whole = Learner(tmp_path / "whole", recipe=recipe, keep=2, forgettable=True)
    without = Learner(tmp_path / "without", recipe=recipe, keep=2)
    for numbers in ((0, 1), (2, 3)):
        whole.learn(of_classes(*numbers))
    whole.learn(of_classes(1, seed=1))  # more of it
    for numbers in ((0,), (2, 3)):
        without.learn(of_classes(*numbers))
    version = whole.forget(CLASS_NAMES[1])
    assert version.classes == (CLASS_NAMES[1],)
    assert version.remarks == ()
    assert whole.class_names == without.class_names
    images, _ = of_classes(0, 1, 2, 3, seed=5)
    expected = middle(without.logits(images))
    assert (middle(whole.logits(images)) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert CLASS_NAMES[1] not in whole.predict(images)
    assert whole.predict_proba(images).shape == (48, 3)
    assert load(tmp_path / "whole").class_names == whole.class_names

    before = load(tmp_path / "whole", version=3)
    assert CLASS_NAMES[1] in before.class_names
    learned = whole.learn(of_classes(1))  # the very same images, which are new to it again
    assert learned is not None
    assert learned.images + learned.set_aside == 12
    assert set(whole.class_names) == {CLASS_NAMES[number] for number in range(4)}
    whole.forget([CLASS_NAMES[1], CLASS_NAMES[3]])
    assert set(whole.class_names) == {CLASS_NAMES[0], CLASS_NAMES[2]}
    whole.rollback(3)
    assert np.array_equal(whole.predict_proba(images), before.predict_proba(images))


def test_a_ridge_that_frozen_tasks_kept_is_a_trace(recipe: Values, tmp_path: Path) -> None:
    made = recipe | {"method": {"name": "ran_pac", "tuning": "none", "width": 40}}
    learner = Learner(tmp_path, recipe=made, keep=2, forgettable=True)
    learner.learn(of_classes(0, 1))
    learner.learn(of_classes(2), frozen=True)
    (trace,) = learner.forget(CLASS_NAMES[1]).remarks
    assert f"may have been chosen on samples of {CLASS_NAMES[1]}, too" in trace
    learner.learn(of_classes(3, 4))
    assert learner.forget(CLASS_NAMES[0]).remarks == ()


def test_a_hidden_class_counts_once_and_can_be_forgotten_yet(recipe: Values, tmp_path: Path) -> None:
    learner, without = (
        Learner(tmp_path / each, recipe=recipe, keep=2, forgettable=True) for each in ("one", "without")
    )
    learner.learn(of_classes(0, 1, 2))
    without.learn(of_classes(0, 2))
    counts = learner.method.own_state()["discriminant.counts"]
    learner.forget(CLASS_NAMES[1], hide=True)
    assert learner.learn(of_classes(1)) is None  # they are in its sums
    assert learner.purge().remarks == (
        f"the statistics of {CLASS_NAMES[1]} are still in the model, which only predicts them no more",
    )
    assert learner.learn(of_classes(1)) is None
    assert torch.equal(learner.method.own_state()["discriminant.counts"], counts)
    assert learner.forget(CLASS_NAMES[1]).remarks == ()
    assert apart(learner, without) <= 1e-5
    assert learner.purge().remarks == ()
    assert learner.learn(of_classes(1)) is not None


def test_an_image_counts_once_for_each_class_that_it_was_learned_as(recipe: Values, tmp_path: Path) -> None:
    learner = Learner(tmp_path, recipe=recipe | {"method": METHODS["prototypes"]}, keep=0)
    images, names = of_classes(0)
    learner.learn((images, names))
    learner.learn((images, ["other"] * len(images)))
    for labels in (names, ["other"] * len(images)):
        assert learner.learn((images, labels)) is None
    assert learner.method.own_state()["means.counts"].tolist() == [12, 12]
    learner.purge()
    assert learner.learn((images, names)) is None
    learner.forget("other")
    assert learner.learn((images, names)) is None


def test_purging_names_exports_that_have_a_forgotten_class(recipe: Values, tmp_path: Path) -> None:
    learner = Learner(tmp_path, recipe=recipe | {"method": {"name": "linear_probe"}})
    learner.learn(of_classes(0, 1))
    export(learner, tmp_path / "export" / "other", "timm")
    learner.forget(CLASS_NAMES[0], hide=True)
    remarks = learner.purge().remarks
    assert remarks[1:] == (f"export/other, an export, still has {CLASS_NAMES[0]}; export again",)


def test_what_predicts_is_the_newest_though_it_was_asked_for_before(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, begun, load_now = Learner(model), threading.Event(), Learner._load

    def slow(self: Learner, version: int | None) -> Predictor:
        found = load_now(self, version)
        begun.set()
        time.sleep(0.5)
        return found

    monkeypatch.setattr(Learner, "_load", slow)
    asking = threading.Thread(target=lambda: learner.predictor)
    asking.start()
    begun.wait()
    monkeypatch.undo()
    learner.learn(of_classes(0, seed=3))
    asking.join()
    assert torch.equal(learner.logits(PROBE), logits(model))


def test_what_cannot_be_forgotten(model: Path, recipe: Values, tmp_path: Path) -> None:
    learner, before = Learner(model), files_of(model)
    for names, words in (
        (
            [CLASS_NAMES[0]],
            rf"{CLASS_NAMES[0]} cannot be taken out of discriminant: it is of 10 samples, and what each added was kept "
            r"of 0 of them\n--hide predicts them no more and leaves their statistics; the model was made without "
            "--forgettable, .*: only a new model, whose first `lorica learn` has it",
        ),
        ([CLASS_NAMES[3]], r"--hide predicts them no more .*; or `lorica rollback` goes back to before they were"),
        (["nobody"], r"does not know nobody; it knows"),
        ([], "expected names of classes, got none"),
        (list(CLASS_NAMES[:6]), "at least one class has to stay"),
    ):
        with pytest.raises(LoricaError, match=re.compile(words, re.DOTALL)):
            learner.forget(names)
        assert files_of(model) == before
    hidden = learner.forget(CLASS_NAMES[0], hide=True)
    assert hidden.remarks == (
        f"the statistics of {CLASS_NAMES[0]} are still in the model, which only predicts them no more",
    )
    assert CLASS_NAMES[0] not in learner.predict(coloured(0))
    with pytest.raises(LoricaError, match="forgettable is False of this model"):
        Learner(model, forgettable=True)
    trained = recipe | {"method": METHODS["rolda"]}
    seen = Learner(tmp_path / "seen", recipe=trained, forgettable=True)
    seen.learn(of_classes(0, 1))
    assert "the trunk was trained on images of" in seen.forget(CLASS_NAMES[0]).remarks[0]


def test_what_is_purged_is_nowhere_in_the_folder(recipe: Values, tmp_path: Path) -> None:
    purged, twin = (Learner(tmp_path / name, recipe=recipe, keep=2, forgettable=True) for name in ("purged", "twin"))
    for learner in (purged, twin):
        for numbers in ((0, 1), (2, 3)):
            learner.learn(of_classes(*numbers))
        staying = set(range(4)) - {learner.class_names.index(CLASS_NAMES[1])}
        learner.forget(CLASS_NAMES[1])
    images, _ = of_classes(0, 1, 2, 3, seed=5)
    before = purged.logits(images)
    version = purged.purge()
    assert (version.number, version.kind, version.remarks) == (4, "purged", ())
    assert torch.equal(load(tmp_path / "purged").logits(images), before)
    assert [each.is_there for each in purged.history()] == [False, False, False, True]
    assert [each.classes for each in purged.history()[:3]] == [each.classes for each in twin.history()]
    assert sorted(path.name for path in (tmp_path / "purged" / "checkpoints").iterdir()) == [
        "journal.jsonl",
        *(f"task_0003{end}.safetensors" for end in ("-images", "-parts", "-sums", "")),
    ]
    found = load_file(tmp_path / "purged" / "checkpoints" / "task_0003-images.safetensors")
    assert {name: set(found[name].tolist()) for name in ("kept_labels", "digest_labels")} == {
        "kept_labels": staying,
        "digest_labels": staying,
    }
    parts = load_file(tmp_path / "purged" / "checkpoints" / "task_0003-parts.safetensors")
    assert {int(name.split(".")[-2]) for name in parts} == staying
    for gone in (1, 3):
        with pytest.raises(
            LoricaError, match=f"version {gone} was purged and is gone for good; there are those from 4 on"
        ):
            purged.rollback(gone)
        with pytest.raises(LoricaError, match=f"version {gone} was purged"):
            load(tmp_path / "purged", version=gone)

    for learner in (purged, twin):  # it goes on as if nothing had been purged
        assert learner.learn(of_classes(0, 2)) is None
        learner.learn(of_classes(1, 4))
        learner.forget(CLASS_NAMES[2])
    assert purged.class_names == twin.class_names
    assert torch.equal(purged.logits(images), twin.logits(images))
    purged.rollback(4)
    assert torch.equal(purged.logits(images), before)
    assert purged.purge().number == 8  # what learning on needs is not there, and still is not
    assert torch.equal(load(tmp_path / "purged").logits(images), before)
    with pytest.raises(LoricaError, match="predicts, but does not learn on"):
        purged.learn(of_classes(5))
    assert [each.is_there for each in purged.history()] == [False] * 7 + [True]


def test_purging_says_what_the_model_itself_still_has(model: Path, tmp_path: Path) -> None:
    learner = Learner(model)
    remarks = learner.forget(CLASS_NAMES[0], hide=True).remarks
    assert learner.purge().remarks == remarks
    learner.learn(of_classes(0, seed=7))
    assert learner.purge().remarks == ()
    with pytest.raises(LoricaError, match="has learned nothing yet"):
        Learner(tmp_path / "new").purge()


@pytest.mark.parametrize("name", ["rolda", "prototypes"])
def test_frozen_scores_keep_their_bits(name: str, recipe: Values, tmp_path: Path) -> None:
    learner = Learner(tmp_path, recipe=recipe | {"method": METHODS[name]})
    learner.learn(of_classes(0, 1))
    images, _ = of_classes(0, 1, 2, seed=3)
    before = learner.logits(images)
    learner.learn(of_classes(2, 3), frozen=True)
    assert torch.equal(learner.logits(images)[:, :2], before)
    with pytest.raises(LoricaError, match="learned already"):
        learner.learn(of_classes(0, 4, seed=1), frozen=True)


def test_a_method_that_trains_on_every_task_promises_nothing(recipe: Values, tmp_path: Path) -> None:
    learner = Learner(tmp_path, recipe=recipe | {"method": METHODS["sd_lora"]})
    learner.learn(of_classes(0, 1))
    before = files_of(tmp_path)
    with pytest.raises(LoricaError, match="cannot be learned frozen: sd_lora trains on every task"):
        learner.learn(of_classes(2, 3), frozen=True)
    assert files_of(tmp_path) == before


def test_copies_that_went_on_are_joined(recipe: Values, tmp_path: Path) -> None:
    everything = {"checkpoints": "everything"}
    one = Learner(tmp_path / "one", recipe=recipe, keep=2, **everything)
    one.learn(of_classes(0, 1))
    one.save(tmp_path / "other")
    other = Learner(tmp_path / "other", keep=2)
    one.learn(of_classes(2))
    other.learn(of_classes(3, 4))
    version = one.join(other)
    assert version.kind == "joined"
    assert set(version.classes) == {CLASS_NAMES[3], CLASS_NAMES[4]}
    whole = Learner(tmp_path / "whole", recipe=recipe, keep=2)
    for numbers in ((0, 1), (2,), (3, 4)):
        whole.learn(of_classes(*numbers))
    images, _ = of_classes(0, 1, 2, 3, 4, seed=5)
    expected = middle(whole.logits(images))
    assert one.class_names == whole.class_names
    assert (middle(one.logits(images)) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(load(tmp_path / "one").logits(images), one.logits(images))
    assert one.learn(of_classes(3, 4)) is None  # their images came along


def test_what_cannot_be_joined(model: Path, recipe: Values, tmp_path: Path) -> None:
    stranger = Learner(tmp_path / "stranger", recipe=recipe)
    stranger.learn(of_classes(5))
    learner, before = Learner(model), files_of(model)
    with pytest.raises(LoricaError, match="12 of the images that it has learned are known here, too, and would count"):
        learner.join(stranger)
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    with pytest.raises(LoricaError, match="has nothing that this model does not have"):
        learner.join(copy)
    assert files_of(model) == before


def apart(found: Learner, expected: Learner) -> float:
    """How far predictions of two models are apart, as a share of the largest; with one ridge, for which each task
    divides its images by a draw of its own."""
    images, _ = of_classes(*range(6), seed=5)
    for place, module in expected.predictor.plain.named_modules():
        if isinstance(module, RidgeHead):
            module.solve(found.method.get_submodule(place).ridge.item())
    assert found.class_names == expected.class_names
    one, other = middle(found.logits(images)), middle(expected.logits(images))
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize("name", ["rolda", "prototypes", "aper", "ran_pac"])
def test_what_was_joined_is_on_the_disk(name: str, recipe: Values, tmp_path: Path) -> None:
    """What both copies added is new to the version in common, and only a part of it to the one that takes up."""
    options = METHODS.get(name, {"name": name, "width": 40} if name == "ran_pac" else {"name": name})
    one = Learner(tmp_path / "one", recipe=recipe | {"method": options}, keep=2)
    one.learn(of_classes(0, 1))
    one.save(tmp_path / "other")
    other = Learner(tmp_path / "other", keep=2)
    one.learn(of_classes(2))
    other.learn(of_classes(3, 4))
    one.join(other)
    again = load(tmp_path / "one")
    assert torch.equal(again.logits(PROBE), one.logits(PROBE))
    for key, value in one.method.own_state().items():
        assert torch.equal(again.method.own_state()[key], value), key


@pytest.mark.parametrize("name", ["rolda", "prototypes", "ran_pac"])
def test_models_made_apart_are_joined(name: str, recipe: Values, tmp_path: Path) -> None:
    """One class is in both, by names that look the same; then the model goes back, forward, on, and forgets."""
    options = {"rolda": {"passes": 0, "layers": 1}, "ran_pac": {"tuning": "none", "width": 40}}
    made = recipe | {"method": {"name": name, **options.get(name, {})}}
    one, other, whole = (
        Learner(tmp_path / each, recipe=made, keep=4, forgettable=True) for each in ("one", "other", "whole")
    )
    again, labels = of_classes(2, seed=1)
    again = (again, [f" {label}\u200b" for label in labels])
    ours, theirs = [of_classes(0, 1), of_classes(2)], [of_classes(3, 4), again, of_classes(5)]
    for learner, arrivals in ((one, ours), (other, theirs), (whole, [*ours, *theirs])):
        for arrival in arrivals:
            learner.learn(arrival)
    before, alone = files_of(tmp_path / "other"), one.logits(PROBE)
    version = one.join(tmp_path / "other")
    assert files_of(tmp_path / "other") == before
    assert (version.kind, version.number, version.set_aside) == ("joined", 3, 8)
    assert set(version.classes) == {CLASS_NAMES[number] for number in (3, 4, 2, 5)}
    assert apart(one, whole) <= 1e-5
    assert apart(load(tmp_path / "one"), whole) <= 1e-5  # pyright: ignore[reportArgumentType]
    assert np.array_equal(sorted(map(np.sum, one.set_aside())), sorted(map(np.sum, whole.set_aside())))
    assert one.learn(of_classes(3, 4, 5)) is None  # their images came along
    one.rollback(2)
    assert torch.equal(one.logits(PROBE), alone)
    one.rollback(3)
    for learner in (one, whole):
        learner.learn(of_classes(3, seed=2))
    assert apart(one, whole) <= 1e-5
    for learner in (one, whole):
        assert learner.forget([CLASS_NAMES[2], CLASS_NAMES[4]]).remarks == ()
    assert apart(one, whole) <= 1e-5
    assert one.learn(of_classes(2, 4)) is not None  # which are new to it again


def test_a_copy_that_was_joined_forgets_what_it_took_up(recipe: Values, tmp_path: Path) -> None:
    one, without = (Learner(tmp_path / each, recipe=recipe, keep=2, forgettable=True) for each in ("one", "without"))
    one.learn(of_classes(0, 1))
    one.save(tmp_path / "other")
    other = Learner(tmp_path / "other", keep=2)
    one.learn(of_classes(2))
    other.learn(of_classes(1, 3, seed=1))
    one.join(other)
    one.forget([CLASS_NAMES[1], CLASS_NAMES[2]])
    without.learn(of_classes(0))
    without.learn(of_classes(3, seed=1))
    assert apart(one, without) <= 1e-5


def test_the_common_version_is_the_last_that_both_come_of(recipe: Values, tmp_path: Path) -> None:
    """After their copies went apart, one has gone back behind that; and the sums of it may be in the other's folder
    alone."""
    one = Learner(tmp_path / "one", recipe=recipe, keep=2)
    one.learn(of_classes(0, 1))
    one.learn(of_classes(2))
    one.save(tmp_path / "other")
    other, whole = Learner(tmp_path / "other", keep=2), Learner(tmp_path / "whole", recipe=recipe, keep=2)
    one.rollback(1)
    for number in (3, 4):
        one.learn(of_classes(number))
    assert not one.checkpoints.can_learn_on_from(1)
    assert other.checkpoints.can_learn_on_from(1)
    one.join(other)
    for numbers in ((0, 1), (3,), (4,), (2,)):
        whole.learn(of_classes(*numbers))
    assert apart(one, whole) <= 1e-5


def test_purged_models_are_joined_where_what_they_learned_since_is_told(recipe: Values, tmp_path: Path) -> None:
    def grown(name: str, *changes: tuple[int, ...]) -> Learner:
        learner = Learner(tmp_path / name, recipe=recipe, keep=2, forgettable=True)
        for numbers in changes:
            learner.learn(of_classes(*numbers))
        return learner

    one, whole = grown("one", (0, 1)), grown("whole", (0, 1), (2,), (3, 4), (5,))
    one.save(tmp_path / "copy")
    copy, apart_from_both = Learner(tmp_path / "copy", keep=2), grown("apart", (5,))
    one.learn(of_classes(2))
    copy.learn(of_classes(3, 4))
    one.purge()  # the sums of the version in common are in the copy
    one.join(copy)
    apart_from_both.purge()
    one.join(apart_from_both)
    assert apart(one, whole) <= 1e-5
    assert one.learn(of_classes(2, 3, 5)) is None
    one.purge()  # several additions are in the parts of one change
    for learner in (one, whole):
        learner.forget([CLASS_NAMES[number] for number in (1, 4)])
    assert apart(one, whole) <= 1e-5
    copy.purge()
    with pytest.raises(
        LoricaError, match="has purged version 1, so that it does not tell what it learned since; join first"
    ):
        one.join(copy)


def test_what_cannot_be_joined_though_it_was_made_alike(recipe: Values, tmp_path: Path) -> None:
    def made(name: str, *numbers: int, forgettable: bool = False, **changed: Any) -> Learner:
        learner = Learner(tmp_path / name, recipe=recipe | changed, keep=2, forgettable=forgettable)
        if numbers:
            learner.learn(of_classes(*numbers))
        return learner

    one = made("one", 0, 1, forgettable=True)
    forgot = made("forgot", 2, 3, forgettable=True)
    forgot.forget(CLASS_NAMES[2])
    other, before = made("other", 2, 3, forgettable=True), files_of(tmp_path / "one")
    for its, why in (
        (made("empty"), "empty: has learned nothing yet"),
        (forgot, "a model that has forgotten classes cannot be joined; join first"),
        (made("cropped", 2, data={"crop_pct": 0.5}), r"prepare their inputs differently, .* the same data.crop_pct"),
        (made("halved", 2, precision="bf16"), "precision: fp32 made the features of this model, and bf16 those of"),
        (made("kept", 2), "kept: is not forgettable, and its classes could not be taken out"),
        (made("same", 1, 2, forgettable=True), "same: 12 of the images that it has learned are known here, too"),
        (
            made("deeper", 2, forgettable=True, method=recipe["method"] | {"layers": 2}),
            "the other model has another normalisation, other",
        ),
        (made("trained", 2, 3, forgettable=True, method=METHODS["rolda"]), "trunk of its own, trained on other"),
        (made("lora", 2, 3, method=METHODS["sd_lora"]), "expected another model of rolda"),
    ):
        with pytest.raises(LoricaError, match=why):
            one.join(its)
        assert files_of(tmp_path / "one") == before
    with pytest.raises(LoricaError, match="one that has forgotten classes cannot be joined"):
        one.predictor.join(forgot.predictor)
    with pytest.raises(LoricaError, match="has learned nothing yet"):
        made("nothing").join(other)
    with pytest.raises(LoricaError, match="sd_lora trains on every task"):
        Learner(tmp_path / "lora").join(other)
    one.join(other)
    made("plain", 4).join(other)  # which need not be able to forget
    alone = load(tmp_path / "plain", version=1)
    assert isinstance(alone, Predictor)
    assert alone.calibration is not None
    alone.join(other.predictor)
    assert len(alone.class_names) == 3
    assert alone.calibration is None  # of other logits


def test_what_the_other_has_forgotten_and_learned_again_is_what_it_has_learned_since(
    recipe: Values, tmp_path: Path
) -> None:
    one, other, whole = (
        Learner(tmp_path / each, recipe=recipe, keep=2, forgettable=True) for each in ("one", "other", "whole")
    )
    one.learn(of_classes(0))
    other.learn(of_classes(1, 2))
    other.forget(CLASS_NAMES[1])
    other.learn(of_classes(1, seed=1))
    one.join(other)
    for arrival in (of_classes(0), of_classes(2), of_classes(1, seed=1)):
        whole.learn(arrival)
    images, _ = of_classes(0, 1, 2, seed=5)
    order = [one.class_names.index(name) for name in whole.class_names]
    expected = middle(whole.logits(images))
    assert (middle(one.logits(images))[:, order] - expected).abs().max() <= 1e-5 * expected.abs().max()
    learned = one.learn(of_classes(1))  # which are new to it
    assert learned is not None
    assert learned.images + learned.set_aside == 12
    copied = Learner(Path(shutil.copytree(tmp_path / "other", tmp_path / "copy")))
    copied.forget(CLASS_NAMES[2])
    copied.learn(of_classes(2))
    with pytest.raises(LoricaError, match="a model that has forgotten classes cannot be joined"):
        other.join(copied)
