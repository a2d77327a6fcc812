"""What stands between samples and an encoder: a reader, one for each modality, in the file of the modality's name.

A reader knows what an encoder wants (the side of an image, a tokeniser) and nothing of classes and tasks.
`lorica.data.images` reads images, `lorica.data.texts` texts; a file beside them, with a `READER`, would read what an
encoder of another modality wants.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from lorica.data.samples import Samples
from lorica.errors import DataError
from lorica.types import Inputs


@runtime_checkable
class Opened(Protocol):
    """Some samples, ready to be read again and again.

    Attributes:
        lengths: of each of them, where a batch costs what its longest sample does; None where all cost the same.
        facts: what reading them has shown, as counts, for the record of a run.
    """

    @property
    def lengths(self) -> Int[Tensor, " n"] | None: ...

    @property
    def facts(self) -> Mapping[str, int]: ...

    def fetch(self, indices: Int[Tensor, " n"], *, device: torch.device) -> Inputs:
        """Inputs from the samples of these numbers, as they are tested. DataError naming all that cannot be read."""
        ...

    def augmented(
        self, indices: Int[Tensor, " n"], kind: str, generator: torch.Generator, *, device: torch.device
    ) -> Inputs:
        """The same as they are trained on, with `fit.augment` and a CPU generator, from which it draws by
        `lorica.sharing.per_sample`: these may be a part of a batch. DataError for a kind it does not know."""
        ...


@runtime_checkable
class Reader(Protocol):
    """Makes inputs of samples.

    Attributes:
        options: keys of the recipe's data section that it is made with, beside `Encoder.reading`.
        augmentations: the kinds of `fit.augment` that it knows.
    """

    options: ClassVar[tuple[str, ...]]
    augmentations: ClassVar[tuple[str, ...]]

    def open(self, samples: Samples, budget: int) -> Opened:
        """The samples, of which what is read stays in memory while `budget` bytes last."""
        ...

    def of(self, given: Sequence[Any]) -> Inputs:
        """Inputs from what somebody wants predicted, as it would be tested. DataError for what cannot be read."""
        ...


def find_reader(modality: str) -> type[Any]:
    """The reader of a modality. DataError where there is none."""
    name = f"lorica.data.{modality}"
    if importlib.util.find_spec(name) is None:
        raise DataError(f"backbone.name: it reads {modality}, which no reader of lorica makes; choose another")
    return importlib.import_module(name).READER
