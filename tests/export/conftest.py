"""Learners with arbitrary values that look trained, on timm's smallest ViT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from lorica.backbones import load_backbone
from lorica.backbones.timm_vit import TimmViT
from lorica.data.images import ImageReader
from lorica.methods import find_method
from lorica.predictor import Predictor
from lorica.types import Task

MakeLearner = Callable[..., Predictor]


@pytest.fixture(scope="session")
def make_learner() -> MakeLearner:
    """`make_learner("sd_lora", rank=2)`, with backbone="tiny" for a ViT that timm does not know: three tasks of two
    classes; all that would start at zero has numbers."""

    def make(name: str, *, backbone: str = "test_vit", crop_pct: float = 1.0, **options: Any) -> Predictor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            size = None if backbone == "lorica_tiny" else 32
            if backbone == "tiny":
                vit = VisionTransformer(img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=0)
                encoder = TimmViT(vit, name="tiny", tag="tiny.random", mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.25))
            else:
                encoder = load_backbone(backbone, image_size=size, pretrained=size is None)
            encoder.requires_grad_(False).eval()
            method = find_method(name)
            learned = method(method.Config(name=name, **options), encoder)
            for index in range(3):
                learned.grow(Task.of_new_classes(index, 2 * index, (f"class {2 * index}", f"class {2 * index + 1}")))
                with torch.no_grad():
                    for value in learned.own_state().values():
                        if value.is_floating_point() and not value.any():
                            value.normal_(std=0.5)
        return Predictor(learned.eval(), reader=ImageReader(32, crop_pct=crop_pct))

    return make


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    """Five smooth pictures, higher than wide or wider than high."""
    random = np.random.RandomState(0)
    found = []
    for height, width in ((40, 60), (70, 41), (32, 32), (50, 50), (33, 90)):
        down, right = np.meshgrid(np.linspace(0, 6, height), np.linspace(0, 6, width), indexing="ij")
        waves = [np.sin(a * down + b * right + c) for a, b, c in random.rand(3, 3)]
        found.append((127.5 + 127.5 * np.stack(waves, axis=2)).astype(np.uint8))
    return found
