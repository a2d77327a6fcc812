"""What the tests share: a tiny random encoder, and six classes of images that a glance tells apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import settings
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from lorica.backbones.timm_vit import TimmViT
from lorica.data.images import ImageArrays
from lorica.data.sources import Source, arrays
from lorica.results import Result
from lorica.run import run

# how long an example takes says how busy the machine is
settings.register_profile("lorica", deadline=None)
settings.load_profile("lorica")

COLOURS = ((230, 30, 30), (30, 230, 30), (30, 30, 230), (230, 230, 30), (230, 30, 230), (30, 230, 230))
CLASS_NAMES = ("red", "green", "blue", "yellow", "magenta", "cyan")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors are slower with more, and sums come out the same on every machine."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny_encoder() -> Callable[..., TimmViT]:
    """`tiny_encoder(seed=0)`: a new random ViT of two blocks for 32x32 images, always the same for a seed."""

    def make(seed: int = 0) -> TimmViT:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
        encoder = TimmViT(vit, name="tiny", tag=f"tiny.random{seed}", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        return encoder.requires_grad_(False).eval()

    return make


@pytest.fixture(scope="session")
def six_classes() -> Source:
    """Noisy 32x32 squares in six colours, 12 to train and 6 to test in each class."""
    random = np.random.RandomState(0)
    return arrays(_coloured(random, 12), _coloured(random, 6), CLASS_NAMES)


@pytest.fixture(scope="session")
def six_classes_file(six_classes: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as an .npz file."""
    file = tmp_path_factory.mktemp("data") / "six.npz"
    train, test = six_classes.train, six_classes.test
    assert isinstance(train, ImageArrays)
    assert isinstance(test, ImageArrays)
    np.savez(
        file,
        x_train=train.images,
        y_train=train.labels,
        x_test=test.images,
        y_test=test.labels,
        class_names=np.array(CLASS_NAMES),
    )
    return file


@pytest.fixture(scope="session")
def small_recipe(six_classes_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """SD-LoRA on the six classes in three tasks, on timm's smallest ViT with random weights: well under a second."""
    weights = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("test_vit", img_size=32, num_classes=0).state_dict(), weights)
    return {
        "method": {"name": "sd_lora"},
        "backbone": {"name": "test_vit", "weights": str(weights), "image_size": 32},
        "data": {"source": "arrays", "root": str(six_classes_file)},
        "stream": {"tasks": 3},
        "fit": {"epochs": 2, "batch_size": 12, "learning_rate": 0.01, "augment": "shift"},
        "device": "cpu",
    }


@pytest.fixture(scope="session")
def finished_run(small_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run of that recipe; tests read its folder and copy it before they change anything."""
    return run(small_recipe, out=tmp_path_factory.mktemp("runs") / "finished", progress=False)


def _coloured(random: np.random.RandomState, number: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(len(COLOURS)), number)
    noise = random.randint(-25, 26, (len(labels), 32, 32, 3))
    return (np.array(COLOURS)[labels][:, None, None, :] + noise).clip(0, 255).astype(np.uint8), labels
