"""O-LoRA: the penalty against numbers by hand, where its gradient goes, and the sum of the updates."""

import itertools

import pytest
import torch

from lorica.methods.o_lora import OLoRA, OLoRAConfig, overlap
from lorica.types import Batch, Task

TASKS = [Task.of_new_classes(t, 2 * t, (f"class {2 * t}", f"class {2 * t + 1}")) for t in range(4)]
EARLIER = torch.tensor([[1.0, 2.0, 2.0], [0.0, 3.0, 4.0]])  # rows of length 3 and 5
CURRENT = torch.tensor([[1.0, 0.0, 1.0], [2.0, -1.0, 0.0]])  # and of length sqrt(2) and sqrt(5)


def learner(encoder, tasks: int, **options) -> OLoRA:
    """A learner with trained-looking values."""
    torch.manual_seed(0)
    method = OLoRA(OLoRAConfig(name="o_lora", **{"rank": 2, "head_start": "kaiming", **options}), encoder)
    for task in TASKS[:tasks]:
        method.grow(task)
        with torch.no_grad():
            for parameter in method.trainable():
                parameter.normal_()
    return method


@pytest.mark.parametrize(
    ("penalty", "row_normalised", "expected"),
    [
        ("l1", False, 10.0),  # the inner products are 3, 0, 4 and -3
        ("squared", False, 34.0),
        ("l1", True, 0.707107 + 0.565685 + 0.268328),  # 3 / (3 sqrt 2), 4 / (5 sqrt 2), 3 / (5 sqrt 5)
        ("squared", True, 0.5 + 0.32 + 0.072),
    ],
)
def test_penalty_by_hand(penalty, row_normalised, expected) -> None:
    value = overlap(EARLIER, CURRENT, penalty=penalty, row_normalised=row_normalised)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    twice = overlap(torch.cat([EARLIER, EARLIER]), CURRENT, penalty=penalty, row_normalised=row_normalised)
    assert twice.item() == pytest.approx(2 * expected, rel=1e-5)  # tasks add up
    assert overlap(EARLIER[:0], CURRENT, penalty=penalty, row_normalised=row_normalised).item() == 0


@pytest.mark.parametrize(("variant", "power"), [("paper", 2), ("released_code", 1)])
def test_loss_terms_of_each_variant(tiny_encoder, variant, power) -> None:
    method = learner(tiny_encoder(), 1, variant=variant, norm_weight=0.1)
    [terms] = method.losses(Batch(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 0, 1])))
    assert terms["orthogonality"].item() == 0
    downs = [update.down.detach().clone() for update in method.updates]
    method.grow(TASKS[1])
    expected = 0.5 * sum((d @ u.down.T).abs().pow(power).sum() for d, u in zip(downs, method.updates, strict=True))
    lengths = 0.1 * sum(u.down.square().sum().sqrt() for u in method.updates)  # U = 0
    terms = method.regularisers()
    torch.testing.assert_close(terms["orthogonality"], expected)
    torch.testing.assert_close(terms["norms"], lengths)
    assert "norms" not in learner(tiny_encoder(), 1, variant=variant).regularisers()


def test_rows_are_normalised_where_the_recipe_says_so(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 2, row_normalised=True, penalty="l1")
    cosines = [
        torch.nn.functional.cosine_similarity(old, new, dim=0).abs()
        for update in method.updates
        for old in update.frozen_down
        for new in update.down
    ]
    torch.testing.assert_close(method.regularisers()["orthogonality"], 0.5 * torch.stack(cosines).sum())


def test_gradient_of_the_penalty_reaches_the_current_down_only(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 2)
    for parameter in method.parameters():
        parameter.requires_grad_(True)
    method.regularisers()["orthogonality"].backward()
    reached = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert reached == {f"updates.block{block}_{kind}.down" for block in range(2) for kind in "qv"}
    for update in method.updates:  # of sum (D_1 D_2')^2 / 2
        torch.testing.assert_close(update.down.grad, update.down.detach() @ update.frozen_down.T @ update.frozen_down)


def test_norms_have_a_gradient_where_up_is_zero(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 1, norm_weight=1.0)
    method.grow(TASKS[1])
    for parameter in method.trainable():
        parameter.requires_grad_(True)
    method.regularisers()["norms"].backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in method.updates.factors())


@pytest.mark.parametrize(("options", "scale"), [({}, 1.0), ({"variant": "released_code"}, 16.0), ({"scale": 0.5}, 0.5)])
def test_weight_is_the_scaled_sum_of_separate_updates(tiny_encoder, options, scale) -> None:
    """The released code's factor is 32 / r, and r = 2 here."""
    torch.manual_seed(0)
    method = OLoRA(OLoRAConfig(name="o_lora", rank=2, **options), tiny_encoder())
    sums = {site: torch.zeros(32, 32) for site in method.encoder.select(("q", "v"))}
    for task in TASKS[:3]:
        method.grow(task)
        for site in sums:
            assert torch.equal(method.updates[site].up, torch.zeros(32, 2))
            with torch.no_grad():
                up, down = method.updates[site].up.normal_(), method.updates[site].down
            sums[site] += scale * up @ down.detach()
    for site, expected in sums.items():
        torch.testing.assert_close(method.increment(site).detach(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("penalty", ["squared", "l1"])
def test_a_large_weight_makes_the_spaces_orthogonal(tiny_encoder, penalty) -> None:
    torch.manual_seed(0)
    method = OLoRA(OLoRAConfig(name="o_lora", rank=2, penalty=penalty, orthogonality_weight=100.0), tiny_encoder())
    method.grow(TASKS[0])
    method.grow(TASKS[1])
    parameters = [parameter.requires_grad_(True) for parameter in method.trainable()]
    optimizer = torch.optim.SGD(parameters, lr=1e-3 if penalty == "squared" else 1e-5)
    batch = Batch(torch.rand(4, 3, 32, 32), torch.tensor([2, 3, 2, 3]))
    values = []
    for _ in range(50):
        [terms] = method.losses(batch)
        values.append(sum((u.frozen_down @ u.down.T).abs().sum().item() for u in method.updates))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    assert all(later < earlier for earlier, later in itertools.pairwise(values))
    assert values[-1] < values[0] * (0.5 if penalty == "squared" else 0.9)


def test_penalty_is_in_full_precision_under_autocast(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 2)
    exact = method.regularisers()["orthogonality"].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = method.losses(Batch(torch.rand(4, 3, 32, 32), torch.tensor([2, 3, 2, 3])))
        terms = next(losses)
        assert torch.is_autocast_enabled("cpu")
    assert terms["orthogonality"].dtype == torch.float32
    assert terms["orthogonality"].item() == pytest.approx(exact, rel=1e-6)
