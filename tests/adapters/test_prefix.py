"""What prompt methods share."""

from __future__ import annotations

import torch

from lorica.adapters.prefix import TaskPrompts, prefixes, query, scrambled


def test_the_query_is_the_frozen_feature_without_gradient(tiny_encoder) -> None:
    encoder = tiny_encoder().requires_grad_(True)
    x = torch.rand(2, 3, 32, 32)
    assert not query(encoder, x).requires_grad
    assert torch.equal(query(encoder, x), encoder.features(x).detach())


def test_rows_become_keys_and_values_of_their_block() -> None:
    rows = torch.arange(2.0 * 3 * 2 * 4 * 5).view(2, 3, 2, 4, 5)
    found = prefixes((0, 4, 7), rows)
    assert list(found) == [0, 4, 7]
    for position, block in enumerate(found):
        for n in range(2):
            assert torch.equal(found[block].keys[n], rows[n, position, 0])
            assert torch.equal(found[block].values[n], rows[n, position, 1])


def test_the_scramble_is_the_one_of_the_ports() -> None:
    """Of a batch of B, input b < B / 2 gets the keys of inputs 2b and 2b + 1 as keys and values; the others get
    values."""
    rows = torch.arange(4.0 * 2).view(4, 1, 2, 1, 1)  # keys 0 2 4 6, values 1 3 5 7 of inputs 0 to 3
    assert scrambled(rows).flatten(1).tolist() == [[0, 2], [4, 6], [1, 3], [5, 7]]
    assert torch.equal(scrambled(rows[:1]), rows[:1])  # right by accident where a batch has one input
    two_blocks = torch.rand(4, 2, 2, 3, 5)
    assert torch.equal(scrambled(two_blocks)[:, 1:], scrambled(two_blocks[:, 1:]))


def test_a_prompt_for_each_task() -> None:
    torch.manual_seed(0)
    prompts = TaskPrompts((2, 3), 4, 8, start=(-1.0, 1.0), device=torch.device("cpu"))
    prompts.grow()
    with torch.no_grad():
        prompts.rows[0].mul_(0.5)
    prompts.grow(copy=True)
    prompts.grow()
    assert torch.equal(prompts.rows[1], prompts.rows[0])
    assert not torch.equal(prompts.rows[2], prompts.rows[0])
    assert prompts.rows[2].min() < -0.9
    assert prompts.rows[2].max() > 0.9
    assert prompts.of(torch.tensor([2, 0, 2])).shape == (3, 2, 2, 4, 8)
    assert torch.equal(prompts.of(torch.tensor([2, 0]))[1], prompts.rows[0])
    prompts.of(torch.tensor([2]))[0, 0].sum().backward()
    assert prompts.rows[2].grad[0].eq(1).all()
    assert prompts.rows[2].grad[1].eq(0).all()
    assert prompts.rows[0].grad.eq(0).all()
