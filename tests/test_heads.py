"""Heads against hand-computed logits."""

import pytest
import torch

from lorica.heads import CosineHead, GrowingLinear, cosines

CPU = torch.device("cpu")


def test_linear_head_grows_by_blocks_and_keeps_old_rows() -> None:
    head = GrowingLinear(4, start="linear", device=CPU)
    head.grow(2)
    old = head.weights[0].detach().clone()
    head.grow(3)
    assert head(torch.randn(5, 4)).shape == (5, 5)
    assert torch.equal(head.weights[0], old)
    assert [tuple(p.shape) for p in head.rows_of((2, 3, 4))] == [(3, 4), (3,)]
    head.grow(0)
    assert len(head.weights) == 2
    x = torch.randn(2, 4)
    torch.testing.assert_close(head(x)[:, 2:], x @ head.weights[1].T + head.biases[1])


@pytest.mark.parametrize(
    ("start", "largest", "deviation", "bias"),
    [
        ("zeros", 0, 0, 0),
        ("kaiming", (3 / 48) ** 0.5, (1 / 48) ** 0.5, 0),  # a uniform variable's deviation is its bound over sqrt(3)
        ("linear", (1 / 48) ** 0.5, (1 / 144) ** 0.5, (1 / 48) ** 0.5),
        ("truncated_normal", 0.12, 0.02, 0),
    ],
)
def test_new_rows_start_as_asked(start, largest, deviation, bias) -> None:
    torch.manual_seed(0)
    head = GrowingLinear(48, start=start, device=CPU)
    for _ in range(2):
        head.grow(1000)
    for weight, own in zip(head.weights, head.biases, strict=True):
        assert weight.abs().max() <= largest
        assert weight.std().item() == pytest.approx(deviation, rel=0.02)
        assert 0.95 * bias <= own.abs().max() <= bias


def test_blocks_are_divided_where_some_of_their_classes_return() -> None:
    head = GrowingLinear(4, start="linear", device=CPU)
    head.grow(3)
    head.grow(2)
    weight, bias = (each.detach().clone() for each in head.stacked())
    last = head.weights[1]
    head.isolate((1, 3, 4))
    assert [len(block) for block in head.biases] == [1, 1, 1, 2]
    assert head.weights[3] is last  # what needs no division is left alone
    assert torch.equal(head.stacked()[0], weight)
    assert torch.equal(head.stacked()[1], bias)
    assert [id(p) for p in head.rows_of((1, 3, 4))] == [
        id(p) for p in (head.weights[1], head.biases[1], head.weights[3], head.biases[3])
    ]


def test_cosine_head_scales_cosines_by_what_it_learns() -> None:
    head = CosineHead(2, 2, device=CPU)
    assert head.weight.abs().max() <= 0.5**0.5
    assert head.scale == 1
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0, 0.0], [3.0, 4.0]]))
        head.scale.fill_(5)
    logits = head(torch.tensor([[0.0, 7.0]]))
    torch.testing.assert_close(logits, torch.tensor([[0.0, 4.0]]))  # 5 cos: orthogonal, and 4 / 5
    logits.sum().backward()
    assert head.scale.grad == pytest.approx(0.8)


def test_scores_are_in_full_precision_under_autocast() -> None:
    head = GrowingLinear(4, device=CPU)
    head.grow(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(torch.randn(2, 4).bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert CosineHead(4, 3, device=CPU)(torch.randn(2, 4).bfloat16()).dtype == torch.float32


def test_cosines_by_hand() -> None:
    found = cosines(torch.tensor([[3.0, 4.0], [0.0, -2.0]]), torch.tensor([[10.0, 0.0], [0.0, 0.5], [1.0, 1.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8, 1.4 / 2**0.5], [0.0, -1.0, -1 / 2**0.5]]))
