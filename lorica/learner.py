"""A finished run as an object for other programs: predict, go back to an earlier task, export."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn

from lorica.adapters.attach import merged
from lorica.assembly import build_reader, saved_recipe
from lorica.backbones import load_backbone
from lorica.backbones.encoder import Classifier
from lorica.checkpoint import Checkpoints
from lorica.data.reader import Reader
from lorica.errors import DataError, LoricaError
from lorica.evaluation import LOGITS_AGREE, apart, require_numbers
from lorica.files import RunFolder
from lorica.isolation import isolated
from lorica.methods import Method, Readout, build_method


class Learner:
    """A method with what it has learned, and the names of its classes in the order of its logits."""

    def __init__(self, method: Method, *, reader: Reader) -> None:
        self.method, self._reader = method, reader
        self.class_names = tuple(name for task in method.tasks for name in task.new_names)

    @isolated()
    @torch.inference_mode()
    def logits(self, images: Any, *, batch_size: int = 256) -> Float[Tensor, "n classes"]:
        """Logits of images, none of which may be given, too.

        Args:
            images: files, images of Pillow, arrays or tensors (see `lorica.data.ImageReader.of`) in a list, a generator or any
                other iterable; or a batch of arrays or tensors: [n, h, w], [n, h, w, 1 or 3], tensors also [n, 1 or 3, h, w].

        Raises:
            DataError: images that cannot be read, or a single one instead of several.
            LoricaError: logits that are not a number, of which none is the largest.
        """
        found = [self._logits(batch) for batch in _batches(images, batch_size)]
        return torch.cat(found) if found else torch.empty(0, len(self.class_names))

    def _logits(self, images: Sequence[Any]) -> Float[Tensor, "n classes"]:
        return require_numbers(self.method.predict(self._reader.of(images).to(self.method.device)), self.method).cpu()

    def predict(self, images: Any, *, batch_size: int = 256) -> list[str]:
        """The class name of each image; images as in `logits`."""
        return [self.class_names[index] for index in self.logits(images, batch_size=batch_size).argmax(dim=1)]

    @isolated()
    def join(self, other: Learner, common: Learner) -> None:
        """Takes up the classes of another learner, of a method that can be joined exactly (`lorica.methods.rolda.RoLDA.join`).

        Two runs that went on from one learn different classes, each for itself; joined, they are one learner of all of them.

        Args:
            other: the other run's learner; it stays as it is.
            common: that of the run from which both went on, as it was then.

        Raises:
            LoricaError: a method that cannot be joined, learners that did not go on from the common one, or that read inputs
                differently.
        """
        if not (isinstance(other, Learner) and isinstance(common, Learner)):
            raise LoricaError("expected two other learners; lorica.load makes them of a run's folder")
        join = getattr(self.method, "join", None)
        if join is None:
            raise LoricaError(f"{_called(self.method)} cannot be joined; rolda can, read by its own discriminant")
        if any(vars(each._reader) != vars(self._reader) for each in (other, common)):
            keys = ", ".join(f"data.{key}" for key in self._reader.options)
            raise LoricaError(
                f"the three learners prepare their inputs differently, so that their statistics mean different things; learn them with the same {keys}"
            )
        join(other.method, common.method)
        self.class_names = tuple(name for task in self.method.tasks for name in task.new_names)

    @isolated()
    def merged_model(self) -> nn.Module:
        """A plain timm model with every update in its weights and the learned head as its classifier; or, of a classifier that
        reads what leaves several blocks, that model inside a module which does (`lorica.backbones.timm_vit.LayeredViT`).

        It takes normalised images: subtract `learner.method.encoder.mean`, divide by `.std`. Its logits on random images have
        been compared with the method's.

        Raises:
            LoricaError: a method that does not classify with one linear head, or whose logits are not that head's.
        """
        classifier = self.method.classifier()
        if classifier is None:
            raise LoricaError(f"{_called(self.method)} has no linear classifier to export; use Learner.predict")
        with torch.no_grad():
            encoder = merged(self.method.encoder)
            model = encoder.with_classifier(Classifier(*classifier))
            probe = encoder.probe(8)
            expected, found = self.method.predict(probe), model(encoder.normalised(probe))
        difference = apart(found, expected)
        if not difference <= LOGITS_AGREE:
            raise LoricaError(
                f"{self.method.name}: nothing is exported, since a plain model with the merged weights and the head of "
                f"`classifier` gives other logits than the method, by {100 * difference:.2g}% of the largest on random images; "
                f"use Learner.predict, and let `classifier` of such a method return None"
            )
        return model


@isolated()
def load(run: Path | str, *, tasks: int | None = None, method_file: str | Path | None = None, **moved: Any) -> Learner:
    """The learner of a run's folder.

    Args:
        tasks: as it was after that many; absent = after its last one.
        method_file: the `.py` file of the run's method, where it has one; no file is executed that is not named here.
        moved: where its weights are now, if they were moved: `**{"backbone.weights": …}`. Their contents decide.

    Raises:
        LoricaError: not a run's folder, no such checkpoint, one that does not fit, or another method file than the run's.
    """
    folder = RunFolder(run)
    folder.require()
    recipe = saved_recipe(folder, moved, method_file=method_file)
    with torch.random.fork_rng([]):  # starting values are drawn, and then replaced
        encoder = load_backbone(**recipe.backbone.model_dump())
        method = build_method(recipe.method, encoder, **recipe.evaluate.model_dump())
    Checkpoints(folder.checkpoints).load(method, tasks)
    return Learner(method, reader=build_reader(recipe, encoder))


def _called(method: Method) -> str:
    """Its name, and how it is read if not by its own predictions."""
    return f"{method.name}, read by {method.kind}," if isinstance(method, Readout) else method.name


def _batches(images: Any, size: int) -> Iterator[Sequence[Any]]:
    """DataError where there is one input, and not several."""
    if isinstance(images, str | Path) and Path(images).is_dir():
        raise DataError(f"expected several images, got the folder {images}; give its files: Path(folder).glob('*.jpg')")
    given = f"a single {type(images).__name__}"
    single = isinstance(images, str | bytes | Path | Image) or not isinstance(images, Iterable)
    named = isinstance(images, np.ndarray) and images.dtype.kind in "OU"  # files
    if isinstance(images, np.ndarray | Tensor) and not named:
        shape = list(images.shape)
        given = f"one of shape {shape}"
        single = len(shape) < 3 or (len(shape) == 3 and (shape[0] == 3 or shape[-1] in (1, 3)))
    if single:
        raise DataError(f"expected several images, got {given}; put it into a list")
    if size < 1:
        raise DataError(f"batch_size: expected at least 1, got {size}")
    remaining = iter(cast(Iterable[Any], images))
    while batch := list(islice(remaining, size)):
        yield batch
