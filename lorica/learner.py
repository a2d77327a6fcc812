"""A finished run as an object for other programs: predict, go back to an earlier task, export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorica.adapters.attach import merged
from lorica.assembly import build_reader
from lorica.backbones import load_backbone
from lorica.checkpoint import Checkpoints
from lorica.config import read_recipe
from lorica.data.reader import Reader
from lorica.errors import LoricaError
from lorica.files import RunFolder
from lorica.methods import Method, build_method


class Learner:
    """A method with what it has learned, and the names of its classes in the order of its logits."""

    def __init__(self, method: Method, *, reader: Reader) -> None:
        self.method, self._reader = method, reader
        self.class_names = tuple(name for task in method.tasks for name in task.new_names)

    @torch.inference_mode()
    def logits(self, images: Sequence[Path | str | np.ndarray], *, batch_size: int = 256) -> Float[Tensor, "n classes"]:
        """Logits of images given as files, or as arrays [h, w] or [h, w, 3] (uint8, or floats in [0, 1]).

        Raises:
            DataError: an image that cannot be read.
            TypeError: a single image instead of a sequence of them.
        """
        if isinstance(images, str | Path) or (isinstance(images, np.ndarray) and images.ndim < 4):
            raise TypeError("expected a sequence of images, got a single one; put it into a list")
        starts = range(0, len(images), batch_size)
        return torch.cat([self._logits(images[start : start + batch_size]) for start in starts])

    def _logits(self, images: Sequence[Path | str | np.ndarray]) -> Float[Tensor, "n classes"]:
        return self.method.predict(self._reader.of(images).to(self.method.device)).cpu()

    def predict(self, images: Sequence[Path | str | np.ndarray]) -> list[str]:
        """The class name of each image; images as in `logits`."""
        if not len(images):
            return []
        return [self.class_names[index] for index in self.logits(images).argmax(dim=1)]

    def merged_model(self) -> nn.Module:
        """A plain timm model with every update in its weights and the learned head as its classifier.

        It takes normalised images: subtract `learner.method.encoder.mean`, divide by `.std`.

        Raises:
            LoricaError: a method that does not classify with one linear head.
        """
        classifier = self.method.classifier()
        if classifier is None:
            raise LoricaError(f"{self.method.name} has no linear classifier to export; use Learner.predict")
        with torch.no_grad(), torch.random.fork_rng([]), merged(self.method.encoder) as encoder:
            return encoder.with_classifier(*classifier)


def load(run: Path | str, *, tasks: int | None = None) -> Learner:
    """The learner of a run's folder, as it was after its last task, or after that many `tasks`.

    Raises:
        LoricaError: not a run's folder, no such checkpoint, or one that does not fit.
    """
    folder = RunFolder(run)
    folder.require()
    recipe = read_recipe(folder.recipe)
    with torch.random.fork_rng([]):  # starting values are drawn, and then replaced
        encoder = load_backbone(**recipe.backbone.model_dump())
        method = build_method(recipe.method, encoder, readout=recipe.evaluate.readout)
    Checkpoints(folder.checkpoints).load(method, tasks)
    return Learner(method, reader=build_reader(recipe, encoder))
