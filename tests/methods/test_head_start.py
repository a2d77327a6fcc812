"""Where each method's head starts: by its own source, or as the recipe says."""

import math

import pytest
import torch
from pydantic import ValidationError

from lorica.methods import LinearHeadMethod, find_method, method_names
from lorica.methods.hide_prompt import HiDePrompt
from lorica.types import Task

SMALL = {"dual_prompt": {"general_blocks": (0,), "blocks": (1,)}}
TOTAL = {("inf_lora", "paper"): 3, ("inf_lora", "released_code"): 3}
# largest entry of a row and of a bias, for width 32; 0.1 for a normal variable of deviation 0.02, which all but never
# passes it
KAIMING, LINEAR, NORMAL = (math.sqrt(3 / 32), 0), (math.sqrt(1 / 32), math.sqrt(1 / 32)), (0.1, 0)
SOURCES = {
    ("l2p", "prefix"): LINEAR,  # GT-RIPL/CODA-Prompt, as coda_prompt
    ("coda_prompt", "paper"): LINEAR,
    ("coda_prompt", "released_code"): LINEAR,
    ("inf_lora", "default"): LINEAR,
    ("inf_lora", "paper"): LINEAR,
    ("inf_lora", "released_code"): LINEAR,
    ("hide_prompt", "default"): NORMAL,
    ("hide_prompt", "released_code"): NORMAL,
    ("sd_lora", "released_code"): KAIMING,
    ("sd_lora_rr", "released_code"): KAIMING,
    ("gumbel_cl_lora", "readme"): KAIMING,  # forks of the same code
    ("gumbel_cl_lora", "summary"): KAIMING,
    ("full_finetune", None): KAIMING,  # LAMDA-PILOT
}
LINEAR_HEADS = [
    (name, variant)
    for name in method_names()
    if issubclass(find_method(name), LinearHeadMethod)
    for variant in find_method(name).variants()
]


def grown(encoder, name: str, variant: str | None, **options) -> LinearHeadMethod:
    cls = find_method(name)
    options |= SMALL.get(name, {}) | ({"variant": variant} if variant else {})
    if (name, variant) in TOTAL:
        options["total_tasks"] = TOTAL[name, variant]
    method = cls(cls.Config(name=name, **options), encoder)
    assert isinstance(method, LinearHeadMethod)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for index in range(2):
            method.grow(Task.of_new_classes(index, 20 * index, tuple(f"class {20 * index + i}" for i in range(20))))
    return method


@pytest.mark.parametrize(("name", "variant"), LINEAR_HEADS)
def test_a_head_starts_as_in_the_methods_source(tiny_encoder, name, variant) -> None:
    method = grown(tiny_encoder(), name, variant)
    largest, bias = SOURCES.get((name, variant), (0, 0))
    for rows, own in zip(method.head.weights, method.head.biases, strict=True):
        assert 0.5 * largest <= rows.abs().max() <= largest
        assert 0.5 * bias <= own.abs().max() <= bias


@pytest.mark.parametrize(("name", "variant"), LINEAR_HEADS)
def test_the_recipe_decides_where_a_head_starts(tiny_encoder, name, variant) -> None:
    assert not grown(tiny_encoder(), name, variant, head_start="zeros").head.stacked()[0].any()
    bias = grown(tiny_encoder(), name, variant, head_start="linear").head.stacked()[1]
    assert 0 < bias.abs().max() <= LINEAR[1]


def test_every_linear_head_of_a_method_starts_so(tiny_encoder) -> None:
    method = grown(tiny_encoder(), "hide_prompt", None, head_start="zeros")
    assert isinstance(method, HiDePrompt)
    assert not method.identity.head.stacked()[0].any()


@pytest.mark.parametrize(
    "name", [name for name in method_names() if not issubclass(find_method(name), LinearHeadMethod)]
)
def test_a_method_without_a_linear_head_has_no_such_key(name) -> None:
    with pytest.raises(ValidationError, match="head_start"):
        find_method(name).Config(name=name, head_start="zeros")


def test_a_head_that_starts_at_zero_learns(tiny_encoder) -> None:
    """The first step moves the head alone; from the second on, gradients reach what adapts the features."""
    method = grown(tiny_encoder(), "sd_lora", None)
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8) + 20
    optimizer = torch.optim.SGD(method.trainable(), lr=0.1)
    reached = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(method.predict(images)[:, 20:], labels - 20)
        loss.backward()
        assert loss.isfinite()
        reached.append(bool(method.magnitudes.grad is not None and method.magnitudes.grad.any()))
        optimizer.step()
    assert reached == [False, True]
