"""The rows of Table 4: what trains, what stays, and the weights they compute."""

import pytest
import torch
from accelerate import Accelerator

from lorica.data.images import ImageReader
from lorica.data.stream import Stream
from lorica.methods.ablations import LoRAFixed, LoRAFrozen, LoRAFrozenConfig, LoRASingle
from lorica.methods.linear_head import LowRankHeadConfig
from lorica.methods.lora import LoRA
from lorica.methods.sd_lora import SDLoRA
from lorica.training import Fit, learn_task
from lorica.types import Task


def task(index: int) -> Task:
    return Task.of_new_classes(index, 2 * index, (f"{2 * index}", f"{2 * index + 1}"))


def grown(kind, encoder, tasks: int, config=None):
    torch.manual_seed(0)
    method = kind(config or kind.Config(name=kind.name, rank=3, head_start="kaiming"), encoder)
    for index in range(tasks):
        method.grow(task(index))
    return method


def unit(update) -> torch.Tensor:
    dense = update.up @ update.down
    return dense / torch.linalg.norm(dense)


def test_row_a_trains_its_direction_at_the_first_task_only(tiny_encoder) -> None:
    method = grown(LoRAFixed, tiny_encoder(), 1)
    assert len(method.trainable()) == 1 + 2 + 2 * 4  # alpha, head rows, U and D at four sites
    before = [factor.detach().clone() for factor in method.directions.factors()]
    method.grow(task(1))
    assert [tuple(p.shape) for p in method.trainable()] == [(), (2, 32), (2,)]
    assert all(torch.equal(a, b) for a, b in zip(before, method.directions.factors(), strict=True))


def test_fig_2s_fixed_baseline_is_row_a_without_norms(tiny_encoder) -> None:
    config = LoRAFixed.Config(name="lora_fixed", rank=3, normalised=False)
    method, plain = grown(LoRAFixed, tiny_encoder(), 1, config), tiny_encoder()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(method.features(images), plain.features(images))  # U = 0: the frozen backbone
    with torch.no_grad():
        for factor in method.directions.factors():
            factor.normal_()
        method.magnitude.fill_(0.7)
    method.grow(task(1))
    assert [tuple(p.shape) for p in method.trainable()] == [(), (2, 32), (2,)]
    update = method.directions[(site := method.encoder.select(("v",))[1])]
    torch.testing.assert_close(method.increment(site), 0.7 * update.up @ update.down)


def test_row_b_keeps_one_direction(tiny_encoder) -> None:
    method = grown(LoRASingle, tiny_encoder(), 5)
    assert all(update.ranks == [] and update.up.shape[1] == 3 for update in method.directions)
    assert len(method.trainable()) == 1 + 2 + 2 * 4
    site = method.encoder.select(("v",))[1]
    with torch.no_grad():
        method.magnitude.fill_(0.7)
    torch.testing.assert_close(method.increment(site), 0.7 * unit(method.directions[site]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("choice", "coefficient"), [("one", 1.0), ("learned", 0.4)])
def test_row_c_freezes_earlier_coefficients(tiny_encoder, choice: str, coefficient: float) -> None:
    config = LoRAFrozenConfig(name="lora_frozen", rank=3, frozen_coefficient=choice)
    method = grown(LoRAFrozen, tiny_encoder(), 1, config)
    site = method.encoder.select(("q",))[0]
    first = unit(method.directions[site]).detach()
    with torch.no_grad():
        method.magnitude.fill_(0.4)
    method.grow(task(1))
    assert method.diagnostics()["magnitudes"] == pytest.approx([coefficient, 1.0])
    expected = coefficient * first + unit(method.directions[site])
    torch.testing.assert_close(method.increment(site), expected, atol=1e-6, rtol=1e-5)
    assert not any(p is method.frozen_magnitudes for p in method.trainable())


def test_plain_lora_starts_as_the_frozen_backbone(tiny_encoder) -> None:
    x = torch.rand(3, 3, 32, 32)
    method = grown(LoRA, tiny_encoder(), 1, LowRankHeadConfig(name="lora", rank=3))
    assert torch.equal(method.encoder.features(x), tiny_encoder().features(x))
    factors = method.updates.factors()
    method.grow(task(1))
    assert all(a is b for a, b in zip(factors, method.updates.factors(), strict=True))


def test_rows_a_b_and_sd_lora_agree_after_the_first_task(tiny_encoder, six_classes) -> None:
    stream = Stream(six_classes, tasks=3, reader=ImageReader(32))
    fit = Fit(
        epochs=2,
        batch_size=8,
        optimizer="adam",
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=0.0,
        schedule="constant",
        augment="shift",
    )
    x = torch.rand(3, 3, 32, 32)
    logits = []
    for kind in (SDLoRA, LoRAFixed, LoRASingle):
        method = kind(kind.Config(name=kind.name, rank=3), tiny_encoder())
        first = stream.tasks[0]
        learn_task(method, first, stream.train(first), fit, seed=4, accelerator=Accelerator(cpu=True))
        logits.append(method.predict(x))
    torch.testing.assert_close(logits[1], logits[0])
    torch.testing.assert_close(logits[2], logits[0])
