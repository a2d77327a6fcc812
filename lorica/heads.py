"""Classifiers that train: a linear head that gains a block of rows with each task, and a cosine head for one task.
Those that are computed from features are in `lorica.statistics`."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from itertools import groupby
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lorica.parts import NO_PARTS, Parts

HeadStart = Literal["zeros", "kaiming", "linear", "truncated_normal"]
"""Where new rows of a linear head start, see `GrowingLinear`."""


def cosines(features: Float[Tensor, "n features"], rows: Float[Tensor, "m features"]) -> Float[Tensor, "n m"]:
    """Cosine of each feature with each row, in full precision: under autocast near ties would change places."""
    with torch.autocast(features.device.type, enabled=False):
        return F.normalize(features.float(), dim=1) @ F.normalize(rows.float(), dim=1).T


def mean_cosine(features: Float[Tensor, "n features"], labels: Int[Tensor, " n"]) -> float | None:
    """Mean cosine between the class means of any two classes; None of a single class. Near 1, the space has
    collapsed."""
    means = torch.stack([features[labels == label].float().mean(dim=0) for label in labels.unique()])
    number = len(means)
    return (cosines(means, means).sum().item() - number) / (number * (number - 1)) if number > 1 else None


class GrowingLinear(nn.Module):
    """A linear classifier with bias, one block of rows per task.

    Separate blocks let earlier rows stay out of the optimiser, where weight decay and momentum would move them.
    New rows start by `start`, on the CPU, so that a seed means the same on every device:

        zeros               weights and biases 0
        kaiming             weights uniform in +-sqrt(3 / width), biases 0
        linear              weights and biases uniform in +-1/sqrt(width), as `nn.Linear`
        truncated_normal    weights normal with deviation 0.02, none beyond 2; biases 0
    """

    def __init__(self, width: int, *, start: HeadStart = "zeros", device: torch.device) -> None:
        super().__init__()
        self.width, self.start, self.device = width, start, device
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()

    def grow(self, classes: int) -> None:
        """Adds a block of rows, if it has any."""
        if not classes:
            return
        weight, bias = torch.zeros(classes, self.width), torch.zeros(classes)
        bound = math.sqrt(1 / self.width)
        if self.start == "kaiming":
            weight.uniform_(-math.sqrt(3) * bound, math.sqrt(3) * bound)
        elif self.start == "linear":
            weight.uniform_(-bound, bound)
            bias.uniform_(-bound, bound)
        elif self.start == "truncated_normal":
            nn.init.trunc_normal_(weight, std=0.02)
        self.weights.append(nn.Parameter(weight.to(self.device)))
        self.biases.append(nn.Parameter(bias.to(self.device)))

    def isolate(self, classes: Collection[int]) -> None:
        """Divides blocks so that none has rows of these classes beside rows of others."""
        weights, biases, start = [], [], 0
        for weight, bias in zip(self.weights, self.biases, strict=True):
            inside = [number in classes for number in range(start, start + len(bias))]
            start += len(bias)
            sizes = [len(list(run)) for _, run in groupby(inside)]
            if len(sizes) == 1:  # the very same parameter
                weights.append(weight)
                biases.append(bias)
            else:
                weights += [nn.Parameter(part.clone()) for part in weight.detach().split(sizes)]
                biases += [nn.Parameter(part.clone()) for part in bias.detach().split(sizes)]
        if len(weights) > len(self.weights):
            self.weights, self.biases = nn.ParameterList(weights), nn.ParameterList(biases)

    def rows_of(self, classes: Collection[int]) -> list[nn.Parameter]:
        """Weights and biases of the blocks that these classes have to themselves (`isolate`)."""
        found, start = [], 0
        for weight, bias in zip(self.weights, self.biases, strict=True):
            found += [weight, bias] if start in classes else []
            start += len(bias)
        return found

    def unforgettable(self, classes: Collection[int], parts: Parts) -> Iterator[tuple[int, str]]:
        """None of them: see `forget`."""
        return iter(())

    def forget(self, classes: Collection[int], parts: Parts = NO_PARTS) -> None:
        """Makes the rows of these classes zero; others were trained beside them, and stay. No parts are needed."""
        start = 0
        with torch.no_grad():
            for weight, bias in zip(self.weights, self.biases, strict=True):
                own = [number - start for number in classes if start <= number < start + len(bias)]
                weight[own] = 0
                bias[own] = 0
                start += len(bias)

    def stacked(self) -> tuple[Float[Tensor, "classes features"], Float[Tensor, " classes"]]:
        """Weight and bias over all classes seen."""
        return torch.cat(list(self.weights)), torch.cat(list(self.biases))

    def forward(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n classes"]:
        """Logits over all classes seen, in stream order."""
        with torch.autocast(features.device.type, enabled=False):  # in bfloat16 the best of many logits would tie
            return F.linear(features.float(), *self.stacked())


class CosineHead(nn.Module):
    """Logits sigma cos(feature, row) for a fixed number of classes, with one learnable scale sigma."""

    def __init__(self, width: int, classes: int, *, scale: float = 1.0, device: torch.device) -> None:
        """Rows start uniform in +-1/sqrt(width), sigma at `scale`."""
        super().__init__()
        weight = torch.empty(classes, width).uniform_(-1, 1) / math.sqrt(width)
        self.weight = nn.Parameter(weight.to(device))
        self.scale = nn.Parameter(torch.full((), scale, device=device))

    def forward(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n classes"]:
        """Logits, in [-sigma, sigma]."""
        return self.scale * cosines(features, self.weight)
