"""The embedded text encoder: a small BERT that this project pre-trained on docstrings and on texts of its own making.

`lorica_tiny_text.md` beside this file is its model card; `tools/pretrain_tiny_text.py` reproduces it.
"""

from __future__ import annotations

from pathlib import Path

from lorica.backbones.hf_text import HFText, Pooling, load_hf_text

NAME = "lorica_tiny_text"
_TAG = f"{NAME}.docs1"


def load_tiny_text(*, pooling: Pooling | None = None, pretrained: bool = True) -> HFText:
    """The embedded BERT with its pre-trained weights (or, for its shape alone, without); needs no network.

    Raises:
        BackboneError: transformers is not installed.
    """
    encoder = load_hf_text(NAME, weights=Path(__file__).parent / NAME, pooling=pooling, pretrained=pretrained)
    if pretrained:
        encoder.tag = _TAG
    return encoder
