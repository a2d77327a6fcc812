"""The algebra of low-rank updates: a weighted sum of products U_k D_k, with exact norms at the price of r x r matrices.

Everywhere U is "up" [d_out, r], D is "down" [r, d_in], and an update is c U D. Because

    <U_i D_i, U_j D_j>  =  trace(D_i' U_i' U_j D_j)  =  sum((U_i' U_j) * (D_i D_j')),

norms and inner products of updates need only the small Gram matrices of their factors, never a d_out x d_in product.
Any of it can be had for several projections of one shape at once, whose factors then have a leading dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast, overload, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lorica.adapters.linear import Term, of_terms
from lorica.backbones.encoder import Site

SQUARED_NORM_FLOOR = 1e-12  # keeps the gradient of the norm finite at U = 0 or D = 0


def inner_product(
    up_i: Float[Tensor, "*sites out r"],
    down_i: Float[Tensor, "*sites r inp"],
    up_j: Float[Tensor, "*sites out s"],
    down_j: Float[Tensor, "*sites s inp"],
) -> Float[Tensor, " *sites"]:
    """<U_i D_i, U_j D_j>, the Frobenius inner product of two updates."""
    return ((up_i.mT @ up_j) * (down_i @ down_j.mT)).sum((-2, -1))


def frobenius_norm(up: Float[Tensor, "*sites out r"], down: Float[Tensor, "*sites r inp"]) -> Float[Tensor, " *sites"]:
    """||U D||_F; its gradient is finite everywhere.

    Where columns of U cancel, rounding can make the square negative: it counts as 0.
    """
    return (inner_product(up, down, up, down).clamp_min(0) + SQUARED_NORM_FLOOR).sqrt()


def norm_product(up: Float[Tensor, "*sites out r"], down: Float[Tensor, "*sites r inp"]) -> Float[Tensor, " *sites"]:
    """||U||_F ||D||_F, an upper bound of ||U D||_F that SD-LoRA's released code divides by; never zero."""
    of_up, of_down = (torch.linalg.vector_norm(factor, dim=(-2, -1)) for factor in (up, down))
    return (of_up * of_down).clamp_min(SQUARED_NORM_FLOOR**0.5)


def no_norm(up: Float[Tensor, "*sites out r"], down: Float[Tensor, "*sites r inp"]) -> Float[Tensor, " *sites"]:
    """1: directions are kept as they were learned."""
    return up.new_ones(up.shape[:-2])


def project_last(gram: Float[Tensor, "k k"]) -> tuple[Float[Tensor, " k_minus_1"], float]:
    """Least squares of the last direction on the others, from their inner products alone.

    min_a ||X_k - sum_j a_j X_j||^2 has the normal equations G a = c; the pseudo-inverse keeps `a` small where
    directions nearly repeat each other.

    Returns:
        The coefficients a, and the share of ||X_k||^2 that is left over, in [0, 1].
    """
    others, mixed, own = gram[:-1, :-1], gram[:-1, -1], gram[-1, -1]
    coefficients = torch.linalg.pinv(others, hermitian=True, rtol=1e-10) @ mixed
    left = own - 2 * coefficients @ mixed + coefficients @ others @ coefficients
    return coefficients, float((left / own).clamp(0, 1))


def _weighed(coefficient: Tensor | float, down: Tensor) -> Tensor:
    """c D for a number c, or one for each site; M D for a matrix M, or one for each site."""
    if not isinstance(coefficient, Tensor) or coefficient.dim() == 0:
        return coefficient * down
    return coefficient @ down if coefficient.dim() == down.dim() else coefficient[:, None, None] * down


Norm = Callable[[Tensor, Tensor], Tensor]
NORMS: Mapping[str, Norm] = {"frobenius": frobenius_norm, "product": norm_product}


@runtime_checkable
class Factored(Protocol):
    """A module whose output is a product of low rank, and which has its factors as well."""

    def as_factors(self, *given: Any) -> tuple[Float[Tensor, "out ranks"], Float[Tensor, "ranks inp"]]:
        """U and D, of which `forward` gives U D when called with the same arguments."""
        ...


class Stack(NamedTuple):
    """The factors of several `LowRankSum` of one shape and of the same ranks, one after another in a leading
    dimension."""

    up: Float[Tensor, "sites out r"]
    down: Float[Tensor, "sites r inp"]
    frozen_up: Float[Tensor, "sites out ranks"]
    frozen_down: Float[Tensor, "sites ranks inp"]
    rank_sizes: Int[Tensor, " frozen"]

    def __call__(
        self,
        frozen_coefficients: Float[Tensor, " frozen"],
        coefficient: Float[Tensor, ""] | Float[Tensor, " sites"] | Float[Tensor, "sites r r"] | float,
    ) -> Float[Tensor, "sites out inp"]:
        """What `LowRankSum.forward` gives at each site; the coefficient of the current direction may be each site's
        own."""
        current = self.up @ _weighed(coefficient, self.down)
        if not self.frozen_down.shape[1]:
            return current
        per_row = frozen_coefficients.repeat_interleave(self.rank_sizes, output_size=self.frozen_down.shape[1])
        return torch.baddbmm(current, self.frozen_up, per_row.unsqueeze(1) * self.frozen_down)


class LowRankSum(nn.Module):
    """sum_k c_k U_k D_k for one projection: frozen earlier directions, stacked along the rank, and one that trains.

    The stack makes the cost of all earlier directions one small matrix product per training step, however many they
    are. What is frozen is divided by its norm; coefficients arrive as arguments, since methods share or compute them.

    Attributes:
        up, down: the factors that train (parameters), [d_out, r] and [r, d_in]; r = 0 where nothing does.
        frozen_up, frozen_down: earlier factors, [d_out, R] and [R, d_in] with R the sum of their ranks (buffers).
        ranks: rank of each frozen direction; `rank_sizes` is the same on the device.
    """

    frozen_up: Tensor
    frozen_down: Tensor
    rank_sizes: Tensor

    def __init__(self, out_features: int, in_features: int, *, device: torch.device) -> None:
        super().__init__()
        self.ranks: list[int] = []
        self.up = nn.Parameter(torch.empty(out_features, 0, device=device))
        self.down = nn.Parameter(torch.empty(0, in_features, device=device))
        self.register_buffer("frozen_up", torch.empty(out_features, 0, device=device))
        self.register_buffer("frozen_down", torch.empty(0, in_features, device=device))
        self.register_buffer("rank_sizes", torch.empty(0, dtype=torch.long, device=device), persistent=False)

    @torch.no_grad()
    def grow(
        self, rank: int, *, zero_up: bool, norm: Norm = frobenius_norm, generator: torch.Generator | None = None
    ) -> None:
        """Freezes the current direction, if there is one, divided by its norm, and starts a new one of the given rank.

        D is uniform in +-1/sqrt(d_in), as LoRA starts it. U is zero (the update starts as a no-op) or, since a
        direction of norm zero cannot be normalised, uniform in +-1/sqrt(d_out). A generator makes a start repeatable.
        """
        if self.up.shape[1]:
            self._stack(
                [*self.ranks, self.up.shape[1]],
                torch.cat([self.frozen_up, self.up.detach() / norm(self.up, self.down)], dim=1),
                torch.cat([self.frozen_down, self.down.detach()], dim=0),
            )
        device, (out_features, in_features) = self.up.device, (self.up.shape[0], self.down.shape[1])
        # drawn on the CPU, so that a seed means the same start on every device
        down = torch.empty(rank, in_features).uniform_(-1, 1, generator=generator) / math.sqrt(in_features)
        up = torch.zeros(out_features, rank)
        if not zero_up:
            up.uniform_(-1, 1, generator=generator).div_(math.sqrt(out_features))
        self.up, self.down = nn.Parameter(up.to(device)), nn.Parameter(down.to(device))

    @torch.no_grad()
    def drop(self, index: int) -> None:
        """Forgets a direction: that of `ranks[index]`, or the current one at `index == len(ranks)`."""
        if index == len(self.ranks):
            self.up = nn.Parameter(self.up[:, :0].clone(), requires_grad=False)
            self.down = nn.Parameter(self.down[:0].clone(), requires_grad=False)
            return
        kept = torch.ones(self.frozen_down.shape[0], dtype=torch.bool, device=self.up.device)
        start = sum(self.ranks[:index])
        kept[start : start + self.ranks[index]] = False
        ranks = self.ranks[:index] + self.ranks[index + 1 :]
        self._stack(ranks, self.frozen_up[:, kept], self.frozen_down[kept])

    @torch.no_grad()
    def fold(self) -> None:
        """Makes the frozen directions one, with the same sum, once they have more ranks than a matrix of this size can:
        so that a sum in which all weigh alike takes no more memory however many directions are added to it."""
        out_features, in_features = self.up.shape[0], self.down.shape[1]
        full = min(out_features, in_features)
        if sum(self.ranks) <= full:
            return
        total, identity = self.frozen_up @ self.frozen_down, torch.eye(full).to(self.up)
        self._stack([full], *((total, identity) if in_features == full else (identity, total)))

    def faults(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        """Other sizes than the directions have; see `lorica.methods.base.Particular`."""
        if "rank_sizes" in state and (given := state["rank_sizes"].tolist()) != self.ranks:
            yield "rank_sizes", f"is {given!r:.60}, expected {self.ranks!r:.60}"

    def _stack(self, ranks: list[int], up: Tensor, down: Tensor) -> None:
        self.ranks, self.frozen_up, self.frozen_down = ranks, up, down
        self.rank_sizes = torch.tensor(ranks, dtype=torch.long, device=up.device)

    def frozen(self, index: int) -> tuple[Tensor, Tensor]:
        """Factors (U_k / norm_k, D_k) of an earlier direction."""
        start = sum(self.ranks[:index])
        stop = start + self.ranks[index]
        return self.frozen_up[:, start:stop], self.frozen_down[start:stop]

    def forward(
        self,
        frozen_coefficients: Float[Tensor, " frozen"],
        coefficient: Float[Tensor, ""] | Float[Tensor, "r r"] | float,
    ) -> Float[Tensor, "out inp"]:
        """sum_{k<t} c_k U_k D_k / norm_k + U_t c_t D_t: frozen directions over their norms, the current one as it is;
        its c_t is a number, or a matrix between its factors."""
        down = _weighed(coefficient, self.down)
        total = self.up @ down
        if isinstance(coefficient, Tensor) and coefficient.dim():
            terms = [Term(self.up, self.up.new_ones(()), down)]
        else:
            terms = [Term(self.up, torch.as_tensor(coefficient).to(self.up), self.down)]
        if self.ranks:
            per_row = frozen_coefficients.repeat_interleave(self.rank_sizes, output_size=self.frozen_down.shape[0])
            total = torch.addmm(total, self.frozen_up, per_row.unsqueeze(1) * self.frozen_down)
            terms.append(Term(self.frozen_up, per_row, self.frozen_down))
        return of_terms(total, terms)

    def as_factors(
        self,
        frozen_coefficients: Float[Tensor, " frozen"],
        coefficient: Float[Tensor, ""] | Float[Tensor, "r r"] | float,
    ) -> tuple[Float[Tensor, "out ranks"], Float[Tensor, "ranks inp"]]:
        """See `Factored`: what `forward` gives of these arguments, the coefficients in D's rows."""
        per_row = frozen_coefficients.repeat_interleave(self.rank_sizes, output_size=self.frozen_down.shape[0])
        downs = [per_row.unsqueeze(1) * self.frozen_down, _weighed(coefficient, self.down)]
        return torch.cat([self.frozen_up, self.up], dim=1), torch.cat(downs)

    @torch.no_grad()
    def gram(self) -> Float[Tensor, "directions directions"]:
        """Inner products of all directions, the frozen ones and then the current one, as they are (not normalised).

        Double precision on the CPU; from the Gram matrices of the stacked factors, R x R.
        """
        up = torch.cat([self.frozen_up, self.up], dim=1).double().cpu()
        down = torch.cat([self.frozen_down, self.down]).double().cpu()
        ranks = torch.tensor([*self.ranks, *([self.up.shape[1]] if self.up.shape[1] else [])])
        member = F.one_hot(torch.arange(len(ranks)).repeat_interleave(ranks), len(ranks)).double()
        return member.T @ ((up.T @ up) * (down @ down.T)) @ member


class LowRankUpdates(nn.Module):
    """A `LowRankSum` for each of some sites, grown together."""

    def __init__(self, sites: Sequence[Site], *, device: torch.device) -> None:
        super().__init__()
        self._names = [site.name for site in sites]
        for site in sites:
            self.add_module(site.name, LowRankSum(site.out_features, site.in_features, device=device))

    @overload
    def __getitem__(self, site: Site) -> LowRankSum: ...
    @overload
    def __getitem__(self, site: tuple[Site, ...]) -> Stack: ...
    @overload
    def __getitem__(self, site: Site | tuple[Site, ...]) -> LowRankSum | Stack: ...
    def __getitem__(self, site: Site | tuple[Site, ...]) -> LowRankSum | Stack:
        """The sum of a site, or the factors of several sites of one shape."""
        if isinstance(site, Site):
            return cast(LowRankSum, self.get_submodule(site.name))
        sums = [self[each] for each in site]
        return Stack(
            torch.stack([each.up for each in sums]),
            torch.stack([each.down for each in sums]),
            torch.stack([each.frozen_up for each in sums]),
            torch.stack([each.frozen_down for each in sums]),
            sums[0].rank_sizes,
        )

    def __iter__(self) -> Iterator[LowRankSum]:
        return (cast(LowRankSum, self.get_submodule(name)) for name in self._names)

    def grow(
        self, rank: int, *, zero_up: bool, norm: Norm = frobenius_norm, generator: torch.Generator | None = None
    ) -> None:
        """`LowRankSum.grow` at every site."""
        for update in self:
            update.grow(rank, zero_up=zero_up, norm=norm, generator=generator)

    def keep(self, indices: Collection[int]) -> None:
        """Forgets all directions but these, counted from the oldest; the current one is the last."""
        for update in self:
            number = len(update.ranks) + bool(update.up.shape[1])
            for index in reversed([index for index in range(number) if index not in indices]):
                update.drop(index)

    def gram(self) -> Float[Tensor, "directions directions"]:
        """Inner products of the unit directions, the frozen ones and then the current one, added up over the sites.

        A diagonal entry is the number of sites: coefficients that all sites share make one stacked direction of them.
        """
        total = torch.zeros((), dtype=torch.double)
        for update in self:
            gram = update.gram()
            norms = (gram.diag().clamp_min(0) + SQUARED_NORM_FLOOR).sqrt()
            total = total + gram / torch.outer(norms, norms)
        return total

    def factors(self) -> list[nn.Parameter]:
        """The current direction's U and D of every site."""
        return [factor for update in self for factor in (update.up, update.down)]
