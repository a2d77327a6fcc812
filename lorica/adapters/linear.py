"""A frozen linear layer whose weight is adapted once per step.

y = (W0 + dW) x + b with dW low-rank. Adding dW to the *weight* and running one ordinary linear makes the cost of a step
independent of how many directions dW sums: everything that trains gets its gradient from the one dense gradient of the
adapted rows, G = (dL/dy)' x. Of a fused qkv only the adapted rows (q and v, say) need that product. Where W0 or b
train, they have their gradients too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import skip_init

Rows = tuple[int, int]


class _AdaptedRows(torch.autograd.Function):
    """y = x W' + b where the given row ranges of W have increments; weight gradients for those rows only, unless W
    itself trains."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: tuple[Rows, ...], *increments: Tensor
    ) -> Tensor:
        adapted = weight.clone()
        for (start, stop), increment in zip(rows, increments, strict=True):
            adapted[start:stop] += increment
        adapted = adapted.to(x.dtype)
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
            return _AdaptedRows.apply(x, self.linear.weight, self.linear.bias, tuple(self.increments), *increments)

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
