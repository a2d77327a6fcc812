"""What is remembered of classes in place of their images, and the classifiers computed from it.

    ClassMeans      the mean feature of each class; the nearest by cosine
    Discriminant    the means and one covariance for all classes; linear discriminant analysis
    RidgeHead       sums of products; ridge regression to one-hot labels
    Gaussians       each class as a mixture, to draw features from
    AlignedHead     each class as one Gaussian, and a linear head for a stage of training on draws (`PseudoFeatures`)

The first three add up: neither the order of the samples nor their division into tasks changes a result, but for
rounding in float64. Two of a kind become that of the samples of both (`join`).
A class can be taken out of all of them again (`forget`): of sums over all classes by what each has added
(`lorica.parts`). Where features have moved since, all but mixtures can be moved along by an affine map (`affine_drift`
fits one).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from lorica.errors import LoricaError, TrainingError
from lorica.linalg import double, float64_device, packed, products, unpacked
from lorica.parts import NO_PARTS, Part, Parts, parts_of
from lorica.randomness import Draws
from lorica.sharing import ALL, Share
from lorica.types import Batch, Task

RIDGES = tuple(10.0**exponent for exponent in range(-8, 9))
"""What `choose_ridge` chooses from."""

FITTED = 0.8
"""Share of a task's samples that the candidates for a ridge are fitted to; the others choose."""

SHRINKAGE = 0.2
"""g of a `Discriminant`, unless it is told another."""

DAMPING = (math.inf, *(10.0**exponent for exponent in range(3, -5, -1)))
"""What `affine_drift` chooses from, in units of the mean variance."""

NO_SUMS = (
    "the sums of this model are not there; they are kept after the newest task alone, or with checkpoints=everything"
)

_REMEDY = "start anew with a lower fit.learning_rate, or check backbone.weights if nothing was trained"

CANCELLED = 1e-4
"""Where less than this share of a sum's diagonal stays after a subtraction, what stays is added up anew."""

JITTER = 1e-4
"""Added to each variance of `Gaussians`."""

TEMPERATURE = 0.1
"""What logits are divided by where `AlignedHead` trains."""


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
        _require_finite("class means", features)
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


class Discriminant(nn.Module):
    """Linear discriminant analysis over all samples ever added, of which only sums are kept (streaming LDA, Hayes and
    Kanan 2020).

    With mu_c the mean and n_c the number of samples of class c, N their total and m the mean of all mu_c:

        S = sum (x - mu_y)(x - mu_y)',    Sigma = S / (N - C),    Sigma_g = (1 - g) Sigma + g tr(Sigma)/D I        (1)
        logit_c = (mu_c - m)' Sigma_g^-1 (x - m) - (mu_c - m)' Sigma_g^-1 (mu_c - m) / 2                            (2)

    m moves all logits of a sample alike; without it they would be differences of large numbers. S is symmetric, and its
    upper triangle is stored: 4 D (D + 1) bytes for D features.

    New classes move the logits of old ones, by S and by m. `add_frozen` adds them without: they get means, and rows
    with the Sigma_g and the m that the others have, of which S and m take nothing. Sigma is then S over the degrees of
    freedom that it does have, of which N - C counts too many; the next `solve` takes the means of all classes into m.

    Attributes:
        sums: names of what only adding to it needs.
        means, counts: mu_c, [classes, D] in float64, and n_c.
        freedom: degrees of freedom that a class has in S, [classes]; their sum is N - C where nothing was frozen.
        centred: whether m, as of the last `solve`, has mu_c in it, [classes].
        scatter: the upper triangle of S row by row, [D (D + 1) / 2] in float64.
        weight, bias: of (2) as one linear map, [classes, D] and [classes], in float32; zero until `solve`.
    """

    of_features = ("means", "scatter", "weight", "bias")
    sums = ("scatter", "means")
    means: Tensor
    counts: Tensor
    freedom: Tensor
    centred: Tensor
    scatter: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, width: int, *, device: torch.device) -> None:
        super().__init__()
        precise = float64_device(device)
        self.width = width
        self.register_buffer("means", torch.zeros(0, width, dtype=torch.double, device=precise))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.long, device=precise))
        self.register_buffer("freedom", torch.zeros(0, dtype=torch.long, device=precise))
        self.register_buffer("centred", torch.zeros(0, dtype=torch.bool, device=precise))
        self.register_buffer("scatter", torch.zeros(width * (width + 1) // 2, dtype=torch.double, device=precise))
        self.register_buffer("weight", torch.zeros(0, width, device=device))
        self.register_buffer("bias", torch.zeros(0, device=device))

    def faults(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        """Counts below zero, and more or less than they can have of the rest; see `lorica.methods.base.Particular`."""
        counts = state.get("counts")
        if counts is None:
            return
        if (counts < 0).any():
            yield "counts", f"has {int(counts.min())}, expected numbers of samples"
            return
        if "freedom" in state and ((state["freedom"] < 0) | (state["freedom"] > counts)).any():
            yield "freedom", "expected numbers from 0 to those of samples"
        if "centred" in state and (state["centred"] & (counts == 0)).any():
            yield "centred", "has a class without samples"

    def completed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What states of earlier versions lack, in which nothing was frozen; see `lorica.methods.base.Completing`."""
        counts = state.get("counts")
        if counts is None or counts.dtype != torch.long:
            return {}
        return {"freedom": (counts - 1).clamp_min(0), "centred": counts > 0}

    def grow(self, classes: int) -> None:
        """Makes room for that many classes; their logits are zero until `solve`."""
        for name in ("means", "counts", "freedom", "centred", "weight", "bias"):
            value = getattr(self, name)
            setattr(self, name, torch.cat([value, value.new_zeros(classes, *value.shape[1:])]))

    def add(self, features: Float[Tensor, "n features"], labels: Int[Tensor, " n"]) -> None:
        """Adds samples, of new classes or of known ones.

        Raises:
            TrainingError: features that are not finite; S would never be again.
        """
        _require_finite("discriminant", features)
        scatter, device = unpacked(self.scatter, self.width), self.scatter.device
        labels = labels.to(device)
        for label in labels.unique():
            own = features[(labels == label).to(features.device)].to(device).double()
            known, new = int(self.counts[label]), len(own)
            mean = own.mean(dim=0)
            step = mean - self.means[label]
            own = own - mean
            scatter.addmm_(own.T, own)
            if known:  # the means of the two parts differ, which the scatter around their common mean has in it
                scatter.addr_(step, step, alpha=known * new / (known + new))
            self.means[label] += step * (new / (known + new))
            self.counts[label] += new
            self.freedom[label] += new if known else new - 1
        self.scatter.copy_(packed(scatter))

    def add_frozen(
        self, features: Float[Tensor, "n features"], labels: Int[Tensor, " n"], shrinkage: float = SHRINKAGE
    ) -> None:
        """Adds classes without moving a logit of the others, whose rows keep their bits; needs no `solve`.

        Args:
            shrinkage: that of the last `solve`.

        Raises:
            TrainingError: as `add`.
            ValueError: samples of a class that it has samples of, or nothing has been solved yet.
        """
        _require_finite("discriminant", features)
        labels = labels.to(self.counts.device)
        fresh = labels.unique()
        if self.counts[fresh].any() or not self.centred.any():
            raise ValueError("expected new classes, beside others that have been solved for")
        for label in fresh:
            own = features[(labels == label).to(features.device)].to(self.means.device).double()
            self.means[label] = own.mean(dim=0)
            self.counts[label] = len(own)
        weight, bias = self._rows(fresh, shrinkage)
        self.weight[fresh.to(self.weight.device)] = weight.to(self.weight)
        self.bias[fresh.to(self.bias.device)] = bias.to(self.bias)

    def parts(
        self, features: Float[Tensor, "n features"], labels: Int[Tensor, " n"], *, frozen: bool = False
    ) -> dict[str, Tensor]:
        """What adding these leaves in the sums, for `forget`; frozen ones leave nothing in S."""
        return parts_of(features, labels, centred=True, factors=not frozen)

    def remembered(self) -> Bool[Tensor, " classes"]:
        """Which classes it has samples of."""
        return self.counts > 0

    def unforgettable(self, classes: Collection[int], parts: Parts) -> Iterator[tuple[int, str]]:
        """Those of the classes that cannot be taken out, and why."""
        if self.has_no_sums:
            yield from ((label, NO_SUMS) for label in classes)
            return
        for label in classes:
            if (found := parts.count(label)) != int(self.counts[label]):
                yield label, f"parts of {found} samples are there, and it is of {int(self.counts[label])}"

    def forget(self, classes: Collection[int], parts: Parts) -> None:
        """Takes classes out, as if no sample of theirs had been added. Logits follow with `solve`.

        What they added is subtracted from S. Where next to nothing of S is left, so that rounding would be seen, S is
        added up anew from the parts of the other classes.

        Args:
            parts: of all additions so far, but for those of classes forgotten before.

        Raises:
            LoricaError: the parts are not those of all samples of these classes, or of all classes where S is added up
                anew. Nothing has changed then.
        """
        _require_all(self.unforgettable(classes, parts))
        gone, seen = list(classes), self.remembered().clone()
        seen[gone] = False
        scatter = unpacked(self.scatter, self.width)
        before = scatter.diagonal().clone()
        for label in gone:
            self._scatter(scatter, parts.of(label), -1)
        if _cancelled(scatter, before):
            others = seen.nonzero().flatten().tolist()
            _require_all(self.unforgettable(others, parts))
            scatter.zero_()
            for label in others:
                self._scatter(scatter, parts.of(label), 1)
        self.scatter.copy_(packed(scatter))
        for name in ("means", "counts", "freedom", "centred"):
            getattr(self, name)[gone] = 0

    @staticmethod
    def _scatter(total: Float64[Tensor, "features features"], parts: Iterator[Part], sign: int) -> None:
        """Adds a class's share of S, as `add` does, from its parts."""
        known, mean = 0, torch.zeros(len(total)).to(total)
        for part in parts:
            new, step = part.count, part.mean.to(total) - mean
            if part.factor is not None:
                factor = part.factor.to(total)
                total.addmm_(factor.T, factor, alpha=sign)
                if known:
                    total.addr_(step, step, alpha=sign * known * new / (known + new))
            mean += step * (new / (known + new))
            known += new

    def is_empty(self) -> bool:
        """Whether no sample has been added."""
        return not self.counts.any()

    def move(self, weight: Float64[Tensor, "width width"], bias: Float64[Tensor, " width"]) -> None:
        """Makes it what it would be had all samples x been A x + b: mu_c := A mu_c + b, S := A S A'. Logits follow with
        `solve`."""
        seen = self.counts > 0
        self.means[seen] = self.means[seen] @ weight.T + bias
        scatter = weight @ unpacked(self.scatter, self.width) @ weight.T
        self.scatter.copy_(packed((scatter + scatter.T) / 2))

    @property
    def has_no_sums(self) -> bool:
        """Whether it was loaded without means and S: it classifies, but nothing can be added."""
        return bool((self.counts > 0).any()) and not bool(self.means.any())

    def contains(self, earlier: Discriminant) -> bool:
        """Whether it can be the earlier one with samples added."""
        return bool((self.counts[: len(earlier.counts)] >= earlier.counts.to(self.counts)).all())

    def join(self, other: Discriminant, common: Discriminant | None, places: Sequence[int]) -> None:
        """Takes up what another one has added: the result is that of all samples, but for rounding. Logits follow with
        `solve`.

        Of each of them n_c, n_c mu_c and the products S + sum n_c mu_c mu_c' are sums over samples, so that they add
        up.

        Args:
            common: what both were once, whose samples are in both; None where they have none in common.
            places: the number here of each of the other's classes, which may be new: those of the common ones, which
                are the first, are the same.
        """
        self.grow(max(0, 1 + max(places) - len(self.counts)))
        number, device = len(self.counts), self.counts.device

        def placed(one: Discriminant, values: Tensor, where: Sequence[int]) -> Tensor:
            found = torch.zeros(number, *values.shape[1:], dtype=values.dtype, device=device)
            found[list(where)[: len(one.counts)]] = values.to(device)
            return found

        counts, freedom, twice = self.counts.clone(), self.freedom.clone(), self.counts > 0
        totals, second = self.counts[:, None] * self.means, unpacked(self.scatter, self.width) + self._between()
        for one, sign in ((other, 1), (common, -1)):
            if one is None:
                continue
            theirs = placed(one, one.counts, places)
            twice &= theirs > 0 if sign > 0 else theirs == 0
            counts += sign * theirs
            freedom += sign * placed(one, one.freedom, places)
            totals += sign * placed(one, one.counts[:, None] * one.means, places)
            second.add_((unpacked(one.scatter, one.width) + one._between()).to(second), alpha=sign)
        # of a class that both have and the common one has not, the difference of two means is in S
        self.freedom.copy_(freedom + twice)
        self.counts.copy_(counts)
        self.means.copy_(totals / counts.clamp_min(1)[:, None])
        self.scatter.copy_(packed(second - self._between()))

    def _between(self) -> Float64[Tensor, "features features"]:
        """sum n_c mu_c mu_c'."""
        return self.means.T @ (self.counts[:, None] * self.means)

    def solve(self, shrinkage: float = SHRINKAGE) -> None:
        """Sets weight and bias, by a Cholesky factorisation.

        Args:
            shrinkage: g, in (0, 1]. Where rounding leaves no factorisation it is raised tenfold until there is one;
                samples without any scatter are compared by distance, as with g = 1.
        """
        self.centred.copy_(self.counts > 0)
        self.weight.zero_()
        self.bias.zero_()
        if seen := self.centred.nonzero().flatten().tolist():
            weight, bias = self._rows(torch.arange(len(self.counts), device=self.counts.device), shrinkage)
            self.weight[seen] = weight[seen].to(self.weight)
            self.bias[seen] = bias[seen].to(self.bias)

    def _rows(self, classes: Int[Tensor, " m"], shrinkage: float) -> tuple[Tensor, Tensor]:
        """Rows of weight and bias in float64, by (2) with the m that is."""
        covariance = unpacked(self.scatter, self.width).div_(max(1, int(self.freedom.sum())))
        variance = covariance.diagonal().mean().item()
        if not variance > 0:
            covariance.diagonal().fill_(1.0)
            variance = 1.0
        while True:
            shrunk = covariance * (1 - shrinkage)
            shrunk.diagonal().add_(shrinkage * variance)
            factor, failed = torch.linalg.cholesky_ex(shrunk)
            if not failed:
                break
            shrinkage = min(1.0, 10 * shrinkage)
        centre, means = self.means[self.centred].mean(dim=0), self.means[classes]
        weight = torch.cholesky_solve((means - centre).T, factor).T
        return weight, -(weight * (means + centre)).sum(dim=1) / 2

    def forward(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n classes"]:
        """Logits over all classes, (2). Classes that come later change no bit of a row's logits."""
        with torch.autocast(features.device.type, enabled=False):
            return products(features.float(), self.weight) + self.bias


class RidgeHead(nn.Module):
    """Ridge regression from features h to one-hot labels y, over all samples ever added, of which only sums are kept:

        G = sum h h',    Q = sum h y',    (G + ridge I) W = Q,    logits = h' W

    G and Q are in float64, on the CPU where the device lacks it, so that neither the order nor the division of the
    samples matters. G takes 8 M^2 bytes for M features (800 MB for 10,000), and `solve` twice as much again while it
    runs.

    A class's column of W is a regression of its own, given G: `solve` can set some of them and leave the others the
    bits that they have.

    With an `intercept`, h has a last entry 1 more, whose row of W is a constant that no ridge holds back: what is
    solved is the same regression between h and y less their means over all samples, so that a shift of all features
    changes no logit.

    Attributes:
        sums: names of what only adding to it needs.
        gram, targets: G, [M, M], and Q, [M, classes].
        weight: W, [M, classes], in float32; zero until `solve`.
        ridge: that of W.
    """

    of_features = ("gram", "targets", "weight")
    sums = ("gram", "targets")
    gram: Tensor
    targets: Tensor
    weight: Tensor
    ridge: Tensor

    def __init__(self, width: int, *, intercept: bool = False, device: torch.device) -> None:
        super().__init__()
        precise = float64_device(device)
        self.intercept = intercept
        width += intercept
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
        if self.intercept:
            features = F.pad(features, (0, 1), value=1.0)
        _add_product(self.gram, features, features)
        _add_product(self.targets, features, F.one_hot(labels, self.targets.shape[1]))

    def fit(self, features: Float[Tensor, "n features"], labels: Int[Tensor, " n"]) -> None:
        """Adds the samples of a task, which are in random order, and solves with the ridge that `choose_ridge` finds on
        them, with the first `FITTED` of them to fit. A single sample cannot be divided, and with an intercept a single
        class has no error with any ridge: the ridge then stays (1, if there was none).

        Raises:
            TrainingError: as `add` and `choose_ridge`.
        """
        self.add(features, labels)
        fit = int(FITTED * len(labels))
        tells = fit and not (self.intercept and len(labels.unique()) == 1)
        self.solve(choose_ridge(features, labels, fit=fit, intercept=self.intercept) if tells else self.ridge.item())

    def fit_frozen(self, features: Float[Tensor, "n features"], labels: Int[Tensor, " n"]) -> None:
        """Adds classes without moving a logit of the others, whose columns keep their bits, and solves for the new ones
        with the ridge that there is. Their columns are those of a regression on all samples; those of the others are of
        the samples they are of. With the next `fit` everything is as if nothing had been frozen.

        Raises:
            TrainingError: as `add`.
            ValueError: samples of a class that it has samples of, or nothing has been solved yet.
        """
        fresh = labels.unique()
        if self.remembered()[fresh.to(self.targets.device)].any() or self.is_empty():
            raise ValueError("expected new classes, beside others that have been solved for")
        self.add(features, labels)
        self.solve(self.ridge.item(), fresh.tolist())

    def parts(
        self, features: Float[Tensor, "n features"], labels: Int[Tensor, " n"], *, frozen: bool = False
    ) -> dict[str, Tensor]:
        """What adding these leaves in the sums, for `forget`; it is the same where others are `frozen`."""
        return parts_of(F.pad(features, (0, 1), value=1.0) if self.intercept else features, labels, centred=False)

    def remembered(self) -> Bool[Tensor, " classes"]:
        """Which classes it has samples of that are not zero."""
        return self.targets.any(dim=0)

    @property
    def has_no_sums(self) -> bool:
        """Whether it was loaded without G and Q: it classifies, but nothing can be added."""
        return self.is_empty() and bool(self.weight.any())

    def trace_of(self, classes: Collection[int], fitted: Task) -> Iterator[str]:
        """What `forget` leaves of classes, for people: `fit` chose the ridge on the samples of the task that it was
        called for last; `fit_frozen` keeps it."""
        if names := [
            name for number, name in zip(fitted.classes, fitted.class_names, strict=True) if number in classes
        ]:
            yield (
                f"the ridge, {self.ridge.item():.1e}, may have been chosen on images of {', '.join(names)}, too; the "
                "next task that is not learned frozen has one of its own"
            )

    def unforgettable(self, classes: Collection[int], parts: Parts) -> Iterator[tuple[int, str]]:
        """Those of the classes that cannot be taken out, and why."""
        if self.has_no_sums:
            yield from ((label, NO_SUMS) for label in classes)
            return
        for label in classes:
            found, expected = torch.zeros(len(self.targets)).to(self.targets), self.targets[:, label]
            for part in parts.of(label):
                found += part.count * part.mean.to(found)
            if not (found - expected).norm() <= 1e-6 * expected.norm():
                yield label, f"its parts ({parts.count(label)} samples) are not those of all that it is of"

    def forget(self, classes: Collection[int], parts: Parts) -> None:
        """Takes classes out, as if no sample of theirs had been added. W follows with `solve`: with the ridge that
        there is, since another could be chosen on samples alone.

        Args and errors as those of `Discriminant.forget`.
        """
        _require_all(self.unforgettable(classes, parts))
        gone, seen = list(classes), self.remembered().clone()
        seen[gone] = False
        gram = self.gram.clone()
        for label in gone:
            self._products(gram, parts.of(label), -1)
        if _cancelled(gram, self.gram.diagonal()):
            others = seen.nonzero().flatten().tolist()
            _require_all(self.unforgettable(others, parts))
            gram.zero_()
            for label in others:
                self._products(gram, parts.of(label), 1)
        self.gram.copy_(gram)
        self.targets[:, gone] = 0

    @staticmethod
    def _products(total: Float64[Tensor, "features features"], parts: Iterator[Part], sign: int) -> None:
        """Adds a class's share of G from its parts."""
        for part in parts:
            if part.factor is not None:
                factor = part.factor.to(total)
                total.addmm_(factor.T, factor, alpha=sign)

    def is_empty(self) -> bool:
        """Whether no sample has been added, or only such as are zero."""
        return not self.gram.diagonal().any()

    def move(self, weight: Float64[Tensor, "width width"], bias: Float64[Tensor, " width"]) -> None:
        """Makes the sums those of all samples h moved to A h + b: with T = [A b; 0 1], G := T G T' and Q := T Q. W
        follows with `solve`.

        Raises:
            ValueError: there is no intercept, and so no sum of h, without which nothing is known of the sums after a
                shift.
        """
        if not self.intercept:
            raise ValueError("expected a regression with an intercept, whose sums can be shifted")
        last = torch.zeros(1, len(self.gram)).to(self.gram)
        last[0, -1] = 1
        whole = torch.cat([torch.cat([weight, bias[:, None]], dim=1).to(self.gram), last])
        gram = whole @ self.gram @ whole.T
        self.gram.copy_((gram + gram.T) / 2)
        self.targets.copy_(whole @ self.targets)

    def contains(self, earlier: RidgeHead) -> bool:
        """Whether it can be the earlier one with samples added: no sum of squares is less."""
        before = earlier.gram.diagonal().to(self.gram)
        return bool((self.gram.diagonal() >= (1 - 1e-9) * before).all())

    def join(self, other: RidgeHead, common: RidgeHead | None, places: Sequence[int]) -> None:
        """Takes up what another one has added: G and Q are those of all samples, but for rounding; args as those of
        `Discriminant.join`. W follows with `solve`: with the ridge of the other one, whose samples are then the
        latest."""
        self.grow(max(0, 1 + max(places) - self.targets.shape[1]))
        for one, sign in ((other, 1), (common, -1)):
            if one is not None:
                self.gram.add_(one.gram.to(self.gram), alpha=sign)
                self.targets[:, list(places)[: one.targets.shape[1]]] += sign * one.targets.to(self.targets)
        self.ridge.copy_(other.ridge)

    def solve(self, ridge: float, classes: Collection[int] | None = None) -> None:
        """Sets W, by a Cholesky factorisation.

        A ridge below what float64 can tell from zero beside G, epsilon trace(G), is raised to that; and tenfold until
        there is a factorisation, for samples that are all but equal.

        Args:
            classes: those whose columns are set, and no other; absent = all.
        """
        if self.is_empty():
            self.weight = torch.zeros_like(self.weight)
            return
        gram, targets = self.gram, self.targets if classes is None else self.targets[:, list(classes)]
        if self.intercept:
            centre, mean = gram[-1, :-1] / gram[-1, -1], targets[-1] / gram[-1, -1]
            gram = gram[:-1, :-1].clone().addr_(centre, gram[-1, :-1], alpha=-1)
            targets = targets[:-1].addr(centre, targets[-1], alpha=-1)
        kept = gram.diagonal().clone()
        ridge = max(ridge, torch.finfo(torch.double).eps * self.gram.diagonal().contiguous().sum().item())
        while True:
            try:
                gram.diagonal().add_(ridge)
                factor, failed = torch.linalg.cholesky_ex(gram)
            finally:  # whatever happens, G is as it was
                gram.diagonal().copy_(kept)
            if not failed:
                break
            ridge *= 10
        solution = torch.cholesky_solve(targets, factor)
        if self.intercept:
            solution = torch.cat([solution, (mean - centre @ solution)[None]])
        solution = solution.float().to(self.weight.device)
        if classes is None:
            self.weight = solution.contiguous()  # in rows, as when it is loaded
        else:
            self.weight[:, list(classes)] = solution
        self.ridge.fill_(ridge)

    def forward(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n classes"]:
        """Logits over all classes. Classes that come later change no bit of a column's logits."""
        with torch.autocast(features.device.type, enabled=False):
            rows = self.weight.T
            if self.intercept:
                return products(features.float(), rows[:, :-1]) + rows[:, -1]
            return products(features.float(), rows)


def choose_ridge(
    features: Float[Tensor, "n features"], labels: Int[Tensor, " n"], *, fit: int, intercept: bool = False
) -> float:
    """That of `RIDGES` with the least finite error in `ridge_errors`.

    Raises:
        TrainingError: no error is finite.
    """
    errors = zip(ridge_errors(features, labels, fit=fit, intercept=intercept).tolist(), RIDGES, strict=True)
    finite = [(error, ridge) for error, ridge in errors if math.isfinite(error)]
    if not finite:
        raise TrainingError(f"ridge regression: no ridge has a finite error; {_REMEDY}")
    return min(finite)[1]


def ridge_errors(
    features: Float[Tensor, "n features"], labels: Int[Tensor, " n"], *, fit: int, intercept: bool = False
) -> Float64[Tensor, " ridges"]:
    """Mean squared errors on the other samples of ridge regressions on the first `fit`, one for each of `RIDGES`; with
    an `intercept`, on features and labels less the means of those first ones.

    One factorisation serves them all. With H and Y the features and labels fitted, and h a feature of another sample,

        h' W = (h' H' U) (S + ridge I)^-1 (U' Y),      H H' = U S U'      with fewer samples than features
        h' W = (h' U) (S + ridge I)^-1 (U' H' Y),      H' H = U S U'      otherwise
    """
    device = float64_device(features.device)
    one_hot = F.one_hot(labels).to(device).double()
    if intercept:
        features, one_hot = (each - each[:fit].mean(dim=0) for each in (double(features), one_hot))
    fitted, width = features[:fit], features.shape[1]
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


def affine_drift(
    before: Float[Tensor, "n width"], after: Float[Tensor, "n width"]
) -> tuple[Float64[Tensor, "width width"], Float64[Tensor, " width"]]:
    """A and b of the map x -> A x + b from features of some samples to those of the same samples later: a ridge
    regression towards the identity, so that directions in which these samples do not vary stay where they are.

    With x_i and y_i less their means as the rows of X and of X + R, and A = I + D,

        D' = argmin ||R - X D'||^2 + damping v ||D'||^2 = (X'X + damping v I)^-1 X'R,    b = mean y - A mean x       (1)

    v is the mean of those eigenvalues of X'X that can differ from zero, trace / min(n - 1, width): features of another
    scale have the same A. The damping is that of `DAMPING` with the least error by generalised cross-validation (Golub,
    Heath and Wahba, 1979), with H the n x n matrix that makes fitted values of R, means included:

        ||R - H R||^2 / (1 - trace(H) / n)^2                                                                         (2)

    of which infinity, that is A = I, is one. One eigendecomposition, of X X' or X'X, whichever is smaller, serves them
    all.

    Raises:
        TrainingError: features that are not finite.
    """
    _require_finite("evaluate.drift", before)
    _require_finite("evaluate.drift", after)
    x, y = double(before), double(after)
    (number, width), centre, shift = x.shape, x.mean(dim=0), (y - x).mean(dim=0)
    told_apart = torch.finfo(torch.float32).eps ** 2 * x.square().sum()  # less is rounding of features that are alike
    x, residual = x - centre, y - x - shift
    short = number < width
    values, vectors = torch.linalg.eigh(x @ x.T if short else x.T @ x)
    values = values.clamp_min(0)  # as those of a product with itself are
    scale = values.sum() / max(1, min(number - 1, width))
    change = torch.zeros(width, width).to(x)  # D'
    if values.sum() > told_apart:
        told = vectors.T @ (residual if short else x.T @ residual)
        share = told.square().sum(dim=1)  # of the squares of R, by direction
        share = share if short else torch.where(values > scale * torch.finfo(x.dtype).eps, share / values, 0)
        others = (residual.square().sum() - share.sum()).clamp_min(0)
        errors = []
        for damping in DAMPING:
            kept = values / (values + damping * scale)
            left = others + (share * (1 - kept).square()).sum()
            errors.append((left / (1 - (1 + kept.sum()) / number) ** 2).item())
        damped = values + DAMPING[errors.index(min(errors))] * scale
        change = vectors @ (told / damped[:, None])
        change = x.T @ change if short else change
    weight = torch.eye(width).to(x) + change.T
    return weight, shift - centre @ change


def clusters(features: Float64[Tensor, "n features"], number: int) -> Int[Tensor, " n"]:
    """The cluster of each row by k-means; fewer clusters where there are fewer rows, or fewer different ones."""
    from sklearn.cluster import KMeans  # slow to import
    from sklearn.exceptions import ConvergenceWarning

    means = KMeans(min(number, len(features)), random_state=int(torch.randint(2**31, ())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than clusters
        return torch.from_numpy(means.fit(features.numpy()).labels_).long()


class Gaussians(nn.Module):
    """(5): each class as `slots` Gaussians at most.

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


def _require_finite(where: str, features: Tensor) -> None:
    if not features.isfinite().all():
        raise TrainingError(f"{where}: features are not finite; {_REMEDY}")


def _require_all(unforgettable: Iterator[tuple[int, str]]) -> None:
    if found := [f"class {label} cannot be taken out of sums: {why}" for label, why in unforgettable]:
        raise LoricaError(found)


def _cancelled(total: Float64[Tensor, "features features"], before: Float64[Tensor, " features"]) -> bool:
    """Whether a subtraction has left so little of a feature that rounding would be seen."""
    return bool((total.diagonal() < CANCELLED * before).any())


def _add_product(total: Float64[Tensor, "a b"], left: Tensor, right: Tensor) -> None:
    """total += left' right, in float64, which is taken up a thousand rows at a time: all of them would not fit
    everywhere."""
    for a, b in zip(left.split(1000), right.split(1000), strict=True):
        total.addmm_(a.to(total.device).double().T, b.to(total.device).double())
