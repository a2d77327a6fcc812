"""Full fine-tuning: what learns at which rate."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from lorica.data.images import ImageReader
from lorica.data.stream import Stream
from lorica.errors import RecipeError
from lorica.methods import find_method
from lorica.run import check
from lorica.training import Fit, learn_task

ONE_STEP = Fit(1, 24, "sgd", 0.5, 0.0, 0.0, "constant", "none")


def test_a_slow_trunk_takes_a_shorter_step(tiny_encoder, six_classes) -> None:
    stream, cls = Stream(six_classes, tasks=3, reader=ImageReader(32)), find_method("full_finetune")

    def steps(**options: float) -> tuple[torch.Tensor, torch.Tensor]:
        """What one step of plain descent adds to the trunk, and the head after it."""
        method = cls(cls.Config(name="full_finetune", **options), tiny_encoder())
        before = torch.cat([each.detach().flatten() for each in method.encoder.parameters()])
        task = stream.tasks[0]
        learn_task(method, task, stream.train(task), ONE_STEP, seed=0, accelerator=Accelerator(cpu=True))
        after = torch.cat([each.detach().flatten() for each in method.encoder.parameters()])
        return after - before, method.head.stacked()[0].detach()

    (plain, head), (slow, same_head) = steps(), steps(trunk_rate=0.1)
    assert plain.abs().max() > 1e-3
    torch.testing.assert_close(slow, 0.1 * plain, atol=1e-6, rtol=1e-3)
    assert torch.equal(same_head, head)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method.trunk_rate": 0}, "method.trunk_rate: Input should be greater than 0, given 0"),
        ({"method.trunk_rat": 0.1}, "method.trunk_rat: unknown key; did you mean method.trunk_rate?"),
    ],
)
def test_refusals(given, message, six_classes) -> None:
    with pytest.raises(RecipeError) as caught:
        check("digits", source=six_classes, method="full_finetune", stream={"tasks": 3}, **given)
    (problem,) = caught.value.problems
    assert message in problem


def test_recipes_from_before_there_was_a_slow_trunk_are_as_they_were(six_classes) -> None:
    recipe = {"method": "full_finetune", "stream": {"tasks": 3}}
    plain, _ = check("digits", source=six_classes, **recipe)
    assert "trunk_rate" not in plain.resolved()["method"]
    slow, _ = check("digits", source=six_classes, **recipe, **{"method.trunk_rate": 0.01})
    assert slow.resolved()["method"]["trunk_rate"] == 0.01
