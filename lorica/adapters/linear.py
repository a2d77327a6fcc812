"""A frozen linear layer whose weight is adapted once per step.

y = (W0 + dW) x + b with dW low-rank. Adding dW to the *weight* and running one ordinary linear makes the cost of a step
independent of how many directions dW sums: everything that trains can have its gradient from the one dense gradient of
the adapted rows, G = (dL/dy)' x. Of a fused qkv only the adapted rows (q and v, say) need that product. Where W0 or b
train, they have their gradients too.

As long as dW = sum_i U_i diag(c_i) D_i has few ranks, G is the larger part of what adapting costs, and need not be
made. With P = x D_i' and Q = (dL/dy) U_i, which have a column for each rank,

    dL/dU_i = (dL/dy)' P diag(c_i),    dL/dD_i = diag(c_i) Q' x,    dL/dc_i = the sums of P * Q over tokens.

A tensor that `of_terms` has marked says what it is the sum of, and the cheaper way is taken (`_is_cheaper`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import skip_init

Rows = tuple[int, int]


class Term(NamedTuple):
    """U diag(c) D; c is one number for all ranks, or one for each."""

    up: Float[Tensor, "out r"]
    coefficients: Float[Tensor, "*r"]
    down: Float[Tensor, "r inp"]


def of_terms(total: Float[Tensor, "out inp"], terms: Sequence[Term]) -> Float[Tensor, "out inp"]:
    """The same tensor, which knows from now on that it is the sum of these terms and of what has no gradient. Whatever
    is computed from it does not, nor itself once it is changed in place."""
    if total.requires_grad:
        total._terms = tuple(terms), total._version  # type: ignore[attr-defined]
    return total


def _terms_of(increment: Tensor) -> tuple[Term, ...] | None:
    terms, version = getattr(increment, "_terms", (None, None))
    return terms if version == increment._version else None


def _is_cheaper(terms: Sequence[Term], tokens: int) -> bool:
    """Whether the gradients of terms take fewer multiplications one by one than from the dense gradient of their
    sum."""
    one_by_one, from_dense = 0, 0
    for up, coefficients, down in terms:
        (out, r), inp = up.shape, down.shape[1]
        train_up, train_c, train_down = (each.requires_grad for each in (up, coefficients, down))
        products = (train_up or train_c) * inp + (train_down or train_c) * out + train_up * out + train_down * inp
        one_by_one += tokens * r * products
        from_dense = from_dense or tokens * out * inp
        from_dense += r * out * inp * (train_up + (train_down or train_c))
    return one_by_one < from_dense


def _adapted(weight: Tensor, rows: Iterable[Rows], increments: Iterable[Tensor]) -> Tensor:
    """W with the increments in its rows."""
    adapted = weight.clone()
    for (start, stop), increment in zip(rows, increments, strict=True):
        adapted[start:stop] += increment
    return adapted


class _AdaptedRows(torch.autograd.Function):
    """y = x W' + b where the given row ranges of W have increments; weight gradients for those rows only, unless W
    itself trains."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: tuple[Rows, ...], *increments: Tensor
    ) -> Tensor:
        adapted = _adapted(weight, rows, increments).to(x.dtype)
        ctx.save_for_backward(x, adapted)
        ctx.rows, ctx.increment_dtype = rows, weight.dtype
        return F.linear(x, adapted, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, adapted = ctx.saved_tensors
        grad_x = grad @ adapted if ctx.needs_input_grad[0] else None
        flat_grad, flat_x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grads = [
            (flat_grad[:, start:stop].T @ flat_x).to(ctx.increment_dtype) if needed else None
            for (start, stop), needed in zip(ctx.rows, ctx.needs_input_grad[4:], strict=True)
        ]
        _, weight_trains, bias_trains, *_ = ctx.needs_input_grad
        grad_weight = (flat_grad.T @ flat_x).to(ctx.increment_dtype) if weight_trains else None
        grad_bias = flat_grad.sum(0).to(ctx.increment_dtype) if bias_trains else None
        return grad_x, grad_weight, grad_bias, None, *grads


class _AdaptedByTerms(torch.autograd.Function):
    """y = x W' + b, where some rows of W are W0 plus terms, each of which has its own gradients.

    `rows` has those of each term; `parts` are the terms' three tensors, one term after another.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, adapted: Tensor, bias: Tensor | None, rows: tuple[Rows, ...], *parts: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, adapted, *parts)
        ctx.rows = rows
        return F.linear(x, adapted, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, adapted, *parts = ctx.saved_tensors
        grad_x = grad @ adapted if ctx.needs_input_grad[0] else None
        flat_grad, flat_x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grads: list[Tensor | None] = []
        for i, (start, stop) in enumerate(ctx.rows):
            up, c, down = parts[3 * i : 3 * i + 3]
            train_up, train_c, train_down = ctx.needs_input_grad[4 + 3 * i : 7 + 3 * i]
            own = flat_grad[:, start:stop]
            p = flat_x @ down.T if train_up or train_c else None
            q = own @ up if train_down or train_c else None
            grads.append(own.T @ (p * c) if train_up and p is not None else None)
            grads.append((p * q).sum_to_size(c.shape) if train_c and p is not None and q is not None else None)
            grads.append((q * c).T @ flat_x if train_down and q is not None else None)
        return grad_x, None, None, None, *grads


class AdaptedLinear(nn.Module):
    """Stands in for a frozen `nn.Linear` and adds increments to some rows of its weight.

    `linear` is the untouched original. The increments come from callables that a method owns, so that neither the
    encoder's state nor this module holds anything that trains.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.increments: dict[Rows, Callable[[], Tensor]] = {}

    @property
    def weight(self) -> Tensor:
        """W0: some layers ask their linear ones for its type."""
        return self.linear.weight

    # Where a block is compiled, increments enter as inputs: no task makes anything to compile anew.
    @torch.compiler.disable()
    def _increments(self) -> list[Tensor]:
        # in full precision: under autocast the Gram norms would be computed in bfloat16
        with torch.autocast(self.linear.weight.device.type, enabled=False):
            return [increment() for increment in self.increments.values()]

    def forward(self, x: Float[Tensor, "*batch inp"]) -> Float[Tensor, "*batch out"]:
        device_type = x.device.type
        increments = self._increments()
        if torch.is_autocast_enabled(device_type):
            x = x.to(torch.get_autocast_dtype(device_type))
        with torch.autocast(device_type, enabled=False):
            if self._by_terms(x, increments):
                return self._adapted_by_terms(x, increments)
            weight, bias = self.linear.weight, self.linear.bias
            tensors = [x, weight, *([] if bias is None else [bias]), *increments]
            if torch.is_grad_enabled() and any(each.requires_grad for each in tensors):
                return _AdaptedRows.apply(x, weight, bias, tuple(self.increments), *increments)
            # torch.compile (2.11) mistakes the arguments of such a function where nothing needs gradients
            adapted = _adapted(weight, self.increments, increments).to(x.dtype)
            return F.linear(x, adapted, None if bias is None else bias.to(x.dtype))

    def _by_terms(self, x: Tensor, increments: Sequence[Tensor]) -> bool:
        """Whether gradients are those of terms: where there are some, all in one precision, and W0 and b stay."""
        if torch.compiler.is_compiling() or x.dtype != self.linear.weight.dtype:
            return False
        if any(parameter.requires_grad for parameter in self.linear.parameters()):
            return False
        if not any(increment.requires_grad for increment in increments):
            return False
        terms = [_terms_of(increment) for increment in increments]
        tokens = x.numel() // x.shape[-1]
        return all(each is not None and _is_cheaper(each, tokens) for each in terms)

    def _adapted_by_terms(self, x: Tensor, increments: Sequence[Tensor]) -> Tensor:
        adapted = self.linear.weight.detach().clone()
        rows: list[Rows] = []
        parts: list[Tensor] = []
        for (start, stop), increment in zip(self.increments, increments, strict=True):
            adapted[start:stop] += increment.detach()
            for term in _terms_of(increment) or ():
                rows.append((start, stop))
                parts += term
        return _AdaptedByTerms.apply(x, adapted, self.linear.bias, tuple(rows), *parts)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain linear layer with the increments in its weight; this module and its bits stay as they are."""
        plain: Any = skip_init(  # nn.Linear itself would draw random numbers
            nn.Linear,
            self.linear.in_features,
            self.linear.out_features,
            bias=self.linear.bias is not None,
            device=self.linear.weight.device,
            dtype=self.linear.weight.dtype,
        )
        plain.weight.copy_(self.linear.weight)
        for (start, stop), increment in zip(self.increments, self._increments(), strict=True):
            plain.weight[start:stop] += increment
        if self.linear.bias is not None:
            plain.bias.copy_(self.linear.bias)
        plain.requires_grad_(False)
        return plain
