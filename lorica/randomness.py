"""Random numbers that follow from a seed and from what they are for, not from what was drawn before.

A run that is taken up again in the middle, and each of several processes, then draws what one uninterrupted run would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace

import torch


@dataclass(frozen=True)
class Draws:
    """A place in a run from which random numbers can be drawn for a purpose; equal places give equal numbers.

    Attributes:
        seed: of the run.
        task, stage, epoch, step: where in the run, each from 0; None where a number belongs to no single one.
    """

    seed: int
    task: int | None = None
    stage: int | None = None
    epoch: int | None = None
    step: int | None = None

    def at(self, **place: int) -> Draws:
        """The same seed at another place: `draws.at(epoch=3)`."""
        return replace(self, **place)

    def number(self, purpose: str) -> int:
        """A seed for other generators, below 2^63."""
        key = repr((*astuple(self), purpose)).encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 1

    def generator(self, purpose: str) -> torch.Generator:
        """A generator of its own, on the CPU, so that the numbers are the same on every device."""
        return torch.Generator().manual_seed(self.number(purpose))

    @contextmanager
    def seeded(self, purpose: str, device: torch.device) -> Iterator[None]:
        """Seeds torch's own random state, on the CPU and the device, for the length of a `with` block; then it is as
        before."""
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            self.reseed(purpose)
            yield

    def reseed(self, purpose: str) -> None:
        """Seeds torch's own random state anew, within a `seeded` block."""
        torch.manual_seed(self.number(purpose))
