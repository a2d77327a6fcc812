"""How samples are divided: among processes, and into parts of a batch that are computed one after another.

Random numbers of single samples (an augmentation, a rotation, units that are dropped) are drawn for all samples of a
batch wherever some of them are computed, so that each sample gets what it would get if they were computed together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Neighbours in a batch: its samples from `first` to `stop - 1`, of `whole`.

    Attributes:
        shorter: by how many tokens they are padded to less than the whole batch would be.
    """

    first: int
    stop: int
    whole: int
    shorter: int = 0

    def __len__(self) -> int:
        return self.stop - self.first

    @property
    def rows(self) -> slice:
        """The slice that picks these samples out of the whole batch."""
        return slice(self.first, self.stop)

    def divided(self, number: int) -> list[Part]:
        """That many parts of it, or as many as it has samples; their sizes differ by one at most."""
        shares = [Share(each, min(number, len(self))).of_samples(len(self)) for each in range(min(number, len(self)))]
        return [replace(self, first=self.first + each.first, stop=self.first + each.stop) for each in shares]


@dataclass(frozen=True)
class Share:
    """What falls to one of several, counted from 0. Of batches in random order, to be trained on, a part of each (all
    of one that cannot give everyone a sample); of a pass in order neighbours, which together are all samples, each
    once."""

    number: int
    of: int

    def of_samples(self, samples: int) -> Part:
        """Its part of so many samples, maybe none; sizes differ by one at most."""
        return Part(samples * self.number // self.of, samples * (self.number + 1) // self.of, samples)

    def of_batch(self, samples: int) -> Part:
        """Its part of a batch to train on."""
        return self.of_samples(samples) if samples >= self.of else Part(0, samples, samples)


ALL = Share(0, 1)

_here: ContextVar[Part | None] = ContextVar("here", default=None)


@contextmanager
def drawing_for(part: Part | None) -> Iterator[None]:
    """What is drawn in this block by `per_sample` is drawn for the whole of that part's batch."""
    token = _here.set(part)
    try:
        yield
    finally:
        _here.reset(token)


def per_sample(number: int, draw: Callable[[int], Shaped[Tensor, "n ..."]]) -> Shaped[Tensor, "m ..."]:
    """What `draw` gives for that many samples, a row for each; in a block of `drawing_for`, the rows of its part.

    Methods draw so what differs from sample to sample; by another number than the part has, they draw for that number
    alone.
    """
    part = _here.get()
    return draw(number) if part is None or number != len(part) else draw(part.whole)[part.rows]


def dropout(x: Float[Tensor, "n tokens units"], share: float, *, training: bool) -> Float[Tensor, "n tokens units"]:
    """As torch's, with the units of each sample that go drawn by `per_sample`, for as many tokens as the whole batch
    has."""
    part = _here.get()
    if not training or part is None:
        return F.dropout(x, share, training=training)
    tokens, units = x.shape[1:]
    kept = per_sample(len(x), lambda n: F.dropout(x.new_ones(n, tokens + part.shorter, units), share))
    return x * kept[:, :tokens]
