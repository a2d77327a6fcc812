"""SD-LoRA against plain-tensor evaluations of its two formulas, written from the method card and not from the
library."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from lorica.adapters.attach import merged
from lorica.methods import Context, find_method
from lorica.methods.sd_lora import SDLoRA, SDLoRAConfig, SDLoRAKD, SDLoRAKDConfig, SDLoRARRConfig
from lorica.types import Batch, Task

RANK = 3


def pairs(number: int) -> list[Task]:
    return [Task.of_new_classes(t, 2 * t, (f"class {2 * t}", f"class {2 * t + 1}")) for t in range(number)]


def learned(encoder, tasks: int, variant: str, seed: int = 0, **options):
    """A method grown for that many tasks, with arbitrary trained-looking values, and all factors as they were set."""
    torch.manual_seed(seed)
    method = SDLoRA(
        SDLoRAConfig(name="sd_lora", variant=variant, rank=RANK, **{"head_start": "kaiming", **options}), encoder
    )
    factors = []
    for task in pairs(tasks):
        method.grow(task)
        with torch.no_grad():
            for update in method.directions:
                update.up.normal_()
                update.down.normal_()
        factors.append([(u.up.detach().clone(), u.down.detach().clone()) for u in method.directions])
    with torch.no_grad():
        method.magnitudes.copy_(torch.rand(tasks) + 0.2)
        for parameter in method.head.parameters():
            parameter.normal_()
    return method, factors


def dense_weights(plain, factors, magnitudes, scale):
    """W0 + sum of scaled dense products, written into the qkv weights of an untouched copy of the backbone."""
    width = plain.width
    for block in range(len(plain.blocks)):
        weight = plain.vit.blocks[block].attn.qkv.weight
        for kind, rows in ((0, slice(0, width)), (1, slice(2 * width, 3 * width))):  # q, then v
            for k, per_site in enumerate(factors):
                up, down = per_site[2 * block + kind]
                with torch.no_grad():
                    weight[rows] += magnitudes[k] * (up @ down) / scale(up, down, k == len(factors) - 1)


def paper_scale(up, down, current):
    return torch.sqrt(((up @ down) ** 2).sum())


def released_scale(up, down, current):
    return 1.0 if current else torch.sqrt((up**2).sum()) * torch.sqrt((down**2).sum())


@pytest.mark.parametrize("tasks", [1, 2, 20])
@pytest.mark.parametrize(("variant", "scale"), [("paper", paper_scale), ("released_code", released_scale)])
def test_both_variants_equal_a_dense_evaluation_of_their_formula(tiny_encoder, variant, scale, tasks) -> None:
    method, factors = learned(tiny_encoder(), tasks, variant)
    plain = tiny_encoder()
    dense_weights(plain, factors, method.magnitudes.tolist(), scale)
    x = torch.rand(4, 3, 32, 32)
    weight, bias = torch.cat(list(method.head.weights)), torch.cat(list(method.head.biases))
    with torch.no_grad():
        features = plain.vit.forward_head(plain.vit.forward_features((x - 0.5) / 0.5), pre_logits=True)
        torch.testing.assert_close(method.encoder.features(x), features, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(method.predict(x), F.linear(features, weight, bias), atol=1e-5, rtol=1e-5)


def test_length_of_the_current_factors_matters_only_in_the_released_code(tiny_encoder) -> None:
    for variant, same in (("paper", True), ("released_code", False)):
        method, _ = learned(tiny_encoder(), 2, variant)
        x = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            before = method.predict(x)
            for update in method.directions:
                update.up *= 7
            assert torch.allclose(method.predict(x), before, atol=1e-4) == same


def test_what_trains_and_what_gets_a_gradient(tiny_encoder) -> None:
    method, _ = learned(tiny_encoder(), 3, "paper")
    trainable = method.trainable()
    method.requires_grad_(False)
    for parameter in trainable:
        parameter.requires_grad_(True)
    loss = next(method.losses(Batch(torch.rand(4, 3, 32, 32), torch.tensor([4, 5, 4, 5]))))["cross_entropy"]
    loss.backward()
    sites = 2 * len(method.encoder.blocks)
    # one vector of magnitudes for all projections, U and D of each projection, the new rows of the head
    assert len(trainable) == 1 + 2 * sites + 2
    assert method.magnitudes.shape == (3,)
    assert method.magnitudes.grad is not None
    assert method.magnitudes.grad.abs().min() > 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trainable)
    assert all(p.grad is None for p in method.encoder.parameters())
    assert all(w.grad is None for w in list(method.head.weights)[:-1])
    assert all(not update.frozen_up.requires_grad for update in method.directions)


def test_gradient_of_every_magnitude_equals_the_dense_formula(tiny_encoder) -> None:
    method, factors = learned(tiny_encoder(), 4, "paper")
    batch = Batch(torch.rand(4, 3, 32, 32), torch.tensor([6, 7, 7, 6]))
    for parameter in method.trainable():
        parameter.requires_grad_(True)
    next(method.losses(batch))["cross_entropy"].backward()

    plain = tiny_encoder()
    alpha = method.magnitudes.detach().clone().requires_grad_(True)
    weights, width = {}, plain.width
    for block in range(len(plain.blocks)):
        delta = [
            sum(
                alpha[k] * (u @ d) / torch.linalg.norm(u @ d)
                for k, (u, d) in ((k, f[2 * block + kind]) for k, f in enumerate(factors))
            )
            for kind in (0, 1)
        ]
        increment = torch.cat([delta[0], torch.zeros(width, width), delta[1]])
        weights[f"vit.blocks.{block}.attn.qkv.weight"] = plain.vit.blocks[block].attn.qkv.weight + increment

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = plain.vit

        def forward(self, x):
            return self.vit.forward_head(self.vit.forward_features((x - 0.5) / 0.5), pre_logits=True)

    features = torch.func.functional_call(Features(), weights, (batch.inputs,))
    logits = F.linear(features, method.head.weights[3], method.head.biases[3])
    F.cross_entropy(logits, batch.labels - 6).backward()
    torch.testing.assert_close(method.magnitudes.grad, alpha.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("variant", "options", "expected"),
    [
        ("paper", {}, [5.0, 6.0, 1.0]),
        ("paper", {"reset_magnitudes": True}, [1.0, 1.0, 1.0]),
        ("released_code", {}, [0.8, 0.8, 0.8]),
        ("released_code", {"reset_magnitudes": False}, [5.0, 6.0, 0.8]),
    ],
)
def test_magnitudes_are_carried_or_reset(tiny_encoder, variant, options, expected) -> None:
    method, _ = learned(tiny_encoder(), 2, variant, **options)
    with torch.no_grad():
        method.magnitudes.copy_(torch.tensor([5.0, 6.0]))
    method.grow(pairs(3)[2])
    assert method.diagnostics()["magnitudes"] == pytest.approx(expected)


def test_a_boundary_moves_the_function_only_in_the_released_code(tiny_encoder) -> None:
    """In the paper's formula the function moves by the new unit direction alone; the code also renormalises the last
    one."""
    for variant, moves in (("paper", False), ("released_code", True)):
        method, _ = learned(tiny_encoder(), 2, variant)
        site = method.encoder.select(("q",))[0]
        before = method.increment(site).detach()
        method.grow(pairs(3)[2])
        with torch.no_grad():
            update = method.directions[site]
            old = update(method.magnitudes[:-1], 0.0)
        assert torch.allclose(old, before, atol=1e-5) == (not moves)


def test_start_of_a_direction(tiny_encoder) -> None:
    for variant, zero in (("paper", False), ("released_code", True)):
        torch.manual_seed(0)
        method = SDLoRA(SDLoRAConfig(name="sd_lora", variant=variant), tiny_encoder())
        method.grow(pairs(1)[0])
        update = next(iter(method.directions))
        assert (update.up.abs().max() == 0) == zero
        assert 0 < update.down.abs().max() <= 1 / math.sqrt(32)
        assert torch.isfinite(method.predict(torch.rand(1, 3, 32, 32))).all()


def test_loss_runs_over_the_current_classes_unless_told_otherwise(tiny_encoder) -> None:
    batch = Batch(torch.rand(4, 3, 32, 32), torch.tensor([2, 3, 3, 2]))
    for scope, first in (("current_task", 2), ("all_seen", 0)):
        method, _ = learned(tiny_encoder(), 2, "paper", cross_entropy=scope)
        expected = F.cross_entropy(method.predict(batch.inputs)[:, first:], batch.labels - first)
        torch.testing.assert_close(next(method.losses(batch))["cross_entropy"], expected)
        assert len(method.head_parameters()) == (2 if scope == "current_task" else 4)


def test_released_code_trains_with_sgd() -> None:
    assert SDLoRA.fit_defaults("released_code") == {"optimizer": "sgd"}
    assert SDLoRA.fit_defaults("paper") == {}


def test_learnable_parameters_of_the_paper(tiny_encoder) -> None:
    """ViT-B/16, rank 10, q and v of 12 blocks: 368,640 floats a task beside magnitudes and head (card, section 0)."""
    from lorica.backbones.timm_vit import load_timm_vit

    method = SDLoRA(SDLoRAConfig(name="sd_lora"), load_timm_vit("vit_base_patch16_224", pretrained=False))
    method.grow(Task.of_new_classes(0, 0, tuple(map(str, range(10)))))
    assert sum(p.numel() for p in method.directions.factors()) == 368_640
    assert sum(p.numel() for p in method.head_parameters()) == 7_690


# --- rank reduction -------------------------------------------------------------------------------------------------


def family_member(name: str, encoder, tasks: int, seed: int = 0, **options):
    torch.manual_seed(seed)
    cls = find_method(name)
    method = cls(cls.Config(name=name, **{"head_start": "kaiming", **options}), encoder)
    for task in pairs(tasks):
        method.grow(task)
    return method


def ranks(method) -> list[int]:
    update = next(iter(method.directions))
    return [*update.ranks, update.up.shape[1]]


@pytest.mark.parametrize(
    ("variant", "number", "expected", "total"),
    [
        ("paper", 5, [10, 10, 10, 8, 8], 46),
        ("paper", 10, [10] * 3 + [8] * 4 + [6] * 3, 80),
        ("paper", 20, [10] * 3 + [8] * 4 + [6] * 13, 140),
        ("released_code", 5, [10, 10, 10, 10, 8], 48),
        ("released_code", 20, [10] * 4 + [8] * 4 + [6] * 12, 144),
    ],
)
def test_ranks_drop_where_the_source_says(tiny_encoder, variant, number, expected, total) -> None:
    method = family_member("sd_lora_rr", tiny_encoder(), number, variant=variant)
    assert ranks(method) == expected
    assert sum(expected) == total


def test_directions_of_different_rank_add_up_and_merge(tiny_encoder) -> None:
    method = family_member("sd_lora_rr", tiny_encoder(), 4, rank=4, reduced_from=(2, 4), reduced_ranks=(3, 1))
    assert ranks(method) == [4, 3, 3, 1]
    with torch.no_grad():
        method.magnitudes.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
    for site in method.encoder.select(("q", "v")):
        update = method.directions[site]
        products = [u @ d for u, d in (*(update.frozen(k) for k in range(3)), (update.up, update.down))]
        expected = sum(a * p / torch.linalg.norm(p) for a, p in zip([1.0, -2.0, 0.5, 3.0], products, strict=True))
        torch.testing.assert_close(method.increment(site), expected, atol=1e-5, rtol=1e-5)


def test_without_reductions_it_is_sd_lora_to_the_bit(tiny_encoder) -> None:
    plain = family_member("sd_lora", tiny_encoder(), 5).state_dict()
    reduced = family_member("sd_lora_rr", tiny_encoder(), 5, reduced_from=(), reduced_ranks=()).state_dict()
    assert plain.keys() == reduced.keys()
    assert all(torch.equal(plain[key], reduced[key]) for key in plain)


@pytest.mark.parametrize("options", [{"reduced_from": (8, 4)}, {"reduced_ranks": (8,)}, {"reduced_from": (0, 4)}])
def test_a_schedule_that_makes_no_sense_is_refused(options) -> None:
    with pytest.raises(ValidationError, match=r"reduced_from|greater than 0"):
        SDLoRARRConfig(name="sd_lora_rr", **options)


@pytest.mark.parametrize("options", [{"rank": 4}, {"reduced_ranks": (8, 12)}, {"rank": 7}])
def test_ranks_never_rise(options) -> None:
    with pytest.raises(ValidationError, match="a rank must not rise"):
        SDLoRARRConfig(name="sd_lora_rr", **options)
    assert SDLoRARRConfig(name="sd_lora_rr", rank=8, reduced_ranks=(8, 6)).rank == 8  # it may stay


def test_a_task_has_one_rank() -> None:
    with pytest.raises(ValidationError, match="each once"):
        SDLoRARRConfig(name="sd_lora_rr", reduced_from=(4, 4))


@pytest.mark.parametrize("variant", ["paper", "absorbing"])
def test_magnitudes_that_absorb_are_not_reset(variant) -> None:
    with pytest.raises(ValidationError, match="absorbs"):
        SDLoRAKDConfig(name="sd_lora_kd", variant=variant, reset_magnitudes=True)


@pytest.mark.parametrize("norm", ["frobenius", "product"])
@pytest.mark.parametrize("variant", ["paper", "released_code"])
def test_norm_and_start_of_magnitudes_are_settings(tiny_encoder, variant, norm) -> None:
    """LibContinual's reading is the released code's with magnitudes from 1."""
    config = SDLoRAConfig(name="sd_lora", variant=variant, norm=norm, initial_magnitude=1.5, rank=3)
    method = SDLoRA(config, tiny_encoder())
    for task in pairs(2):
        method.grow(task)
    assert method.magnitudes.tolist() == [1.5, 1.5]
    update = next(iter(method.directions))
    with torch.no_grad():
        up, down = update.up.normal_().clone(), update.down.normal_().clone()
    site = method.encoder.select(("q", "v"))[0]
    size = torch.linalg.norm(up @ down) if norm == "frobenius" else torch.linalg.norm(up) * torch.linalg.norm(down)
    frozen_up, frozen_down = update.frozen(0)
    expected = 1.5 * (up @ down / (size if variant == "paper" else 1) + frozen_up @ frozen_down)
    torch.testing.assert_close(method.increment(site), expected, check_layout=False)
    method.grow(pairs(3)[2])
    kept_up, kept_down = update.frozen(1)
    torch.testing.assert_close(kept_up @ kept_down, up @ down / size)


# --- distillation ---------------------------------------------------------------------------------------------------


def orthonormal(count: int, width: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Rank-1 unit directions that are orthogonal to each other: e_k f_k' with orthonormal e and f."""
    up, down = torch.linalg.qr(torch.randn(width, count))[0], torch.linalg.qr(torch.randn(width, count))[0]
    return [(up[:, [k]], down[:, [k]].T) for k in range(count)]


def distilled(encoder, last: list[tuple[float, int]], alphas: list[float], **options):
    """A learner of two orthonormal directions, and a third that is this combination of (weight, number of
    direction)."""
    torch.manual_seed(0)
    method = SDLoRAKD(SDLoRAKDConfig(name="sd_lora_kd", rank=1, **{"head_start": "kaiming", **options}), encoder)
    directions = {update: orthonormal(3) for update in method.directions}
    for index, task in enumerate(pairs(3)):
        method.grow(task)
        for update, each in directions.items():
            mixture = last if index == 2 else [(1.0, index)]
            update.up = nn.Parameter(torch.cat([weight * each[k][0] for weight, k in mixture], dim=1))
            update.down = nn.Parameter(torch.cat([each[k][1] for _, k in mixture]))
    with torch.no_grad():
        method.magnitudes.copy_(torch.tensor(alphas))
        for parameter in method.head.parameters():
            parameter.normal_()
    return method


def finish(method) -> list[tuple[list[nn.Parameter], int]]:
    """Ends the task; returns the second stages that were asked for."""
    stages: list[tuple[list[nn.Parameter], int]] = []
    method.end_task(Context(method.task, lambda: iter(()), 1, 1, lambda *stage: stages.append(stage)))
    return stages


def test_a_combination_of_kept_directions_is_absorbed_with_its_coefficients(tiny_encoder) -> None:
    method = distilled(tiny_encoder(), [(0.6, 0), (0.8, 1)], [1.0, 2.0, 0.5])
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        before = method.predict(x)
        assert finish(method) == []
        torch.testing.assert_close(method.predict(x), before, atol=1e-4, rtol=1e-4)
    assert method.residual == pytest.approx(0, abs=1e-3)
    torch.testing.assert_close(method.magnitudes.detach(), torch.tensor([1 + 0.5 * 0.6, 2 + 0.5 * 0.8]))
    assert method.diagnostics()["kept"] == [0, 1]
    assert method.diagnostics()["magnitudes"] == pytest.approx([1.3, 2.4, 0.0])
    # the next task does not take the slot of the absorbed one
    method.grow(pairs(4)[3])
    assert method.diagnostics()["kept"] == [0, 1, 3]
    assert len(next(iter(method.directions)).ranks) == 2


def test_eq_8_as_printed_changes_the_function(tiny_encoder) -> None:
    method = distilled(tiny_encoder(), [(0.6, 0), (0.8, 1)], [1.0, 2.0, 0.5], literal_update=True)
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        before = method.predict(x)
        finish(method)
        assert not torch.allclose(method.predict(x), before, atol=1e-3)
    torch.testing.assert_close(method.magnitudes.detach(), torch.tensor([1.6, 2.8]))


@pytest.mark.parametrize(("squared", "expected"), [(False, 0.8), (True, 0.64)])
def test_what_is_partly_new_is_kept_and_its_residual_logged(tiny_encoder, squared, expected) -> None:
    method = distilled(tiny_encoder(), [(0.6, 0), (0.8, 2)], [1.0, 1.0, 1.0], squared_residual=squared)
    finish(method)
    assert method.diagnostics()["residual"] == pytest.approx(expected, abs=1e-5)
    assert method.diagnostics()["kept"] == [0, 1, 2]


def test_an_absorbed_direction_leaves_a_model_that_merges(tiny_encoder) -> None:
    method = distilled(tiny_encoder(), [(0.6, 0), (0.8, 1)], [1.0, 2.0, 0.5])
    finish(method)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = method.predict(x)
        torch.testing.assert_close(merged(method).predict(x), expected, atol=1e-5, rtol=1e-5)


def test_with_the_papers_tolerance_it_starts_and_trains_as_sd_lora_to_the_bit(tiny_encoder) -> None:
    plain = family_member("sd_lora", tiny_encoder(), 5).state_dict()
    method = family_member("sd_lora_kd", tiny_encoder(), 5)
    finish(method)
    kept = method.state_dict()
    kept.pop("start_seed")
    assert plain.keys() == kept.keys()
    assert all(torch.equal(plain[key], kept[key]) for key in plain)


@pytest.mark.parametrize(("tolerance", "kept"), [(0.0, [0, 1, 2, 3]), (1.0, [0])])
def test_the_two_ends_of_the_tolerance(tiny_encoder, tolerance, kept) -> None:
    method = SDLoRAKD(SDLoRAKDConfig(name="sd_lora_kd", rank=2, tolerance=tolerance), tiny_encoder())
    for task in pairs(4):
        method.grow(task)
        finish(method)
    assert method.diagnostics()["kept"] == kept
    assert len(method.magnitudes) == len(kept)


def test_after_absorbing_magnitudes_and_new_rows_are_fitted_again(tiny_encoder) -> None:
    method = distilled(tiny_encoder(), [(0.6, 0), (0.8, 1)], [1.0, 1.0, 1.0], variant="absorbing", refit_epochs=3)
    [(parameters, epochs)] = finish(method)
    assert epochs == 3
    assert [id(p) for p in parameters] == [
        id(p) for p in [method.magnitudes, *method.head.rows_of(method.task.classes)]
    ]


@pytest.mark.parametrize("start", ["fresh", "shared", "previous"])
def test_where_a_direction_starts(tiny_encoder, start) -> None:
    method = SDLoRAKD(SDLoRAKDConfig(name="sd_lora_kd", rank=2, start=start), tiny_encoder())
    tasks = pairs(2)
    method.grow(tasks[0])
    first = {update: (update.up.detach().clone(), update.down.detach().clone()) for update in method.directions}
    with torch.no_grad():
        for update in method.directions:
            update.up += 1
    sites = method.encoder.select(("q", "v"))
    before = [method.increment(site).detach() for site in sites]
    method.grow(tasks[1])
    after = [method.increment(site).detach() for site in sites]
    same = all(torch.allclose(a, b, atol=1e-5) for a, b in zip(after, before, strict=True))
    assert same == (start == "previous")
    for update, (up, down) in first.items():
        cosine = F.cosine_similarity(
            (update.up @ update.down).flatten(), (update.frozen(0)[0] @ update.frozen(0)[1]).flatten(), dim=0
        )
        assert (torch.equal(update.up, up) and torch.equal(update.down, down)) == (start == "shared")
        assert (cosine > 0.999) == (start == "previous")
