"""The algebra against dense products, and the growing sum against a plain loop."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.adapters.lowrank import LowRankSum, frobenius_norm, inner_product, norm_product

sizes = st.integers(1, 12)


def factors(seed: int, out: int, rank: int, inp: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(out, rank, generator=generator, dtype=torch.float64),
        torch.randn(rank, inp, generator=generator, dtype=torch.float64),
    )


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), out=sizes, inp=sizes, r=sizes, s=sizes)
def test_gram_forms_equal_the_dense_products(seed: int, out: int, inp: int, r: int, s: int) -> None:
    (u, d), (v, e) = factors(seed, out, r, inp), factors(seed + 1, out, s, inp)
    assert inner_product(u, d, v, e).item() == pytest.approx(((u @ d) * (v @ e)).sum().item(), rel=1e-9, abs=1e-9)
    assert frobenius_norm(u, d).item() == pytest.approx(torch.linalg.norm(u @ d).item(), rel=1e-9, abs=1e-5)
    assert norm_product(u, d).item() >= frobenius_norm(u, d).item() - 1e-5


def test_norms_by_hand() -> None:
    up, down = torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0, 2.0, 2.0]])  # rank one: norms multiply, 5 * 3
    assert frobenius_norm(up, down).item() == pytest.approx(15.0)
    assert norm_product(up, down).item() == pytest.approx(15.0)
    eye = torch.eye(2)  # rank two: ||I|| = sqrt(2), but ||I|| ||I|| = 2
    assert frobenius_norm(eye, eye).item() == pytest.approx(math.sqrt(2))
    assert norm_product(eye, eye).item() == pytest.approx(2.0)


def test_gradient_of_the_norm_is_finite_at_zero_and_orthogonal_to_the_factors() -> None:
    up, down = torch.zeros(5, 2, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    frobenius_norm(up, down).backward()
    assert torch.isfinite(up.grad).all()
    assert torch.isfinite(down.grad).all()

    up, down = torch.randn(5, 2, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    weights = torch.randn(5, 4)
    (weights * (up @ down) / frobenius_norm(up, down)).sum().backward()
    # the value does not change with the length of U or D, so the gradient has no part along them
    assert (up.grad * up).sum().item() == pytest.approx(0, abs=1e-5)
    assert (down.grad * down).sum().item() == pytest.approx(0, abs=1e-5)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), ranks=st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_sum_equals_a_loop_over_directions_of_any_ranks(seed: int, ranks: list[int]) -> None:
    torch.manual_seed(seed)
    update = LowRankSum(7, 5, device=torch.device("cpu"))
    kept = []
    for rank in ranks:
        update.grow(rank, zero_up=False)
        kept.append((update.up.detach().clone(), update.down.detach().clone()))
    magnitudes = torch.randn(len(ranks))
    expected = magnitudes[-1] * kept[-1][0] @ kept[-1][1]
    for magnitude, (up, down) in zip(magnitudes[:-1], kept[:-1], strict=True):
        product = up @ down
        expected = expected + magnitude * product / torch.linalg.norm(product)
    torch.testing.assert_close(update(magnitudes[:-1], magnitudes[-1]), expected, atol=1e-5, rtol=1e-5)
    for index, (up, down) in enumerate(kept[:-1]):
        assert torch.equal(update.frozen(index)[0], up)
        assert torch.equal(update.frozen(index)[1], down)


def test_a_direction_that_never_left_zero_contributes_nothing() -> None:
    update = LowRankSum(4, 3, device=torch.device("cpu"))
    for norm in (frobenius_norm, norm_product):
        update.grow(2, zero_up=True, norm=norm)
        update.grow(2, zero_up=True, norm=norm)
        assert not update(torch.ones(len(update.ranks)), 1.0).any()


def test_a_new_direction_starts_as_documented() -> None:
    update = LowRankSum(64, 16, device=torch.device("cpu"))
    update.grow(4, zero_up=True)
    assert not update.up.any()
    assert update.down.abs().max() <= 1 / 4
    update.grow(4, zero_up=False)
    assert 0 < update.up.abs().max() <= 1 / 8
