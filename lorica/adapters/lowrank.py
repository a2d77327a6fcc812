"""The algebra of low-rank updates: a weighted sum of products U_k D_k, with exact norms at the price of r x r matrices.

Everywhere U is "up" [d_out, r], D is "down" [r, d_in], and an update is c U D. Because

    <U_i D_i, U_j D_j>  =  trace(D_i' U_i' U_j D_j)  =  sum((U_i' U_j) * (D_i D_j')),

norms and inner products of updates need only the small Gram matrices of their factors, never a d_out x d_in product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lorica.backbones.encoder import Site

SQUARED_NORM_FLOOR = 1e-12  # keeps the gradient of the norm finite at U = 0 or D = 0


def inner_product(
    up_i: Float[Tensor, "out r"],
    down_i: Float[Tensor, "r inp"],
    up_j: Float[Tensor, "out s"],
    down_j: Float[Tensor, "s inp"],
) -> Float[Tensor, ""]:
    """<U_i D_i, U_j D_j>, the Frobenius inner product of two updates."""
    return ((up_i.T @ up_j) * (down_i @ down_j.T)).sum()


def frobenius_norm(up: Float[Tensor, "out r"], down: Float[Tensor, "r inp"]) -> Float[Tensor, ""]:
    """||U D||_F; its gradient is finite everywhere."""
    return (inner_product(up, down, up, down) + SQUARED_NORM_FLOOR).sqrt()


def norm_product(up: Float[Tensor, "out r"], down: Float[Tensor, "r inp"]) -> Float[Tensor, ""]:
    """||U||_F ||D||_F, an upper bound of ||U D||_F that SD-LoRA's released code divides by; never zero."""
    return (torch.linalg.vector_norm(up) * torch.linalg.vector_norm(down)).clamp_min(SQUARED_NORM_FLOOR**0.5)


Norm = Callable[[Tensor, Tensor], Tensor]


class LowRankSum(nn.Module):
    """sum_k c_k U_k D_k for one projection: frozen earlier directions, stacked along the rank, and one that trains.

    The stack makes the cost of all earlier directions one small matrix product per training step, however many they are.
    Their factors are kept as they were trained; coefficients arrive as arguments, since methods share or compute them.

    Attributes:
        up, down: the factors that train (parameters), [d_out, r] and [r, d_in].
        frozen_up, frozen_down: earlier factors, [d_out, R] and [R, d_in] with R the sum of their ranks (buffers).
        frozen_norms: what each frozen direction's coefficient is divided by, [t - 1] (buffer).
        ranks: rank of each frozen direction; `rank_sizes` is the same on the device.
    """

    frozen_up: Tensor
    frozen_down: Tensor
    frozen_norms: Tensor
    rank_sizes: Tensor

    def __init__(self, out_features: int, in_features: int, *, device: torch.device) -> None:
        super().__init__()
        self.ranks: list[int] = []
        self.up = nn.Parameter(torch.empty(out_features, 0, device=device))
        self.down = nn.Parameter(torch.empty(0, in_features, device=device))
        self.register_buffer("frozen_up", torch.empty(out_features, 0, device=device))
        self.register_buffer("frozen_down", torch.empty(0, in_features, device=device))
        self.register_buffer("frozen_norms", torch.empty(0, device=device))
        self.register_buffer("rank_sizes", torch.empty(0, dtype=torch.long, device=device), persistent=False)

    @torch.no_grad()
    def grow(self, rank: int, *, zero_up: bool, norm: Norm = frobenius_norm) -> None:
        """Freezes the current direction, if there is one, with its norm, and starts a new one of the given rank.

        D is uniform in +-1/sqrt(d_in), as LoRA starts it. U is zero (the update starts as a no-op) or, since a
        direction of norm zero cannot be normalised, uniform in +-1/sqrt(d_out).
        """
        if self.up.shape[1]:
            self.ranks.append(self.up.shape[1])
            self.rank_sizes = torch.tensor(self.ranks, device=self.up.device)
            self.frozen_up = torch.cat([self.frozen_up, self.up.detach()], dim=1)
            self.frozen_down = torch.cat([self.frozen_down, self.down.detach()], dim=0)
            self.frozen_norms = torch.cat([self.frozen_norms, norm(self.up, self.down).view(1)])
        device, (out_features, in_features) = self.up.device, (self.up.shape[0], self.down.shape[1])
        # drawn on the CPU, so that a seed means the same start on every device
        down = torch.empty(rank, in_features).uniform_(-1, 1) / math.sqrt(in_features)
        up = torch.zeros(out_features, rank)
        if not zero_up:
            up.uniform_(-1, 1).div_(math.sqrt(out_features))
        self.up, self.down = nn.Parameter(up.to(device)), nn.Parameter(down.to(device))

    def frozen(self, index: int) -> tuple[Tensor, Tensor]:
        """Factors (U_k, D_k) of an earlier direction."""
        start = sum(self.ranks[:index])
        stop = start + self.ranks[index]
        return self.frozen_up[:, start:stop], self.frozen_down[start:stop]

    def forward(
        self, frozen_coefficients: Float[Tensor, " t_minus_1"], coefficient: Float[Tensor, ""] | float
    ) -> Float[Tensor, "out inp"]:
        """sum_{k<t} (c_k / norm_k) U_k D_k + c_t U_t D_t: frozen directions over their norms, the current one as it is."""
        current = self.up @ (coefficient * self.down)
        if not self.ranks:
            return current
        scales = frozen_coefficients / self.frozen_norms
        per_row = scales.repeat_interleave(self.rank_sizes, output_size=self.frozen_down.shape[0])
        return torch.addmm(current, self.frozen_up, per_row.unsqueeze(1) * self.frozen_down)


class LowRankUpdates(nn.Module):
    """A `LowRankSum` for each of some sites, grown together."""

    def __init__(self, sites: Sequence[Site], *, device: torch.device) -> None:
        super().__init__()
        self._names = [site.name for site in sites]
        for site in sites:
            self.add_module(site.name, LowRankSum(site.out_features, site.in_features, device=device))

    def __getitem__(self, site: Site) -> LowRankSum:
        return cast(LowRankSum, self.get_submodule(site.name))

    def __iter__(self) -> Iterator[LowRankSum]:
        return (cast(LowRankSum, self.get_submodule(name)) for name in self._names)

    def grow(self, rank: int, *, zero_up: bool, norm: Norm = frobenius_norm) -> None:
        """`LowRankSum.grow` at every site."""
        for update in self:
            update.grow(rank, zero_up=zero_up, norm=norm)

    def factors(self) -> list[nn.Parameter]:
        """The current direction's U and D of every site."""
        return [factor for update in self for factor in (update.up, update.down)]
