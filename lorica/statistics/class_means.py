"""The mean feature of each class; the nearest by cosine."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from lorica.linalg import double, float64_device, products
from lorica.parts import NO_PARTS, Parts
from lorica.statistics.sums import require_finite


class ClassMeans(nn.Module):
    """Nearest class mean by cosine similarity.

    Attributes:
        prototypes: the mean feature of each class, [classes, width].
        counts: how many samples it is the mean of, [classes].
    """

    of_features = ("prototypes",)
    sums = ()
    prototypes: Tensor
    counts: Tensor

    def __init__(self, width: int, *, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("prototypes", torch.zeros(0, width, device=device))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.long, device=device))

    def faults(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        """Counts below zero; see `lorica.methods.base.Particular`."""
        if "counts" in state and (state["counts"] < 0).any():
            yield "counts", f"has {int(state['counts'].min())}, expected numbers of samples"

    def grow(self, classes: int) -> None:
        """Makes room for that many classes; their means are zero until `add`."""
        self.prototypes = torch.cat([self.prototypes, self.prototypes.new_zeros(classes, self.prototypes.shape[1])])
        self.counts = torch.cat([self.counts, self.counts.new_zeros(classes)])

    def add(self, features: Float[Tensor, "n features"], labels: Int[Tensor, " n"]) -> None:
        """Makes the prototype of every class that occurs in `labels` the mean of all its raw features so far.

        Raises:
            TrainingError: features that are not finite; no image would be nearer to such a mean than to any other.
        """
        require_finite("class means", features)
        features, labels = double(features), labels.to(float64_device(labels.device))
        for label in labels.unique():
            own, before = features[labels == label], int(self.counts[label])
            mean = own.mean(dim=0)
            if before:
                mean = (before * double(self.prototypes[label]).to(mean) + len(own) * mean) / (before + len(own))
            self.prototypes[label] = mean.to(self.prototypes)
            self.counts[label] = before + len(own)

    def unforgettable(self, classes: Collection[int], parts: Parts) -> Iterator[tuple[int, str]]:
        """None of them: see `forget`."""
        return iter(())

    def forget(self, classes: Collection[int], parts: Parts = NO_PARTS) -> None:
        """Takes classes out: no other class's mean has anything of theirs. No parts are needed."""
        gone = [label for label in classes if label < len(self.counts)]  # a method may have means that it does not use
        self.prototypes[gone] = 0
        self.counts[gone] = 0

    def remembered(self) -> Bool[Tensor, " classes"]:
        """Which classes it has samples of."""
        return self.counts > 0

    def parts(self, features: Tensor, labels: Tensor, *, frozen: bool = False) -> dict[str, Tensor]:
        """Nothing: see `forget`."""
        return {}

    def is_empty(self) -> bool:
        """Whether no sample has been added."""
        return not self.counts.any()

    def move(self, weight: Float64[Tensor, "width width"], bias: Float64[Tensor, " width"]) -> None:
        """Makes them the means of all samples x moved to A x + b, of the classes that have samples."""
        moved = double(self.prototypes) @ weight.T + bias
        self.prototypes.copy_(torch.where((self.counts > 0)[:, None].to(moved.device), moved, 0))

    def contains(self, earlier: ClassMeans) -> bool:
        """Whether it can be the earlier one with samples added."""
        return bool((self.counts[: len(earlier.counts)] >= earlier.counts.to(self.counts)).all())

    def join(self, other: ClassMeans, common: ClassMeans | None, places: Sequence[int]) -> None:
        """Takes up what another one has added: the means are those of all samples, but for rounding; args as those of
        `Discriminant.join`."""
        self.grow(max(0, 1 + max(places) - len(self.counts)))
        shared = 0 if common is None else len(common.counts)
        for theirs, own in enumerate(places):
            before = int(common.counts[theirs]) if common is not None and theirs < shared else 0
            ours, added = int(self.counts[own]), int(other.counts[theirs])
            mean = other.prototypes[theirs].to(self.prototypes)
            if ours != before:  # else the other's is that of all samples, to the bit
                total = ours * double(self.prototypes[own]) + added * double(mean)
                if common is not None and before:
                    total -= before * double(common.prototypes[theirs].to(self.prototypes))
                mean = total / (ours + added - before)
            self.prototypes[own] = mean.to(self.prototypes)
            self.counts[own] = ours + added - before

    def forward(
        self, features: Float[Tensor, "n features"], classes: slice = slice(None)
    ) -> Float[Tensor, "n classes"]:
        """Cosine of each feature with each prototype, or with those of some classes (features may have spaces of their
        own). Classes that come later change no bit of it."""
        with torch.autocast(features.device.type, enabled=False):
            rows = F.normalize(self.prototypes[classes].float(), dim=1)
            return products(F.normalize(features.float(), dim=1), rows)
