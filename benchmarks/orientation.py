"""Two hard cases for rotations as classes, made of an image folder: where orientation is the class, and where it means
nothing.

    python benchmarks/orientation.py FOLDER OUT
    lorica run omniglot method.name=rolda data.root=OUT/arrows stream.tasks=12 --stop-after 4 …

OUT/arrows has 60 of the classes four times each, turned by 0, 90, 180 and 270 degrees: every class looks like a
rotation of three others. OUT/turned has all classes, each image turned by an angle of its own. FOLDER is laid out as
FOLDER/{train,test}/CLASS/*.
"""

from __future__ import annotations

import random
from pathlib import Path

import typer
from PIL import Image

CHOSEN = 60


def main(folder: Path, out: Path) -> None:
    """Make both."""
    draw = random.Random(0)
    names = sorted(path.name for path in (folder / "train").iterdir())
    chosen = sorted(draw.sample(names, min(CHOSEN, len(names))))
    for half in ("train", "test"):
        for name in names:
            for file in sorted((folder / half / name).iterdir()):
                picture = Image.open(file).convert("L")
                for quarter in range(4) if name in chosen else ():
                    turned = picture.rotate(90 * quarter, expand=True)
                    _save(turned, out / "arrows" / half / f"{name}-{quarter}" / f"{file.stem}.png")
                angle = draw.uniform(0, 360)
                turned = picture.rotate(angle, resample=Image.Resampling.BICUBIC, fillcolor=255)
                _save(turned, out / "turned" / half / name / f"{file.stem}.png")


def _save(picture: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)


if __name__ == "__main__":
    typer.run(main)
