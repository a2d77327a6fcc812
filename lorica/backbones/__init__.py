"""Pre-trained transformers behind one contract (`encoder.Encoder`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm

from lorica.backbones.encoder import Encoder, Site
from lorica.backbones.timm_vit import TimmViT, load_timm_vit
from lorica.backbones.tiny import NAME as TINY
from lorica.backbones.tiny import load_tiny
from lorica.backbones.tiny import timm_arguments as _of_tiny
from lorica.errors import BackboneError

__all__ = ["TINY", "Encoder", "Site", "backbone_names", "load_backbone", "timm_arguments"]


def backbone_names() -> dict[str, str]:
    """Every backbone a recipe can name, with a word about its weights."""
    vits = timm.list_models(module="vision_transformer") + timm.list_models(module="deit")
    return {TINY: "embedded: pre-trained by this project for 32x32 images"} | {
        name: f"timm, {len(timm.list_pretrained(name))} sets of weights" for name in sorted(vits)
    }


def load_backbone(
    name: str,
    *,
    weights: Path | None = None,
    image_size: int | None = None,
    normalisation: str = "backbone",
    pretrained: bool = True,
) -> Encoder:
    """The backbone that a recipe names: `lorica_tiny`, or any timm ViT; `pretrained=False` skips its weights.

    Raises:
        BackboneError: see `load_timm_vit` and `load_tiny`.
    """
    if name != TINY:
        return load_timm_vit(
            name, weights=weights, image_size=image_size, normalisation=normalisation, pretrained=pretrained
        )
    if weights is not None:
        raise BackboneError(f"backbone.weights: {TINY} ships with its weights; leave the key out")
    return load_tiny(image_size=image_size, normalisation=normalisation, pretrained=pretrained)


def timm_arguments(encoder: Encoder) -> tuple[str, dict[str, Any]]:
    """The name and the arguments with which `timm.create_model` builds an encoder's ViT, without its weights or a classifier.

    Raises:
        BackboneError: timm cannot build it.
    """
    if encoder.name == TINY:
        return _of_tiny()
    architecture = encoder.name.partition(".")[0]
    if not (isinstance(encoder, TimmViT) and timm.is_model(architecture)):
        raise BackboneError(
            f"backbone.name: {encoder.name} is not one of timm's models, so that only lorica can build it"
        )
    return architecture, {"img_size": encoder.image_size}
