"""A finished run as an object: predictions from files and arrays, earlier tasks, and the merged model."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from lorica.adapters.linear import AdaptedLinear
from lorica.backbones.timm_vit import TimmViT
from lorica.data.images import ImageArrays, ImageReader
from lorica.data.sources import Source
from lorica.errors import DataError, LoricaError
from lorica.learner import load
from lorica.methods import find_method
from lorica.predictor import Predictor
from lorica.results import Result
from lorica.run import run
from lorica.types import Task

MakeEncoder = Callable[..., TimmViT]


@pytest.fixture(scope="module")
def learner(finished_run: Result) -> Predictor:
    assert finished_run.path is not None
    predictor = load(finished_run.path)
    assert isinstance(predictor, Predictor)
    return predictor


@pytest.fixture(scope="module")
def images(six_classes: Source) -> list[np.ndarray]:
    assert isinstance(six_classes.test, ImageArrays)
    return list(six_classes.test.images)


def test_predictions_are_those_of_the_evaluation(
    learner: Predictor, images: list[np.ndarray], six_classes: Source, finished_run: Result
) -> None:
    truth = [six_classes.class_names[label] for label in six_classes.test.labels]
    predicted = learner.predict(images)
    for task, accuracy in zip(finished_run.tasks, finished_run.accuracy[-1], strict=True):
        right = [p == t for p, t in zip(predicted, truth, strict=True) if t in task["classes"]]
        assert np.mean(right) == pytest.approx(accuracy)


def test_files_arrays_and_floats_are_the_same_images(
    learner: Predictor, images: list[np.ndarray], tmp_path: Path
) -> None:
    files: list[Path | str | np.ndarray] = [tmp_path / f"{number}.png" for number in range(3)]
    for file, image in zip(files, images, strict=False):
        Image.fromarray(image).save(file)
    expected = learner.logits(images[:3])
    assert torch.equal(learner.logits(files), expected)
    assert torch.equal(learner.logits([str(file) for file in files]), expected)
    assert torch.equal(learner.logits([image / 255 for image in images[:3]]), expected)
    assert learner.logits([np.zeros((20, 10), np.uint8)]).shape == (1, 6)


def test_a_prediction_does_not_depend_on_the_batch(learner: Predictor, images: list[np.ndarray]) -> None:
    torch.testing.assert_close(learner.logits(images, batch_size=5), learner.logits(images))
    assert learner.predict([]) == []


def test_pictures_tensors_generators_and_batches_are_the_same_images(
    learner: Predictor, images: list[np.ndarray], tmp_path: Path
) -> None:
    few = images[:5]
    expected = learner.logits(few)
    batch = np.stack(few)
    channels_first = torch.from_numpy(batch).permute(0, 3, 1, 2)
    for number, image in enumerate(few):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    for given in (
        [Image.fromarray(image) for image in few],
        [torch.from_numpy(image) for image in few],
        list(channels_first),
        (image for image in few),
        batch,
        torch.from_numpy(batch),
        channels_first,
        channels_first.float() / 255,
        np.array([str(tmp_path / f"{number}.png") for number in range(5)], dtype=object),
        (tmp_path / f"{number}.png" for number in range(5)),
    ):
        assert torch.equal(learner.logits(given, batch_size=256), expected)
    assert len(learner.predict((image for image in few), batch_size=2)) == 5


def test_a_batch_of_grey_images(learner: Predictor) -> None:
    grey = np.random.RandomState(0).randint(0, 256, (4, 32, 32)).astype(np.uint8)
    expected = learner.logits([np.repeat(image[..., None], 3, -1) for image in grey])
    for given in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[:, None]):
        assert torch.equal(learner.logits(given), expected)
    assert torch.equal(learner.logits(grey[:1]), learner.logits(grey[:1, ..., None]))


def test_a_transparent_picture_lies_on_the_background_of_the_recipe(learner: Predictor) -> None:
    clear, white = Image.new("RGBA", (32, 32), (0, 0, 0, 0)), np.full((32, 32), 255, np.uint8)
    assert torch.equal(learner.logits([clear]), learner.logits([white]))


def test_no_images_have_no_logits(learner: Predictor) -> None:
    for nothing in ([], (), iter([]), np.zeros((0, 32, 32, 3), np.uint8)):
        assert learner.logits(nothing).shape == (0, 6)
    assert learner.predict(iter([])) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a.png", "expected several images, got a single str; put it into a list"),
        (Path("a.png"), "got a single .*Path; put it into a list"),
        (Image.new("L", (8, 8)), "got a single Image; put it into a list"),
        (np.zeros((8, 8, 3), np.uint8), r"got one of shape \[8, 8, 3\]; put it into a list"),
        (np.zeros((8, 8), np.uint8), r"got one of shape \[8, 8\]"),
        (torch.zeros(3, 8, 8), r"got one of shape \[3, 8, 8\]"),
        (b"\x89PNG", "got a single bytes"),
        (None, "got a single NoneType"),
        ([None], "an image to predict: expected a file's path, .* got NoneType"),
        ([b"\x89PNG"], "an image to predict: .* got bytes"),
        ([torch.full((3, 8, 8), -1.0)], r"x_image: .* these look normalised; undo it"),
        ([np.full((8, 8), np.nan)], r"x_image: .* some are NaN or infinite"),
        ([Image.new("F", (8, 8))], "32 bits per pixel, of unknown range"),
        (["no\0name.png"], r"no\\x00name.png: embedded null"),
    ],
)
def test_what_cannot_be_predicted_is_refused(learner: Predictor, given: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        learner.predict(given)


def test_a_folder_and_a_pipe_are_not_predicted(learner: Predictor, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got the folder .*; give its files"):
        learner.predict(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError) as caught:
        learner.predict([tmp_path / "pipe.png", tmp_path / "absent.png"])
    assert [problem.split(": ")[1] for problem in caught.value.problems] == [
        "not a regular file",
        "No such file or directory",
    ]


def test_images_that_cannot_be_read(learner: Predictor, tmp_path: Path) -> None:
    file = tmp_path / "note.png"
    file.write_text("not an image")
    with pytest.raises(DataError, match=r"note.png: not an image"):
        learner.predict([file])
    with pytest.raises(DataError, match=r"x_image: expected images of shape"):
        learner.predict([np.zeros((8, 8, 2), np.uint8)])


def test_an_earlier_task_knows_the_first_classes_only(finished_run: Result, images: list[np.ndarray]) -> None:
    assert finished_run.path is not None
    first = load(finished_run.path, tasks=1)
    assert list(first.class_names) == finished_run.tasks[0]["classes"]
    assert set(first.predict(images)) <= set(first.class_names)
    assert len(load(finished_run.path).class_names) == 6


@pytest.mark.parametrize("method", ["sd_lora", "full_finetune"])
def test_the_merged_model_is_a_plain_timm_model(
    method: str, small_recipe: dict[str, Any], images: list[np.ndarray], finished_run: Result, tmp_path: Path
) -> None:
    gentle = {"fit.learning_rate": 1e-4}  # a wrecked backbone would amplify rounding
    result = (
        finished_run
        if method == "sd_lora"
        else run(small_recipe, out=tmp_path, progress=False, method=method, **gentle)
    )
    assert result.path is not None
    learner = load(result.path)
    model = learner.merged_model().eval()
    assert type(model) is VisionTransformer
    assert not [module for module in model.modules() if isinstance(module, AdaptedLinear)]
    encoder = learner.method.encoder
    inputs = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        logits = model((inputs - encoder.mean) / encoder.std)
    torch.testing.assert_close(logits, learner.logits(images), atol=1e-5, rtol=1e-5)


def test_a_method_without_a_linear_classifier_cannot_be_exported(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    run(small_recipe, out=tmp_path, progress=False, method="prototypes")
    with pytest.raises(LoricaError, match=r"prototypes has no linear classifier to export; use predict"):
        load(tmp_path).merged_model()


PLAIN = """
from lorica.methods import LinearHeadMethod

class Own(LinearHeadMethod):
    name = "own"

    def trainable(self):
        return self.head_parameters()
"""
SCALED = """
    def features(self, inputs):
        return 2 * self.encoder.features(inputs)
"""
COOLED = """
    def predict(self, inputs):
        return super().predict(inputs) / 3
"""
CLAIMS = """
    def classifier(self):
        return self.head.stacked()
"""
HOOKED = """
    def grow(self, task):
        super().grow(task)
        self.head.register_forward_hook(lambda module, inputs, logits: logits.flip(1))
"""


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ("", None),
        (SCALED, "own has no linear classifier to export"),
        (COOLED, "own has no linear classifier to export"),
        (
            SCALED + CLAIMS,
            r"own: nothing is exported, .* gives other logits than the method, by .*% of the largest on",
        ),
        (COOLED + CLAIMS, "own: nothing is exported"),
        (HOOKED, "own: nothing is exported"),
    ],
    ids=["plain", "features", "logits", "features it denies", "logits it denies", "a hook"],
)
def test_a_model_that_is_not_the_method_is_never_exported(
    body: str, refused: str | None, tiny_encoder: MakeEncoder, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(PLAIN + body)
    kind = find_method(str(tmp_path / "own.py"))
    method = kind(kind.Config(name="own"), tiny_encoder())
    method.grow(Task.of_new_classes(0, 0, ("a", "b", "c")))
    with torch.no_grad():
        method.head.weights[0].copy_(torch.randn(3, 32))
    learner = Predictor(method.eval(), reader=ImageReader(32))
    with pytest.raises(LoricaError, match=refused) if refused else nullcontext():
        learner.merged_model()


def test_learners_that_went_on_from_one_are_joined(
    small_recipe: dict[str, Any], tmp_path: Path, images: list[np.ndarray], learner: Predictor
) -> None:
    method = {"name": "rolda", "rank": 2, "passes": 1, "enough": 1}
    whole = run({**small_recipe, "method": method, "checkpoints": "everything"}, out=tmp_path / "everything")
    common, one, all_three = (load(tmp_path / "everything", tasks=tasks) for tasks in (1, 1, 3))
    one.join(all_three, common)
    assert one.class_names == tuple(name for task in whole.tasks for name in task["classes"])
    assert one.predict(images) == all_three.predict(images)
    with pytest.raises(LoricaError, match=r"sd_lora trains on every task, so that each of two models has"):
        learner.join(one, common)
    with pytest.raises(LoricaError, match=r"expected two other learners"):
        one.join("runs/other", common)  # pyright: ignore[reportArgumentType]
    cropped = {**small_recipe, "data": {**small_recipe.get("data", {}), "crop_pct": 0.5}}
    run({**cropped, "method": method, "checkpoints": "everything"}, out=tmp_path / "cropped")
    with pytest.raises(
        LoricaError, match=r"prepare their inputs differently, .* the same data.crop_pct, data.background"
    ):
        one.join(load(tmp_path / "cropped"), common)
    run({**small_recipe, "method": method}, out=tmp_path / "all")
    with pytest.raises(LoricaError, match=r"the sums of a model are not there; .* checkpoints=everything"):
        load(tmp_path / "all", tasks=1).join(all_three, common)


def test_an_export_while_others_predict(learner: Predictor, images: list[np.ndarray]) -> None:
    expected = learner.logits(images[:4])
    with ThreadPoolExecutor(8) as pool:
        exports = [pool.submit(learner.merged_model) for _ in range(4)]
        found = list(pool.map(lambda _: learner.logits(images[:4]), range(24)))
    assert all(torch.equal(each, expected) for each in found)
    assert not [m for export in exports for m in export.result().modules() if isinstance(m, AdaptedLinear)]


def test_loading_and_exporting_leave_the_callers_random_state(finished_run: Result) -> None:
    assert finished_run.path is not None
    before = torch.get_rng_state()
    load(finished_run.path).merged_model()
    assert torch.equal(before, torch.get_rng_state())


def test_what_cannot_be_loaded(finished_run: Result, tmp_path: Path) -> None:
    with pytest.raises(LoricaError, match=r"not the folder of a run \(recipe.yaml is missing\)"):
        load(tmp_path)
    assert finished_run.path is not None
    with pytest.raises(LoricaError, match=r"no checkpoint after task 8; there are those after 1, 2, 3;"):
        load(finished_run.path, tasks=8)
