"""The adapted linear against an ordinary one with the same weight, forwards and backwards."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lorica.adapters.linear import AdaptedLinear, Term, _AdaptedByTerms, _AdaptedRows, _is_cheaper, of_terms


def adapted(bias: bool = True) -> tuple[AdaptedLinear, nn.Parameter, nn.Parameter]:
    torch.manual_seed(0)
    linear = nn.Linear(6, 9, bias=bias)
    linear.requires_grad_(False)
    first, second = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(3, 6))
    layer = AdaptedLinear(linear)
    layer.increments[(0, 3)] = lambda: 2 * first
    layer.increments[(6, 9)] = lambda: second.tanh()
    return layer, first, second


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 5, 6)])
def test_output_and_gradients_equal_an_ordinary_linear(bias: bool, shape: tuple[int, ...]) -> None:
    layer, first, second = adapted(bias)
    x = torch.randn(shape, requires_grad=True)
    probe = torch.randn(*shape[:-1], 9)
    (layer(x) * probe).sum().backward()
    got = [tensor.grad.clone() for tensor in (x, first, second) if tensor.grad is not None]

    for tensor in (x, first, second):
        tensor.grad = None
    weight = torch.cat(
        [layer.linear.weight[:3] + 2 * first, layer.linear.weight[3:6], layer.linear.weight[6:] + second.tanh()]
    )
    expected = F.linear(x, weight, layer.linear.bias)
    torch.testing.assert_close(layer(x), expected)
    (expected * probe).sum().backward()
    for ours, reference in zip(got, (x, first, second), strict=True):
        torch.testing.assert_close(ours, reference.grad)


@pytest.mark.parametrize("trains", [{"weight"}, {"bias"}, {"weight", "bias"}])
def test_what_trains_below_the_increments_has_its_gradient(trains: set[str]) -> None:
    layer, first, second = adapted()
    for name in trains:
        layer.linear.get_parameter(name).requires_grad_(True)
    x, probe = torch.randn(2, 5, 6), torch.randn(2, 5, 9)
    (layer(x) * probe).sum().backward()
    # the increments are added to the weight, so that its gradient is that of a plain layer: sums over inputs
    expected = {"weight": torch.einsum("abo,abi->oi", probe, x), "bias": probe.sum(dim=(0, 1))}
    for name in ("weight", "bias"):
        gradient = layer.linear.get_parameter(name).grad
        assert (gradient is not None) == (name in trains)
        if gradient is not None:
            torch.testing.assert_close(gradient, expected[name])
    torch.testing.assert_close(first.grad, 2 * expected["weight"][:3])
    assert second.grad is not None


def test_gradcheck() -> None:
    torch.manual_seed(0)
    x, w, b = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 4), (5, 4), (5,)))
    increment = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    x.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x, d: _AdaptedRows.apply(x, w, b, ((1, 3),), d), (x, increment))


@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize("trains", [{"up"}, {"c"}, {"down"}, {"up", "down"}, {"up", "c", "down"}])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 5, 6)])
def test_terms_have_the_gradients_of_their_sum(
    shape: tuple[int, ...], trains: set[str], one_by_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By either way, for terms with one coefficient and with one for each rank, in two row ranges of one layer."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 9).double().requires_grad_(False)
    factors = [
        {"up": torch.randn(3, r), "c": torch.randn(r if own else ()), "down": torch.randn(r, 6)}
        for r, own in ((2, False), (4, True), (1, False))
    ]
    factors = [{key: each.double().requires_grad_(key in trains) for key, each in term.items()} for term in factors]
    terms = [Term(each["up"], each["c"], each["down"]) for each in factors]

    def total(some: list[Term]) -> torch.Tensor:
        return sum((up * c) @ down for up, c, down in some)  # type: ignore[return-value]

    layer, ways = AdaptedLinear(linear), []
    layer.increments[(0, 3)] = lambda: of_terms(total(terms[:2]), terms[:2])
    layer.increments[(6, 9)] = lambda: of_terms(total(terms[2:]), terms[2:])
    monkeypatch.setattr("lorica.adapters.linear._is_cheaper", lambda *_: one_by_one)
    for way in (_AdaptedByTerms, _AdaptedRows):
        monkeypatch.setattr(way, "apply", lambda *given, own=way.apply, way=way: ways.append(way) or own(*given))
    x, probe = torch.randn(shape, dtype=torch.double, requires_grad=True), torch.randn(*shape[:-1], 9).double()
    asked = [x, *(each for term in terms for each in term if each.requires_grad)]
    found = torch.autograd.grad((layer(x) * probe).sum(), asked)

    weight = torch.cat([linear.weight[:3] + total(terms[:2]), linear.weight[3:6], linear.weight[6:] + total(terms[2:])])
    expected = F.linear(x, weight, linear.bias)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(found, torch.autograd.grad((expected * probe).sum(), asked))
    assert set(ways) == {_AdaptedByTerms if one_by_one else _AdaptedRows}


@pytest.mark.parametrize("change", [lambda total: 3 * total, lambda total: total.mul_(3)])
def test_what_is_computed_from_a_sum_of_terms_is_no_longer_that_sum(change: Callable[..., torch.Tensor]) -> None:
    up, down = torch.randn(9, 2).double().requires_grad_(), torch.randn(2, 6).double().requires_grad_()
    linear = nn.Linear(6, 9).double().requires_grad_(False)
    layer = AdaptedLinear(linear)
    layer.increments[(0, 9)] = lambda: change(of_terms(up @ down, [Term(up, up.new_tensor(1.0), down)]))
    x = torch.randn(50, 6).double()
    found = torch.autograd.grad(layer(x).square().sum(), [up, down])
    expected = torch.autograd.grad(F.linear(x, linear.weight + 3 * up @ down, linear.bias).square().sum(), [up, down])
    torch.testing.assert_close(found, expected)


def test_the_way_with_fewer_multiplications_is_taken() -> None:
    def term(ranks: int, trains: bool) -> Term:
        up, down = torch.empty(384, ranks), torch.empty(ranks, 384)
        return Term(up.requires_grad_(trains), torch.empty(ranks).requires_grad_(), down.requires_grad_(trains))

    assert _is_cheaper([term(10, True)], tokens=512)
    assert _is_cheaper([term(10, True), term(90, False)], tokens=512)  # earlier directions have magnitudes alone
    assert not _is_cheaper([term(10, True), term(400, False)], tokens=512)
    assert not _is_cheaper([term(300, True)], tokens=512)


def test_frozen_weight_gets_no_gradient_and_keeps_its_bits() -> None:
    layer, first, _ = adapted()
    before = layer.linear.weight.clone()
    layer(torch.randn(4, 6)).sum().backward()
    assert layer.linear.weight.grad is None
    assert first.grad is not None
    assert torch.equal(layer.linear.weight, before)


def test_bfloat16_autocast_computes_increments_in_full_precision() -> None:
    layer, first, _ = adapted()
    seen = []
    layer.increments[(0, 3)] = lambda: seen.append((first @ first.T).dtype) or first
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(torch.randn(4, 6))
    assert out.dtype == torch.bfloat16
    assert seen == [torch.float32]
    out.float().sum().backward()
    assert first.grad is not None
    assert first.grad.dtype == torch.float32


def test_merged_is_a_plain_linear_with_the_same_output() -> None:
    layer, _, _ = adapted()
    x = torch.randn(4, 6)
    plain = layer.merged()
    assert type(plain) is nn.Linear
    torch.testing.assert_close(plain(x), layer(x))
