"""The embedded backbone: a small ViT for 32x32 images that this project pre-trained on images it generated itself.

`lorica_tiny.md` beside this file is its model card; `tools/pretrain_tiny_vit.py` reproduces it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from lorica.backbones.timm_vit import UNIT, TimmViT
from lorica.errors import BackboneError

NAME = "lorica_tiny"
_FILES = Path(__file__).parent


def timm_arguments() -> tuple[str, dict[str, Any]]:
    """A name of timm's, and all in which the embedded ViT differs from the model of that name."""
    card = json.loads((_FILES / f"{NAME}.json").read_text(encoding="utf-8"))
    return "vit_tiny_patch16_224", {key: value for key, value in card["architecture"].items() if key != "num_classes"}


def load_tiny(*, image_size: int | None = None, normalisation: str = "backbone", pretrained: bool = True) -> TimmViT:
    """The embedded ViT with its pre-trained weights (or, for its shape alone, without); needs no network.

    Raises:
        BackboneError: another image size than the one it was trained for.
    """
    card = json.loads((_FILES / f"{NAME}.json").read_text(encoding="utf-8"))
    architecture = card["architecture"]
    if image_size not in (None, architecture["img_size"]):
        raise BackboneError(
            f"backbone.image_size: {NAME} takes {architecture['img_size']}x{architecture['img_size']} images, "
            f"not {image_size}; leave the key out"
        )
    vit = VisionTransformer(**architecture)
    if pretrained:
        vit.load_state_dict(load_file(_FILES / f"{NAME}.safetensors"))
    mean, std = UNIT if normalisation == "unit" else (card["mean"], card["std"])
    return TimmViT(vit, name=NAME, tag=card["checkpoint"], mean=mean, std=std)
