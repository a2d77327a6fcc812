"""Labelled samples of any kind: what a source has, and a reader makes inputs of."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from jaxtyping import Int


class Samples(ABC):
    """Samples with their class numbers. Each modality adds how one of them is read, from several threads at once."""

    def __init__(self, labels: Int[np.ndarray, " n"]) -> None:
        self.labels = labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def describe(self, index: int) -> str:
        """What an error message or a report calls this sample."""

    @abstractmethod
    def digest(self, index: int) -> bytes:
        """Of the sample's name, without its place, and its contents. OSError where it cannot be read."""
