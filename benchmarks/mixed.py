"""A stream whose tasks differ in kind, made of several image folders: all classes of the first kind come first, then
those of the second, and so on.

    python benchmarks/mixed.py OUT OMNIGLOT CALTECH CIFAR100
    lorica run omniglot data.root=OUT stream.seed=null stream.classes_per_task=20 …

OUT has 40 classes of each folder, drawn with a fixed seed, and at most 24 training and 12 test images of a class, so
that kinds are of one size. Names begin with the place of the kind, which is the order that stream.seed=null keeps.
Folders are laid out as FOLDER/{train,test}/CLASS/*.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Annotated

import typer

IMAGES = {"train": 24, "test": 12}


def main(out: Path, folders: list[Path], classes: Annotated[int, typer.Option(help="of each folder")] = 40) -> None:
    """Make it."""
    draw = random.Random(0)
    for place, folder in enumerate(folders):
        names = sorted(path.name for path in (folder / "train").iterdir())
        for name in sorted(draw.sample(names, classes)):
            for half, most in IMAGES.items():
                into = out / half / f"{place}-{name}"
                into.mkdir(parents=True)
                for file in sorted((folder / half / name).iterdir())[:most]:
                    shutil.copy(file, into / file.name)


if __name__ == "__main__":
    typer.run(main)
