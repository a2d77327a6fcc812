"""What the tests share: a tiny random encoder, and six classes of images that a glance tells apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from lorica.backbones.timm_vit import TimmViT
from lorica.data.sources import Source, arrays

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


def _coloured(random: np.random.RandomState, number: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.repeat(np.arange(len(COLOURS)), number)
    noise = random.randint(-25, 26, (len(labels), 32, 32, 3))
    return (np.array(COLOURS)[labels][:, None, None, :] + noise).clip(0, 255).astype(np.uint8), labels
