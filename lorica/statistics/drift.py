"""How features of samples have moved: an affine map, fitted."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from lorica.linalg import double
from lorica.statistics.sums import require_finite

DAMPING = (math.inf, *(10.0**exponent for exponent in range(3, -5, -1)))
"""What `affine_drift` chooses from, in units of the mean variance."""


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
    require_finite("evaluate.drift", before)
    require_finite("evaluate.drift", after)
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
