"""What the statistics share: sums in float64, what may be added to them, and what may be taken out."""

from __future__ import annotations

from collections.abc import Iterator

from jaxtyping import Float64
from torch import Tensor

from lorica.errors import LoricaError, TrainingError

NO_SUMS = (
    "the sums of this model are not there; they are kept after the newest task alone, or with checkpoints=everything"
)

REMEDY = "start anew with a lower fit.learning_rate, or check backbone.weights if nothing was trained"


CANCELLED = 1e-4
"""Where less than this share of a sum's diagonal stays after a subtraction, what stays is added up anew."""


ROWS = 1000
"""How many samples are taken up at a time in float64: all of them would not fit everywhere."""


def require_finite(where: str, features: Tensor) -> None:
    if not features.isfinite().all():
        raise TrainingError(f"{where}: features are not finite; {REMEDY}")


def require_all(unforgettable: Iterator[tuple[int, str]]) -> None:
    if found := [f"class {label} cannot be taken out of sums: {why}" for label, why in unforgettable]:
        raise LoricaError(found)


def cancelled(total: Float64[Tensor, "features features"], before: Float64[Tensor, " features"]) -> bool:
    """Whether a subtraction has left so little of a feature that rounding would be seen."""
    return bool((total.diagonal() < CANCELLED * before).any())


def add_product(total: Float64[Tensor, "a b"], left: Tensor, right: Tensor) -> None:
    """total += left' right, in float64."""
    for a, b in zip(left.split(ROWS), right.split(ROWS), strict=True):
        total.addmm_(a.to(total.device).double().T, b.to(total.device).double())
