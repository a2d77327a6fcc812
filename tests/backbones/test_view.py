"""Views of a network: what differs, what is shared, and that the original is left alone."""

from __future__ import annotations

import copy

import torch
from torch import nn

from lorica.backbones.view import computing, view

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))


def test_changes_at_every_depth_each_on_those_below_it() -> None:
    net = network()
    inner, relu = net[1], net[1][0]
    seen = view(net, {relu: lambda _: nn.Identity(), inner: computing(lambda own, x: 10 * own(x))})
    torch.testing.assert_close(seen(X), 10 * net[1][1](net[0](X)))
    changed = view(net, {net: computing(lambda own, x: -own(x))})
    assert torch.equal(changed(X), -net(X))


def test_a_module_with_its_own_forward_has_the_changes_below_it() -> None:
    """Whoever wraps a module and takes it off again may leave its `forward` on the module itself, bound to it."""
    net = network()
    before = view(net, {net[1][0]: lambda _: nn.Tanh()})(X)
    net[1].forward = net[1].forward
    assert torch.equal(view(net, {net[1][0]: lambda _: nn.Tanh()})(X), before)
    assert net[1].forward.__self__ is net[1]


def test_the_rest_is_shared_and_the_original_left_alone() -> None:
    net, same = network(), network()
    seen = view(net, {net[1][0]: lambda _: nn.Tanh()})
    assert seen[0] is net[0]
    assert seen[1] is not net[1]
    assert seen[1][1].weight is net[1][1].weight
    assert type(net[1][0]) is nn.ReLU
    assert torch.equal(net(X), same(X))
    assert not torch.equal(seen(X), net(X))
    assert view(net, {}) is net


def test_hooks_and_attributes_go_with_a_module_that_computes_something_else() -> None:
    net, calls = network(), []
    net[0].register_forward_hook(lambda module, x, output: calls.append(output))
    seen = view(net, {net[0]: computing(lambda own, x: own(x) + 1)})
    seen(X)
    assert len(calls) == 1
    assert torch.equal(calls[0], nn.functional.linear(X, net[0].weight, net[0].bias) + 1)
    assert (type(seen[0]), seen[0].in_features) == (nn.Linear, 4)


def test_a_deep_copy_of_a_view_with_other_modules_is_independent() -> None:
    net = network()
    copied = copy.deepcopy(view(net, {net[1][0]: lambda _: nn.Tanh()}))
    before = copied(X)
    with torch.no_grad():
        net[0].weight.zero_()
    assert torch.equal(copied(X), before)
