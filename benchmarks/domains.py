"""A stream whose classes stay and whose looks change, made of an image folder: the images as they are, inverted, turned
by a quarter, and both.

    python benchmarks/domains.py OUT OMNIGLOT
    lorica run omniglot data.source=domain_folders data.root=OUT stream.by=domain stream.tasks=4 …

OUT has the same classes of the folder in each domain, drawn with a fixed seed, and the same drawings of them, as
rotated MNIST has; none is both in a training and a test half. It is laid out as OUT/DOMAIN/{train,test}/CLASS/*.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageOps

CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "1-upright": lambda image: image,
    "2-inverted": ImageOps.invert,
    "3-turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "4-turned-inverted": lambda image: ImageOps.invert(image.transpose(Image.Transpose.ROTATE_90)),
}


def main(
    out: Path, folder: Path, classes: Annotated[int, typer.Option(help="of the folder, drawn with a fixed seed")] = 26
) -> None:
    """Make it."""
    names = sorted(path.name for path in (folder / "train").iterdir())
    for name in sorted(random.Random(0).sample(names, classes)):
        for half in ("train", "test"):
            for file in sorted((folder / half / name).iterdir()):
                with Image.open(file) as opened:
                    image = opened.convert("L")
                for domain, change in CHANGES.items():
                    into = out / domain / half / name
                    into.mkdir(parents=True, exist_ok=True)
                    change(image).save(into / f"{file.stem}.png")


if __name__ == "__main__":
    typer.run(main)
