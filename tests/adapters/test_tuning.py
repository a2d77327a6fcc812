"""Bottlenecks, scale and shift, and prompts against passes written out by hand; the encoder stays as it was."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lorica.adapters.tuning import Bottlenecks, Prompts, ScaleAndShift, Tuning
from lorica.backbones import load_backbone
from lorica.backbones.encoder import Encoder
from lorica.errors import BackboneError

KINDS: dict[str, Callable[[Encoder], Tuning]] = {
    "bottlenecks": lambda encoder: Bottlenecks(encoder, 8),
    "scale_and_shift": ScaleAndShift,
    "deep_prompts": lambda encoder: Prompts(encoder, 4, deep=True),
    "shallow_prompts": lambda encoder: Prompts(encoder, 4, deep=False),
}
ALL = pytest.mark.parametrize("kind", KINDS)
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def start(kind: str, encoder: Encoder, seed: int = 0) -> Tuning:
    torch.manual_seed(seed)
    return KINDS[kind](encoder)


def trained(kind: str, encoder: Encoder, seed: int = 0) -> Tuning:
    """With values that no start has."""
    tuning = start(kind, encoder, seed)
    with torch.no_grad():
        for parameter in tuning.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return tuning


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def hooks(encoder: Encoder) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in encoder.modules())


# --- by hand --------------------------------------------------------------------------------------------------------


def by_blocks(encoder, tokens: Tensor, change: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
    """The features when `change(block, u, output)` is what leaves a block instead of its output."""
    for number, block in enumerate(encoder.vit.blocks):
        u = tokens + block.attn(block.norm1(tokens))
        tokens = change(number, u, u + block.mlp(block.norm2(u)))
    return encoder.vit.norm(tokens)[:, 0]


@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_bottlenecks_by_hand(tiny_encoder, scale) -> None:
    encoder = tiny_encoder()
    tuning = trained("bottlenecks", encoder)
    tuning.scale = scale

    def change(number: int, u: Tensor, output: Tensor) -> Tensor:
        hidden = u @ tuning.down[number].T + tuning.down_bias[number]
        return output + scale * ((hidden * (hidden > 0)) @ tuning.up[number].T + tuning.up_bias[number])

    expected = by_blocks(encoder, encoder.embed(IMAGES), change)
    close(tuning.features(encoder, IMAGES), expected)
    assert (expected - encoder.features(IMAGES)).abs().max() > 0.05


def test_scale_and_shift_is_a_backbone_of_other_weights(tiny_encoder) -> None:
    """gamma (W x + b) + beta = (gamma W) x + (gamma b + beta): linear layers, LayerNorms and the patch embedding."""
    encoder, folded = tiny_encoder(), tiny_encoder()
    tuning, changed = trained("scale_and_shift", encoder), 0
    with torch.no_grad():
        for name, module in folded.named_modules():
            if isinstance(module, nn.Linear | nn.LayerNorm | nn.Conv2d):
                key = name.removesuffix(".proj") if isinstance(module, nn.Conv2d) else name
                gamma, beta = (part[key.replace(".", "_")] for part in (tuning.scales, tuning.shifts))
                module.weight.mul_(gamma.view(-1, *[1] * (module.weight.dim() - 1)))
                assert module.bias is not None
                module.bias.mul_(gamma).add_(beta)
                changed += 1
    assert changed == len(tuning.scales) == len(tuning.shifts) == 1 + 2 * 6 + 1  # patches; six a block; last norm
    close(tuning.features(encoder, IMAGES), folded.features(IMAGES))
    assert (folded.features(IMAGES) - encoder.features(IMAGES)).abs().max() > 0.05


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_by_hand(tiny_encoder, deep) -> None:
    encoder = tiny_encoder()
    tuning = trained("deep_prompts" if deep else "shallow_prompts", encoder)
    assert tuning.tokens.shape == (2 if deep else 1, 4, 32)
    prompt = tuning.tokens[0].expand(3, -1, -1)
    tokens = torch.cat([encoder.embed(IMAGES), prompt], dim=1)  # behind the others: the order says nothing
    for number, block in enumerate(encoder.vit.blocks):
        if deep:
            tokens = torch.cat([tokens[:, :17], tuning.tokens[number].expand(3, -1, -1)], dim=1)
        tokens = block(tokens)
    close(tuning.features(encoder, IMAGES), encoder.vit.norm(tokens)[:, 0])


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_are_not_pooled(tiny_encoder, deep) -> None:
    """An encoder that averages its patches averages those alone."""
    encoder, lengths = tiny_encoder(), []
    encoder.pool = lambda tokens: lengths.append(tokens.shape[1]) or tokens.mean(dim=1)
    start("deep_prompts" if deep else "shallow_prompts", encoder).features(encoder, IMAGES)
    assert lengths == [17]


# --- starts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_bottlenecks_start_without_effect(tiny_encoder, training) -> None:
    encoder = tiny_encoder()
    tuning = start("bottlenecks", encoder).train(training)
    assert torch.equal(tuning.features(encoder, IMAGES), encoder.features(IMAGES))
    assert not any(parameter.any() for parameter in (tuning.down_bias, tuning.up, tuning.up_bias))
    assert {name: tuple(p.shape) for name, p in tuning.named_parameters()} == {
        "down": (2, 8, 32),
        "down_bias": (2, 8),
        "up": (2, 32, 8),
        "up_bias": (2, 32),
    }
    assert 0.9 < tuning.down.abs().max() * 32**0.5 <= 1


def test_scale_and_shift_start_near_no_effect() -> None:
    encoder = load_backbone("lorica_tiny")
    tuning = start("scale_and_shift", encoder)
    scales, shifts = (torch.cat([p.detach() for p in part.values()]) for part in (tuning.scales, tuning.shifts))
    for values, mean in ((scales, 1.0), (shifts, 0.0)):
        assert values.mean().item() == pytest.approx(mean, abs=0.001)
        assert values.std().item() == pytest.approx(0.02, rel=0.05)
    x = torch.rand(2, 3, encoder.image_size, encoder.image_size)
    assert torch.cosine_similarity(tuning.features(encoder, x), encoder.features(x)).min() > 0.99


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_start_uniform(tiny_encoder, deep) -> None:
    torch.manual_seed(0)
    tokens = Prompts(tiny_encoder(), 50, deep=deep).tokens
    bound = (6 / (3 * 8 * 8 + 32)) ** 0.5
    assert 0.99 * bound < tokens.abs().max() <= bound
    assert tokens.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


# --- training -------------------------------------------------------------------------------------------------------


@ALL
def test_gradients_reach_what_trains_and_nothing_else(tiny_encoder, kind) -> None:
    encoder = tiny_encoder()
    tuning = trained(kind, encoder).train()
    (tuning.features(encoder, IMAGES) * torch.randn(32)).sum().backward()
    for name, parameter in tuning.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
        if kind in ("bottlenecks", "deep_prompts"):
            assert parameter.grad.flatten(1).any(dim=1).all(), name  # every block
    assert all(parameter.grad is None for parameter in encoder.parameters())


@ALL
def test_only_bottlenecks_drop_and_only_once_told_to_train(tiny_encoder, kind) -> None:
    encoder = tiny_encoder()
    tuning = trained(kind, encoder)  # as methods grow it: new, and to be evaluated until the loop trains
    still = tuning.features(encoder, IMAGES)
    assert torch.equal(tuning.features(encoder, IMAGES), still)
    tuning.train()
    assert torch.equal(tuning.features(encoder, IMAGES), still) == (kind != "bottlenecks")


@pytest.mark.parametrize(("dropout", "kept"), [(0.0, 1.0), (1.0, 0.0)])
def test_what_is_dropped_are_hidden_units(tiny_encoder, dropout, kept) -> None:
    encoder = tiny_encoder()
    tuning = trained("bottlenecks", encoder).train()
    tuning.dropout = dropout

    def change(number: int, u: Tensor, output: Tensor) -> Tensor:
        hidden = (u @ tuning.down[number].T + tuning.down_bias[number]).clamp(min=0)
        return output + 0.1 * (kept * hidden @ tuning.up[number].T + tuning.up_bias[number])

    close(tuning.features(encoder, IMAGES), by_blocks(encoder, encoder.embed(IMAGES), change))


def test_the_share_that_is_dropped(tiny_encoder) -> None:
    """One unit that is always 3, added in the last block alone: each token gets 3 / 0.75, or nothing."""
    encoder = tiny_encoder()
    tuning = Bottlenecks(encoder, 1, scale=1.0, dropout=0.25).train()
    with torch.no_grad():
        tuning.down.zero_()
        tuning.down_bias[1] = 3.0
        tuning.up[1] = 1.0
    left: list[Tensor] = []
    handle = encoder.vit.norm.register_forward_pre_hook(lambda module, x: left.append(x[0]))
    torch.manual_seed(0)
    x = IMAGES.repeat(20, 1, 1, 1)
    tuning.features(encoder, x)
    encoder.features(x)
    handle.remove()
    added = (left[0] - left[1]).mean(dim=2)
    share = (added.abs() < 1e-4).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.04)
    close(added[added > 1], torch.tensor(4.0).expand(int((added > 1).sum())))


# --- the encoder and the state ---------------------------------------------------------------------------------------


@ALL
def test_the_encoder_stays_as_it_was(tiny_encoder, kind) -> None:
    encoder, untouched = tiny_encoder(), tiny_encoder()
    before = encoder.features(IMAGES)
    tuning = trained(kind, encoder)
    assert not torch.equal(tuning.features(encoder, IMAGES), before)
    assert torch.equal(encoder.features(IMAGES), before)
    assert hooks(encoder) == 0
    assert [(n, type(m)) for n, m in encoder.named_modules()] == [(n, type(m)) for n, m in untouched.named_modules()]
    for name, value in untouched.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value), name


@ALL
def test_a_pass_that_fails_leaves_nothing_behind(tiny_encoder, kind, monkeypatch) -> None:
    encoder = tiny_encoder()
    tuning = trained(kind, encoder)
    plain, tuned = encoder.features(IMAGES), tuning.features(encoder, IMAGES)

    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(encoder.vit.blocks[1].mlp, "forward", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            tuning.features(encoder, IMAGES)
    assert hooks(encoder) == 0
    assert torch.equal(encoder.features(IMAGES), plain)
    assert torch.equal(tuning.features(encoder, IMAGES), tuned)


@ALL
def test_one_encoder_serves_many(tiny_encoder, kind) -> None:
    """Two of a kind on one encoder, called in turn, do as each does on an encoder of its own; inputs do not mix."""
    encoder = tiny_encoder()
    first, second = (trained(kind, encoder, seed) for seed in (0, 1))
    one, two = first.features(encoder, IMAGES), second.features(encoder, IMAGES)
    assert not torch.equal(one, two)
    assert torch.equal(trained(kind, tiny_encoder(), 0).features(tiny_encoder(), IMAGES), one)
    close(torch.cat([first.features(encoder, image[None]) for image in IMAGES]), one)


def test_threads_with_modules_of_their_own_share_an_encoder(tiny_encoder) -> None:
    """Two of each kind and the plain encoder, all at once, to the bit."""
    encoder = tiny_encoder()
    passes = [partial(trained(kind, encoder, seed).features, encoder) for kind in KINDS for seed in (0, 1)]
    passes.append(encoder.features)
    with torch.no_grad():
        expected = [each(IMAGES) for each in passes]
        barrier = threading.Barrier(len(passes))

    @torch.no_grad()
    def again(features: Callable[[Tensor], Tensor]) -> list[Tensor]:
        barrier.wait()
        return [features(IMAGES) for _ in range(10)]

    with ThreadPoolExecutor(len(passes)) as pool:
        for found, own in zip(pool.map(again, passes), expected, strict=True):
            assert all(torch.equal(each, own) for each in found)


@ALL
def test_state_round_trip(tiny_encoder, kind) -> None:
    encoder = tiny_encoder()
    tuning, other = trained(kind, encoder, 0), trained(kind, encoder, 1)
    state = tuning.state_dict()
    assert state.keys() == {name for name, _ in tuning.named_parameters()}  # and none of the encoder
    other.load_state_dict({name: value.clone() for name, value in state.items()})
    assert torch.equal(other.features(encoder, IMAGES), tuning.features(encoder, IMAGES))


@ALL
def test_a_start_follows_from_the_seed(tiny_encoder, kind) -> None:
    starts = [start(kind, tiny_encoder(), seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    assert not all(torch.equal(starts[0][name], starts[2][name]) for name in starts[0])


@ALL
def test_a_deep_copy_of_a_holder_is_independent(tiny_encoder, kind) -> None:
    holder = nn.Module()
    holder.encoder = tiny_encoder()
    holder.tuning = trained(kind, holder.encoder)
    before = holder.tuning.features(holder.encoder, IMAGES)
    other = copy.deepcopy(holder)
    assert torch.equal(other.tuning.features(other.encoder, IMAGES), before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    assert not torch.equal(other.tuning.features(other.encoder, IMAGES), before)
    assert torch.equal(holder.tuning.features(holder.encoder, IMAGES), before)


@ALL
def test_on_a_real_backbone_and_in_bfloat16(kind) -> None:
    encoder = load_backbone("lorica_tiny").requires_grad_(False).eval()
    side = encoder.image_size
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    tuning = start(kind, encoder)
    exact = tuning.features(encoder, x)
    assert exact.shape == (2, encoder.width)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = tuning.features(encoder, x)
        rough.float().square().sum().backward()
    assert torch.cosine_similarity(rough.float(), exact).min() > 0.99
    for name, parameter in tuning.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("name", ["vit_base_patch16_rpn_224", "vit_small_patch16_18x2_224"])
def test_blocks_of_another_kind_are_refused(name) -> None:
    encoder = load_backbone(name, image_size=32, pretrained=False)
    with pytest.raises(BackboneError, match=rf"backbone\.name: the blocks of {name} are not attention followed by"):
        Bottlenecks(encoder, 2).features(encoder, torch.rand(1, 3, 32, 32))
