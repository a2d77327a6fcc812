"""Classifiers that gain classes: a linear head with one block of rows per task, and class means; a cosine head for one task."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class GrowingLinear(nn.Module):
    """A linear classifier with bias, one block of rows per task.

    Separate blocks let earlier rows stay out of the optimiser, where weight decay and momentum would move them.
    """

    def __init__(self, width: int, *, device: torch.device) -> None:
        super().__init__()
        self.width, self.device = width, device
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()

    def grow(self, classes: int) -> None:
        """Adds a block of rows: weights uniform in +-sqrt(3 / width), biases zero."""
        weight = torch.empty(classes, self.width).uniform_(-1, 1) * math.sqrt(3 / self.width)
        self.weights.append(nn.Parameter(weight.to(self.device)))
        self.biases.append(nn.Parameter(torch.zeros(classes, device=self.device)))

    def newest(self) -> list[nn.Parameter]:
        """Weight and bias of the block added last."""
        return [self.weights[-1], self.biases[-1]]

    def stacked(self) -> tuple[Float[Tensor, "classes features"], Float[Tensor, " classes"]]:
        """Weight and bias over all classes seen."""
        return torch.cat(list(self.weights)), torch.cat(list(self.biases))

    def forward(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n classes"]:
        """Logits over all classes seen, in stream order."""
        with torch.autocast(features.device.type, enabled=False):  # in bfloat16 the best of many logits would tie
            return F.linear(features.float(), *self.stacked())


class CosineHead(nn.Module):
    """Logits sigma cos(feature, row) for a fixed number of classes, with one learnable scale sigma."""

    def __init__(self, width: int, classes: int, *, device: torch.device) -> None:
        """Rows start uniform in +-1/sqrt(width), the scale at 1."""
        super().__init__()
        weight = torch.empty(classes, width).uniform_(-1, 1) / math.sqrt(width)
        self.weight = nn.Parameter(weight.to(device))
        self.scale = nn.Parameter(torch.ones((), device=device))

    def forward(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n classes"]:
        """Logits, in [-sigma, sigma]."""
        with torch.autocast(features.device.type, enabled=False):
            return self.scale * (F.normalize(features.float(), dim=1) @ F.normalize(self.weight, dim=1).T)


class ClassMeans(nn.Module):
    """Nearest class mean by cosine similarity: `prototypes` holds the mean feature of each class, [classes, width]."""

    prototypes: Tensor

    def __init__(self, width: int, *, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("prototypes", torch.zeros(0, width, device=device))

    def grow(self, classes: int) -> None:
        """Makes room for that many classes; their means are zero until `set_means`."""
        self.prototypes = torch.cat([self.prototypes, self.prototypes.new_zeros(classes, self.prototypes.shape[1])])

    def set_means(self, features: Float[Tensor, "n features"], labels: Int[Tensor, " n"]) -> None:
        """Sets the prototype of every class that occurs in `labels` to the mean of its raw features."""
        features, labels = features.cpu().double(), labels.cpu()  # not every accelerator has double precision
        for label in labels.unique():
            self.prototypes[label] = features[labels == label].mean(dim=0).to(self.prototypes)

    def forward(
        self, features: Float[Tensor, "n features"], classes: slice = slice(None)
    ) -> Float[Tensor, "n classes"]:
        """Cosine of each feature with each prototype, or with those of some classes (features may have spaces of their own)."""
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(features.float(), dim=1) @ F.normalize(self.prototypes[classes], dim=1).T
