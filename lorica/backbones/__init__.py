"""Pre-trained transformers behind one contract (`encoder.Encoder`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm

from lorica.backbones.encoder import Encoder, Site
from lorica.backbones.finite import require_finite
from lorica.backbones.hf_text import FAMILIES, Pooling, load_hf_text
from lorica.backbones.timm_vit import TimmViT, load_timm_vit
from lorica.backbones.tiny import NAME as TINY
from lorica.backbones.tiny import load_tiny
from lorica.backbones.tiny import timm_arguments as _of_tiny
from lorica.backbones.tiny_text import NAME as TINY_TEXT
from lorica.backbones.tiny_text import load_tiny_text
from lorica.errors import BackboneError

TEXT = "hf:"
"""How a recipe's names of text encoders begin."""

__all__ = [
    "TEXT",
    "TINY",
    "TINY_TEXT",
    "Encoder",
    "Site",
    "backbone_names",
    "load_backbone",
    "modality_of",
    "timm_arguments",
]


def modality_of(name: str) -> str:
    """What the backbone of a recipe reads, images or texts, told by its name alone."""
    return "texts" if name == TINY_TEXT or name.startswith(TEXT) else "images"


def backbone_names() -> dict[str, str]:
    """Every backbone a recipe can name, with a word about its weights."""
    vits = timm.list_models(module="vision_transformer") + timm.list_models(module="deit")
    texts = {
        TINY_TEXT: "embedded: pre-trained by this project for short English texts",
        f"{TEXT}NAME": f"text encoders of transformers: {', '.join(FAMILIES)}",
    }
    return (
        {TINY: "embedded: pre-trained by this project for 32x32 images"}
        | texts
        | {name: f"timm, {len(timm.list_pretrained(name))} sets of weights" for name in sorted(vits)}
    )


def load_backbone(
    name: str,
    *,
    weights: Path | None = None,
    image_size: int | None = None,
    normalisation: str = "backbone",
    pooling: Pooling | None = None,
    pretrained: bool = True,
) -> Encoder:
    """The backbone that a recipe names: `lorica_tiny`, any timm ViT, `lorica_tiny_text`, or another text encoder as
    `hf:NAME`; `pretrained=False` skips its weights.

    Raises:
        BackboneError: see `load_timm_vit`, `load_tiny` and `load_hf_text`; keys of the other modality; weights of what
            ships with its own; weights that are no finite numbers.
    """
    encoder = _load(name, weights, image_size, normalisation, pooling, pretrained)
    if pretrained:
        require_finite(encoder, weights)
    return encoder


def _load(
    name: str,
    weights: Path | None,
    image_size: int | None,
    normalisation: str,
    pooling: Pooling | None,
    pretrained: bool,
) -> Encoder:
    if weights is not None and name in (TINY, TINY_TEXT):
        others = f"backbone.name={TEXT}NAME" if name == TINY_TEXT else "a ViT of timm's by backbone.name"
        raise BackboneError(f"backbone.weights: {name} ships with its weights; leave the key out, or name {others}")
    if modality_of(name) == "texts":
        given = {"image_size": image_size is not None, "normalisation": normalisation != "backbone"}
        if alien := [f"backbone.{key}" for key, is_given in given.items() if is_given]:
            raise BackboneError(f"{', '.join(alien)}: {name} reads texts, not images; leave out")
        if name == TINY_TEXT:
            return load_tiny_text(pooling=pooling, pretrained=pretrained)
        return load_hf_text(name.removeprefix(TEXT), weights=weights, pooling=pooling, pretrained=pretrained)
    if pooling is not None:
        raise BackboneError(f"backbone.pooling: {name} reads images, and pools as it was trained to; leave the key out")
    if name != TINY:
        return load_timm_vit(
            name, weights=weights, image_size=image_size, normalisation=normalisation, pretrained=pretrained
        )
    return load_tiny(image_size=image_size, normalisation=normalisation, pretrained=pretrained)


def timm_arguments(encoder: Encoder) -> tuple[str, dict[str, Any]]:
    """The name and the arguments with which `timm.create_model` builds an encoder's ViT, without its weights or a
    classifier.

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
