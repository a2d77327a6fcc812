"""Attaching, merging and other increments on a real (tiny, random) timm ViT."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lorica.adapters.attach import at_once, attach, attached, merged, with_increments
from lorica.adapters.linear import AdaptedLinear


@pytest.fixture
def grown(tiny_encoder):
    """An encoder whose q and v are adapted by fixed random increments, and a copy from before."""
    encoder = tiny_encoder()
    plain = copy.deepcopy(encoder)
    generator = torch.Generator().manual_seed(1)
    sites = encoder.select(("q", "v"))
    increments = {site: 0.1 * torch.randn(site.out_features, site.in_features, generator=generator) for site in sites}
    attach(encoder, sites, increments.__getitem__)
    return encoder, plain, increments


def test_increments_land_on_the_rows_of_q_and_v(grown) -> None:
    encoder, plain, increments = grown
    width = plain.width
    for index in range(len(plain.blocks)):
        linear = plain.vit.blocks[index].attn.qkv
        by_kind = {site.kind: increment for site, increment in increments.items() if site.block == index}
        with torch.no_grad():
            linear.weight[:width] += by_kind["q"]
            linear.weight[2 * width :] += by_kind["v"]
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(encoder.features(x), plain.features(x), atol=1e-5, rtol=1e-5)


def test_merging_gives_the_plain_module_tree_and_the_same_features(grown) -> None:
    encoder, plain, _ = grown
    x = torch.rand(3, 3, 32, 32)
    before, found = encoder.features(x), merged(encoder)
    assert [(name, type(m)) for name, m in found.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    assert found.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(found.features(x), before, atol=1e-5, rtol=1e-5)
    assert torch.equal(encoder.features(x), before)


def test_merging_leaves_the_original_alone_however_often(grown) -> None:
    encoder, plain, _ = grown
    for _ in range(5):
        merged(encoder)
    kept = [m.linear.weight for m in encoder.modules() if isinstance(m, AdaptedLinear)]
    original = [block.attn.qkv.weight for block in plain.blocks]
    assert len(kept) == len(original) == len(plain.blocks)
    assert all(torch.equal(a, b) for a, b in zip(kept, original, strict=True))


def test_what_is_attached_is_found_again(grown) -> None:
    encoder, plain, increments = grown
    found = attached(encoder)
    assert list(found) == list(increments)
    assert all(give() is increments[site] for site, give in found.items())
    assert attached(plain) == {}


def test_other_increments_at_some_sites(grown) -> None:
    """None at q: what is left is what attaching the increments of v alone gives."""
    encoder, plain, increments = grown
    x, before = torch.rand(3, 3, 32, 32), encoder.features(torch.ones(1, 3, 32, 32))
    other = with_increments(encoder, encoder.select(("q",)), lambda site: torch.zeros_like(increments[site]))
    attach(plain, plain.select(("v",)), increments.__getitem__)
    assert torch.equal(other.features(x), plain.features(x))
    assert not torch.equal(other.features(x), encoder.features(x))
    assert torch.equal(encoder.features(torch.ones(1, 3, 32, 32)), before)


@pytest.fixture
def counted(tiny_encoder):
    """An encoder with c times a fixed increment at q, v and fc1, the c, and what the increments have been asked for."""
    encoder, asked, c = tiny_encoder(), [], torch.nn.Parameter(torch.ones(()))
    sites, generator = encoder.select(("q", "v", "fc1")), torch.Generator().manual_seed(1)
    fixed = {site: 0.1 * torch.randn(site.out_features, site.in_features, generator=generator) for site in sites}

    def increment(site):
        asked.append(site)
        return c * (torch.stack([fixed[each] for each in site]) if isinstance(site, tuple) else fixed[site])

    attach(encoder, sites, increment, together=True)
    return encoder, sites, c, asked


DEVICE = torch.device("cuda")  # which need not be there: only its kind is asked for
X = torch.rand(2, 3, 32, 32)


def test_at_once_each_shape_is_computed_once_in_a_pass(counted) -> None:
    encoder, sites, _, asked = counted
    expected = encoder.features(X)
    assert asked == list(sites)
    asked.clear()
    with at_once(DEVICE):
        found = encoder.features(X)
    by_shape = [tuple(each for each in sites if (each.kind == "fc1") == of_fc1) for of_fc1 in (False, True)]
    assert asked == by_shape
    assert torch.equal(found, expected)


def test_on_a_cpu_one_by_one(counted) -> None:
    encoder, sites, _, asked = counted
    with at_once(torch.device("cpu")):
        encoder.features(X)
    assert asked == list(sites)


def test_at_once_every_pass_is_of_the_weights_as_they_are(counted) -> None:
    """Also within one block, after a pass that went through the first half alone, and with gradients after one
    without."""
    encoder, _, c, _ = counted
    with at_once(DEVICE):
        with torch.no_grad():
            encoder.features(X)
            encoder.blocks[0](encoder.embed(X))
            c.mul_(3)
        (first,) = torch.autograd.grad(encoder.features(X)[:, 0].sum(), c)
        (second,) = torch.autograd.grad(encoder.features(X)[:, 0].sum(), c)  # a graph of its own
    found = encoder.features(X)
    (expected,) = torch.autograd.grad(found[:, 0].sum(), c)
    torch.testing.assert_close((first, second), (expected, expected), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        c.div_(3)
    assert not torch.equal(encoder.features(X), found)


def test_at_once_is_of_its_own_thread_and_ends(counted) -> None:
    encoder, sites, _, asked = counted
    with at_once(DEVICE), ThreadPoolExecutor(1) as pool:
        encoder.blocks[0](encoder.embed(X))  # leaves some unused
        asked.clear()
        pool.submit(encoder.features, X).result()
    assert asked == list(sites)
    asked.clear()
    encoder.features(X)
    assert asked == list(sites)
