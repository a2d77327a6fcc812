"""L2P: the choice of prompts, the pull term and both ways of prompting, against plain loops over tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lorica.backbones.encoder import Prefix
from lorica.config import read_recipe
from lorica.cost import measure
from lorica.errors import BackboneError, RecipeError
from lorica.methods.l2p import L2P, L2PConfig
from lorica.types import Batch, Task

TASKS = [Task.of_new_classes(t, 2 * t, (f"class {2 * t}", f"class {2 * t + 1}")) for t in range(3)]
IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SMALL = {"pool_size": 5, "selected": 2, "length": 3, "head_start": "kaiming"}
BOTH = pytest.mark.parametrize("variant", ["paper", "prefix"])


def learner(encoder, tasks: int = 1, **options) -> L2P:
    """A learner whose keys lie near the features of some images, so that inputs differ in what they pick."""
    torch.manual_seed(0)
    method = L2P(L2PConfig(name="l2p", **(SMALL | options)), encoder)
    for task in TASKS[:tasks]:
        method.grow(task)
    with torch.no_grad():
        method.prompts.normal_()
        centred = encoder.features(IMAGES) - encoder.features(IMAGES).mean(dim=0)
        method.keys.copy_(centred.repeat(2, 1)[: len(method.keys)] + 0.05 * torch.randn(method.keys.shape))
    return method


def batch(task: int = 0) -> Batch:
    return Batch(IMAGES, torch.tensor([0, 1, 0, 1, 0, 1]) + 2 * task)


def own_cosines(method: L2P) -> np.ndarray:
    """One input and one key at a time, in float64."""
    with torch.no_grad():
        queries = [method.encoder.features(image[None])[0].double().numpy() for image in IMAGES]
    keys = method.keys.detach().double().numpy()
    return np.array([[q @ k / np.linalg.norm(q) / np.linalg.norm(k) for k in keys] for q in queries])


def picked(method: L2P) -> np.ndarray:
    """Indices of each input's largest cosines, in falling order."""
    return np.argsort(-own_cosines(method), axis=1)[:, : method.selected]


def step(method: L2P, data: Batch) -> None:
    parameters = method.trainable()
    for parameter in method.parameters():
        parameter.requires_grad_(any(parameter is each for each in parameters))
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    for _ in range(2):
        [terms] = method.losses(data)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        method.edit_gradients()
        optimizer.step()


# --- (1) ------------------------------------------------------------------------------------------------------------


@BOTH
def test_each_input_picks_its_own_prompts(tiny_encoder, variant) -> None:
    method, seen = learner(tiny_encoder(), variant=variant), []
    method.prompted = lambda inputs, chosen, layers: seen.append(chosen) or torch.zeros(len(inputs), 32)
    method.predict(IMAGES)
    np.testing.assert_array_equal(seen[0].numpy(), picked(method))
    assert len({tuple(row) for row in picked(method)}) > 2


@BOTH
def test_a_prediction_does_not_depend_on_its_batch(tiny_encoder, variant) -> None:
    method = learner(tiny_encoder(), variant=variant)
    together = method.predict(IMAGES)
    alone = torch.cat([method.predict(image[None]) for image in IMAGES])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(method.predict(IMAGES.flip(0)).flip(0), together, atol=1e-5, rtol=1e-4)


def test_the_vote_of_a_batch_by_hand(tiny_encoder) -> None:
    method = learner(tiny_encoder(), batch_majority=True)
    similarity = torch.tensor(
        [[0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.1, 0.2, 0.4, 0.3], [0.0, 0.1, 0.9, 0.8, 0.2]]  # 4 3, 0 3, 2 3
    )
    assert method.select(similarity).tolist() == [[3, 0]] * 3  # 0, 2 and 4 have a vote each, the first of them wins
    assert method.select(similarity[2:]).tolist() == [[2, 3]]  # a batch of one: its own, by number
    few = learner(tiny_encoder(), batch_majority=True, selected=1)
    assert few.select(similarity).tolist() == [[0]] * 3


def test_the_vote_makes_a_prediction_depend_on_its_batch(tiny_encoder) -> None:
    method = learner(tiny_encoder(), batch_majority=True)
    alone = torch.cat([method.predict(image[None]) for image in IMAGES])
    assert (method.predict(IMAGES) - alone).abs().max() > 1e-2
    [terms] = method.losses(batch())
    votes = np.bincount(picked(method).ravel(), minlength=5)
    winners = np.argsort(-votes, kind="stable")[:2]
    expected = -own_cosines(method)[:, winners].sum(axis=1).mean()  # the pull is on what was used
    assert terms["pull"].item() == pytest.approx(expected, abs=1e-5)


# --- (2) ------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_the_pull_is_the_mean_of_summed_cosines(tiny_encoder, variant, weight) -> None:
    method = learner(tiny_encoder(), variant=variant, pull_weight=weight)
    [terms] = method.losses(batch())
    expected = -weight * np.sort(own_cosines(method), axis=1)[:, -2:].sum(axis=1).mean()
    assert terms["pull"].item() == pytest.approx(expected, abs=1e-5)
    assert -2 * weight <= terms["pull"].item() <= 2 * weight


@pytest.mark.parametrize(("scope", "first"), [("current_task", 2), ("all_seen", 0)])
def test_cross_entropy_by_hand(tiny_encoder, scope, first) -> None:
    method = learner(tiny_encoder(), 2, cross_entropy=scope)
    [terms] = method.losses(batch(1))
    logits = method.predict(IMAGES).detach()[:, first:]
    expected = -(logits.softmax(dim=1)[range(6), batch(1).labels - first]).log().mean()
    torch.testing.assert_close(terms["cross_entropy"].detach(), expected)


@BOTH
def test_only_the_pull_moves_keys_and_only_those_picked(tiny_encoder, variant) -> None:
    for weight in (0.0, 1.0):
        method = learner(tiny_encoder(), variant=variant, pull_weight=weight, pool_size=6)
        with torch.no_grad():
            method.keys[5] = -method.encoder.features(IMAGES).mean(dim=0)  # nobody's
        assert 5 not in picked(method)
        [terms] = method.losses(batch())
        torch.stack(list(terms.values())).sum().backward()
        assert method.keys.grad is not None
        assert method.prompts.grad is not None
        reached = method.keys.grad.abs().sum(dim=1) > 0
        assert reached.tolist() == [bool(weight) and m in picked(method) for m in range(6)]
        moved = method.prompts.grad.flatten(1).abs().sum(dim=1) > 0
        assert moved.tolist() == [m in picked(method) for m in range(6)]


def test_a_batch_takes_one_query_pass(tiny_encoder) -> None:
    method, lengths = learner(tiny_encoder()), []
    handle = method.encoder.blocks[0].register_forward_pre_hook(lambda module, x: lengths.append(x[0].shape))
    next(method.losses(batch()))
    handle.remove()
    assert lengths == [(6, 17, 32), (6, 17 + 2 * 3, 32)]
    assert measure(method)["forwards_per_prediction"] == 2


def test_small_cosines_are_in_full_precision_under_autocast(tiny_encoder) -> None:
    method = learner(tiny_encoder())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        [terms] = method.losses(batch())
        logits = method.predict(IMAGES)
    assert {each.dtype for each in terms.values()} == {torch.float32}
    torch.testing.assert_close(logits, method.predict(IMAGES), atol=0.1, rtol=0.1)


# --- the two ways of prompting --------------------------------------------------------------------------------------


def test_prompts_enter_first_and_the_head_reads_them_alone(tiny_encoder) -> None:
    method = learner(tiny_encoder())
    vit: Any = method.encoder.vit
    weight, bias = method.head.stacked()
    for image, chosen, logits in zip(IMAGES, picked(method), method.predict(IMAGES), strict=True):
        own = vit.patch_embed((image[None] - 0.5) / 0.5)
        own = torch.cat([vit.cls_token, own], dim=1) + vit.pos_embed
        tokens = torch.cat([*(method.prompts[m] for m in chosen), own[0]])[None]
        for block in vit.blocks:
            tokens = block(tokens)
        assert tokens.shape == (1, 17 + 2 * 3, 32)
        out: Tensor = F.layer_norm(tokens[0], (32,), vit.norm.weight, vit.norm.bias, vit.norm.eps)
        torch.testing.assert_close(weight @ (sum(out[:6]) / 6) + bias, logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("blocks", [(0,), (0, 1)])
def test_a_prefix_has_keys_of_all_then_values_of_all(tiny_encoder, blocks) -> None:
    method = learner(tiny_encoder(), variant="prefix", blocks=blocks)
    assert method.prompts.shape == (5, len(blocks), 2, 3, 32)
    for image, chosen, logits in zip(IMAGES, picked(method), method.predict(IMAGES), strict=True):
        prefixes = {}
        for place, block in enumerate(blocks):
            keys = torch.stack([method.prompts[m, place, 0, row] for m in chosen for row in range(3)])
            values = torch.stack([method.prompts[m, place, 1, row] for m in chosen for row in range(3)])
            prefixes[block] = Prefix(keys[None], values[None])
        expected = method.head(method.encoder.features(image[None], prefixes=prefixes))[0]
        torch.testing.assert_close(expected, logits, atol=1e-5, rtol=1e-4)


# --- defaults, what trains ------------------------------------------------------------------------------------------


def test_defaults_of_the_variants(tiny_encoder) -> None:
    torch.manual_seed(0)
    for variant, shape, selected, stop in (("paper", (10, 10, 32), 4, 0.01), ("prefix", (30, 1, 2, 10, 32), 5, 1.0)):
        method = L2P(L2PConfig(name="l2p", variant=variant), tiny_encoder())
        method.grow(TASKS[0])
        assert method.prompts.shape == shape
        assert method.keys.shape == (shape[0], 32)
        assert method.selected == selected
        for start in (method.prompts, method.keys):
            assert 0 <= start.min() < 0.1 * stop
            assert 0.9 * stop < start.max() <= stop
    assert 30 * (2 * 10 + 1) * 768 == 483_840  # the 0.48 million of the SD-LoRA paper
    assert measure(method)["trainable_by_kind"] == {"head": 2 * 33, "keys": 30 * 32, "prompts": 30 * 20 * 32}


def test_other_starts(tiny_encoder) -> None:
    torch.manual_seed(0)
    method = L2P(L2PConfig(name="l2p", start=(-1.0, 1.0)), tiny_encoder())
    method.grow(TASKS[0])
    assert method.prompts.min() < -0.9
    assert method.prompts.max() > 0.9


@BOTH
def test_a_task_trains_the_pool_and_its_own_rows_of_the_head(tiny_encoder, variant) -> None:
    method = learner(tiny_encoder(), 2, variant=variant)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    step(method, batch(1))
    changed = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"prompts", "keys", "head.weights.1", "head.biases.1"}
    pool = method.prompts.clone(), method.keys.clone()
    method.grow(TASKS[2])
    assert torch.equal(method.prompts, pool[0])  # the next task finds the pool as it is
    assert torch.equal(method.keys, pool[1])


def gradients(method: L2P) -> Tensor:
    for parameter in method.trainable():
        parameter.grad = None
    [terms] = method.losses(batch())
    (50 * terms["cross_entropy"]).backward()
    method.edit_gradients()
    return torch.cat([p.grad.flatten() for p in method.trainable() if p.grad is not None])


def test_clipping_keeps_the_direction(tiny_encoder) -> None:
    free, clipped = gradients(learner(tiny_encoder(), gradient_clip=0)), gradients(learner(tiny_encoder()))
    assert free.norm() > 2
    assert clipped.norm().item() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(clipped, free / free.norm(), atol=1e-6, rtol=1e-4)
    assert gradients(learner(tiny_encoder(), variant="prefix", start=(0, 9))).norm() > 1  # none by default
    assert gradients(learner(tiny_encoder(), variant="prefix", gradient_clip=0.5)).norm() == pytest.approx(0.5, 1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selected": 11}, "selected 11: expected no more than pool_size, 10"),
        ({"pool_size": 3}, "selected 4: expected no more than pool_size, 3"),
        ({"variant": "prefix", "selected": 31}, "selected 31: expected no more than pool_size, 30"),
        ({"start": (1.0, 1.0)}, r"start \[1.0, 1.0\]: expected first < second"),
        ({"blocks": (0, 1)}, r"blocks \[0, 1\]: the prompts of variant paper enter block 0"),
        ({"blocks": ()}, "blocks"),
        ({"length": 0}, "length"),
        ({"pull_weight": -1}, "pull_weight"),
        ({"gradient_clip": -1}, "gradient_clip"),
    ],
)
def test_recipes_that_cannot_be(options, message) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe("digits", {"method": {"name": "l2p", **options}})


def test_blocks_that_the_backbone_lacks(tiny_encoder) -> None:
    method = learner(tiny_encoder(), variant="prefix", blocks=(0, 7))
    assert method.prompts.shape[1] == 1
    with pytest.raises(BackboneError, match=r"method\.blocks"):
        learner(tiny_encoder(), variant="prefix", blocks=(7,))


def test_rates_of_the_variants() -> None:
    common = {"optimizer": "adam", "weight_decay": 0.0}
    paper = common | {"learning_rate": 0.03 * 128 / 256, "schedule": "constant"}
    assert L2P.fit_defaults("paper") == L2P.fit_defaults(None) == paper
    assert L2P.fit_defaults("prefix") == common | {"learning_rate": 1e-3, "schedule": "cosine"}
