"""Each class as a mixture of Gaussians, to draw features from."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from lorica.linalg import double
from lorica.parts import NO_PARTS, Parts
from lorica.randomness import Draws
from lorica.sharing import ALL, Share
from lorica.types import Batch

JITTER = 1e-4
"""Added to each variance of `Gaussians`."""


def clusters(features: Float64[Tensor, "n features"], number: int) -> Int[Tensor, " n"]:
    """The cluster of each row by k-means; fewer clusters where there are fewer rows, or fewer different ones."""
    from sklearn.cluster import KMeans  # slow to import
    from sklearn.exceptions import ConvergenceWarning

    means = KMeans(min(number, len(features)), random_state=int(torch.randint(2**31, ())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than clusters
        return torch.from_numpy(means.fit(features.numpy()).labels_).long()


class Gaussians(nn.Module):
    """Each class as `slots` Gaussians at most, one for each cluster of its features.

    Attributes:
        means: [classes, slots, width]; zero beyond a class's clusters.
        factors: standard deviations, [classes, slots, width], or factors F of covariances F F', [.., width, width].
        clusters: [classes], how many of the slots each class uses; 0 where it had no images.
    """

    of_features = ("means", "factors")
    means: Tensor
    factors: Tensor
    clusters: Tensor

    def __init__(self, width: int, slots: int, *, full: bool, device: torch.device) -> None:
        super().__init__()
        self.slots, self.full = slots, full
        shape = (width, width) if full else (width,)
        self.register_buffer("means", torch.zeros(0, slots, width, device=device))
        self.register_buffer("factors", torch.zeros(0, slots, *shape, device=device))
        self.register_buffer("clusters", torch.zeros(0, dtype=torch.long, device=device))

    def grow(self, classes: int) -> None:
        """Makes room for that many classes; they are empty until `fit`."""
        for name, value in list(self.named_buffers()):
            setattr(self, name, torch.cat([value, value.new_zeros(classes, *value.shape[1:])]))

    def faults(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        """More clusters than there is room for, or fewer than none; see `lorica.methods.base.Particular`."""
        number = state.get("clusters")
        if number is not None and ((number < 0) | (number > self.slots)).any():
            yield "clusters", f"has {number.tolist()!r:.60}, expected numbers from 0 to {self.slots}"

    def fit(self, features: Float[Tensor, "n features"], labels: Int[Tensor, " n"]) -> None:
        """Sets the Gaussians of every class that occurs in `labels`."""
        features, labels = double(features).cpu(), labels.cpu()  # k-means runs there
        for label in labels.unique().tolist():
            rows = features[labels == label]
            cluster = clusters(rows, self.slots)
            parts = [rows[cluster == each] for each in cluster.unique()]
            self.clusters[label] = len(parts)
            for slot, part in enumerate(parts):
                centred = part - part.mean(dim=0)
                if self.full:
                    covariance = centred.T @ centred / len(part) + JITTER * torch.eye(part.shape[1]).to(part)
                    factor = torch.linalg.cholesky(covariance)
                else:
                    factor = (centred.square().mean(dim=0) + JITTER).sqrt()
                self.means[label, slot] = part.mean(dim=0).to(self.means)
                self.factors[label, slot] = factor.to(self.factors)

    def move(self, weight: Float64[Tensor, "width width"], bias: Float64[Tensor, " width"]) -> None:
        """Makes them the Gaussians of features x moved to A x + b, of the classes that have any: means A mu + b,
        factors A F, which are no longer triangular.

        Raises:
            ValueError: they have variances alone, which no variances alone could follow.
        """
        if not self.full:
            raise ValueError("expected Gaussians with full covariances, which can be moved")
        for label in self.clusters.nonzero().flatten():
            self.means[label] = (double(self.means[label]) @ weight.T + bias).to(self.means)
            self.factors[label] = (weight @ double(self.factors[label])).to(self.factors)

    def unforgettable(self, classes: Collection[int], parts: Parts) -> Iterator[tuple[int, str]]:
        """None of them: see `forget`."""
        return iter(())

    def forget(self, classes: Collection[int], parts: Parts = NO_PARTS) -> None:
        """Takes classes out: nothing more is drawn of them. No parts are needed."""
        gone = list(classes)
        self.clusters[gone] = 0
        self.means[gone] = 0
        self.factors[gone] = 0

    def centroids(self) -> Float[Tensor, "m features"]:
        """The means that are set, over all classes."""
        return self.means[torch.arange(self.slots, device=self.means.device) < self.clusters[:, None]]

    def shares(self) -> Int[Tensor, "m 2"]:
        """Class and slot of each share of the draws: `slots` for every class, a class's clusters in turns."""
        counts = enumerate(self.clusters.tolist())
        pairs = [(label, slot % count) for label, count in counts if count for slot in range(self.slots)]
        return torch.tensor(pairs, dtype=torch.long).view(-1, 2)

    def draw(self, pairs: Int[Tensor, "n 2"], generator: torch.Generator | None) -> Float[Tensor, "n features"]:
        """A random feature from each of these, given as class and slot."""
        noise = torch.randn(len(pairs), self.means.shape[-1], generator=generator).to(self.means)
        labels, slots = pairs.to(self.means.device).unbind(dim=1)
        if not self.full:
            return self.means[labels, slots] + self.factors[labels, slots] * noise
        for label in labels.unique():  # one slot each; a factor for each draw would take too much memory
            noise[labels == label] = noise[labels == label] @ self.factors[label, 0].T
        return self.means[labels, slots] + noise


@dataclass(frozen=True)
class PseudoFeatures:
    """Data for a stage of training without images: in each epoch anew `number` batches of draws, `times` as large as
    other data's.

    An epoch is what the first `number` batches would be after drawing a batch from every share and shuffling them all.
    """

    gaussians: Gaussians
    number: int
    times: int

    def number_of_batches(self, batch_size: int) -> int:
        """Batches of an epoch."""
        return self.number

    def batches(
        self,
        batch_size: int,
        *,
        device: torch.device,
        augment: str = "none",
        draws: Draws | None = None,
        first: int = 0,
        share: Share = ALL,
    ) -> Iterator[Batch]:
        """One epoch from batch number `first` on, or a share of each batch; there is nothing to augment, and without
        `draws` there is no epoch."""
        if draws is None:
            raise ValueError("draws: expected, since every feature is drawn")
        shares, size = self.gaussians.shares(), self.times * batch_size
        order = torch.randperm(size * len(shares), generator=draws.generator("order"))[: self.number * size]
        for step, part in enumerate(order.split(size)[first:], start=first):
            pairs, noise = shares[part // size], draws.at(step=step).generator("features")
            own = share.of_batch(len(pairs))
            drawn, labels = self.gaussians.draw(pairs, noise)[own.rows], pairs[own.rows, 0]
            yield Batch(drawn.to(device), labels.to(device), own if share.of > 1 else None)
