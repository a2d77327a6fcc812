"""Gumbel CL-LoRA: the gate against its definition, the weights against plain tensors, and what pruning may and may not
do."""

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lorica.adapters.attach import merged
from lorica.methods import Context
from lorica.methods.gumbel_cl_lora import GumbelCLLoRA, GumbelCLLoRAConfig, entropy, sparsemax
from lorica.types import Batch, Task

TASKS = [Task.of_new_classes(t, 2 * t, (f"class {2 * t}", f"class {2 * t + 1}")) for t in range(5)]
IMAGES = torch.rand(4, 3, 32, 32)


def finish(method: GumbelCLLoRA) -> None:
    method.end_task(context(method))


def context(method: GumbelCLLoRA, steps: int = 11) -> Context:
    return Context(method.task, lambda: iter(()), 1, steps, lambda parameters, epochs: None)


def learner(encoder, tasks: int, **options) -> GumbelCLLoRA:
    """A learner with trained-looking values; earlier tasks were ended without pruning anything."""
    torch.manual_seed(0)
    method = GumbelCLLoRA(
        GumbelCLLoRAConfig(name="gumbel_cl_lora", rank=2, **{"head_start": "kaiming", **options}), encoder
    )
    for task in TASKS[:tasks]:
        method.grow(task)
        with torch.no_grad():
            for update in method.directions:
                update.up.normal_()
                update.down.normal_()
    with torch.no_grad():
        method.magnitudes.copy_(torch.rand(tasks) + 0.5)
        for parameter in method.head.parameters():
            parameter.normal_()
    return method


def set_logits(method: GumbelCLLoRA, *logits: float) -> None:
    with torch.no_grad():
        method.logits.copy_(torch.tensor(logits))


# --- the gate -------------------------------------------------------------------------------------------------------


def nearest_on_the_simplex(scores: torch.Tensor) -> torch.Tensor:
    """By trying every support: the feasible point of least distance."""
    best, least = scores, float("inf")
    for size in range(1, len(scores) + 1):
        for support in itertools.combinations(range(len(scores)), size):
            point = torch.zeros_like(scores)
            chosen = list(support)
            point[chosen] = scores[chosen] - (scores[chosen].sum() - 1) / size
            distance = float((point - scores).square().sum())
            if point.min() >= 0 and distance < least:
                best, least = point, distance
    return best


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=7))
def test_sparsemax_is_the_projection_onto_the_simplex(scores: list[float]) -> None:
    z = torch.tensor(scores, dtype=torch.double)
    torch.testing.assert_close(sparsemax(z), nearest_on_the_simplex(z), atol=1e-9, rtol=0)
    assert float(sparsemax(z).sum()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([2, 1, 0.5, 0.1], [1, 0, 0, 0]), ([0.5, 0.3, 0.2, -0.4], [0.5, 0.3, 0.2, 0]), ([0.8, 0.4, 0.2, 0.04], None)],
)
def test_sparsemax_of_the_cards_examples(scores, expected) -> None:
    if expected is None:  # [2, 1, .5, .1] at tau = 2.5
        expected = [2 / 3, 4 / 15, 1 / 15, 0]
    torch.testing.assert_close(sparsemax(torch.tensor(scores)), torch.tensor(expected, dtype=torch.float))


@pytest.mark.parametrize("level", [0.0, 1e3, 1e6, -1e6])
def test_sparsemax_does_not_depend_on_the_level_of_its_scores(level) -> None:
    """In float32 the sums of scores near 1e6 lose what tells them apart: they gave points that sum to 0.875."""
    gates = sparsemax(torch.tensor([0.5, 0.25, 0.0]) + level)
    torch.testing.assert_close(gates, torch.tensor([7 / 12, 4 / 12, 1 / 12]), atol=1e-6, rtol=0)


def test_sparsemax_gradient() -> None:
    jacobian = torch.autograd.functional.jacobian(sparsemax, torch.tensor([0.5, 0.3, 0.25, -0.4]))
    expected = torch.zeros(4, 4)
    expected[:3, :3] = torch.eye(3) - 1 / 3
    torch.testing.assert_close(jacobian, expected)


def test_entropy() -> None:
    assert float(entropy(torch.tensor([0.25] * 4))) == pytest.approx(1.386294, abs=1e-5)
    gates = torch.tensor([1.0, 0.0], requires_grad=True)
    value = entropy(gates)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(gates.grad).all()


# --- the weights ----------------------------------------------------------------------------------------------------


def frobenius(up, down):
    return torch.linalg.norm(up @ down)


def product(up, down):
    return torch.linalg.norm(up) * torch.linalg.norm(down)


@pytest.mark.parametrize(("variant", "scale"), [("default", frobenius), ("readme", product), ("summary", product)])
def test_weights_of_each_reading(tiny_encoder, variant, scale) -> None:
    method = learner(tiny_encoder(), 3, variant=variant)
    set_logits(method, 0.3, 0.0, 0.1)
    alphas = method.magnitudes.tolist()
    # by hand: three scores 0.3, 0, 0.1 on the simplex: (s - (0.4 - 1) / 3); two scores 0.3, 0: (s - (0.3 - 1) / 2)
    gates = [0.65, 0.35, None] if variant == "summary" else [0.5, 0.2, 0.3]
    torch.testing.assert_close(method.temperature, torch.tensor(1.0))
    for site in method.encoder.select(("q", "v")):
        update = method.directions[site]
        factors = [*(update.frozen(k) for k in range(2)), (update.up, update.down)]
        expected = torch.zeros(32, 32)
        for gate, alpha, (up, down) in zip(gates, alphas, factors, strict=True):
            # the frozen factors are stored divided by their norm: dividing again by their own norm is the formula's
            # for the exact norm, and for the product norm the stored factors are it already
            if gate is None:
                expected = expected + alpha * up @ down
            elif down is update.down or scale is frobenius:
                expected = expected + gate * alpha * up @ down / scale(up, down)
            else:
                expected = expected + gate * alpha * up @ down
        torch.testing.assert_close(method.increment(site), expected.detach(), atol=1e-5, rtol=1e-4, check_layout=False)


def test_product_norm_divides_frozen_factors_when_they_freeze(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 1, variant="readme")
    update = next(iter(method.directions))
    up, down = update.up.detach().clone(), update.down.detach().clone()
    method.grow(TASKS[1])
    torch.testing.assert_close(update.frozen(0)[0] @ update.frozen(0)[1], up @ down / product(up, down))


def test_one_draw_of_noise_serves_all_projections_and_predictions_have_none(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 4)
    seen: list[torch.Tensor] = []
    original = method.increment

    def spy(site):
        assert method.step_gates is not None
        seen.append(method.step_gates.detach().clone())
        return original(site)

    for layer in method.encoder.modules():
        for rows, increment in getattr(layer, "increments", {}).items():
            layer.increments[rows] = lambda site=increment.args[0]: spy(site)
    batch = Batch(IMAGES, torch.tensor([6, 7, 6, 7]))
    method.begin_task(context(method))
    for _ in range(2):
        for terms in method.losses(batch):
            assert set(terms) == {"cross_entropy", "entropy"}
    assert len(seen) == 8
    assert all(torch.equal(gates, seen[0]) for gates in seen[:4])
    assert not torch.equal(seen[0], seen[4])
    assert method.step_gates is None
    first = method.gates(noisy=False, with_current=True)
    assert torch.equal(first, method.gates(noisy=False, with_current=True))


def test_every_trained_scalar_gets_a_gradient(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 3, noise=0.0)
    for parameter in method.trainable():
        parameter.requires_grad_(True)
    method.begin_task(context(method))
    for terms in method.losses(Batch(IMAGES, torch.tensor([4, 5, 4, 5]))):
        sum(terms.values()).backward()
    assert method.logits.grad is not None
    assert method.magnitudes.grad is not None
    assert method.logits.grad.abs().min() > 0
    assert method.magnitudes.grad.abs().min() > 0
    assert float(method.logits.grad.sum()) == pytest.approx(0, abs=1e-6)  # only differences matter


def test_the_first_task_is_not_gated(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 1)
    method.begin_task(context(method))
    [terms] = list(method.losses(Batch(IMAGES, torch.tensor([0, 1, 0, 1]))))
    assert terms["entropy"].item() == pytest.approx(0, abs=1e-9)
    assert method.gates(noisy=True, with_current=True).tolist() == [1.0]
    finish(method)
    assert method.kept == [0]


@pytest.mark.parametrize(
    ("variant", "at"),
    [
        ("default", {0: 5.0, 5: 2.5**0.5, 10: 0.5}),
        ("readme", {0: 5.0, 5: 0.5 + 4.5 * 0.999**5}),
        ("default+", {0: 5.0, 5: 0.5 + 4.5 * 0.9**5}),
    ],
)
def test_temperature(tiny_encoder, variant, at) -> None:
    """11 steps: geometric from 5 to 0.5 (half way: the square root of 2.5), or 0.5 + 4.5 * rate^step."""
    options = {"anneal_rate": 0.9} if variant == "default+" else {}
    method = learner(tiny_encoder(), 2, variant=variant.rstrip("+"), **options)
    method.begin_task(context(method, steps=11))
    reached = []
    for _ in range(11):
        for _ in range(2):  # parts of one batch
            for _ in method.losses(Batch(IMAGES, torch.tensor([2, 3, 2, 3]))):
                reached.append(method.temperature.item())
        assert reached.pop() == reached[-1]
        method.edit_gradients()
    assert {step: reached[step] for step in at} == pytest.approx(at)
    assert method.diagnostics()["temperature"] == pytest.approx(reached[-1])


# --- pruning --------------------------------------------------------------------------------------------------------


def test_a_closed_current_direction_is_pruned_without_a_change_of_function(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 3)
    set_logits(method, 1.0, 0.9, -3.0)
    with torch.no_grad():
        before = method.predict(IMAGES)
        finish(method)
        torch.testing.assert_close(method.predict(IMAGES), before, atol=1e-5, rtol=1e-5)
    assert method.kept == method.stored == [0, 1]
    assert not any("pruned" in key for key in method.own_state())
    assert next(iter(method.directions)).up.shape[1] == 0
    assert method.diagnostics()["gates"] == pytest.approx([0.55, 0.45, 0.0])
    method.grow(TASKS[3])
    assert method.kept == [0, 1, 3]
    assert method.logits.tolist() == pytest.approx([1.0, 0.9, 0.95])  # a new logit starts level with the kept ones


def test_an_open_direction_and_closed_earlier_ones_stay(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 3)
    set_logits(method, 1.0, -3.0, 0.9)
    finish(method)
    assert method.kept == [0, 1, 2]
    pruning = learner(tiny_encoder(), 3, prune_past=True)
    set_logits(pruning, 1.0, -3.0, 0.9)
    finish(pruning)
    assert pruning.kept == [0, 2]


def test_all_but_one_pruned(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 4, variant="summary")
    set_logits(method, -9.0, 9.0, -9.0, -9.0)
    finish(method)
    assert method.kept == [1]
    assert torch.isfinite(method.predict(IMAGES)).all()
    method.grow(TASKS[4])
    assert method.logits.tolist() == [0.0, 0.0]  # the documents start logits and magnitudes anew
    assert method.magnitudes.tolist() == pytest.approx([0.8, 0.8])


@pytest.mark.parametrize(
    ("options", "gates"),
    [
        ({"top_k": 2}, [0.55, 0.45, 0.0]),  # of 1, 0.9, 0.8 the first two: s - (1.9 - 1) / 2
        ({"top_k": 9}, [1.3 / 3, 1 / 3, 0.7 / 3]),
        ({"hard_evaluation": True}, [1.0, 0.0, 0.0]),
    ],
)
def test_gates_that_open_for_some(tiny_encoder, options, gates) -> None:
    method = learner(tiny_encoder(), 3, **options)
    set_logits(method, 1.0, 0.9, 0.8)
    assert method.diagnostics()["gates"] == pytest.approx(gates, abs=1e-6)
    first, third = (next(iter(method.directions)).frozen(0), next(iter(method.directions)))
    site = method.encoder.select(("q", "v"))[0]
    before = method.increment(site).detach().clone()
    with torch.no_grad():
        third.up.mul_(-1)  # the direction of a closed gate adds nothing
    assert torch.equal(method.increment(site), before) == (gates[2] == 0)
    with torch.no_grad():
        first[0].mul_(-1)
    assert not torch.allclose(method.increment(site), before, atol=1e-3)


def test_a_hard_choice_is_for_predictions_alone(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 3, hard_evaluation=True)
    set_logits(method, 1.0, 0.9, 0.8)
    assert method.gates(noisy=False, with_current=True).tolist() == pytest.approx([1.3 / 3, 1 / 3, 0.7 / 3])
    finish(method)
    assert method.kept == [0, 1, 2]  # what is pruned is decided by the soft gates


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2]),
        ({"growth_threshold": 0.25}, [0, 1]),
        ({"growth_threshold": 0.25, "adaptive_threshold": True}, [0, 1, 2]),  # 0.25 / 3 < 0.7 / 3
        ({"growth_threshold": 0.75, "adaptive_threshold": True}, [0, 1]),
    ],
)
def test_a_direction_stays_where_its_gate_exceeds_the_threshold(tiny_encoder, options, kept) -> None:
    method = learner(tiny_encoder(), 3, **options)
    set_logits(method, 1.0, 0.9, 0.8)  # gates 1.3, 1 and 0.7 thirds
    finish(method)
    assert method.kept == kept


@pytest.mark.parametrize(("variant", "start"), [("default", 1.0), ("readme", 1.0), ("summary", 0.8)])
def test_magnitudes_start_as_in_each_source(tiny_encoder, variant, start) -> None:
    method = GumbelCLLoRA(GumbelCLLoRAConfig(name="gumbel_cl_lora", rank=2, variant=variant), tiny_encoder())
    method.grow(TASKS[0])
    assert method.magnitudes.tolist() == pytest.approx([start])


@pytest.mark.parametrize("keep_pruned", [False, True])
def test_pruned_directions_are_on_disk_only_when_asked(tiny_encoder, keep_pruned) -> None:
    method = learner(tiny_encoder(), 3, keep_pruned=keep_pruned)
    set_logits(method, 1.0, 0.9, -3.0)
    finish(method)
    method.grow(TASKS[3])
    update = next(iter(method.directions))
    assert update.ranks == ([2, 2, 2] if keep_pruned else [2, 2])
    assert method.diagnostics()["magnitudes"][2] == method.diagnostics()["gates"][2] == 0
    with torch.no_grad():
        before = method.predict(IMAGES)
        for each in method.directions:  # whatever the pruned factors are, they add nothing
            if keep_pruned:
                each.frozen(2)[0].fill_(100.0)
        assert torch.equal(method.predict(IMAGES), before)


@pytest.mark.parametrize("keep_pruned", [False, True])
@pytest.mark.parametrize("variant", ["default", "readme", "summary"])
def test_predictions_after_the_current_direction_was_pruned(tiny_encoder, variant, keep_pruned) -> None:
    method = learner(tiny_encoder(), 3, variant=variant, keep_pruned=keep_pruned)
    set_logits(method, 1.0, 0.9, -3.0)
    finish(method)
    assert method.kept == [0, 1]
    with torch.no_grad():
        expected = method.predict(IMAGES)
        torch.testing.assert_close(merged(method).predict(IMAGES), expected, atol=1e-5, rtol=1e-5)
    assert method.diagnostics()["gates"] == pytest.approx([0.55, 0.45, 0.0])


@pytest.mark.parametrize("temperature", [(5, 0), (0, 0.5), (5, -1)])
def test_a_temperature_that_is_not_positive_is_refused(temperature) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        GumbelCLLoRAConfig(name="gumbel_cl_lora", temperature=temperature)


@pytest.mark.parametrize("keep_pruned", [False, True])
def test_the_mask_survives_a_checkpoint(tiny_encoder, keep_pruned) -> None:
    method = learner(tiny_encoder(), 4, keep_pruned=keep_pruned, prune_past=True)
    set_logits(method, 1.0, -3.0, 0.9, -3.0)
    finish(method)
    loaded = GumbelCLLoRA(method.config, tiny_encoder())
    for task in TASKS[:4]:
        loaded.grow(task)
    loaded.restore_structure(json.loads(json.dumps(method.structure())))
    loaded.load_own_state(method.own_state())
    assert loaded.kept == [0, 2]
    with torch.no_grad():
        assert torch.equal(loaded.predict(IMAGES), method.predict(IMAGES))


# --- a gate for each block --------------------------------------------------------------------------------------------


def test_groups_of_scores_are_projected_one_by_one() -> None:
    scores = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    gates = sparsemax(scores)
    torch.testing.assert_close(gates, torch.stack([sparsemax(column) for column in scores.T], dim=1))
    torch.testing.assert_close(entropy(gates), torch.stack([entropy(column) for column in gates.T]).mean())


@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"hard_evaluation": True}], ids=["plain", "top", "hard"])
def test_each_block_has_the_gate_of_its_own_logits(tiny_encoder, options) -> None:
    method = learner(tiny_encoder(), 3, gate="block", **options)
    assert method.logits.shape == (3, 2)
    with torch.no_grad():
        method.logits.copy_(torch.tensor([[9.0, 0.2], [0.0, 0.0], [0.3, 0.1]]))
        method.temperature.fill_(0.5)
    networks = []
    for block in range(2):
        alone = learner(tiny_encoder(), 3, **options)
        set_logits(alone, *method.logits[:, block].tolist())
        alone.temperature.fill_(0.5)
        networks.append(alone)
    for site in method.encoder.select(method.config.projections):
        torch.testing.assert_close(method.increment(site), networks[site.block].increment(site))
    expected = torch.stack([alone.settled_gates() for alone in networks]).mean(0)
    assert method.diagnostics()["gates"] == pytest.approx(expected.tolist())


@pytest.mark.parametrize(("logits", "kept"), [([0.0, 0.0], [0, 1]), ([0.0, 9.0], [0, 1, 2])])
def test_a_direction_is_pruned_that_is_closed_in_all_blocks(tiny_encoder, logits, kept) -> None:
    method = learner(tiny_encoder(), 3, gate="block")
    with torch.no_grad():
        method.logits.copy_(torch.tensor([[9.0, 9.0], [0.0, 0.0], logits]))
    finish(method)
    assert method.kept == kept


def test_blocks_draw_noise_of_their_own_and_learn(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 3, gate="block")
    method.temperature.fill_(5.0)
    gates = method.gates(noisy=True, with_current=True)
    assert not torch.equal(gates[:, 0], gates[:, 1])
    torch.testing.assert_close(gates.sum(0), torch.ones(2))
    method.begin_task(context(method))
    terms = next(method.losses(Batch(IMAGES, torch.tensor([4, 5, 4, 5]))))
    sum(terms.values()).backward()
    assert (method.logits.grad != 0).all()
    method.grow(TASKS[3])
    torch.testing.assert_close(method.logits[3], method.logits[:3].mean(0))
