"""A model examined on labelled images or texts: how many are right, which classes are taken for which, and whether its
probabilities hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from lorica.calibration import expected_calibration_error
from lorica.data.decoding import DEFAULT
from lorica.data.rows import BY_DEFAULT, Columns
from lorica.data.sources import labelled_images, labelled_texts, remarks
from lorica.data.sources.base import likeness, some
from lorica.errors import DataError
from lorica.predictor import Predictor
from lorica.progress import Reporter, Silent

_BATCH = 64


@dataclass(frozen=True)
class Examination:
    """What came out.

    Attributes:
        class_names: those that the model predicts, the columns; the rows are those of them that images were of.
        confusion: how many images of each class in `rows` were taken for each class.
        rows: places in `class_names` of the classes that were examined.
        calibration_error: expected, of 15 bins, a fraction.
        unknown: how many images the model would not have answered for.
    """

    class_names: tuple[str, ...]
    confusion: Int[np.ndarray, "rows classes"]
    rows: tuple[int, ...]
    calibration_error: float
    unknown: int

    @property
    def images(self) -> Int[np.ndarray, " rows"]:
        """How many images of each class were tested."""
        return self.confusion.sum(axis=1)

    @property
    def right(self) -> Int[np.ndarray, " rows"]:
        """How many of each class's images were right."""
        return self.confusion[np.arange(len(self.rows)), list(self.rows)]

    @property
    def accuracy(self) -> float:
        """The share of all images that were right, a fraction."""
        return float(self.right.sum() / self.images.sum())

    def shares(self) -> Float[np.ndarray, "rows classes"]:
        """The confusion as fractions of each row."""
        return self.confusion / self.images[:, None]

    def mistaken_for(self, row: int) -> str | None:
        """The other class that most images of that row were taken for; None where all are right."""
        others = self.confusion[row].copy()
        others[self.rows[row]] = 0
        return self.class_names[int(others.argmax())] if others.any() else None


def examine(
    predictor: Predictor, folder: str | Path, *, columns: Columns = BY_DEFAULT, reporter: Reporter | None = None
) -> Examination:
    """Examines a model on a folder of class folders, or on texts in files as the source `table` reads them; of what has
    `train` and `test`, on the second.

    Args:
        columns: of rows.

    Raises:
        DataError: everything wrong with the folder, or classes that the model does not know.
    """
    shown = reporter or Silent()
    if predictor.method.encoder.modality == "texts":
        names, texts, facts = labelled_texts(folder, columns)
        labelled, given = texts[-1], texts[-1].texts
        reader: Any = predictor.reader  # of texts
        for remark in remarks(facts | {"cut": reader.cut(given)}):
            shown.say(remark)
    else:
        decoding = getattr(predictor.reader, "decoding", DEFAULT)
        names, files, _ = labelled_images(folder, decoding=decoding, reporter=shown)
        labelled, given = files[-1], files[-1].paths
    place = {likeness(name): number for number, name in enumerate(predictor.class_names)}
    present = [names[number] for number in np.unique(labelled.labels)]
    if foreign := [name for name in present if likeness(name) not in place]:
        raise DataError(
            f"{folder}: classes that the model does not know: {some(foreign)}; it knows {some(predictor.class_names)}"
        )
    labels = torch.tensor([place[likeness(names[label])] for label in labelled.labels.tolist()])
    shown.stage("examining", -(-len(labels) // _BATCH))
    logits = []
    for part in torch.arange(len(labels)).split(_BATCH):
        logits.append(predictor.logits([given[index] for index in part.tolist()]))
        shown.step()
    found = torch.cat(logits)
    best = predictor.probabilities_of(found).max(dim=1)
    rows = labels.unique().tolist()
    confusion = np.zeros((len(rows), len(predictor.class_names)), np.int64)
    np.add.at(confusion, (np.searchsorted(rows, labels.numpy()), best.indices.numpy()), 1)
    error = expected_calibration_error(best.values, best.indices == labels)
    return Examination(predictor.class_names, confusion, tuple(rows), error, int(predictor.unknown_of(found).sum()))


def names_of(examination: Examination) -> Sequence[str]:
    """The names of the classes that were examined."""
    return [examination.class_names[row] for row in examination.rows]
