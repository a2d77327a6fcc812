"""What each class has added to sums over all classes, so that it can be taken out of them again.

A sum such as the scatter S of a `Discriminant` or the products G of a `RidgeHead` (`lorica.statistics`) does not tell
whose share is whose. Whoever wants to be able to delete a class keeps, beside the sums, the *parts* of every addition:
flat names with tensors in float64 on the CPU, which only deletion reads. Of each class that an addition has samples of,

    LABEL.count     n, how many
    LABEL.mean      their mean, [width]
    LABEL.factor    R with R'R = sum x x' over the samples, or over the samples less their mean, as the sum is of those
                    or these: the triangle of a QR decomposition, [min(n, width), width]; absent where the sum took
                    nothing from them

and of an addition before which the features had moved by x -> A x + b, and the sums with them,

    moved.weight, moved.bias    A and b, by which the parts of all earlier additions are to be moved as well.

What a model has taken up from another one is several additions at once; each name then begins with `ADDITION/`, from 0
on.

They take 8 width bytes for each sample, up to `width` samples of a class in one addition, and 8 width^2 for each move.
Of a class with few samples they say almost what the samples' features do, and are to be kept as those would be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from lorica.linalg import double

MOVED = "moved.weight", "moved.bias"


@dataclass(frozen=True)
class Part:
    """What one class has added at one time, in features as they are now.

    Attributes:
        count: n.
        mean: of the n samples.
        factor: R; None where the sum took nothing from them.
    """

    count: int
    mean: Float64[Tensor, " width"]
    factor: Float64[Tensor, "rows width"] | None


class Parts:
    """The parts of one module in all additions so far.

    Args:
        additions: what was recorded, in order; read only where it is asked for, so that a mapping may read from a file.
        place: where the module is, a prefix of its names; empty for names as in this module's docstring.
    """

    def __init__(self, additions: Sequence[Mapping[str, Tensor]] = (), place: str = "") -> None:
        self._additions, self._prefix = additions, f"{place}." if place else ""

    def within(self, place: str) -> Parts:
        """The additions to a module inside this one."""
        return Parts(self._additions, f"{self._prefix}{place}")

    def count(self, label: int) -> int:
        """How many samples of a class they are of."""
        name = f"{self._prefix}{label}.count"
        return sum(int(each[name]) for each in self._additions if name in each)

    def of(self, label: int) -> Iterator[Part]:
        """The parts of a class, in order."""
        name = f"{self._prefix}{label}."
        for place, each in enumerate(self._additions):
            if f"{name}count" not in each:
                continue
            mean, factor = each[f"{name}mean"], each.get(f"{name}factor")
            for later in self._additions[place + 1 :]:
                if self._prefix + MOVED[0] in later:
                    weight, bias = (later[self._prefix + part] for part in MOVED)
                    mean, factor = _moved(mean, factor, weight, bias)
            yield Part(int(each[f"{name}count"]), mean, factor)


NO_PARTS = Parts()
"""What a memory has that keeps nothing in sums."""


def _moved(mean: Tensor, factor: Tensor | None, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor | None]:
    """Of samples x moved to A x + b; or of [x, 1], where there is one entry more than A has columns."""
    if len(mean) == len(bias):  # R is of samples less their mean
        return weight @ mean + bias, None if factor is None else factor @ weight.T
    if factor is not None:
        factor = torch.cat([factor[:, :-1] @ weight.T + factor[:, -1:] * bias, factor[:, -1:]], dim=1)
    return torch.cat([weight @ mean[:-1] + bias * mean[-1], mean[-1:]]), factor


def parts_of(
    features: Float[Tensor, "n width"], labels: Int[Tensor, " n"], *, centred: bool, factors: bool = True
) -> dict[str, Tensor]:
    """The parts of an addition.

    Args:
        centred: R is of samples less their mean.
        factors: False where the sum takes nothing from these samples.
    """
    found: dict[str, Tensor] = {}
    for label in labels.unique().tolist():
        own = double(features[labels.to(features.device) == label])
        mean = own.mean(dim=0)
        found[f"{label}.count"] = torch.tensor(len(own))
        found[f"{label}.mean"] = mean.cpu()
        if factors:
            factor = torch.linalg.qr(own - mean if centred else own, mode="r").R
            found[f"{label}.factor"] = factor.cpu().contiguous()
    return found


def moved_by(weight: Float64[Tensor, "width width"], bias: Float64[Tensor, " width"]) -> dict[str, Tensor]:
    """What an addition records of a move before it."""
    return dict(zip(MOVED, (weight.cpu(), bias.cpu()), strict=True))


def packed(additions: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Several additions as one mapping, as checkpoints keep them."""
    return {f"{place}/{name}": tensor for place, each in enumerate(additions) for name, tensor in each.items()}


def additions_in(recorded: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The additions that are recorded together, in order: one, or those that were packed."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in recorded.items():
        addition, _, rest = name.rpartition("/")
        found.setdefault(int(addition or 0), {})[rest] = tensor
    return [found[addition] for addition in sorted(found)]


def without(addition: Mapping[str, Tensor], classes: Collection[int]) -> dict[str, Tensor]:
    """What is recorded of an addition but for these classes, in whatever module: what is to be kept once they are
    forgotten."""
    gone = {str(label) for label in classes}
    return {name: tensor for name, tensor in addition.items() if name.split(".")[-2] not in gone}


def taken_up(parts: Parts, place: str, places: Sequence[int], known: Collection[int]) -> dict[str, Tensor]:
    """What a model that takes up another one records of the parts of one of its modules.

    Args:
        parts: the other's, of what is taken up.
        places: the number here of each of its classes.
        known: those of which samples are here already: the difference of two means is then in a sum of which a frozen
            part is not.
    """
    found: dict[str, Tensor] = {}
    for label, number in enumerate(places):
        for addition, part in enumerate(parts.within(place).of(label)):
            name = f"{addition}/{place}.{number}."
            found |= {f"{name}count": torch.tensor(part.count), f"{name}mean": part.mean}
            factor = part.mean.new_zeros(0, len(part.mean)) if number in known and part.factor is None else part.factor
            if factor is not None:
                found[f"{name}factor"] = factor.contiguous()
    return found
