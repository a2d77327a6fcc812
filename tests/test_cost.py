"""Costs against counts by hand. The tiny encoder has width 32 and two blocks, so four adapted projections q and v;
ViT-B/16 and its stored floats after 20 tasks of 10 classes are those of SD-LoRA's Table 5."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from lorica.backbones import load_backbone
from lorica.backbones.encoder import Encoder
from lorica.backbones.hf_text import HFText
from lorica.backbones.timm_vit import TimmViT
from lorica.cost import measure
from lorica.linalg import COLUMNS
from lorica.methods import Context, Method, find_method
from lorica.methods.base import shapes_of
from lorica.methods.linear_probe import LinearProbe
from lorica.results import _Ledger
from lorica.types import Task

MakeEncoder = Callable[..., TimmViT]
TASKS = (Task.of_new_classes(0, 0, ("wren", "lark", "kite")), Task.of_new_classes(1, 3, ("rook", "dove")))
TWENTY_TASKS = tuple(Task.of_new_classes(t, 10 * t, tuple(f"class {10 * t + c}" for c in range(10))) for t in range(20))

HEAD = 5 * 32 + 5
DIRECTION = 4 * (2 * 32) * 10  # four projections, U and D, rank 10
PATCHES = 2 * 16 * (3 * 8 * 8) * 32  # 4 x 4 patches of 8 x 8 pixels
LINEARS = (
    2 * 17 * 32 * (3 * 32 + 32 + 4 * 32 + 4 * 32)
)  # of a block: qkv, projection, MLP; 16 patches and the class token
ATTENTION = 2 * (2 * 17 * 17 * 32)  # of a block: queries by keys, weights by values
FORWARD = PATCHES + 2 * (LINEARS + ATTENTION)


def learned(name: str, encoder: Encoder, tasks: tuple[Task, ...] = TASKS, **options: Any) -> Method:
    kind = find_method(name)
    return grown(kind(kind.Config(name=name, **options), encoder), tasks)


def grown(method: Method, tasks: tuple[Task, ...] = TASKS) -> Method:
    for task in tasks:
        method.grow(task)
    return method


# ---- parameters and storage


@pytest.mark.parametrize(
    ("name", "trainable", "stored"),
    [
        ("linear_probe", {"head": 66}, {"head": HEAD}),
        ("prototypes", {}, {"head": 5 * 32}),
        ("lora", {"adapters": DIRECTION, "head": 66}, {"adapters": DIRECTION, "head": HEAD}),
        (
            "sd_lora",
            {"adapters": DIRECTION, "coefficients": 2, "head": 66},
            {"adapters": 2 * DIRECTION, "coefficients": 2, "head": HEAD},
        ),
    ],
)
def test_counts_by_kind(name: str, trainable: dict, stored: dict, tiny_encoder: MakeEncoder) -> None:
    encoder = tiny_encoder()
    weights = sum(parameter.numel() for parameter in encoder.parameters())
    cost = measure(learned(name, encoder))
    assert (cost["trainable_by_kind"], cost["trainable"]) == (trainable, sum(trainable.values()))
    assert (cost["stored_by_kind"], cost["stored"]) == (stored, sum(stored.values()))
    assert (cost["backbone"], cost["trainable_head"]) == (weights, trainable.get("head", 0))


def test_a_trained_backbone_counts(tiny_encoder: MakeEncoder) -> None:
    cost = measure(learned("full_finetune", tiny_encoder(), TASKS[:1]))
    assert cost["trainable"] == cost["stored"] == cost["backbone"] + 3 * 33
    assert cost["stored_by_kind"] == {"backbone": cost["backbone"], "head": 3 * 33}


def test_joint_trains_the_head_of_all_classes(tiny_encoder: MakeEncoder) -> None:
    everything = (Task.of_new_classes(0, 0, tuple(name for task in TASKS for name in task.class_names)),)
    cost = measure(learned("joint", tiny_encoder(), everything))
    assert cost["trainable_by_kind"] == cost["stored_by_kind"] == {"adapters": DIRECTION, "head": HEAD}


def test_what_no_one_knows_is_called_as_its_method_calls_it(tiny_encoder: MakeEncoder) -> None:
    method = learned("linear_probe", tiny_encoder())
    method.prompts = nn.ModuleDict({"pool": nn.Linear(32, 4)})
    method.bases = nn.Parameter(torch.zeros(32, 3))
    method.gates = nn.Parameter(torch.zeros(7))
    method.register_buffer("seed", torch.tensor(5))  # not a float
    stored = {"bases": 32 * 3, "coefficients": 7, "head": HEAD, "prompts": 4 * 32 + 4}
    assert measure(method)["stored_by_kind"] == stored


# ---- a prediction


@pytest.mark.parametrize(
    "name",
    [
        "sd_lora",
        "sd_lora_rr",
        "sd_lora_kd",
        "gumbel_cl_lora",
        "inf_lora",
        "o_lora",
        "lora",
        "lora_frozen",
        "joint",
        "full_finetune",
        "linear_probe",
        "prototypes",
    ],
)
def test_a_merged_method_predicts_with_one_plain_forward(name: str, tiny_encoder: MakeEncoder) -> None:
    cost = measure(learned(name, tiny_encoder()))
    columns = COLUMNS if name == "prototypes" else 5  # cosines that keep their bits
    assert cost["flops_per_prediction"] == FORWARD + 2 * 32 * columns
    assert cost["forwards_per_prediction"] == 1


def test_a_dropped_direction_was_trained_and_is_not_stored(tiny_encoder: MakeEncoder) -> None:
    method = learned("sd_lora_kd", tiny_encoder(), tolerance=1.0)
    trained = shapes_of(method, method.trainable())
    method.end_task(Context(TASKS[1], lambda: iter(()), 1, 1, lambda parameters, epochs: None))
    cost = measure(method, trained)
    assert cost["trainable_by_kind"] == {"adapters": DIRECTION, "coefficients": 2, "head": 66}
    assert cost["stored_by_kind"] == {"adapters": DIRECTION, "coefficients": 1, "head": HEAD}


class QueryPass(LinearProbe):
    """A pass to look at the input, as prompt methods take, and the one that counts; random, to leave a trace."""

    def predict(self, inputs: torch.Tensor) -> torch.Tensor:
        query = self.encoder.features(inputs)
        return self.head(self.encoder.features(inputs) + query * torch.rand(()))


class SharedTrunk(LinearProbe):
    """The first block once, the second for five experts, as rows of one batch."""

    def predict(self, inputs: torch.Tensor) -> torch.Tensor:
        first, second = self.encoder.blocks
        tokens = first(self.encoder.embed(inputs))
        return self.head(self.encoder.pool(second(tokens.repeat(5, 1, 1)))).view(5, -1, 5).sum(dim=0)


@pytest.mark.parametrize(
    ("kind", "forwards", "flops"),
    [
        (QueryPass, 2, 2 * FORWARD + 2 * 32 * 5),
        (SharedTrunk, 3, FORWARD + 4 * (LINEARS + ATTENTION) + 5 * 2 * 32 * 5),
    ],
)
def test_more_than_one_forward(kind: type[Method], forwards: int, flops: int, tiny_encoder: MakeEncoder) -> None:
    cost = measure(grown(kind(kind.Config(name="own"), tiny_encoder())))
    assert (cost["forwards_per_prediction"], cost["flops_per_prediction"]) == (forwards, flops)


def test_nothing_is_left_behind(tiny_encoder: MakeEncoder) -> None:
    kind: Any = find_method("sd_lora")

    class Noisy(kind):
        predict = QueryPass.predict

    method = grown(Noisy(kind.Config(name="sd_lora"), tiny_encoder()))
    method.train()
    method.encoder.blocks[0].eval()
    method.directions.requires_grad_(False)

    def trace() -> tuple[Any, ...]:
        modules = list(method.named_modules())
        return (
            [(name, id(module), module.training, len(module._forward_pre_hooks)) for name, module in modules],
            [(name, id(p), p.requires_grad, p.grad) for name, p in method.named_parameters()],
            len(torch_module._global_forward_pre_hooks) + len(torch_module._global_forward_hooks),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.is_grad_enabled(),
        )

    before, random = trace(), torch.get_rng_state()
    values = {name: value.clone() for name, value in method.state_dict().items()}
    measure(method)
    assert trace() == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, values[name]) for name, value in method.state_dict().items())


def test_hooks_are_gone_after_a_prediction_that_fails(tiny_encoder: MakeEncoder) -> None:
    method = learned("sd_lora", tiny_encoder(), TASKS[:1])
    modules = list(method.modules())
    method.head.weights[0] = nn.Parameter(torch.zeros(3, 31))
    with pytest.raises(RuntimeError, match="shapes"):
        measure(method)
    assert [id(module) for module in method.modules()] == [id(module) for module in modules]
    assert not any(block._forward_pre_hooks for block in method.encoder.blocks)


# ---- Table 5 of the SD-LoRA paper


@pytest.fixture
def vit_base(monkeypatch: pytest.MonkeyPatch) -> TimmViT:
    """Shapes without values."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # torch's own does not know the meta device
    with torch.device("meta"):
        encoder = load_backbone("vit_base_patch16_224", pretrained=False)
    encoder.fingerprint = "of no values"
    assert isinstance(encoder, TimmViT)
    return encoder.requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "options", "stored"),
    [
        ("sd_lora_rr", {}, 5_314_780),
        ("sd_lora_rr", {"variant": "released_code"}, 5_462_236),
        ("lora", {}, 522_440),
        ("lora_single", {}, 522_441),
        ("full_finetune", {}, 85_952_456),
    ],
)
def test_stored_floats_of_vit_base(name: str, options: dict[str, str], stored: int, vit_base: TimmViT) -> None:
    assert measure(learned(name, vit_base, TWENTY_TASKS, **options))["stored"] == stored


# patches, then 12 blocks of linears and attention over 197 tokens
VIT_BASE = 2 * 196 * 768 * 768 + 12 * (2 * 197 * 768 * 12 * 768 + 2 * 2 * 197 * 197 * 768)
VIT_BASE_HEAD = 2 * 768 * 200
ROW = 2 * 2 * 197 * 768  # one more key and value for all queries of a block


@pytest.mark.parametrize(
    ("name", "options", "more"),
    [
        # rows of a block times blocks; head, cosines and weighted sums of rows are within a thousandth of a pass
        ("l2p", {"variant": "prefix"}, 5 * 10 * ROW),
        ("dual_prompt", {}, (2 + 3) * 5 * ROW),
        ("coda_prompt", {}, 5 * 4 * ROW),
        ("hide_prompt", {}, 5 * 20 * ROW),
        # 40 tokens go through every block
        ("l2p", {}, 12 * (2 * 40 * 768 * 12 * 768 + 2 * 2 * (237**2 - 197**2) * 768)),
    ],
)
def test_prompt_methods_take_two_passes_and_their_rows(
    name: str, options: dict[str, str], more: int, vit_base: TimmViT
) -> None:
    cost = measure(learned(name, vit_base, TWENTY_TASKS[:1], **options))
    assert cost["forwards_per_prediction"] == 2
    assert cost["flops_per_prediction"] == pytest.approx(2 * VIT_BASE + more, rel=5e-4)


def test_sd_lora_on_vit_base_as_in_table_5(vit_base: TimmViT) -> None:
    cost = measure(learned("sd_lora", vit_base, TWENTY_TASKS))
    assert cost["trainable_by_kind"] == {"adapters": 368_640, "coefficients": 20, "head": 7_690}
    assert cost["stored_by_kind"] == {"adapters": 20 * 368_640, "coefficients": 20, "head": 153_800}
    assert cost["stored"] == 7_526_620
    forward = cost["flops_per_prediction"] - VIT_BASE_HEAD
    assert forward == VIT_BASE
    assert 2 * round(forward / 2e9, 2) == pytest.approx(35.12)  # the table: twice 17.56 G multiply-adds
    assert cost["forwards_per_prediction"] == 1


def test_the_ledger_of_a_small_vit_takes_under_a_second(tiny_encoder: MakeEncoder) -> None:
    method = learned("sd_lora", tiny_encoder())
    measure(method)
    start = time.perf_counter()
    measure(method)
    assert time.perf_counter() - start < 1


@pytest.mark.gpu
def test_a_gpu_counts_as_the_cpu_does(tiny_encoder: MakeEncoder) -> None:
    encoder = tiny_encoder().to("cuda")
    kind: Any = find_method("sd_lora")

    class Noisy(kind):
        def predict(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().predict(inputs + torch.rand_like(inputs))

    method = grown(Noisy(kind.Config(name="sd_lora"), encoder))
    random = torch.cuda.get_rng_state()
    cost = measure(method)
    assert cost["flops_per_prediction"] == FORWARD + 2 * 32 * 5
    assert torch.equal(torch.cuda.get_rng_state(), random)


# ---- the properties of SD-LoRA's Table 1


@pytest.mark.parametrize(
    ("name", "features", "end_to_end"),
    [
        ("sd_lora", 0, True),
        ("lora", 0, True),
        ("linear_probe", 0, True),
        ("full_finetune", 0, True),
        ("coda_prompt", 0, True),  # which its paper is named for
        ("l2p", 0, False),  # keys learn from similarities alone
        ("dual_prompt", 0, False),
        ("prototypes", 5 * 32, False),
        ("aper", 5 * 64, False),
        ("cl_lora", 5 * 32, False),
    ],
)
def test_what_is_stored_of_features_and_what_the_logits_train(
    name: str, features: int, end_to_end: bool, tiny_encoder: MakeEncoder
) -> None:
    method = learned(
        name, tiny_encoder(), **({"general_blocks": (0,), "blocks": (1,)} if name == "dual_prompt" else {})
    )
    before = {name: parameter.requires_grad for name, parameter in method.named_parameters()}
    cost = measure(method)
    assert (cost["stored_features"], cost["end_to_end"]) == (features, end_to_end)
    assert {name: parameter.requires_grad for name, parameter in method.named_parameters()} == before
    assert all(parameter.grad is None for parameter in method.parameters())


def test_all_that_is_measured_is_checked_when_it_is_read(
    tiny_encoder: MakeEncoder, tiny_text_encoder: Callable[..., HFText]
) -> None:
    of_image, of_text = (measure(learned("sd_lora", make())).keys() for make in (tiny_encoder, tiny_text_encoder))
    assert of_text == _Ledger.model_fields.keys()
    assert of_text - of_image == {"tokens_per_prediction"}


def test_bases_and_gaussians_are_features(tiny_encoder: MakeEncoder) -> None:
    gaussians = learned("hide_prompt", tiny_encoder())
    held = {name: value.numel() for name, value in gaussians.own_state().items() if value.is_floating_point()}
    assert measure(gaussians)["stored_features"] == sum(
        held[name] for name in held if name.rpartition(".")[2] in ("means", "factors")
    )
    bases = learned("inf_lora", tiny_encoder())
    with torch.no_grad():
        for module in bases.modules():
            if hasattr(module, "vectors"):
                module.vectors = torch.zeros(32, 3)
    cost = measure(bases)
    assert cost["stored_features"] == 2 * 32 * 3  # k and v of a block share their inputs
    assert cost["end_to_end"]  # the bases shape what trains, and no prediction reads them


def test_a_text_is_measured_in_tokens(tiny_text_encoder: Callable[..., HFText]) -> None:
    """By hand: the tiny BERT has width 32, two blocks, 64 hidden units, and reads 32 tokens at most."""
    cost, tokens = measure(learned("lora", tiny_text_encoder())), 32
    linears, attention = 2 * tokens * 32 * (4 * 32 + 2 * 64), 2 * (2 * tokens * tokens * 32)
    assert cost["tokens_per_prediction"] == tokens
    assert cost["flops_per_prediction"] == 2 * (linears + attention) + 2 * 32 * 5
    assert cost["forwards_per_prediction"] == 1
