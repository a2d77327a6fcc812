"""Linear discriminant analysis from the means of classes and one covariance for all of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from lorica.linalg import float64_device, packed, products, unpacked
from lorica.parts import Part, Parts, parts_of
from lorica.statistics.sums import NO_SUMS, cancelled, require_all, require_finite

SHRINKAGE = 0.2
"""g of a `Discriminant`, unless it is told another."""


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
        require_finite("discriminant", features)
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
        require_finite("discriminant", features)
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
                yield (
                    label,
                    f"it is of {int(self.counts[label])} samples, and what each added was kept of {found} of them",
                )

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
        require_all(self.unforgettable(classes, parts))
        gone, seen = list(classes), self.remembered().clone()
        seen[gone] = False
        scatter = unpacked(self.scatter, self.width)
        before = scatter.diagonal().clone()
        for label in gone:
            self._scatter(scatter, parts.of(label), -1)
        if cancelled(scatter, before):
            others = seen.nonzero().flatten().tolist()
            require_all(self.unforgettable(others, parts))
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
