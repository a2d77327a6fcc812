"""Whether the weights of a backbone are finite numbers: one that is not makes NaN of every feature, and training would
be blamed for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from lorica.backbones.encoder import Encoder
from lorica.errors import BackboneError

_LISTED = 4


def require_finite(encoder: Encoder, weights: Path | None) -> None:
    """BackboneError: weights that have just been read are NaN or infinite; which tensors of which file.

    Args:
        weights: the file, or the folder, that they are from; None where a library got them.
    """
    if not (found := [name for name, value in encoder.state_dict().items() if not _is_finite(value)]):
        return
    what = "has numbers that are not finite (NaN or infinite), expected finite ones alone"
    remedy = "get it again, or choose other weights"
    problems = [f"backbone.weights: {file}: {_some(names)} {what}; {remedy}" for file, names in _not_finite_in(weights)]
    own = f"backbone.name: {encoder.name}: {_some(name.partition('.')[2] for name in found)} of its weights {what}"
    raise BackboneError(problems or f"{own}; remove the file that was downloaded, and {remedy}")


def _is_finite(value: Tensor) -> bool:
    """A finite sum, which takes half the time, is of finite numbers alone; another one may be too large itself."""
    return not value.is_floating_point() or bool(value.sum().isfinite() or value.isfinite().all())


def _not_finite_in(weights: Path | None) -> Iterator[tuple[Path, list[str]]]:
    """Files with tensors that are not finite, and the names that they have there."""
    if weights is None:
        return
    for path in [weights] if weights.is_file() else sorted(weights.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = [key for key in file.keys() if not _is_finite(file.get_tensor(key))]  # noqa: SIM118 (no mapping)
        if names:
            yield path, names


def _some(names: Iterable[str]) -> str:
    every = sorted(names)
    return ", ".join(every[:_LISTED]) + (f" and {len(every) - _LISTED} more" if len(every) > _LISTED else "")
