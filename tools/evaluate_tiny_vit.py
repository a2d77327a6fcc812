"""How well frozen features of `lorica_tiny` transfer: class means with cosine similarity, nothing trained.

Two data sets of written characters, neither of which pre-training has seen: the 8x8 digits that scikit-learn brings
along, enlarged to 32x32 (a stratified quarter held out), and, when its folder is given, an image folder with `train`
and `test` below it (Omniglot), reduced to 32x32. Raw pixels and the same network with random weights are printed as
baselines: timm's initialisation, and the one that pre-training starts from.

    python tools/evaluate_tiny_vit.py --omniglot /data/omniglot-small
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from pretrain_tiny_vit import NAME, initialise
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2


@dataclass(frozen=True)
class Split:
    """Images [N, 3, 32, 32] in 0..1 with labels, to take the class means of and to ask about."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits(seed: int, size: int = 32) -> Split:
    data: Any = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16.0
    images = F.interpolate(images, size=(size, size), mode="bilinear").expand(-1, 3, -1, -1)
    labels = torch.tensor(data.target)
    train, test = train_test_split(range(len(labels)), test_size=0.25, stratify=data.target, random_state=seed)
    return Split("digits", images[train], labels[train], images[test], labels[test])


def image_folder(root: Path, size: int = 32) -> Split:
    transform = v2.Compose(
        [v2.ToImage(), v2.RGB(), v2.ToDtype(torch.float32, scale=True), v2.Resize((size, size), antialias=True)]
    )
    parts: list[Tensor] = []
    for part in ("train", "test"):
        images, labels = zip(*ImageFolder(root / part, transform), strict=True)
        parts += [torch.stack(images), torch.tensor(labels)]
    return Split(root.name, *parts)


@torch.inference_mode()
def class_mean_accuracy(split: Split, features: Callable[[Tensor], Tensor]) -> float:
    def embed(images: Tensor) -> Tensor:
        return F.normalize(torch.cat([features(part) for part in images.split(256)]), dim=-1)

    known, asked = embed(split.train_images), embed(split.test_images)
    count = int(split.train_labels.max()) + 1
    means = torch.zeros(count, known.shape[1]).index_add_(0, split.train_labels, known)
    guesses = (asked @ F.normalize(means, dim=-1).T).argmax(-1)
    return (guesses == split.test_labels).float().mean().item()


def reader(model: VisionTransformer, mean: list[float], std: list[float]) -> Callable[[Tensor], Tensor]:
    model.eval()
    normalise = v2.Normalize(mean, std)

    def features(images: Tensor) -> Tensor:
        return model.forward_head(model.forward_features(normalise(images)), pre_logits=True)

    return features


def main(
    weights: Annotated[Path, typer.Option(help=f"folder with {NAME}.safetensors and .json")] = Path("lorica/backbones"),
    omniglot: Annotated[Path | None, typer.Option(help="image folder with train/ and test/ below it")] = None,
    seed: Annotated[int, typer.Option(help="of the digits split and of the random weights")] = 0,
) -> None:
    """Print the accuracy of class means on frozen features, beside baselines."""
    description = json.loads((weights / f"{NAME}.json").read_text(encoding="utf-8"))
    torch.manual_seed(seed)
    plain, start, trained = (VisionTransformer(**description["architecture"]) for _ in range(3))
    initialise(start)
    trained.load_state_dict(load_file(weights / f"{NAME}.safetensors"))
    mean, std = description["mean"], description["std"]

    splits = [digits(seed)] + ([image_folder(omniglot)] if omniglot is not None else [])
    for split in splits:
        results = {
            "raw pixels": class_mean_accuracy(split, lambda images: images[:, 0].flatten(1)),
            "random weights (timm)": class_mean_accuracy(split, reader(plain, mean, std)),
            "random weights (start)": class_mean_accuracy(split, reader(start, mean, std)),
            description["checkpoint"]: class_mean_accuracy(split, reader(trained, mean, std)),
        }
        classes = len(split.train_labels.unique())
        print(f"{split.name}: {classes} classes, {len(split.train_labels)} / {len(split.test_labels)} images")
        for name, accuracy in results.items():
            print(f"  {name:<24}{accuracy:7.1%}")


if __name__ == "__main__":
    typer.run(main)
