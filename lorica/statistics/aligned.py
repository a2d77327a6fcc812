"""A linear head for a stage of training on draws from a Gaussian for each class."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lorica.parts import NO_PARTS, Parts
from lorica.statistics.gaussians import Gaussians

TEMPERATURE = 0.1
"""What logits are divided by where `AlignedHead` trains."""


class AlignedHead(Gaussians):
    """A linear head over all classes, to be trained on draws from one Gaussian for each of them (SLCA, Zhang et al.
    2023).

    Attributes:
        sums: names of what only aligning it again needs.
        weight, bias: of the head, [classes, width] and [classes]; zero until `start`.
        sizes: numbers of classes that came together, in order.
    """

    sums = ("means", "factors")

    def __init__(self, width: int, *, device: torch.device) -> None:
        super().__init__(width, 1, full=True, device=device)
        self.weight = nn.Parameter(torch.zeros(0, width, device=device), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(0, device=device), requires_grad=False)
        self.sizes: list[int] = []

    def grow(self, classes: int) -> None:
        """Makes room for that many classes, which have come together."""
        super().grow(classes)
        for name in ("weight", "bias"):
            value = getattr(self, name)
            grown = torch.cat([value, value.new_zeros(classes, *value.shape[1:])])
            setattr(self, name, nn.Parameter(grown, requires_grad=False))
        self.sizes += [classes] if classes else []

    def forget(self, classes: Collection[int], parts: Parts = NO_PARTS) -> None:
        """Takes classes out, with their rows of the head. Other rows were trained beside them, and are so until it is
        aligned anew."""
        super().forget(classes)
        gone = list(classes)
        with torch.no_grad():
            self.weight[gone] = 0
            self.bias[gone] = 0

    def remembered(self) -> Bool[Tensor, " classes"]:
        """Which classes it has a Gaussian of."""
        return self.clusters > 0

    def parts(self, features: Tensor, labels: Tensor, *, frozen: bool = False) -> dict[str, Tensor]:
        """Nothing: see `forget`."""
        return {}

    def is_empty(self) -> bool:
        """Whether no class has a Gaussian."""
        return not self.clusters.any()

    @torch.no_grad()
    def start(
        self, weight: Float[Tensor, "classes width"] | None = None, bias: Float[Tensor, " classes"] | None = None
    ) -> None:
        """Where the head starts: at another one, or else at rows of length 1 that point from the mean of all means to
        those of the classes, with logits of 0 there."""
        if weight is None:
            means, seen = self.means[:, 0], self.clusters > 0
            centre = means[seen].mean(dim=0)
            weight = F.normalize(means - centre, dim=1) * seen[:, None]
            bias = -weight @ centre
        self.weight.copy_(weight)
        self.bias.zero_() if bias is None else self.bias.copy_(bias)

    def forward(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n classes"]:
        """Logits over all classes."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.weight, self.bias)

    def normalised(self, logits: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
        """They, over `TEMPERATURE` times the mean length of their parts: one part for the classes that came
        together."""
        lengths = torch.stack([part.norm(dim=1) for part in logits.split(self.sizes, dim=1)]).mean(dim=0)
        return logits / (TEMPERATURE * lengths.clamp_min(1e-7))[:, None]
