"""Classifiers that gain classes: a linear head with one block of rows per task, class means, and ridge regression; a cosine head
for one task."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from itertools import groupby
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from lorica.errors import TrainingError
from lorica.linalg import double, float64_device

HeadStart = Literal["zeros", "kaiming", "linear", "truncated_normal"]
"""Where new rows of a linear head start, see `GrowingLinear`."""

RIDGES = tuple(10.0**exponent for exponent in range(-8, 9))
"""What `choose_ridge` chooses from."""

_REMEDY = "start anew with a lower fit.learning_rate, or check backbone.weights if nothing was trained"


def cosines(features: Float[Tensor, "n features"], rows: Float[Tensor, "m features"]) -> Float[Tensor, "n m"]:
    """Cosine of each feature with each row, in full precision: under autocast near ties would change places."""
    with torch.autocast(features.device.type, enabled=False):
        return F.normalize(features.float(), dim=1) @ F.normalize(rows.float(), dim=1).T


def mean_cosine(features: Float[Tensor, "n features"], labels: Int[Tensor, " n"]) -> float | None:
    """Mean cosine between the class means of any two classes; None of a single class. Near 1, the space has collapsed."""
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


class ClassMeans(nn.Module):
    """Nearest class mean by cosine similarity.

    Attributes:
        prototypes: the mean feature of each class, [classes, width].
        counts: how many samples it is the mean of, [classes].
    """

    of_features = ("prototypes",)
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
        _require_finite("class means", features)
        features, labels = double(features), labels.to(float64_device(labels.device))
        for label in labels.unique():
            own, before = features[labels == label], int(self.counts[label])
            mean = own.mean(dim=0)
            if before:
                mean = (before * double(self.prototypes[label]).to(mean) + len(own) * mean) / (before + len(own))
            self.prototypes[label] = mean.to(self.prototypes)
            self.counts[label] = before + len(own)

    def forward(
        self, features: Float[Tensor, "n features"], classes: slice = slice(None)
    ) -> Float[Tensor, "n classes"]:
        """Cosine of each feature with each prototype, or with those of some classes (features may have spaces of their own)."""
        return cosines(features, self.prototypes[classes])


class RidgeHead(nn.Module):
    """Ridge regression from features h to one-hot labels y, over all samples ever added, of which only sums are kept:

        G = sum h h',    Q = sum h y',    (G + ridge I) W = Q,    logits = h' W

    G and Q are in float64, on the CPU where the device lacks it, so that neither the order nor the division of the samples
    matters. G takes 8 M^2 bytes for M features (800 MB for 10,000), and `solve` twice as much again while it runs.

    Attributes:
        gram, targets: G, [M, M], and Q, [M, classes].
        weight: W, [M, classes], in float32; zero until `solve`.
        ridge: that of W.
    """

    of_features = ("gram", "targets", "weight")
    gram: Tensor
    targets: Tensor
    weight: Tensor
    ridge: Tensor

    def __init__(self, width: int, *, device: torch.device) -> None:
        super().__init__()
        precise = float64_device(device)
        self.register_buffer("gram", torch.zeros(width, width, dtype=torch.double, device=precise))
        self.register_buffer("targets", torch.zeros(width, 0, dtype=torch.double, device=precise))
        self.register_buffer("weight", torch.zeros(width, 0, device=device))
        self.register_buffer("ridge", torch.ones((), dtype=torch.double, device=precise))

    def grow(self, classes: int) -> None:
        """Makes room for that many classes; their logits are zero until `solve`."""
        self.targets = torch.cat([self.targets, self.targets.new_zeros(len(self.targets), classes)], dim=1)
        self.weight = torch.cat([self.weight, self.weight.new_zeros(len(self.weight), classes)], dim=1)

    def add(self, features: Float[Tensor, "n features"], labels: Int[Tensor, " n"]) -> None:
        """Adds samples to G and Q.

        Raises:
            TrainingError: features that are not finite; G would never be again.
        """
        _require_finite("ridge regression", features)
        _add_product(self.gram, features, features)
        _add_product(self.targets, features, F.one_hot(labels, self.targets.shape[1]))

    def solve(self, ridge: float) -> None:
        """Sets W, by a Cholesky factorisation.

        A ridge below what float64 can tell from zero beside G, epsilon trace(G), is raised to that; and tenfold until there
        is a factorisation, for samples that are all but equal.
        """
        kept = self.gram.diagonal().clone()
        ridge = max(ridge, torch.finfo(torch.double).eps * kept.sum().item())
        while True:
            try:
                self.gram.diagonal().add_(ridge)
                factor, failed = torch.linalg.cholesky_ex(self.gram)
            finally:  # whatever happens, G is as it was
                self.gram.diagonal().copy_(kept)
            if not failed:
                break
            ridge *= 10
        solution = torch.cholesky_solve(self.targets, factor)
        self.weight = solution.float().contiguous().to(self.weight.device)  # in rows, as when it is loaded
        self.ridge.fill_(ridge)

    def forward(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n classes"]:
        """Logits over all classes."""
        with torch.autocast(features.device.type, enabled=False):
            return features.float() @ self.weight


def choose_ridge(features: Float[Tensor, "n features"], labels: Int[Tensor, " n"], *, fit: int) -> float:
    """That of `RIDGES` with the least finite error in `ridge_errors`.

    Raises:
        TrainingError: no error is finite.
    """
    errors = zip(ridge_errors(features, labels, fit=fit).tolist(), RIDGES, strict=True)
    finite = [(error, ridge) for error, ridge in errors if math.isfinite(error)]
    if not finite:
        raise TrainingError(f"ridge regression: no ridge has a finite error; {_REMEDY}")
    return min(finite)[1]


def ridge_errors(
    features: Float[Tensor, "n features"], labels: Int[Tensor, " n"], *, fit: int
) -> Float64[Tensor, " ridges"]:
    """Mean squared errors on the other samples of ridge regressions on the first `fit`, one for each of `RIDGES`.

    One factorisation serves them all. With H and Y the features and labels fitted, and h a feature of another sample,

        h' W = (h' H' U) (S + ridge I)^-1 (U' Y),      H H' = U S U'      with fewer samples than features
        h' W = (h' U) (S + ridge I)^-1 (U' H' Y),      H' H = U S U'      otherwise
    """
    device = float64_device(features.device)
    fitted, one_hot = features[:fit], F.one_hot(labels).to(device).double()
    width = features.shape[1]
    if fit < width:
        products = torch.zeros(len(features), fit, dtype=torch.double, device=device)
        _add_product(products, features.T, fitted.T)
        values, vectors = torch.linalg.eigh(products[:fit])
        left, right = products[fit:] @ vectors, vectors.T @ one_hot[:fit]
    else:
        gram = torch.zeros(width, width, dtype=torch.double, device=device)
        targets = torch.zeros(width, one_hot.shape[1], dtype=torch.double, device=device)
        _add_product(gram, fitted, fitted)
        _add_product(targets, fitted, one_hot[:fit])
        values, vectors = torch.linalg.eigh(gram)
        left, right = features[fit:].to(device).double() @ vectors, vectors.T @ targets
    values = values.clamp_min(0)  # as those of a product with itself are
    return torch.stack([(left / (values + each) @ right - one_hot[fit:]).square().mean() for each in RIDGES])


def _require_finite(where: str, features: Tensor) -> None:
    if not features.isfinite().all():
        raise TrainingError(f"{where}: features are not finite; {_REMEDY}")


def _add_product(total: Float64[Tensor, "a b"], left: Tensor, right: Tensor) -> None:
    """total += left' right, in float64, which is taken up a thousand rows at a time: all of them would not fit everywhere."""
    for a, b in zip(left.split(1000), right.split(1000), strict=True):
        total.addmm_(a.to(total.device).double().T, b.to(total.device).double())
