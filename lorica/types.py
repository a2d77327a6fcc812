"""Frozen values that cross the layers of the library."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """A group of classes that arrive together.

    Inside the library a class is its position in the stream's class order, so the classes of a task are the consecutive
    numbers `first_class … stop_class - 1`; the source's own names are kept for people.
    """

    index: int
    first_class: int
    class_names: tuple[str, ...]

    @property
    def stop_class(self) -> int:
        """One past the last class of this task: also the number of classes seen once it has been learned."""
        return self.first_class + len(self.class_names)


@dataclass(frozen=True)
class Batch:
    """Inputs on the training device, and their classes in stream order.

    Images are in [0, 1], augmented and not yet normalised; a method may give itself batches of something else (features).
    """

    inputs: Float[Tensor, "n ..."]
    labels: Int[Tensor, " n"]
