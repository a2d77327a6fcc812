"""A folder that timm loads: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

It has the plain ViT with every update in its weights and the learned head as its classifier (model.safetensors), and in
config.json the architecture, the names of the classes and how images are prepared, as timm's own transforms do it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import timm
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor

from lorica.export.subject import Subject, normalised
from lorica.export.target import Loaded
from lorica.files import write_json

NAME = "timm"
FILES = ("config.json", "model.safetensors")
PACKAGES = ("timm",)


def require(subject: Subject) -> None:
    """LoricaError: a method that is no plain ViT with a linear head, or a backbone that timm does not have."""
    subject.classifier("timm")
    subject.architecture("timm")


def write(subject: Subject, folder: Path) -> None:
    """Writes `FILES`."""
    model = subject.plain_model("timm")
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "config.json", config(subject))


def config(subject: Subject) -> dict[str, Any]:
    """The contents of config.json."""
    architecture, arguments = subject.architecture("timm")
    mean, std = subject.normalisation
    side, classes = subject.reader.image_size, len(subject.class_names)
    return {
        "architecture": architecture,
        "num_classes": classes,
        "num_features": subject.encoder.width,
        "global_pool": subject.encoder.vit.global_pool,
        "label_names": list(subject.class_names),
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "lorica",
            "custom_load": False,
            "input_size": [3, side, side],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": subject.reader.crop_pct,
            "crop_mode": "center",
            "mean": mean,
            "std": std,
            "num_classes": classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if hasattr(subject.encoder.vit, "head_dist") else "head",
        },
    }


def load(subject: Subject, folder: Path) -> Loaded:
    """What timm makes of the folder."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    known = resolve_model_data_config(model)
    transform = cast(Callable[[Any], Tensor], create_transform(**known, is_training=False))
    card = cast(dict[str, Any], model.pretrained_cfg)

    @torch.no_grad()
    def predict(squares: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n classes"]:
        return model(normalised(squares, known["mean"], known["std"]))

    return Loaded(predict, transform, card["label_names"])


def readme(subject: Subject) -> str:
    """How to load it."""
    return (
        "```python\n"
        "import timm\n"
        "from PIL import Image\n\n"
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
        'logits = model(transform(Image.open("unknown.png").convert("RGB"))[None])\n'
        'print(model.pretrained_cfg["label_names"][logits.argmax()])\n'
        "```\n"
    )
