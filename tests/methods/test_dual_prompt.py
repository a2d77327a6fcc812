"""DualPrompt: its prefixes against attention by hand, what each prompt can reach, and the choice of a task."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lorica.config import read_recipe
from lorica.cost import measure
from lorica.errors import BackboneError, RecipeError
from lorica.methods.dual_prompt import DualPrompt, DualPromptConfig
from lorica.types import Batch, Task

TASKS = [Task.of_new_classes(t, 2 * t, (f"class {2 * t}", f"class {2 * t + 1}")) for t in range(4)]
IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SMALL = {"general_blocks": (0,), "blocks": (1,), "general_length": 3, "length": 4, "head_start": "kaiming"}


def learner(encoder, tasks: int = 3, **options) -> DualPrompt:
    """A learner with large prompts, and with key i near the feature of image i, centred: inputs differ in their
    choice."""
    torch.manual_seed(0)
    method = DualPrompt(DualPromptConfig(name="dual_prompt", **(SMALL | options)), encoder)
    centred = encoder.features(IMAGES) - encoder.features(IMAGES).mean(dim=0)
    for task in TASKS[:tasks]:
        method.grow(task)
        with torch.no_grad():
            method.prompts.rows[-1].normal_()
            method.keys[-1].copy_(centred[task.index])
            method.general_prompt.normal_()
    return method


def chosen(method: DualPrompt) -> list[int]:
    """The key that is nearest to each input's own query, one at a time."""
    nearest = []
    for image in IMAGES:
        q = method.encoder.features(image[None])[0]
        angles = [math.acos((q @ key / q.norm() / key.norm()).item()) for key in method.keys]
        nearest.append(angles.index(min(angles)))
    return nearest


def batch(task: int) -> Batch:
    return Batch(IMAGES, torch.tensor([0, 1, 0, 1, 0, 1]) + 2 * task)


def by_hand(method: DualPrompt, image: Tensor, general: Tensor, own: Tensor) -> Tensor:
    """Logits of one image with rows [2, length, width] of the two prompts, head by head and query by query."""
    vit = method.encoder.vit
    tokens = method.encoder.embed(image[None])[0]
    for block, (keys, values) in zip(vit.blocks, (general, own), strict=True):
        x = block.norm1(tokens)
        q, k, v = (x @ block.attn.qkv.weight.T + block.attn.qkv.bias).split(32, dim=1)
        k, v = torch.cat([keys, k]), torch.cat([values, v])
        attended = torch.zeros(17, 32)
        for head in (slice(0, 16), slice(16, 32)):
            for i in range(17):
                weights = (k[:, head] @ q[i, head] / math.sqrt(16)).exp()
                attended[i, head] = weights @ v[:, head] / weights.sum()
        tokens = tokens + attended @ block.attn.proj.weight.T + block.attn.proj.bias
        tokens = tokens + block.mlp(block.norm2(tokens))
    return method.head(method.encoder.pool(tokens[None]))[0]


# --- the prefixes ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_predictions_by_hand(tiny_encoder) -> None:
    method = learner(tiny_encoder())
    assert len(set(chosen(method))) == 3
    for image, task, logits in zip(IMAGES, chosen(method), method.predict(IMAGES), strict=True):
        general, own = method.general_prompt[0], method.prompts.rows[task][0]
        torch.testing.assert_close(by_hand(method, image, general, own), logits, atol=1e-5, rtol=1e-4)
        for swapped in ((general.flip(0), own), (general, own.flip(0))):
            assert not torch.allclose(by_hand(method, image, *swapped), logits, atol=1e-3)


@torch.no_grad()
def test_training_uses_the_tasks_own_prompt(tiny_encoder) -> None:
    method = learner(tiny_encoder())
    assert chosen(method)[0] == 0  # at prediction; in training the task is known
    logits = torch.stack(
        [by_hand(method, image, method.general_prompt[0], method.prompts.rows[2][0])[4:] for image in IMAGES]
    )
    expected = -logits.softmax(dim=1)[range(6), batch(0).labels].log().mean()
    [terms] = method.losses(batch(2))
    torch.testing.assert_close(terms["cross_entropy"], expected, atol=1e-5, rtol=1e-4)


def test_cross_entropy_over_all_seen(tiny_encoder) -> None:
    method = learner(tiny_encoder(), cross_entropy="all_seen")
    with torch.no_grad():
        [terms] = method.losses(batch(2))
        logits = torch.stack(
            [by_hand(method, image, method.general_prompt[0], method.prompts.rows[2][0]) for image in IMAGES]
        )
    expected = -logits.softmax(dim=1)[range(6), batch(2).labels].log().mean()
    torch.testing.assert_close(terms["cross_entropy"], expected, atol=1e-5, rtol=1e-4)
    assert len(method.trainable()) == 3 + 6  # all rows of the head enter the loss


@torch.no_grad()
def test_the_order_of_rows_does_not_matter(tiny_encoder) -> None:
    method = learner(tiny_encoder())
    before, order = method.predict(IMAGES), torch.tensor([2, 0, 3, 1])
    for rows in method.prompts.rows:
        rows.copy_(rows[:, :, order])
    method.general_prompt.copy_(method.general_prompt.flip(2))
    torch.testing.assert_close(method.predict(IMAGES), before, atol=1e-5, rtol=1e-4)


def test_prompts_of_no_rows_leave_the_backbone_as_it_is(tiny_encoder) -> None:
    method = learner(tiny_encoder(), general_length=0, length=0)
    torch.testing.assert_close(method.predict(IMAGES), method.head(method.encoder.features(IMAGES)))
    before = {name: value.clone() for name, value in method.state_dict().items()}
    step(method, batch(2))  # and such a learner trains
    assert not torch.equal(method.keys[2], before["keys.2"])


@torch.no_grad()
def test_a_prompt_adds_no_token_and_a_batch_takes_one_query_pass(tiny_encoder) -> None:
    method, shapes = learner(tiny_encoder()), []
    hooks = [b.register_forward_pre_hook(lambda module, x: shapes.append(x[0].shape)) for b in method.encoder.blocks]
    next(method.losses(batch(2)))
    for hook in hooks:
        hook.remove()
    assert shapes == [(6, 17, 32)] * 4  # two blocks, twice
    assert measure(method)["forwards_per_prediction"] == 2


# --- (1) ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 0.0, 0.1])
def test_the_pull_is_the_mean_cosine_with_the_tasks_key(tiny_encoder, weight) -> None:
    method = learner(tiny_encoder(), pull_weight=weight)
    with torch.no_grad():
        queries = [method.encoder.features(image[None])[0] for image in IMAGES]
    key = method.keys[2]
    expected = sum((q @ key / q.norm() / key.norm()).item() for q in queries) / 6
    [terms] = method.losses(batch(2))
    assert terms["pull"].item() == pytest.approx(-weight * expected, abs=1e-5)
    torch.stack(list(terms.values())).sum().backward()
    assert bool(key.grad.abs().sum() > 0) == (weight > 0)
    assert all(method.keys[t].grad is None for t in (0, 1))


def step(method: DualPrompt, data: Batch) -> None:
    parameters = method.trainable()
    for parameter in method.parameters():
        parameter.requires_grad_(any(parameter is each for each in parameters))
    optimizer = torch.optim.Adam(parameters, lr=0.01, weight_decay=0.1)
    [terms] = method.losses(data)
    torch.stack(list(terms.values())).sum().backward()
    method.edit_gradients()
    optimizer.step()


def test_a_task_trains_its_own_parts_and_the_general_prompt(tiny_encoder) -> None:
    method = learner(tiny_encoder())
    before = {name: value.clone() for name, value in method.state_dict().items()}
    step(method, batch(2))
    changed = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"general_prompt", "prompts.rows.2", "keys.2", "head.weights.2", "head.biases.2"}


def test_gradients_are_clipped(tiny_encoder) -> None:
    found = []
    for clip in (0.0, 1.0):
        method = learner(tiny_encoder(), gradient_clip=clip)
        [terms] = method.losses(batch(2))
        (50 * terms["cross_entropy"]).backward()
        method.edit_gradients()
        found.append(torch.cat([p.grad.flatten() for p in method.trainable() if p.grad is not None]))
    free, clipped = found
    assert free.norm() > 2
    torch.testing.assert_close(clipped, free / free.norm(), atol=1e-6, rtol=1e-4)


# --- (2) ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_prompt_reaches_only_those_that_choose_it(tiny_encoder) -> None:
    method = learner(tiny_encoder())
    before, choice = method.predict(IMAGES), chosen(method)
    for task in range(3):
        kept = method.prompts.rows[task].clone()
        method.prompts.rows[task].add_(1.0)
        same = (method.predict(IMAGES) == before).all(dim=1)
        method.prompts.rows[task].copy_(kept)
        assert same.tolist() == [each != task for each in choice]


@torch.no_grad()
def test_a_prediction_does_not_depend_on_its_batch_unless_scrambled(tiny_encoder) -> None:
    for scrambled in (False, True):
        method = learner(tiny_encoder(), scrambled=scrambled)
        together = method.predict(IMAGES)
        alone = torch.cat([method.predict(image[None]) for image in IMAGES])
        turned = method.predict(IMAGES.flip(0)).flip(0)
        for other in (alone, turned):
            assert torch.allclose(other, together, atol=1e-5, rtol=1e-4) != scrambled


@torch.no_grad()
def test_a_batch_can_be_made_to_vote(tiny_encoder) -> None:
    method, voting = learner(tiny_encoder()), learner(tiny_encoder(), batch_majority=True)
    most = max(set(chosen(method)), key=chosen(method).count)
    assert len(set(chosen(method))) > 1
    torch.testing.assert_close(
        voting.predict(IMAGES), voting.head(voting.prompted(IMAGES, voting.prompts.rows[most][None]))
    )


@torch.no_grad()
def test_scrambled_training_by_hand(tiny_encoder) -> None:
    """Half of the batch has keys as keys and values, half has values."""
    method = learner(tiny_encoder(), scrambled=True)
    keys, values = method.prompts.rows[2][0]
    pairs = [(keys, keys)] * 3 + [(values, values)] * 3
    logits = torch.stack(
        [by_hand(method, x, method.general_prompt[0], torch.stack(p)) for x, p in zip(IMAGES, pairs, strict=True)]
    )
    expected = -logits[:, 4:].softmax(dim=1)[range(6), batch(0).labels].log().mean()
    [terms] = method.losses(batch(2))
    torch.testing.assert_close(terms["cross_entropy"], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_keys_are_compared_in_full_precision_under_autocast(tiny_encoder) -> None:
    method = learner(tiny_encoder())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        [terms] = method.losses(batch(2))
        logits = method.predict(IMAGES)
    assert {each.dtype for each in terms.values()} == {torch.float32}
    torch.testing.assert_close(logits, method.predict(IMAGES), atol=0.1, rtol=0.1)


# --- starts, options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copy", [True, False])
def test_a_prompt_starts_where_the_one_before_ended_and_a_key_does_not(tiny_encoder, copy) -> None:
    torch.manual_seed(0)
    method = DualPrompt(DualPromptConfig(name="dual_prompt", **(SMALL | {"copy_previous": copy})), tiny_encoder())
    method.grow(TASKS[0])
    for start in (method.general_prompt, method.prompts.rows[0], method.keys[0]):
        assert 0 <= start.min() < 0.001
        assert 0.009 < start.max() <= 0.01
    with torch.no_grad():
        for parameter in method.trainable():
            parameter.add_(1.0)
    general = method.general_prompt.clone()
    method.grow(TASKS[1])
    assert torch.equal(method.prompts.rows[1], method.prompts.rows[0]) == copy
    assert method.keys[1].max() <= 0.01
    assert torch.equal(method.general_prompt, general)
    with torch.no_grad():
        method.prompts.rows[1].add_(1.0)
    assert not torch.equal(method.prompts.rows[1], method.prompts.rows[0])  # a copy, not the same rows


def test_defaults_and_cost(tiny_encoder) -> None:
    config = DualPromptConfig(name="dual_prompt")
    assert (config.general_blocks, config.blocks) == ((0, 1), (2, 3, 4))
    assert (config.general_length, config.length, config.pull_weight, config.gradient_clip) == (5, 5, 1.0, 1.0)
    cost = measure(learner(tiny_encoder(), 3))
    assert cost["trainable_by_kind"] == {
        "general_prompt": 2 * 3 * 32,
        "head": 2 * 33,
        "keys": 32,
        "prompts": 2 * 4 * 32,
    }
    assert cost["stored_by_kind"]["prompts"] == 3 * 2 * 4 * 32
    assert DualPrompt.fit_defaults(None)["learning_rate"] == 0.03 * 128 / 256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": (1, 2)}, r"general_blocks \[0, 1\] and blocks \[1, 2\]: expected each block once"),
        ({"blocks": (2, 2)}, "expected each block once"),
        ({"start": (0.5, 0.1)}, r"start \[0.5, 0.1\]: expected first < second"),
        ({"length": -1}, "length"),
        ({"general_blocks": ()}, "general_blocks"),
        ({"pull_weight": -1}, "pull_weight"),
        ({"gradient_clip": -1}, "gradient_clip"),
    ],
)
def test_recipes_that_cannot_be(options, message) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe("digits", {"method": {"name": "dual_prompt", **options}})


def test_blocks_that_the_backbone_lacks(tiny_encoder) -> None:
    method = learner(tiny_encoder(), general_blocks=(0, 9), blocks=(1, 7))
    assert (method.general_blocks, method.prompts.blocks) == ((0,), (1,))
    with pytest.raises(BackboneError, match=r"method\.blocks: tiny has blocks 0 to 1"):
        learner(tiny_encoder(), blocks=(2, 3, 4))
    with pytest.raises(BackboneError, match=r"method\.general_blocks: tiny has blocks 0 to 1"):
        learner(tiny_encoder(), general_blocks=(5,))
