"""The same network with something else in some places, without touching it.

A view shares every weight with the original and has a tree of its own along the paths to what differs. So any number of
threads can use a network and views of it at once: a pass never swaps a module, sets a state or registers a hook.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from types import MethodType
from typing import Any, TypeVar, cast

from torch import nn

Root = TypeVar("Root", bound=nn.Module)
Change = Callable[[nn.Module], nn.Module]


def view(root: Root, changes: Mapping[nn.Module, Change]) -> Root:
    """`root` with changes at some of the modules below it (or at itself); it is `root` itself where there are none.

    Args:
        changes: what makes another module of a module, which it must leave alone; what is below has been changed
            already.
    """
    children = {name: child if child is None else view(child, changes) for name, child in root._modules.items()}
    seen = root
    if any(child is not root._modules[name] for name, child in children.items()):
        seen = copy.copy(root)
        seen.__dict__["_modules"] = children
        own = root.__dict__.get("forward")
        if isinstance(own, MethodType) and own.__self__ is root:  # set by somebody; it would pass the changes by
            seen.forward = MethodType(own.__func__, seen)
    return cast(Root, changes[root](seen)) if root in changes else seen


def computing(forward: Callable[..., Any]) -> Change:
    """The change to a module that computes something else: `forward`, called with the module's own and its
    arguments."""

    def change(module: nn.Module) -> nn.Module:
        changed = copy.copy(module)
        changed.forward = partial(forward, module.forward)
        return changed

    return change
