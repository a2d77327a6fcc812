"""Puts adapted linears in place of an encoder's projections; and what predicts as it does without them, or with
others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorica.adapters.linear import AdaptedLinear
from lorica.backbones.encoder import Encoder, Site
from lorica.backbones.view import Root, view

# what has been computed at once and not been used yet; of one thread, and only while a loss is computed
_UNUSED: ContextVar[dict[tuple[_Alike, bool], dict[Site, Tensor]] | None] = ContextVar("unused", default=None)


@contextmanager
def at_once(device: torch.device) -> Iterator[None]:
    """Within the block, increments that were attached `together` are computed for all sites of a shape as soon as one
    is wanted.

    Each is handed out once, so that every pass has its own, of the weights as they are when it begins. On a CPU they
    are computed one by one as ever: its caches hold those of one site, and with many tasks not those of all
    (docs/speed.md).
    """
    token = _UNUSED.set(None if device.type == "cpu" else {})
    try:
        yield
    finally:
        _UNUSED.reset(token)


@dataclass(frozen=True, eq=False)
class _Alike:
    """Sites of one shape, and what computes the increment of one, or of several."""

    sites: tuple[Site, ...]
    increment: Callable[..., Tensor]

    def of(self, site: Site) -> Float[Tensor, "out inp"]:
        unused, key = _UNUSED.get(), (self, torch.is_grad_enabled())
        if unused is None:
            return self.increment(site)
        if site not in unused.get(key, {}):
            unused[key] = dict(zip(self.sites, self.increment(self.sites).unbind(), strict=True))
        return unused[key].pop(site)


def attach(
    encoder: Encoder, sites: Sequence[Site], increment: Callable[..., Tensor], *, together: bool = False
) -> None:
    """From now on every site's weight is W0 + increment(site), evaluated anew in each forward pass.

    Args:
        encoder: changed in place: the linear layers that hold the sites become `AdaptedLinear`.
        sites: from `encoder.select`.
        increment: called with a site, returns [site.out_features, site.in_features].
        together: it may also be called with a tuple of s sites of one shape, and then returns [s, out, in]; training
            does so (`at_once`), in a few large operations where many small ones would be.
    """
    give = dict.fromkeys(sites, increment)
    for shape in {(site.out_features, site.in_features) for site in sites} if together else ():
        alike = _Alike(tuple(site for site in sites if (site.out_features, site.in_features) == shape), increment)
        give |= dict.fromkeys(alike.sites, alike.of)
    for site in sites:
        layer = encoder.get_submodule(site.linear)
        if not isinstance(layer, AdaptedLinear):
            layer = AdaptedLinear(cast(nn.Linear, layer))
            parent, _, name = site.linear.rpartition(".")
            setattr(encoder.get_submodule(parent), name, layer)
        layer.increments[site.rows] = partial(give[site], site)


def attached(encoder: Encoder) -> dict[Site, Callable[[], Tensor]]:
    """What gives the increment of each site that has one, [site.out_features, site.in_features], in the encoder's
    order."""
    layers = {site: encoder.get_submodule(site.linear) for site in encoder.sites}
    return {
        site: layer.increments[site.rows]
        for site, layer in layers.items()
        if isinstance(layer, AdaptedLinear) and site.rows in layer.increments
    }


def with_increments(encoder: Encoder, sites: Sequence[Site], increment: Callable[[Site], Tensor]) -> Encoder:
    """A view of the encoder in which these sites have other increments than those attached to them."""
    layers: dict[nn.Module, AdaptedLinear] = {}
    for site in sites:
        own = cast(AdaptedLinear, encoder.get_submodule(site.linear))
        if own not in layers:
            layers[own] = copy.copy(own)
            layers[own].increments = dict(own.increments)
        layers[own].increments[site.rows] = partial(increment, site)
    return view(encoder, {own: lambda _, layer=layer: layer for own, layer in layers.items()})


def merged(root: Root) -> Root:
    """A view of an encoder, or of a method around one, whose adapted linears are plain ones with the increments in
    their weight.

    The encoder's module tree is then the plain backbone's. The original stays as it is, W0 to the bit.
    """
    adapted = [module for module in root.modules() if isinstance(module, AdaptedLinear)]
    return view(root, {each: lambda _, each=each: each.merged() for each in adapted})


def unadapted(encoder: Root) -> Root:
    """A view of an encoder without what is attached to it: W0 to the bit."""
    adapted = [module for module in encoder.modules() if isinstance(module, AdaptedLinear)]
    return view(encoder, {each: lambda _, each=each: each.linear for each in adapted})
