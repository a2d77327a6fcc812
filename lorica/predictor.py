"""A method that predicts: merged once, by the names of its classes, for images or texts however they are given,
from several threads."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL.Image import Image
from torch import Tensor, nn

from lorica.adapters.attach import merged
from lorica.backbones.encoder import Classifier
from lorica.calibration import Calibration, is_unknown, probabilities
from lorica.data.reader import Reader
from lorica.errors import DataError, LoricaError
from lorica.evaluation import LOGITS_AGREE, apart, plain_form, require_numbers
from lorica.isolation import isolated
from lorica.methods import Method, Readout


class Answer(NamedTuple):
    """What a model says of one input.

    Attributes:
        class_name: of the most probable class.
        probability: of it, among the classes that the model knows.
        unknown: whether the input is more likely of none of them; never where no images were set aside to tell that by.
    """

    class_name: str
    probability: float
    unknown: bool


class Predictor:
    """A method with what it has learned, and the names of its classes in the order of its logits.

    Args:
        forgotten: numbers of classes that it does not predict any more.
        calibration: what turns its logits into probabilities; absent = their softmax.
        precision: bf16 computes the backbone in bfloat16.

    Attributes:
        columns: of the method's logits, those of classes that it predicts; None = all.
    """

    def __init__(
        self,
        method: Method,
        *,
        reader: Reader,
        forgotten: Sequence[int] = (),
        calibration: Calibration | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        self.method, self.reader, self.calibration, self.precision = method, reader, calibration, precision
        every = [name for task in method.tasks for name in task.new_names]
        live = [number for number in range(len(every)) if number not in set(forgotten)]
        self.class_names = tuple(every[number] for number in live)
        self.columns = None if len(live) == len(every) else torch.tensor(live, device=method.device)
        self._plain: Method | None = None
        self._merging = threading.Lock()

    @property
    def plain(self) -> Method:
        """The method on merged weights, which costs what the plain backbone does; made once."""
        with self._merging:
            if self._plain is None:
                with torch.no_grad():
                    self._plain = plain_form(self.method)
            return self._plain

    @isolated()
    @torch.inference_mode()
    def logits(self, images: Any, *, batch_size: int = 256) -> Float[Tensor, "n classes"]:
        """Logits of images, none of which may be given, too.

        Args:
            images: texts, of what reads texts; else files, images of Pillow, arrays or tensors (see
                `lorica.data.ImageReader.of`). They come in a list, a generator or any other iterable; or as a batch of
                arrays or tensors: [n, h, w], [n, h, w, 1 or 3], tensors also [n, 1 or 3, h, w].

        Raises:
            DataError: images that cannot be read, or a single one instead of several.
            LoricaError: logits that are not a number, of which none is the largest.
        """
        found = [
            self.of_inputs(self.reader.of(batch))
            for batch in _batches(images, batch_size, self.method.encoder.modality)
        ]
        return torch.cat(found) if found else torch.empty(0, len(self.class_names))

    @torch.inference_mode()
    def of_inputs(self, inputs: Any) -> Float[Tensor, "n classes"]:
        """Logits of what the reader has read, on the CPU."""
        device = self.method.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = require_numbers(self.plain.predict(inputs.to(device)), self.method)
        return (logits if self.columns is None else logits[:, self.columns]).float().cpu()

    def predict(self, images: Any, *, batch_size: int = 256) -> list[str]:
        """The class name of each image; images as in `logits`."""
        return [self.class_names[index] for index in self.logits(images, batch_size=batch_size).argmax(dim=1)]

    def predict_proba(self, images: Any, *, batch_size: int = 256) -> Float[np.ndarray, "n classes"]:
        """The probability of each class, in the order of `class_names`; images as in `logits`."""
        return self.probabilities_of(self.logits(images, batch_size=batch_size)).numpy()

    def probabilities_of(self, logits: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
        """What these logits say; without a calibration their softmax, which is no more than an order."""
        return probabilities(logits, self.calibration) if self.calibration else logits.double().softmax(dim=1).float()

    def unknown_of(self, logits: Float[Tensor, "n classes"]) -> Bool[Tensor, " n"]:
        """Which of these logits are of an input of none of the classes; none, without a calibration."""
        return is_unknown(logits, self.calibration) if self.calibration else torch.zeros(len(logits), dtype=torch.bool)

    def classify(self, images: Any, *, batch_size: int = 256) -> list[Answer]:
        """The most probable class of each image, how probable it is, and whether the image is of none; images as in
        `logits`."""
        logits = self.logits(images, batch_size=batch_size)
        best = self.probabilities_of(logits).max(dim=1)
        unknown = self.unknown_of(logits).tolist()
        return [
            Answer(self.class_names[index], probability, none)
            for index, probability, none in zip(best.indices.tolist(), best.values.tolist(), unknown, strict=True)
        ]

    def classifier(self) -> Classifier | None:
        """See `Method.classifier`; of the classes that it predicts."""
        found = self.method.classifier()
        if found is None:
            return None
        weight, bias, layers = Classifier(*found)
        if self.columns is not None:
            weight, bias = weight[self.columns], None if bias is None else bias[self.columns]
        return Classifier(weight, bias, layers)

    @isolated()
    def merged_model(self) -> nn.Module:
        """A plain timm model with every update in its weights and the learned head as its classifier; or, of a
        classifier that reads what leaves several blocks, that model inside a module which does
        (`lorica.backbones.timm_vit.LayeredViT`).

        It takes normalised images: subtract `method.encoder.mean`, divide by `.std`. Its logits on random images have
        been compared with the method's.

        Raises:
            LoricaError: a method that does not classify with one linear head, or whose logits are not that head's.
        """
        classifier = self.classifier()
        if classifier is None:
            raise LoricaError(f"{called(self.method)} has no linear classifier to export; use predict")
        with torch.no_grad():
            encoder = merged(self.method.encoder)
            model = encoder.with_classifier(classifier)
            probe = encoder.probe(8)
            expected, found = self.method.predict(probe), model(encoder.normalised(probe))
            if self.columns is not None:
                expected = expected[:, self.columns]
        difference = apart(found, expected)
        if not difference <= LOGITS_AGREE:
            raise LoricaError(
                f"{self.method.name}: nothing is exported, since a plain model with the merged weights and the head of "
                f"`classifier` gives other logits than the method, by {100 * difference:.2g}% of the largest on random "
                f"images; use predict, and let `classifier` of such a method return None"
            )
        return model

    @isolated()
    def join(self, other: Predictor, common: Predictor | None = None, places: Sequence[int] | None = None) -> None:
        """Takes up the classes of another one, of a method that can be joined exactly
        (`lorica.methods.base.Method.join`).

        Two runs that went on from one learn different classes, each for itself; or two were made apart, with a trunk
        that nobody trained. Joined, they are one predictor of all of them. A calibration is of its own logits, and is
        gone.

        Args:
            other: of the other run; it stays as it is.
            common: of the run from which both went on, as it was then; None where they have none in common.
            places: see `Method.join`.

        Raises:
            LoricaError: a method that cannot be joined, ones that did not go on from the common one, or that read
                inputs differently; or classes that were forgotten.
        """
        several = (other,) if common is None else (other, common)
        if not all(isinstance(each, Predictor) for each in several):
            raise LoricaError("expected two other learners; lorica.load makes them of a run's folder")
        if any(vars(each.reader) != vars(self.reader) for each in several):
            keys = ", ".join(f"data.{key}" for key in self.reader.options)
            raise LoricaError(
                "the learners prepare their inputs differently, so that their statistics mean different things; learn "
                f"them with the same {keys}"
            )
        if any(each.columns is not None for each in (self, *several)):
            raise LoricaError("one that has forgotten classes cannot be joined; join first, and forget then")
        self.method.join(other.method, common.method if common else None, places)
        self._plain = self.calibration = None
        self.class_names = tuple(name for task in self.method.tasks for name in task.new_names)


def called(method: Method) -> str:
    """Its name, and how it is read if not by its own predictions."""
    return f"{method.name}, read by {method.kind}," if isinstance(method, Readout) else method.name


def _batches(images: Any, size: int, things: str) -> Iterator[Sequence[Any]]:
    """DataError where there is one input, and not several."""
    if things == "images" and isinstance(images, str | Path) and Path(images).is_dir():
        raise DataError(f"expected several images, got the folder {images}; give its files: Path(folder).glob('*.jpg')")
    given = f"a single {type(images).__name__}"
    single = isinstance(images, str | bytes | Path | Image) or not isinstance(images, Iterable)
    named = isinstance(images, np.ndarray) and images.dtype.kind in "OU"  # files
    if isinstance(images, np.ndarray | Tensor) and not named:
        shape = list(images.shape)
        given = f"one of shape {shape}"
        single = len(shape) < 3 or (len(shape) == 3 and (shape[0] == 3 or shape[-1] in (1, 3)))
    if single:
        raise DataError(f"expected several {things}, got {given}; put it into a list")
    if size < 1:
        raise DataError(f"batch_size: expected at least 1, got {size}")
    remaining = iter(cast(Iterable[Any], images))
    while batch := list(islice(remaining, size)):
        yield batch
