"""CL-LoRA against plain-tensor evaluations of the method card's formulas: halves, distillation, reassignment,
prototypes."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from pydantic import ValidationError
from torch.func import functional_call

from lorica.backbones import load_backbone
from lorica.cost import measure
from lorica.data.images import ImageReader
from lorica.data.stream import Stream
from lorica.errors import BackboneError
from lorica.linalg import random_orthonormal_rows
from lorica.methods import find_method
from lorica.methods.cl_lora import CLLoRA, CLLoRAConfig, mean_one
from lorica.training import Fit, learn_task
from lorica.types import Batch, Task

FIT = Fit(
    epochs=2,
    batch_size=8,
    optimizer="sgd",
    learning_rate=0.05,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="cosine",
    augment="none",
)
VARIANTS = ("paper", "released_code")
TASKS = [Task.of_new_classes(t, 2 * t, (f"class {2 * t}", f"class {2 * t + 1}")) for t in range(4)]


def batch(task: int, number: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(task)
    return Batch(torch.rand(number, 3, 32, 32, generator=generator), 2 * task + torch.arange(number) % 2)


def learner(encoder, tasks: int, variant: str = "paper", *, rank: int = 3, **options) -> CLLoRA:
    """Grown for that many tasks, with trained-looking values of everything that trains."""
    torch.manual_seed(0)
    method = CLLoRA(CLLoRAConfig(name="cl_lora", variant=variant, rank=rank, **options), encoder)
    for task in TASKS[:tasks]:
        method.grow(task)
        with torch.no_grad():
            for shared in method.lower.values():
                shared.up.normal_().mul_(0.3)
            for specific in method.upper.values():
                specific.up.normal_()
                specific.down.add_(0.1 * torch.randn_like(specific.down))
            method.head.scale.fill_(3.0)
            method.means.prototypes.normal_()
    method.requires_grad_(False)
    for parameter in method.trainable():
        parameter.requires_grad_(True)
    return method


def block_with(plain, index: int, updates: Sequence[torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """A block of the plain backbone with dense updates added to the q and v rows of its weight."""
    q, v = updates
    attention = plain.blocks[index].attn.qkv
    weight = attention.weight + torch.cat([q, torch.zeros_like(q), v])
    return functional_call(plain.blocks[index], {"attn.qkv.weight": weight}, (tokens,))


def factors(method: CLLoRA, block: int):
    half = method.lower if block == 0 else method.upper
    return [each for site, each in half.items() if site.block == block]


def exit_logits(plain, method: CLLoRA, ups, head, inputs):
    """Cosine logits of what leaves the first block, with the given U of the shared half."""
    downs = [each.down for each in factors(method, 0)]
    tokens = block_with(plain, 0, [u @ d for u, d in zip(ups, downs, strict=True)], plain.embed(inputs))
    weight, scale = head
    return scale * F.cosine_similarity(plain.pool(tokens)[:, None], weight[None], dim=2)


def features_of(plain, method: CLLoRA, task: int, inputs, *, ups=None):
    """One whole pass for a task, with dense weights."""
    shared = factors(method, 0)
    ups = [each.up for each in shared] if ups is None else ups
    tokens = block_with(plain, 0, [u @ s.down for u, s in zip(ups, shared, strict=True)], plain.embed(inputs))
    updates = []
    for each in factors(method, 1):
        past = task < len(each.earlier_up)
        up, down, weight = (
            (each.earlier_up[task], each.earlier_down[task], each.earlier_weight[task])
            if past
            else (each.up, each.down, each.weight)
        )
        updates.append(weight * (up @ down))
    return plain.pool(block_with(plain, 1, updates, tokens))


def distillation(plain, method: CLLoRA, ups, teachers, head, inputs):
    student = exit_logits(plain, method, ups, head, inputs) / 2
    teacher = exit_logits(plain, method, teachers, head, inputs) / 2
    return 5 * -(torch.softmax(teacher, 1) * torch.log_softmax(student, 1)).sum(1).mean()


def step_gradients(method: CLLoRA, terms) -> list[torch.Tensor]:
    method.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    gradients: list[Any] = [each.up.grad for each in method.lower.values()]
    return [gradient.clone() for gradient in gradients]


def train(method: CLLoRA, stream: Stream, tasks: range) -> None:
    accelerator = Accelerator(cpu=True)
    for task in stream.tasks[tasks.start : tasks.stop]:
        learn_task(method, task, stream.train(task), FIT, seed=0, accelerator=accelerator)


@pytest.fixture
def stream(six_classes) -> Stream:
    return Stream(six_classes, tasks=3, reader=ImageReader(32))


# --- starts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_downs_start_orthonormal_and_updates_at_zero(variant, tiny_encoder) -> None:
    torch.manual_seed(0)
    method = CLLoRA(CLLoRAConfig(name="cl_lora", variant=variant), tiny_encoder())
    method.grow(TASKS[0])
    for each in [*method.lower.values(), *method.upper.values()]:
        torch.testing.assert_close(each.down @ each.down.T, torch.eye(10), atol=1e-5, rtol=0)
        assert not each.up.any()
        # a uniform start has a row that is nearly constant
        assert ((each.down[0] @ torch.ones(32)).abs() / 32**0.5 > 0.7) == (variant == "released_code")
    weights = [each.weight.item() for each in method.upper.values()]
    assert all(0.5 <= weight <= 1.5 for weight in weights)
    assert len(set(weights)) == len(weights)
    x = batch(0).inputs
    torch.testing.assert_close(
        method.branches(method.trunk(method.encoder.embed(x)), 0, 1)[0], method.encoder.features(x)
    )


def test_a_uniform_start_has_a_nearly_constant_row_and_a_gaussian_one_has_not() -> None:
    torch.manual_seed(0)
    ones = torch.ones(768) / 768**0.5
    assert (random_orthonormal_rows(10, 768, uniform=True)[0] @ ones).abs() == pytest.approx(
        0.87, abs=0.02
    )  # the card's
    assert (random_orthonormal_rows(10, 768, uniform=False) @ ones).abs().max() < 0.2


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_fixed_keeps_its_bits(variant, tiny_encoder, stream) -> None:
    method = CLLoRA(CLLoRAConfig(name="cl_lora", variant=variant, rank=3), tiny_encoder())
    train(method, stream, range(2))
    downs = [each.down.clone() for each in method.lower.values()]
    old = [[t.clone() for t in each.of(0, 2)] for each in method.upper.values()]
    ups = [each.up.detach().clone() for each in method.lower.values()]
    means = method.means.prototypes.clone()
    train(method, stream, range(2, 3))
    assert all(torch.equal(a, b.down) for a, b in zip(downs, method.lower.values(), strict=True))
    for before, each in zip(old, method.upper.values(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, each.of(0, 2), strict=True))
        assert before[0].any(dim=(1, 2)).all()
    assert torch.equal(method.means.prototypes[:4], means)
    assert all(torch.equal(a, b.teacher) for a, b in zip(ups, method.lower.values(), strict=True))
    assert not any(torch.equal(a, b.up) for a, b in zip(ups, method.lower.values(), strict=True))


# --- prediction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 12, 40])  # all branches in one batch, two of four at a time, one at a time
def test_one_trunk_and_batched_branches_predict_as_whole_passes_do(number, tiny_encoder) -> None:
    method, plain = learner(tiny_encoder(), 4), tiny_encoder()
    x = batch(0, number).inputs
    expected = []
    for task in range(4):
        features = features_of(plain, method, task, x)
        prototypes = method.means.prototypes[2 * task : 2 * task + 2]
        expected.append(F.cosine_similarity(features[:, None], prototypes[None], dim=2))
    torch.testing.assert_close(method.predict(x), torch.cat(expected, 1), atol=1e-5, rtol=1e-5)
    assert not any(module._forward_hooks for module in method.modules())


def test_branches_of_a_single_image_are_one_batch(tiny_encoder) -> None:
    method, rows = learner(tiny_encoder(), 4), []
    method.encoder.blocks[1].register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    for images in (1, 40):
        method.predict(batch(0, images).inputs)
    assert rows == [4, 40, 40, 40, 40]  # 32 rows are the most that share a batch


def test_ablations_start_and_shuffle_as_the_method_does(tiny_encoder) -> None:
    drawn = []
    for options in ({}, {"block_weights": False}, {"distillation": False}, {"reassignment": "none"}):
        torch.manual_seed(0)
        method = CLLoRA(CLLoRAConfig(name="cl_lora", rank=3, **options), tiny_encoder())
        method.grow(TASKS[0])
        downs = [each.down for each in [*method.lower.values(), *method.upper.values()]]
        drawn.append(torch.cat([*(each.flatten() for each in (*downs, method.head.weight)), torch.rand(3)]))
    assert all(torch.equal(each, drawn[0]) for each in drawn)


def test_rescaling_a_prototype_changes_no_prediction(tiny_encoder) -> None:
    method, x = learner(tiny_encoder(), 3), batch(0).inputs
    before = method.predict(x)
    method.means.prototypes[3] *= 50
    torch.testing.assert_close(method.predict(x), before)


def test_prototypes_are_means_of_raw_features_in_the_tasks_own_space(tiny_encoder, stream) -> None:
    method, plain = CLLoRA(CLLoRAConfig(name="cl_lora", rank=3), tiny_encoder()), tiny_encoder()
    train(method, stream, range(2))
    (data,) = stream.train(stream.tasks[1]).batches(100, device=torch.device("cpu"))
    features = features_of(plain, method, 1, data.inputs)
    for label in (2, 3):
        mean = features[data.labels == label].mean(0)
        torch.testing.assert_close(method.means.prototypes[label], mean, atol=1e-5, rtol=1e-5)
    assert method.classifier() is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_passes_and_floats_in_the_ledger(variant, tiny_encoder) -> None:
    for tasks in (1, 2, 4):
        cost = measure(learner(tiny_encoder(), tasks, variant))
        assert cost["forwards_per_prediction"] == (1 + tasks) / 2
    # q and v of one block in each half, rank 3: U; U and D; weights; the head's rows for two classes and its scale
    assert cost["trainable"] == 2 * 96 + 2 * 2 * 96 + 2 + 65
    assert cost["stored"] == 2 * 2 * 96 + 4 * (2 * 2 * 96 + 2) + 8 * 32


def test_floats_on_vit_b_are_those_of_the_card() -> None:
    """284,179 trained and 4,024,680 stored after 20 tasks of 10 classes, less the block weights of k, 6 a task.

    What is more than the card's: the number of samples behind each of the 200 class means.
    """
    method = CLLoRA(CLLoRAConfig(name="cl_lora"), load_backbone("vit_base_patch16_224", pretrained=False))
    for t in range(20):
        method.grow(Task.of_new_classes(t, 10 * t, tuple(f"class {10 * t + c}" for c in range(10))))
    assert sum(parameter.numel() for parameter in method.trainable()) == 284_179 - 6
    assert sum(tensor.numel() for tensor in method.own_state().values()) == 4_024_680 - 20 * 6 + 200


# --- losses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_task_has_cross_entropy_alone(variant, tiny_encoder) -> None:
    method, plain, data = learner(tiny_encoder(), 1, variant), tiny_encoder(), batch(0)
    (terms,) = method.losses(data)
    assert terms.keys() == {"cross_entropy"}
    features = features_of(plain, method, 0, data.inputs)
    logits = 3 * F.cosine_similarity(features[:, None], method.head.weight[None], dim=2)
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(logits, data.labels))


def test_student_and_teacher_start_alike(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 1)
    method.grow(TASKS[1])
    embedded = method.encoder.embed(batch(1).inputs)
    teaching = {site: each.teacher for site, each in method.lower.items()}
    assert torch.equal(method.trunk(embedded), method.trunk(embedded, teaching))
    with torch.no_grad():
        for shared in method.lower.values():
            shared.up.add_(1)
    assert not torch.equal(method.trunk(embedded), method.trunk(embedded, teaching))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("reassignment", ["gradients", "product", "rows", "none"])
def test_distillation_and_its_reassignment(variant, reassignment, tiny_encoder) -> None:
    method, plain, data = learner(tiny_encoder(), 3, variant, reassignment=reassignment), tiny_encoder(), batch(2)
    ups = [each.up.detach().requires_grad_() for each in method.lower.values()]
    teachers = [each.teacher.clone().requires_grad_() for each in method.lower.values()]
    weight = method.head.weight.detach().requires_grad_()
    head = (weight, method.head.scale.detach())
    expected = distillation(plain, method, ups, teachers, head, data.inputs)
    gradients = torch.autograd.grad(expected, [*ups, *teachers, weight])
    own, theirs, head_gradient = gradients[:2], gradients[2:4], gradients[4]
    weights = {
        "gradients": [(a - b).abs() / (a - b).abs().mean() for a, b in zip(theirs, own, strict=True)],
        "product": [(a - b).abs() for a, b in zip(theirs, own, strict=True)],
        "rows": [32 * t.norm(dim=1, keepdim=True) / t.norm(dim=1).sum() for t in map(torch.detach, teachers)],
        "none": [torch.ones_like(g) for g in own],
    }[reassignment]
    assert reassignment == "product" or all(w.mean() == pytest.approx(1) for w in weights)
    wanted = [w * g for w, g in zip(weights, own, strict=True)]
    steps = method.losses(data)
    terms = next(steps)
    torch.testing.assert_close(terms["distillation"], expected.detach())
    got = step_gradients(method, terms)
    if variant == "paper":  # one step: the cross-entropy's gradient is in the sum, unweighted
        features = features_of(plain, method, 2, data.inputs, ups=ups)
        logits = 3 * F.cosine_similarity(features[:, None], method.head.weight.detach()[None], dim=2)
        extra = torch.autograd.grad(F.cross_entropy(logits, data.labels - 4), ups)
        wanted = [a + b for a, b in zip(wanted, extra, strict=True)]
    else:  # two steps: nothing but the shared half and the head is touched by the first, the head from both sides
        torch.testing.assert_close(method.head.weight.grad, head_gradient, atol=1e-6, rtol=1e-4)
        assert all(each.up.grad is each.down.grad is each.weight.grad is None for each in method.upper.values())
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert len(list(steps)) == (variant == "released_code")


def test_the_papers_distillation_leaves_the_head_alone(tiny_encoder) -> None:
    grads = []
    for distils in (True, False):
        method = learner(tiny_encoder(), 2, distillation=distils)
        step_gradients(method, next(method.losses(batch(1))))
        grads.append((method.head.weight.grad, method.head.scale.grad))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("reassignment", ["gradients", "rows"])
def test_an_all_zero_teacher_has_weights_one(reassignment, tiny_encoder) -> None:
    torch.testing.assert_close(mean_one(torch.zeros(3, 1)), torch.ones(3, 1))
    method = CLLoRA(CLLoRAConfig(name="cl_lora", rank=3, reassignment=reassignment), tiny_encoder())
    for task in TASKS[:2]:
        method.grow(task)
    got = step_gradients(method, next(method.losses(batch(1))))
    assert all(gradient.isfinite().all() for gradient in got)
    if reassignment == "rows":
        with torch.no_grad():
            method.lower[next(iter(method.lower))].up.normal_()  # so that KD has a gradient
        weighted = step_gradients(method, next(method.losses(batch(1))))
        method.reassignment = "none"
        for a, b in zip(weighted, step_gradients(method, next(method.losses(batch(1)))), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_steps_run_in_bfloat16(variant, tiny_encoder) -> None:
    method = learner(tiny_encoder(), 2, variant)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        steps = [
            terms for terms in method.losses(batch(1)) if all(g.isfinite().all() for g in step_gradients(method, terms))
        ]
    assert len(steps) == 1 + (variant == "released_code")


def test_orthogonality_of_factors(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 3)
    expected = 0.0
    for each in method.upper.values():
        ups = [*each.earlier_up, each.up]
        pairs = [(i, k) for i in range(3) for k in range(3) if i != k and 2 in (i, k)]
        expected += sum((ups[i].T @ ups[k]).square().sum().item() for i, k in pairs)
    (terms,) = method.losses(batch(2))
    assert terms["orthogonality"].item() == pytest.approx(1e-4 * expected)


def test_orthogonality_of_block_weights(tiny_encoder) -> None:
    method = learner(tiny_encoder(), 3, "released_code")
    vectors = torch.stack([torch.cat([each.earlier_weight, each.weight[None]]) for each in method.upper.values()], 1)
    now = vectors[2]
    cosines = [abs((now @ v / now.norm() / v.norm()).item()) for v in vectors[:2]]
    *_, terms = method.losses(batch(2))
    assert terms["orthogonality"].item() == pytest.approx(1e-4 * sum(cosines) / 2)


def test_the_second_step_sees_the_weights_that_the_first_left(tiny_encoder) -> None:
    """The released order differentiates a graph whose weights have been stepped in place, which current torch
    refuses."""
    method, data = learner(tiny_encoder(), 2, "released_code"), batch(1)
    optimizer = torch.optim.SGD(method.trainable(), lr=0.05)
    steps = method.losses(data)
    first = next(steps)
    step_gradients(method, first)
    optimizer.step()
    (second,) = steps
    (alone,) = learner_without_distillation(method).losses(data)
    assert first.keys() == {"distillation"}
    torch.testing.assert_close(second["cross_entropy"], alone["cross_entropy"])
    step_gradients(method, second)  # raises nothing


def learner_without_distillation(method: CLLoRA) -> CLLoRA:
    method.config = method.config.model_copy(update={"distillation": False})
    return method


@pytest.mark.parametrize("variant", VARIANTS)
def test_three_tasks_train(variant, tiny_encoder, stream) -> None:
    method = CLLoRA(CLLoRAConfig(name="cl_lora", variant=variant, rank=3), tiny_encoder())
    train(method, stream, range(3))
    data = next(stream.train_all().batches(72, device=torch.device("cpu")))
    logits = method.predict(data.inputs)
    assert (logits.argmax(1) == data.labels).float().mean() > 0.8  # chance is 1/6
    assert len(method.diagnostics()["block_weights"]) == 2


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_part_can_be_left_out(variant, tiny_encoder) -> None:
    method = learner(tiny_encoder(), 2, variant, distillation=False, block_weights=False, orthogonality="none")
    (terms,) = method.losses(batch(1))
    assert terms.keys() == {"cross_entropy"}
    trained = {id(parameter) for parameter in method.trainable()}
    for each in method.upper.values():
        assert id(each.weight) not in trained
        assert each.weight == 1
    released = learner(tiny_encoder(), 2, "released_code", block_weights=False)
    assert [terms.keys() for terms in released.losses(batch(1))] == [{"distillation"}, {"cross_entropy"}]


def test_weights_and_temperature_are_read(tiny_encoder) -> None:
    def terms(**options):
        return next(learner(tiny_encoder(), 2, **options).losses(batch(1)))

    usual = terms()
    for option, key in {"distillation_weight": "distillation", "orthogonality_weight": "orthogonality"}.items():
        assert terms(**{option: 0.5})[key].item() == pytest.approx(
            usual[key].item() * 0.5 / {"d": 5, "o": 1e-4}[option[0]]
        )
    assert terms(temperature=1.0)["distillation"] != usual["distillation"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distillation": False, "reassignment": "rows"}, "reassignment rows needs distillation"),
        ({"block_weights": False, "orthogonality": "block_weights"}, "needs block_weights"),
        ({"cross_entropy": "all_seen"}, "current_task"),
    ],
)
def test_options_without_effect_are_refused(options, message) -> None:
    with pytest.raises(ValidationError, match=message):
        CLLoRAConfig(name="cl_lora", **options)


def test_more_orthonormal_rows_than_inputs_are_refused(tiny_encoder) -> None:
    with pytest.raises(BackboneError, match=r"method\.rank: .* has inputs, 32 in tiny; the rank is 33"):
        CLLoRA(CLLoRAConfig(name="cl_lora", rank=33), tiny_encoder())
    shallow = tiny_encoder()
    del shallow.vit.blocks[1]
    with pytest.raises(BackboneError, match=r"backbone\.name: cl_lora needs two blocks or more; tiny has one"):
        CLLoRA(CLLoRAConfig(name="cl_lora"), shallow)


def test_defaults_are_found_by_name() -> None:
    method = find_method("cl_lora")
    assert method.variants() == VARIANTS
    imagenet_r = {"optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 5e-4, "schedule": "cosine"}
    assert all(method.fit_defaults(variant) == imagenet_r for variant in VARIANTS)
