"""What it costs to crop the resized centre square (`fit.augment: crop_flip`) and not the original, as the references
do.

    python benchmarks/crop_cost.py --root FOLDER --weights FILE

The views of all epochs are cut beforehand, once by `crop_flip` and once by torchvision's RandomResizedCrop on the
original file with the same range of areas and ratios; each method then learns the recipe's stream from either, in one
pass over the views. Test images are the same. Writes docs/results/crop-cost.json; runs are resumable, in
runs/crop-cost/.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from torchvision.transforms import RandomResizedCrop

from lorica import arrays
from lorica.assembly import build_source
from lorica.config import Recipe, read_recipe
from lorica.data.images import Images
from lorica.data.sources import Source
from lorica.data.transforms import augment, centre_crop, fit_square
from lorica.files import write_json
from lorica.report.tables import Spread
from lorica.run import run

CUTS = {"square": "crop_flip, out of the centre square", "original": "RandomResizedCrop, out of the original"}
AREA, RATIO = (0.05, 1.0), (3 / 4, 4 / 3)  # of both


def main(
    root: Annotated[Path, typer.Option(help="folder of images")],
    weights: Annotated[Path, typer.Option(help="of the recipe's backbone")],
    recipe: Annotated[str, typer.Option(help="whose augmentation is crop_flip")] = "caltech",
    methods: Annotated[str, typer.Option(help="comma-separated")] = "linear_probe,sd_lora",
    seeds: Annotated[str, typer.Option(help="comma-separated, of the crops and of training")] = "0,1,2",
    out: Annotated[Path, typer.Option(help="where the file goes")] = Path("docs/results"),
) -> None:
    """Compare two ways to crop."""
    resolved = read_recipe(recipe, {"data.root": str(root), "backbone.weights": str(weights)})
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for seed in map(int, seeds.split(",")):
        for cut in CUTS:
            source = views(resolved, cut, seed)
            for method in methods.split(","):
                result = run(
                    resolved,
                    out=Path("runs/crop-cost") / f"{method}-{cut}-seed{seed}",
                    source=source,
                    resume=True,
                    seed=seed,
                    fit={"epochs": 1, "augment": "none"},
                    **{"method.name": method, "data.crop_pct": 1.0},
                )
                found.setdefault(method, {}).setdefault(cut, []).append((result.acc, result.aaa))
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "crop-cost.json", {"recipe": recipe, "seeds": seeds, "acc_aaa": found})
    table = Table("method", "views", "seeds", "Acc", "AAA")
    for method, cuts in found.items():
        for cut, values in cuts.items():
            spreads = (Spread.of(column).percent() for column in zip(*values, strict=True))
            table.add_row(method, CUTS[cut], str(len(values)), *spreads)
    Console().print(table)


def views(recipe: Recipe, cut: str, seed: int) -> Source:
    """Every training image as often as there are epochs, cut anew each time, at the backbone's size; test images
    once."""
    size = recipe.backbone.image_size
    assert size is not None
    source, larger = build_source(recipe), int(size / recipe.data.crop_pct)
    assert isinstance(source.train, Images)
    assert isinstance(source.test, Images)
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # of torchvision's crops
    train, test = ([half.decode(index) for index in range(len(half))] for half in (source.train, source.test))
    views = [_cut(image, cut, size, larger, random) for image in train for _ in range(recipe.fit.epochs)]
    labels = np.repeat(source.train.labels, recipe.fit.epochs)
    tested = [centre_crop(_square(image, larger), size) for image in test]
    return arrays((_pixels(views), labels), (_pixels(tested), source.test.labels), source.class_names)


def _cut(image: np.ndarray, cut: str, size: int, larger: int, random: torch.Generator) -> torch.Tensor:
    if cut == "square":
        return augment(_square(image, larger), "crop_flip", size, random)
    view = np.asarray(RandomResizedCrop(size, AREA, RATIO)(Image.fromarray(image)))
    view = view[:, ::-1] if torch.rand((), generator=random) < 0.5 else view
    return torch.from_numpy(view.transpose(2, 0, 1).copy())[None].float() / 255


def _square(image: np.ndarray, side: int) -> torch.Tensor:
    """As the library reads it, [1, 3, side, side]."""
    return torch.from_numpy(fit_square(image, side))[None].float() / 255


def _pixels(images: list[torch.Tensor]) -> np.ndarray:
    """[n, h, w, 3], uint8."""
    return (torch.cat(images) * 255).round().byte().permute(0, 2, 3, 1).numpy()


if __name__ == "__main__":
    typer.run(main)
