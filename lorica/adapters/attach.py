"""Puts adapted linears in place of an encoder's projections, and takes them out again, merged or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import cast

from torch import Tensor, nn

from lorica.adapters.linear import AdaptedLinear
from lorica.backbones.encoder import Encoder, Site


def attach(encoder: Encoder, sites: Sequence[Site], increment: Callable[[Site], Tensor]) -> None:
    """From now on every site's weight is W0 + increment(site), evaluated anew in each forward pass.

    Args:
        encoder: changed in place: the linear layers that hold the sites become `AdaptedLinear`.
        sites: from `encoder.select`.
        increment: called with a site, returns [site.out_features, site.in_features].
    """
    for site in sites:
        layer = encoder.get_submodule(site.linear)
        if not isinstance(layer, AdaptedLinear):
            layer = AdaptedLinear(cast(nn.Linear, layer))
            _replace(encoder, site.linear, layer)
        layer.increments[site.rows] = partial(increment, site)


def merge(encoder: Encoder) -> dict[str, AdaptedLinear]:
    """Replaces every adapted linear by a plain one with the increments in its weight.

    The module tree is then the plain backbone's. Returns the adapted layers by path, for `unmerge`.
    """
    adapted = {name: module for name, module in encoder.named_modules() if isinstance(module, AdaptedLinear)}
    for path, module in adapted.items():
        _replace(encoder, path, module.merged())
    return adapted


def unmerge(encoder: Encoder, adapted: dict[str, AdaptedLinear]) -> None:
    """Puts the layers that `merge` returned back: W0 has the bits it always had, since nothing is ever subtracted."""
    for path, module in adapted.items():
        _replace(encoder, path, module)


@contextmanager
def merged(encoder: Encoder) -> Iterator[Encoder]:
    """The encoder with its increments merged, for the length of a `with` block."""
    adapted = merge(encoder)
    try:
        yield encoder
    finally:
        unmerge(encoder, adapted)


def _replace(encoder: Encoder, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(encoder.get_submodule(parent), name, module)
