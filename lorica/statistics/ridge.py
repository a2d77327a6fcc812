"""Ridge regression to one-hot labels from sums of products."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from lorica.errors import TrainingError
from lorica.linalg import double, float64_device, products
from lorica.parts import Part, Parts, parts_of
from lorica.statistics.sums import NO_SUMS, REMEDY, ROWS, add_product, cancelled, require_all, require_finite
from lorica.types import Task

RIDGES = tuple(10.0**exponent for exponent in range(-8, 9))
"""What `choose_ridge` chooses from."""


FITTED = 0.8
"""Share of a task's samples that the candidates for a ridge are fitted to; the others choose."""


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
        require_finite("ridge regression", features)
        if self.intercept:
            features = F.pad(features, (0, 1), value=1.0)
        add_product(self.gram, features, features)
        for h, y in zip(features.split(ROWS), labels.split(ROWS), strict=True):
            present, column = y.to(self.targets.device).unique(return_inverse=True)
            of_each = torch.zeros(len(self.targets), len(present)).to(self.targets)
            add_product(of_each, h, F.one_hot(column))
            self.targets.index_add_(1, present, of_each)

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
                f"the ridge, {self.ridge.item():.1e}, may have been chosen on samples of {', '.join(names)}, too; the "
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
                yield (
                    label,
                    f"what each of its samples added was not kept of all of them (of {parts.count(label)} it was)",
                )

    def forget(self, classes: Collection[int], parts: Parts) -> None:
        """Takes classes out, as if no sample of theirs had been added. W follows with `solve`: with the ridge that
        there is, since another could be chosen on samples alone.

        Args and errors as those of `Discriminant.forget`.
        """
        require_all(self.unforgettable(classes, parts))
        gone, seen = list(classes), self.remembered().clone()
        seen[gone] = False
        gram = self.gram.clone()
        for label in gone:
            self._products(gram, parts.of(label), -1)
        if cancelled(gram, self.gram.diagonal()):
            others = seen.nonzero().flatten().tolist()
            require_all(self.unforgettable(others, parts))
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
        raise TrainingError(f"ridge regression: no ridge has a finite error; {REMEDY}")
    return min(finite)[1]


def ridge_errors(
    features: Float[Tensor, "n features"], labels: Int[Tensor, " n"], *, fit: int, intercept: bool = False
) -> Float64[Tensor, " ridges"]:
    """Mean squared errors on the other samples of ridge regressions on the first `fit`, one for each of `RIDGES`, over
    the classes that there are samples of: the columns of others are zero whatever the ridge. With an `intercept`, on
    features and labels less the means of those first ones.

    One factorisation serves them all. With H and Y the features and labels fitted, and h a feature of another sample,

        h' W = (h' H' U) (S + ridge I)^-1 (U' Y),      H H' = U S U'      with fewer samples than features
        h' W = (h' U) (S + ridge I)^-1 (U' H' Y),      H' H = U S U'      otherwise
    """
    device = float64_device(features.device)
    one_hot = F.one_hot(labels.unique(return_inverse=True)[1]).to(device).double()
    if intercept:
        features, one_hot = (each - each[:fit].mean(dim=0) for each in (double(features), one_hot))
    fitted, width = features[:fit], features.shape[1]
    if fit < width:
        products = torch.zeros(len(features), fit, dtype=torch.double, device=device)
        add_product(products, features.T, fitted.T)
        values, vectors = torch.linalg.eigh(products[:fit])
        left, right = products[fit:] @ vectors, vectors.T @ one_hot[:fit]
    else:
        gram = torch.zeros(width, width, dtype=torch.double, device=device)
        targets = torch.zeros(width, one_hot.shape[1], dtype=torch.double, device=device)
        add_product(gram, fitted, fitted)
        add_product(targets, fitted, one_hot[:fit])
        values, vectors = torch.linalg.eigh(gram)
        left, right = features[fit:].to(device).double() @ vectors, vectors.T @ targets
    values = values.clamp_min(0)  # as those of a product with itself are
    return torch.stack([(left / (values + each) @ right - one_hot[fit:]).square().mean() for each in RIDGES])
