"""The algebra against dense products, and the growing sum against a plain loop."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.adapters.linear import AdaptedLinear
from lorica.adapters.lowrank import (
    LowRankSum,
    LowRankUpdates,
    frobenius_norm,
    inner_product,
    no_norm,
    norm_product,
    project_last,
)
from lorica.backbones.encoder import Site

sizes = st.integers(1, 12)


def factors(seed: int, out: int, rank: int, inp: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(out, rank, generator=generator, dtype=torch.float64),
        torch.randn(rank, inp, generator=generator, dtype=torch.float64),
    )


@settings(max_examples=50)
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


def test_a_norm_whose_square_rounds_below_zero_is_a_number() -> None:
    """Two rank-1 terms that cancel: in float32 the sum over their Gram matrices can come out negative."""
    found = []
    for seed in range(200):
        draws = torch.Generator().manual_seed(seed)
        u, d = torch.randn(50, 1, generator=draws) * 100, torch.randn(1, 50, generator=draws) * 100
        up, down = torch.cat([u, -u], dim=1).requires_grad_(True), torch.cat([d, d * (1 + 1e-7)])
        found.append(float(inner_product(up.detach(), down, up.detach(), down)))
        norm = frobenius_norm(up, down)
        norm.backward()
        assert norm.isfinite()
        assert up.grad is not None
        assert up.grad.isfinite().all()
    assert min(found) < -1e-6  # it does


def test_gradient_of_the_norm_is_finite_at_zero_and_orthogonal_to_the_factors() -> None:
    up, down = torch.zeros(5, 2, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    frobenius_norm(up, down).backward()
    assert up.grad is not None
    assert down.grad is not None
    assert torch.isfinite(up.grad).all()
    assert torch.isfinite(down.grad).all()

    up, down = torch.randn(5, 2, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    weights = torch.randn(5, 4)
    (weights * (up @ down) / frobenius_norm(up, down)).sum().backward()
    assert up.grad is not None
    assert down.grad is not None
    # the value does not change with the length of U or D, so the gradient has no part along them
    assert (up.grad * up).sum().item() == pytest.approx(0, abs=1e-5)
    assert (down.grad * down).sum().item() == pytest.approx(0, abs=1e-5)


@settings(max_examples=25)
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
        unit = up @ down / torch.linalg.norm(up @ down)
        torch.testing.assert_close(update.frozen(index)[0] @ update.frozen(index)[1], unit, atol=1e-6, rtol=1e-5)
        assert torch.equal(update.frozen(index)[1], down)


def grown_updates(ranks: list[int], blocks: int = 2) -> tuple[LowRankUpdates, list[torch.Tensor]]:
    """Updates of q in some blocks (6 x 5), and each direction as a dense stacked vector of unit blocks."""
    sites = [Site(block, "q", f"b{block}", (0, 6), 5) for block in range(blocks)]
    updates = LowRankUpdates(sites, device=torch.device("cpu"))
    stacked = []
    for rank in ranks:
        updates.grow(rank, zero_up=False)
        dense = [(each.up @ each.down).detach().double() for each in updates]
        stacked.append(torch.cat([(matrix / torch.linalg.norm(matrix)).flatten() for matrix in dense]))
    return updates, stacked


@given(seed=st.integers(0, 100), ranks=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_several_sites_at_once_are_each_of_them(seed: int, ranks: list[int]) -> None:
    """Sums with one coefficient for all, one for each site, or a matrix for each, and norms, against dense products."""
    torch.manual_seed(seed)
    sites, (updates, _) = [Site(block, "q", f"b{block}", (0, 6), 5) for block in (0, 1)], grown_updates(ranks)
    stack, frozen, own = updates[tuple(sites)], torch.randn(len(ranks) - 1), torch.randn(2)
    dense = torch.stack([each.up @ each.down for each in updates])
    earlier = [
        sum(
            (c * u @ d for c, (u, d) in zip(frozen, map(each.frozen, range(len(frozen))), strict=True)),
            torch.zeros(6, 5),
        )
        for each in updates
    ]
    for coefficient in (own, own[0], 0.5):
        scaled = torch.as_tensor(coefficient).view(-1, 1, 1) * dense
        torch.testing.assert_close(stack(frozen, coefficient), torch.stack(earlier) + scaled, atol=1e-5, rtol=1e-5)
    between = torch.randn(2, ranks[-1], ranks[-1])
    each_its_own = torch.stack(
        [before + each.up @ own @ each.down for before, each, own in zip(earlier, updates, between, strict=True)]
    )
    torch.testing.assert_close(stack(frozen, between), each_its_own, atol=1e-5, rtol=1e-5)
    for each, own, expected in zip(updates, between, each_its_own, strict=True):
        torch.testing.assert_close(each(frozen, own), expected, atol=1e-5, rtol=1e-5)
        up, down = each.as_factors(frozen, own)
        torch.testing.assert_close(up @ down, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(frobenius_norm(stack.up, stack.down), dense.flatten(1).norm(dim=1), atol=1e-6, rtol=1e-5)
    lengths = [each.up.norm() * each.down.norm() for each in updates]
    torch.testing.assert_close(norm_product(stack.up, stack.down), torch.stack(lengths))
    assert torch.equal(no_norm(stack.up, stack.down), torch.ones(2))


def test_a_matrix_between_factors_has_the_gradient_of_their_product() -> None:
    torch.manual_seed(0)
    linear, update = torch.nn.Linear(64, 64).requires_grad_(False), LowRankSum(64, 64, device=torch.device("cpu"))
    update.grow(4, zero_up=False)
    update.requires_grad_(False)
    core, layer = torch.randn(4, 4, requires_grad=True), AdaptedLinear(linear)
    layer.increments[(0, 64)] = lambda: update(torch.empty(0), core)
    x, probe = torch.randn(8, 64), torch.randn(8, 64)
    (found,) = torch.autograd.grad((layer(x) * probe).sum(), core)
    dense = x @ (linear.weight + update.up @ core @ update.down).T + linear.bias
    (expected,) = torch.autograd.grad((dense * probe).sum(), core)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


@given(seed=st.integers(0, 100), ranks=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_gram_equals_the_products_of_dense_stacked_directions(seed: int, ranks: list[int]) -> None:
    torch.manual_seed(seed)
    updates, stacked = grown_updates(ranks)
    dense = torch.stack(stacked)
    torch.testing.assert_close(updates.gram(), dense @ dense.T, atol=1e-6, rtol=1e-5)


@given(seed=st.integers(0, 100), number=st.integers(2, 6))
def test_projection_equals_dense_least_squares(seed: int, number: int) -> None:
    torch.manual_seed(seed)
    vectors = torch.randn(number, 32 * 32, dtype=torch.double)
    coefficients, left = project_last(vectors @ vectors.T)
    expected = torch.linalg.lstsq(vectors[:-1].T, vectors[-1]).solution
    torch.testing.assert_close(coefficients, expected, atol=1e-6, rtol=1e-6)
    residual = vectors[-1] - vectors[:-1].T @ expected
    assert left == pytest.approx(float(residual.square().sum() / vectors[-1].square().sum()), abs=1e-6)


def test_projection_on_near_duplicates_stays_finite() -> None:
    vectors = torch.randn(3, 50, dtype=torch.double)
    vectors[1] = vectors[0] * (1 + 1e-13)
    vectors[2] = 2 * vectors[0]
    coefficients, left = project_last(vectors @ vectors.T)
    torch.testing.assert_close(coefficients, torch.ones(2, dtype=torch.double), atol=1e-6, rtol=0)
    assert left < 1e-9


def test_dropped_directions_leave_the_sum_and_their_room() -> None:
    updates, _ = grown_updates([2, 3, 1, 2])
    update = next(iter(updates))
    before = update(torch.tensor([0.0, 2.0, 0.0]), 0.5).detach()
    updates.keep([1, 3])
    assert update.ranks == [3]
    assert update.frozen_up.shape == (6, 3)
    torch.testing.assert_close(update(torch.tensor([2.0]), 0.5).detach(), before)
    updates.keep([0])  # now the current direction goes
    assert update.up.shape == (6, 0)
    torch.testing.assert_close(update(torch.tensor([2.0]), 0.5), update.frozen_up @ (2 * update.frozen_down))
    updates.grow(2, zero_up=False)
    assert update.ranks == [3]


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), rank=st.integers(1, 4), shape=st.sampled_from([(7, 5), (5, 7), (6, 6)]))
def test_folded_directions_keep_their_sum_and_take_no_more_room(seed: int, rank: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(seed)
    update, total = LowRankSum(*shape, device=torch.device("cpu")), torch.zeros(shape)
    for _ in range(12):
        update.grow(rank, zero_up=False, norm=no_norm)
        update.fold()
        total += (update.up @ update.down).detach()
        assert sum(update.ranks) <= min(shape)
        assert update.frozen_up.shape[1] == update.frozen_down.shape[0] == sum(update.ranks)
        torch.testing.assert_close(update(torch.ones(len(update.ranks)), 1.0).detach(), total, atol=1e-5, rtol=1e-5)


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
