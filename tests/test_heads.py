"""Heads against hand-computed logits."""

import pytest
import torch

from lorica.heads import ClassMeans, CosineHead, GrowingLinear

CPU = torch.device("cpu")


def test_linear_head_grows_by_blocks_and_keeps_old_rows() -> None:
    head = GrowingLinear(4, device=CPU)
    head.grow(2)
    old = head.weights[0].detach().clone()
    head.grow(3)
    assert head(torch.randn(5, 4)).shape == (5, 5)
    assert torch.equal(head.weights[0], old)
    assert [tuple(p.shape) for p in head.newest()] == [(3, 4), (3,)]
    assert head.weights[1].abs().max() <= (3 / 4) ** 0.5
    x = torch.randn(2, 4)
    torch.testing.assert_close(head(x)[:, 2:], x @ head.weights[1].T + head.biases[1])


def test_class_means_average_raw_features_and_compare_by_cosine() -> None:
    means = ClassMeans(2, device=CPU)
    means.grow(2)
    features = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 5.0]])
    means.set_means(features, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(means.prototypes, torch.tensor([[1.5, 0.5], [0.0, 5.0]]))
    # cos((1, 1), (1.5, .5)) = 2 / (sqrt(2) sqrt(2.5));  cos((1, 1), (0, 5)) = 1 / sqrt(2)
    scores = means(torch.tensor([[1.0, 1.0]]))
    assert scores[0].tolist() == pytest.approx([2 / 5**0.5, 0.5**0.5])


def test_rescaling_a_prototype_changes_no_score() -> None:
    means = ClassMeans(3, device=CPU)
    means.grow(2)
    means.set_means(torch.randn(8, 3), torch.arange(8) % 2)
    x = torch.randn(4, 3)
    before = means(x)
    means.prototypes[1] *= 100
    torch.testing.assert_close(means(x), before)


def test_class_means_of_some_classes_only() -> None:
    means = ClassMeans(3, device=CPU)
    means.grow(4)
    means.prototypes.normal_()
    x = torch.randn(5, 3)
    torch.testing.assert_close(means(x, slice(1, 3)), means(x)[:, 1:3])


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
    head, means = GrowingLinear(4, device=CPU), ClassMeans(4, device=CPU)
    for classifier in (head, means):
        classifier.grow(3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert classifier(torch.randn(2, 4).bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert CosineHead(4, 3, device=CPU)(torch.randn(2, 4).bfloat16()).dtype == torch.float32
