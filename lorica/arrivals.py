"""Images or texts that come to a model, however they are given: a folder, a pair of them and labels, a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lorica.config import DataConfig
from lorica.data.decoding import DECODING, Decoding
from lorica.data.reader import Opened, Reader
from lorica.data.rows import Columns
from lorica.data.samples import Samples
from lorica.data.sources import (
    Source,
    labelled_images,
    labelled_pictures,
    labelled_texts,
    remarks,
    texts_with_labels,
)
from lorica.data.sources.base import facts_of_names, likeness
from lorica.errors import DataError
from lorica.judging import Jury
from lorica.progress import Reporter


@dataclass(frozen=True)
class Arrival:
    """Samples with their classes.

    Attributes:
        names: of the classes, which the samples' labels number.
        where: they are from.
        remarks: what there is to say of them.
        numbered: the labels that were given are numbers.
    """

    names: list[str]
    samples: Samples
    where: str = "memory"
    remarks: Sequence[str] = ()
    numbered: bool = False

    def jury(self, numbers: Mapping[str, int], reader: Reader) -> Jury:
        """Their samples as a jury.

        Args:
            numbers: of classes, by the likeness of their names.
        """
        labels = [numbers[likeness(self.names[each])] for each in self.samples.labels.tolist()]
        opened: Opened = reader.open(self.samples, 0)
        return Jury(torch.tensor(labels, dtype=torch.long), partial(opened.fetch, device=torch.device("cpu")))


def arrivals_of(source: Any, what: str, data: DataConfig, reporter: Reporter, things: str) -> list[Arrival]:
    """What somebody gives to be learned, and after it what is there to judge by.

    Args:
        source: a folder, a file of texts, a pair, or a `Source`.
        what: it is called in messages.
        data: the recipe's section.
        things: what the model reads, "images" or "texts".

    Raises:
        DataError: something else, or images or texts that cannot be used.
    """
    decoding = Decoding(**{key: getattr(data, key) for key in DECODING})
    if isinstance(source, Source):
        halves = [half for half in (source.train, source.test) if len(half)]
        return [Arrival(list(source.class_names), half, source.name, remarks(source.facts)) for half in halves]
    texts = things == "texts"
    if isinstance(source, str | Path):
        options: dict[str, Any] = {"class_order": data.class_order, "unreadable": data.unreadable}
        names, halves, facts = (
            labelled_texts(source, Columns.of(data), **options)
            if texts
            else labelled_images(source, decoding=decoding, reporter=reporter, **options)
        )
        return [Arrival(names, half, str(source), remarks(facts)) for half in halves]
    if isinstance(source, tuple) and len(source) == 2:
        names, samples, numbered = texts_with_labels(*source) if texts else labelled_pictures(*source, decoding)
        return [Arrival(names, samples, remarks=remarks(facts_of_names(names)), numbered=numbered)]
    where = "a file of rows" if texts else "a folder of class folders"
    raise DataError(f"{what}: expected {where}, or a pair of {things} and labels, got a {type(source).__name__}")
