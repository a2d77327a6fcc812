"""InfLoRA: a low-rank update per task, confined to directions that earlier tasks did not use (Liang and Li, CVPR 2024).

With U "up" and D "down" (the paper writes A and B), the weights of the k and v projections of each block at task t are

    W_k = W0_k + sum_{i<=t} U_i^k D_i,          W_v = W0_v + sum_{i<=t} U_i^v D_i                               (1)

k and v share D_t, which does not train: only U_t^k, U_t^v (0 at the start) and the task's head rows (at the start as
`nn.Linear`'s) do, by cross-entropy over the task's logits. Since D_t spans all that the update can see, its rows are
chosen, not learned. With H, [d, n], the tokens that enter the block's attention, class token included, C = H H' / n,
and M, [d, m], an orthonormal basis of the protected directions,

    D_t = (the r leading left singular vectors of (I - M M') H)' / sqrt(3)                before training on t  (2)

computed as eigenvectors of (I - M M') C (I - M M'). The factor is the released code's: rows as long as LoRA's random
ones are on average. After training (DualGPM) M gains the fewest leading left singular vectors u_j of the same product,
with H from the model as trained, that bring the share of energy in it to

    ||M' H||_F^2 + sum_j ||u_j' H||^2  >=  epsilon_t ||H||_F^2                                                  (3)

Once M has more than d / 2 columns, a basis of its orthogonal complement is kept in its place: that of the free
directions, which from then on only lose members. Predictions use all updates, which merge into W0_k and W0_v.

`variant: default`        epsilon_t = b + (e - b) t / (t + 5), t from 0, needs no number of tasks: half of the way after
                          5 tasks, like the paper's in a stream of 10. b, e = 0.95, 1 (`energy`; ImageNet-R: 0.98, 1).
`variant: paper`          epsilon_t = b + (e - b) t / T with T from `total_tasks`; e from task T on.
`variant: released_code`  as paper, but liangyanshuo/InfLoRA takes singular vectors and energies of C where the paper
                          has H, which is C C in place of C here: energies are squared, and fewer directions hold them.
                          After the first task it protects one direction fewer than (3) asks for, but at least one.

Decided, or done otherwise than in the released code:
  * where fewer than r directions are free, the other rows of D_t are zero; the code's trailing singular vectors are
    arbitrary there and lie inside the protected space. D_t is computed in the coordinates of a basis of the free space;
  * a first task that needs more than d / 2 directions keeps the complement; the code keeps the directions themselves,
    under the label of the complement;
  * C is accumulated in float64 on the device (on the CPU for MPS, which lacks it), for all blocks in one pass over the
    task's images in order and not augmented; the code's passes are augmented and shuffled;
  * the optimiser is that of the comparison (the code: Adam, 5e-4, falling by a cosine); D is stored once, not for k and
    for v; no clustering of features at the end of a task, which the code never uses.

`subspace` is the ablation of (2): `both` (InfLoRA), `data` (H alone, nothing is protected), `free` (random within the
free directions), `none` (random); always r orthonormal rows over sqrt(3). Equation numbers are this file's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float, Float64
from pydantic import Field, model_validator
from torch import Tensor, nn

from lorica.adapters.attach import attach
from lorica.adapters.linear import Term, of_terms
from lorica.backbones.encoder import Encoder, Site
from lorica.linalg import double
from lorica.methods.base import Context, Variants
from lorica.methods.linear_head import LinearHeadConfig, LinearHeadMethod
from lorica.types import Task

HALFWAY = 5  # tasks after which the default schedule is half of its way


class InfLoRAConfig(LinearHeadConfig):
    """Options of InfLoRA; the projections are k and v."""

    variant: Literal["default", "paper", "released_code"] = "default"
    rank: int = Field(default=10, ge=1, description="rank of a task's update")
    energy: tuple[float, float] = Field(
        default=(0.95, 1.0), description="epsilon at the first task, and what it rises to"
    )
    total_tasks: int | None = Field(default=None, ge=1, description="T, of the variants paper and released_code")
    subspace: Literal["both", "data", "free", "none"] = Field(default="both", description="what D is made from")
    by_variant: ClassVar[Variants] = {
        "default": {"squared": False},
        "paper": {"squared": False},
        "released_code": {"squared": True},
    }

    @model_validator(mode="after")
    def _schedule_is_complete(self) -> InfLoRAConfig:
        if not 0 < self.energy[0] <= self.energy[1] <= 1:
            raise ValueError(f"energy {list(self.energy)}: expected 0 < first <= second <= 1")
        if self.variant != "default" and self.total_tasks is None:
            raise ValueError(
                f"variant {self.variant} raises its energy by the share of all tasks; give total_tasks, the length of "
                "the whole stream, or use variant: default, which does not need it"
            )
        if self.variant == "default" and self.total_tasks is not None:
            raise ValueError("total_tasks: variant default does not use it; leave it out, or use variant: paper")
        return self


def leading(moment: Float64[Tensor, "n n"]) -> tuple[Float64[Tensor, " n"], Float64[Tensor, "n n"]]:
    """Eigenvalues of a second moment, the largest first and none below 0, and eigenvectors in columns."""
    values, vectors = torch.linalg.eigh(moment)
    return values.flip(0).clamp_min(0), vectors.flip(1)


class Memory(nn.Module):
    """What one block protects (DualGPM): an orthonormal basis of that, or, once this is smaller, of what is free.

    Attributes:
        vectors: [d, columns], float32.
        holds_free: what they span.
    """

    of_features = ("vectors",)
    vectors: Tensor

    def __init__(self, features: int, *, device: torch.device) -> None:
        super().__init__()
        self.holds_free = False
        self.register_buffer("vectors", torch.empty(features, 0, device=device))

    @property
    def protected(self) -> int:
        """Number of protected directions."""
        size, columns = self.vectors.shape
        return size - columns if self.holds_free else columns

    def free(self) -> Float64[Tensor, "d f"]:
        """An orthonormal basis of the directions that are not protected."""
        if self.holds_free:
            return torch.linalg.qr(double(self.vectors)).Q
        return torch.linalg.qr(double(self.vectors), mode="complete").Q[:, self.vectors.shape[1] :]

    def protect(self, moment: Float64[Tensor, "d d"], share: float, *, less_at_first: bool) -> None:
        """Adds directions to the protected ones by (3), where the task's inputs H have H H' / n = `moment`: as few as
        are needed for no less than `share` of its trace to be protected from now on."""
        free = self.free()
        energies, directions = leading(free.T @ moment @ free)
        covered = moment.trace() - energies.sum() + energies.cumsum(0) - energies  # by M and the j - 1 leading ones
        number = int((covered < share * moment.trace()).sum())
        if less_at_first and not self.protected:
            number = max(number - 1, 1)
        gained, left = (free @ directions).split([number, len(energies) - number], dim=1)
        self.holds_free = self.holds_free or self.protected + number > len(free) / 2
        self.vectors = (
            left.to(self.vectors) if self.holds_free else torch.cat([self.vectors, gained.to(self.vectors)], 1)
        )


class SharedDown(nn.Module):
    """sum_i U_i D_i of k and of v in one block: the rows of their U are stacked, D is there once.

    Attributes:
        up: [k's rows + v's rows, r], trains. frozen_up: those of earlier tasks, [.., R].
        down: D of all tasks, [R + r, d_in]; the last r rows are the current task's.
    """

    frozen_up: Tensor
    down: Tensor

    def __init__(self, rows: int, in_features: int, *, device: torch.device) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(rows, 0, device=device))
        self.register_buffer("frozen_up", torch.empty(rows, 0, device=device))
        self.register_buffer("down", torch.empty(0, in_features, device=device))

    def grow(self, rank: int) -> None:
        self.frozen_up = torch.cat([self.frozen_up, self.up.detach()], dim=1)
        self.down = torch.cat([self.down, self.down.new_zeros(rank, self.down.shape[1])])
        self.up = nn.Parameter(self.up.new_zeros(self.up.shape[0], rank))

    def start(self, rows: Float64[Tensor, "r inp"]) -> None:
        """Sets D_t; rows that are not given stay zero."""
        first = self.frozen_up.shape[1]
        self.down[first : first + len(rows)] = rows.to(self.down)

    def as_factors(self, kind: str) -> tuple[Float[Tensor, "out ranks"], Float[Tensor, "ranks inp"]]:
        """U and D of k, or of v."""
        half = ("k", "v").index(kind)
        return torch.cat([self.frozen_up.chunk(2)[half], self.up.chunk(2)[half]], dim=1), self.down

    def forward(self, kind: str) -> Float[Tensor, "out inp"]:
        up, down = self.as_factors(kind)
        frozen, rank = self.frozen_up.shape[1], self.up.shape[1]
        own = Term(up[:, frozen:], up.new_ones(()), down[frozen : frozen + rank])
        return of_terms(up @ down, [own])


class InfLoRA(LinearHeadMethod):
    """Updates of k and v that do not touch what earlier tasks used."""

    name = "inf_lora"
    rewritten = ("bases",)  # (3); the complement in place of the basis
    Config = InfLoRAConfig
    config: InfLoRAConfig
    source_start = "linear"

    def __init__(self, config: InfLoRAConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.squared: bool = config.of_variant()["squared"]  # C C in place of C, and one direction fewer at first
        keys = {f"block{site.block}": site for site in encoder.select(("k",))}
        self.inputs = {block: site.linear for block, site in keys.items()}  # the linear layers whose inputs are H
        self.adapters, self.bases = nn.ModuleDict(), nn.ModuleDict()
        for block, site in keys.items():
            self.adapters[block] = SharedDown(2 * site.out_features, site.in_features, device=self.device)
            self.bases[block] = Memory(site.in_features, device=self.device)
        attach(encoder, encoder.select(("k", "v")), self.increment)

    def parts(self) -> Iterator[tuple[str, SharedDown, Memory]]:
        """Name, updates and memory of every block."""
        for block in self.inputs:
            yield block, cast(SharedDown, self.adapters[block]), cast(Memory, self.bases[block])

    def increment(self, site: Site) -> Float[Tensor, "out inp"]:
        """The sum in (1), for one projection."""
        return self.adapters[f"block{site.block}"](site.kind)

    def grow(self, task: Task) -> None:
        super().grow(task)
        for _, adapter, _ in self.parts():
            adapter.grow(self.config.rank)

    @torch.no_grad()
    def begin_task(self, context: Context) -> None:
        """Makes D_t from the task's inputs, clear of what is protected, and starts U_t at zero (2)."""
        moments = self.second_moments(context) if self.config.subspace in ("both", "data") else {}
        for block, adapter, memory in self.parts():
            free = memory.free()  # everything, where nothing is ever protected
            if block in moments:
                directions = leading(free.T @ moments[block] @ free)[1]
            else:  # drawn on the CPU, so that a seed means the same on every device; the fork leaves the order of
                with torch.random.fork_rng([]):  # batches as it is without the ablation
                    directions = torch.linalg.qr(torch.randn(free.shape[1], self.config.rank).to(free)).Q
            adapter.start((free @ directions[:, : self.config.rank]).T / math.sqrt(3))

    def trainable(self) -> list[nn.Parameter]:
        return [*(adapter.up for _, adapter, _ in self.parts()), *self.head_parameters()]

    @torch.no_grad()
    def end_task(self, context: Context) -> None:
        """Protects the directions that the task's inputs have used, until they hold epsilon_t of the energy (3)."""
        if self.config.subspace in ("data", "none"):
            return
        moments, released = self.second_moments(context), self.squared
        for block, _, memory in self.parts():
            memory.protect(moments[block], self.energy_share(self.task.index), less_at_first=released)

    def energy_share(self, t: int) -> float:
        """epsilon_t; t counts from 0."""
        total, (first, last) = self.config.total_tasks, self.config.energy
        return first + (last - first) * (t / (t + HALFWAY) if total is None else min(t / total, 1.0))

    def second_moments(self, context: Context) -> dict[str, Float64[Tensor, "d d"]]:
        """C of every block, from one pass over the task's data (for `released_code`, C C)."""
        sums = {block: double(memory.vectors.new_zeros(2 * [len(memory.vectors)])) for block, _, memory in self.parts()}
        tokens = dict.fromkeys(self.inputs, 0)

        def add(block: str, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = double(arguments[0]).flatten(0, -2)
            sums[block] += x.T @ x
            tokens[block] += len(x)

        hooks = [
            self.encoder.get_submodule(linear).register_forward_pre_hook(partial(add, block))
            for block, linear in self.inputs.items()
        ]
        try:
            for batch in context.own_batches():
                self.encoder.features(batch.inputs)
        finally:
            for hook in hooks:
                hook.remove()
        counted = torch.tensor([*tokens.values()], dtype=torch.float64, device=next(iter(sums.values())).device)
        *totals, counted = context.processes.added([*sums.values(), counted])
        moments = {block: total / number for block, total, number in zip(sums, totals, counted, strict=True)}
        return {b: c @ c for b, c in moments.items()} if self.squared else moments

    def diagnostics(self) -> dict[str, Any]:
        """Number of protected directions in each block, and epsilon_t."""
        return {
            "protected": [memory.protected for _, _, memory in self.parts()],
            "energy_share": self.energy_share(self.task.index),
        }

    def structure(self) -> dict[str, Any]:
        return {block: [memory.vectors.shape[1], memory.holds_free] for block, _, memory in self.parts()}

    def restore_structure(self, structure: Mapping[str, Any]) -> None:
        for block, _, memory in self.parts():
            columns, holds_free = structure[block]
            if not (type(columns) is int and 0 <= columns <= len(memory.vectors) and type(holds_free) is bool):
                raise ValueError(
                    f"{block} is {structure[block]!r:.60}, expected a number of columns from 0 to "
                    f"{len(memory.vectors)}, and whether they span what is free"
                )
            memory.holds_free = holds_free
            memory.vectors = memory.vectors.new_zeros(memory.vectors.shape[0], columns)
