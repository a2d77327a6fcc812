"""Learns pictures from folders, a folder for each class, then more of them, and predicts: `python
examples/own_images.py [FOLDER]`.

The pictures are drawn here, so that it runs anywhere; put photographs in their place, and a backbone that was made for
such.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import lorica

SMALL = {"backbone": {"name": "lorica_tiny"}, "fit.augment": "none", "fit.epochs": 2}


def draw(kind: str, seed: int) -> Image.Image:
    """A shape somewhere on noise."""
    random = np.random.RandomState(seed)
    image = Image.fromarray(random.randint(0, 60, (32, 32), dtype=np.uint8))
    left, top = random.randint(2, 12, 2)
    box = (left, top, left + 16, top + 16)
    pen = ImageDraw.Draw(image)
    {"ring": pen.ellipse, "box": pen.rectangle}.get(kind, pen.line)(box, fill=230)  # type: ignore[operator]
    return image


def fill(folder: Path, kinds: tuple[str, ...], number: int = 32) -> Path:
    """The folder with pictures of these kinds, a folder for each."""
    for kind in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for seed in range(number):
            draw(kind, seed).convert("RGB").save(folder / kind / f"{seed:03}.png")
    return folder


def main(folder: Path) -> None:
    """Learn two kinds, then a third, and ask for a new picture of each."""
    model = lorica.Learner(folder / "model", **SMALL)
    model.learn(fill(folder / "may", ("ring", "box")))
    model.learn(fill(folder / "june", ("stroke",)))
    for kind in ("ring", "box", "stroke"):
        picture = folder / f"new-{kind}.png"
        draw(kind, 1000).convert("RGB").save(picture)
        (answer,) = model.classify([picture])
        print(f"a {kind}: {answer.class_name}, probability {answer.probability:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
