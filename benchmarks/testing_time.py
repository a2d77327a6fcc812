"""A whole run with features of a trunk that stays computed once, beside the same run that computes them for every test
anew.

    python benchmarks/testing_time.py cifar100 --methods prototypes,ran_pac --tasks 10,50 data.root=FOLDER
    backbone.weights=FILE

Both are `lorica run` of the same recipe, one after the other in one process, on one thread; seconds are of the
processor. The images that go through the backbone are counted. Accuracies are compared to the last digit: the features
of one image may differ in rounding between batches of different size, and no more.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import lorica
from lorica.backbones.encoder import Encoder
from lorica.backbones.timm_vit import TimmViT
from lorica.config import Recipe, read_recipe


@contextmanager
def computing_anew() -> Iterator[None]:
    """Nothing is kept, as if every trunk moved."""
    with patch.object(Encoder, "is_as_loaded", False):
        yield


def measured(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Processor seconds, images through the backbone, and the accuracy matrix."""
    images = [0]
    own = TimmViT.embed

    def embed(self: TimmViT, inputs: torch.Tensor) -> torch.Tensor:
        images[0] += len(inputs)
        return own(self, inputs)

    with patch.object(TimmViT, "embed", embed):
        began = time.process_time()
        result = lorica.run(recipe, out=folder)
    return {"seconds": time.process_time() - began, "images": images[0], "accuracy": result.accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--methods", default="prototypes,ran_pac")
    parser.add_argument("--tasks", default="10")
    parser.add_argument("--write", type=Path, help="a JSON file for what was measured")
    parser.add_argument("overrides", nargs="*", help="key=value for the recipe")
    given = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:  # whatever is imported late, or set up once, is of neither
        measured(read_recipe("digits", ["method.name=prototypes"]), Path(folder, "first"))
    for method in given.methods.split(","):
        for tasks in map(int, given.tasks.split(",")):
            settings = [*given.overrides, f"method.name={method}", f"stream.tasks={tasks}", "checkpoints=newest"]
            recipe = read_recipe(given.recipe, settings)
            scratch = Path(tempfile.mkdtemp())
            try:
                kept = measured(recipe, scratch / "kept")
                with computing_anew():
                    anew = measured(recipe, scratch / "anew")
            finally:
                shutil.rmtree(scratch)
            apart = max(
                abs(one - other)
                for row, others in zip(kept.pop("accuracy"), anew.pop("accuracy"), strict=True)
                for one, other in zip(row, others, strict=True)
            )
            rows.append({"method": method, "tasks": tasks, "kept": kept, "anew": anew, "accuracies apart": apart})
            print(
                f"{method:14} {tasks:4} tasks: {anew['images']:8} images -> {kept['images']:8}, {anew['seconds']:7.1f} "
                f"s -> {kept['seconds']:7.1f} s, {anew['seconds'] / kept['seconds']:.2f} times as fast; accuracies "
                f"apart {apart:.2g}",
                flush=True,
            )
    if given.write:
        given.write.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
