"""What a learned method costs, measured on the live model: nothing here is typed in or estimated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lorica.adapters.attach import merged
from lorica.adapters.lowrank import LowRankSum
from lorica.adapters.tuning import Tuning
from lorica.backbones.encoder import Encoder
from lorica.heads import GrowingLinear
from lorica.methods.base import Method, shapes_of
from lorica.statistics import ClassMeans, Discriminant
from lorica.types import Tokens

KINDS: dict[type[nn.Module], str] = {
    Encoder: "backbone",
    LowRankSum: "adapters",
    Tuning: "adapters",
    GrowingLinear: "head",
    ClassMeans: "head",
    Discriminant: "statistics",
}
"""What a module's tensors are, whichever method holds it; see `measure` for all others."""


def measure(method: Method, trained: Mapping[str, torch.Size] | None = None) -> dict[str, Any]:
    """The ledger after the latest task; there has been one.

    Numbers of parameters and floats come in total and by kind. The kind of a tensor is that of the innermost such
    module which holds it (`KINDS`). Elsewhere, a method's own scalars and vectors are "coefficients" (magnitudes,
    gates), and anything larger is called as the method calls it ("prompts", "bases").

    Args:
        trained: what the task trained, from `learn_task`: the end of a task may drop some of it again. Absent = what
            `method.trainable()` names now.

    Returns:
        `backbone`: parameters of the backbone.
        `trainable`, `trainable_by_kind`, `trainable_head`: parameters that trained on the task.
        `stored`, `stored_by_kind`: floats in a checkpoint, without integers such as a seed.
        `stored_features`: floats of these that were computed from features of training images and not trained: class
            means, covariances, sums, bases (SD-LoRA's Table 5). A module names such tensors in `of_features`.
        `end_to_end`: whether the logits alone can train all that the task trained, and rest on nothing of
            `stored_features`.
        `flops_per_prediction`: FLOPs of matrix products and convolutions, attention included, for one input with the
        updates merged; a multiply-add counts as 2. Norms, activations and softmax do not count.
        `forwards_per_prediction`: passes through the backbone for one input; half of the blocks make half a pass.
        `tokens_per_prediction`: of a text, how many tokens that one input has; there is none of an image.
    """
    trainable = _by_kind(method, shapes_of(method, method.trainable()) if trained is None else trained)
    state = method.own_state()
    stored = _by_kind(method, {name: value.shape for name, value in state.items() if value.is_floating_point()})
    flops, forwards = _prediction(method)
    example = method.encoder.example(1)
    return {
        "backbone": sum(parameter.numel() for parameter in method.encoder.parameters()),
        "trainable": sum(trainable.values()),
        "trainable_by_kind": trainable,
        "trainable_head": trainable.get("head", 0),
        "stored": sum(stored.values()),
        "stored_by_kind": stored,
        "stored_features": sum(tensor.numel() for name, tensor in _of_features(method).items() if name in state),
        "end_to_end": _is_end_to_end(
            method, set(shapes_of(method, method.trainable()) if trained is None else trained)
        ),
        "flops_per_prediction": flops,
        "forwards_per_prediction": forwards,
        **({"tokens_per_prediction": int(example.mask.sum())} if isinstance(example, Tokens) else {}),
    }


def _by_kind(method: Method, shapes: Mapping[str, torch.Size]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, shape in shapes.items():
        kind = _kind(method, name, len(shape))
        counts[kind] = counts.get(kind, 0) + shape.numel()
    return dict(sorted((kind, count) for kind, count in counts.items() if count))


def _kind(method: Method, name: str, dimensions: int) -> str:
    *path, last = name.split(".")
    module, found = cast(nn.Module, method), None
    for part in path:
        module = module.get_submodule(part)
        found = next((kind for known, kind in KINDS.items() if isinstance(module, known)), found)
    if found:
        return found
    own = [part for part in path if part != "learner"]  # a read-out stands around its method
    return own[0] if own else last if dimensions > 1 else "coefficients"


def _of_features(method: Method) -> dict[str, Tensor]:
    """The tensors that modules declare in `of_features`, by name."""
    return {
        f"{place}.{name}".lstrip("."): getattr(module, name)
        for place, module in method.named_modules()
        for name in getattr(module, "of_features", ())
    }


def _is_end_to_end(method: Method, trained: Set[str]) -> bool | None:
    """Looks for what was trained in the graph of some logits. What is gone already never saw the final loss."""
    if method.device.type == "meta":  # where nothing trains
        return None
    there = {name: tensor for name, tensor in method.named_parameters() if name in trained}
    if not trained or there.keys() != trained:
        return False
    statistics = [tensor for tensor in _of_features(method).values() if tensor.is_floating_point()]
    asked = [*there.values(), *statistics]
    before = [tensor.requires_grad for tensor in asked]
    device = method.device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), _evaluating(method), torch.enable_grad():
            for tensor in asked:
                tensor.requires_grad_(True)
            reached = _leaves(method.predict(method.encoder.example(1)))
    finally:
        for tensor, had in zip(asked, before, strict=True):
            tensor.requires_grad_(had)
    return all(id(tensor) in reached for tensor in there.values()) and not any(
        id(each) in reached for each in statistics
    )


def _leaves(output: Tensor) -> set[int]:
    """The ids of the tensors that a gradient of the output goes to."""
    nodes, seen, leaves = [output.grad_fn], set[Any](), set[int]()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            leaves.add(id(leaf))
        nodes += [inner for inner, _ in node.next_functions]
    return leaves


@torch.no_grad()
def _prediction(method: Method) -> tuple[int, float]:
    """FLOPs and forwards of one prediction."""
    encoder, device = method.encoder, method.device
    rows = 0

    def count(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal rows
        rows += next(value for value in (*arguments, *named.values()) if isinstance(value, Tensor)).shape[0]

    with torch.random.fork_rng([device] if device.type == "cuda" else []), _evaluating(method):
        plain = merged(method)
        encoders = [module for module in plain.modules() if isinstance(module, Encoder)]  # a method may train a copy
        blocks = [block for each in encoders for block in each.blocks]
        hooks = [block.register_forward_pre_hook(count, with_kwargs=True) for block in blocks]
        try:
            with FlopCounterMode(display=False, custom_mapping=_fused_attention()) as counter:
                plain.predict(encoder.example(1))
        finally:
            for hook in hooks:
                hook.remove()
    return counter.get_total_flops(), rows / len(encoder.blocks)


def _fused_attention() -> dict[Any, Any]:
    """Formulas for kernels that FlopCounterMode does not know. To choose a kernel that it knows would choose for all
    threads."""

    def products(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
        return 2 * query[:-1].numel() * key[-2] * (query[-1] + value[-1])

    names = ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math_for_mps")
    return {getattr(torch.ops.aten, name): products for name in names if hasattr(torch.ops.aten, name)}


@contextmanager
def _evaluating(method: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a `with` block; every module gets back its own."""
    modes = [(module, module.training) for module in method.modules()]
    method.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
