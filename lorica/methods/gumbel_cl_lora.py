"""Gumbel CL-LoRA: SD-LoRA whose directions pass a sparse gate, so that some of them can be pruned. Experimental.

A fork of SD-LoRA, known from its README, a summary of its implementation and its code, and not to be
confused with CL-LoRA. With unit directions X_i = U_i D_i / ||U_i D_i||_F, the weight of a projection at task t is

    W = W0 + sum_{i kept} beta_i alpha_i X_i,          beta = sparsemax((l + g) / tau)                           (1)

alpha_i and the logit l_i are one scalar each per task, shared by all projections. In training g is Gumbel(0, 1) noise,
otherwise 0; sparsemax is the projection onto the simplex (Martins and Astudillo, 2016), whose entries reach 0 exactly.
The loss is

    loss = cross-entropy + lambda H(beta),             H(beta) = -sum_i beta_i log(beta_i + 1e-8)                (2)

tau falls during a task, and when the task is learned a direction with beta = 0 is pruned for good: removing it changes
nothing. Since beta sums to 1, every direction that is added takes weight from the old ones; nothing protects what they
compute.

The sources contradict each other. `variant: default` resolves it so: one noise draw per step for all projections; the
current direction is gated like the others and is the only one that can be pruned; exact Frobenius norms; tau falls from
5 to 0.5 geometrically with the fraction of the task's steps, so that 0.5 is reached however short the training;
predictions and the decision use the tau reached, without noise; alpha and l are carried over, and a new logit starts at
the mean of the kept ones; lambda = 1e-3, alpha starts at 1.

`variant: readme`: ||U||_F ||D||_F instead of the norm, lambda = 0.01, tau = 0.5 + 4.5 * 0.999^step (after 800 steps
still 2.5; `anneal_rate` is that 0.999), alpha and l set to 1 and 0 again at each task, SGD, head rows that start
uniform in +-sqrt(3/d) as in the code that it forks (default: at zero, as those of sd_lora).
`variant: summary`: as readme, but lambda = 1e-3, alpha starts at 0.8, the current direction stays outside the gate and
unnormalised, + alpha_t U_t D_t with U_t = 0 at the start, and the decision, beta <= 1e-6, is taken for every direction.
The current logit is then decided upon without ever having had a gradient.
`gate: block` gives each block logits, noise and a gate of its own; H is then the mean over blocks, and a direction is
pruned that is closed in all of them.
Not reproduced from the code: a temperature that never reaches the layers, separate noise for each layer and for q and v
under one gate, an entropy summed over 24 equal gates, and a limit of 20 tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from lorica.adapters.attach import attach
from lorica.adapters.lowrank import NORMS, LowRankUpdates
from lorica.backbones.encoder import Encoder, Site
from lorica.methods.base import Context, Variants, places_among
from lorica.methods.linear_head import LinearHeadMethod, LowRankHeadConfig
from lorica.types import Batch, Task


def sparsemax(scores: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
    """The point of the simplex nearest to each group's scores, however large these are; gradient (I - 11'/|S|) on its
    support S, zero elsewhere."""
    scores = scores - scores.detach().amax(0)  # which moves no difference; large scores would lose theirs in the sums
    ordered = scores.sort(dim=0, descending=True).values
    sums, count = ordered.cumsum(0), torch.arange(1, len(scores) + 1, device=scores.device)
    size = (1 + count.view(-1, *[1] * (scores.ndim - 1)) * ordered > sums).sum(0)
    return (scores - (sums.gather(0, size[None] - 1)[0] - 1) / size).clamp_min(0)


def entropy(gates: Float[Tensor, "n ..."]) -> Float[Tensor, ""]:
    """H of (2), in nats; the mean over groups."""
    return -(gates * (gates + 1e-8).log()).sum(0).mean()


class GumbelCLLoRAConfig(LowRankHeadConfig):
    """Options of Gumbel CL-LoRA; what is absent is as the variant does."""

    variant: Literal["default", "readme", "summary"] = "default"
    entropy_weight: float | None = Field(default=None, ge=0, description="lambda")
    noise: float = Field(default=1.0, ge=0, description="factor of the Gumbel noise")
    temperature: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(5.0, 0.5), description="tau at the start, and what it falls to"
    )
    anneal_rate: float | None = Field(
        default=None, gt=0, lt=1, description="tau falls by this factor a step; default: by the fraction of the steps"
    )
    growth_threshold: float | None = Field(
        default=None, ge=0, lt=1, description="a direction stays where its gate exceeds this; summary: 1e-6, else 0"
    )
    adaptive_threshold: bool = Field(
        default=False, description="divide growth_threshold by the number of directions that share the gate"
    )
    top_k: int | None = Field(default=None, ge=1, description="the gate can open for this many directions, the highest")
    hard_evaluation: bool = Field(
        default=False, description="predictions use the direction of the widest gate alone, with weight 1"
    )
    gate: Literal["network", "block"] = Field(
        default="network", description="one for all projections, or one for each block"
    )
    gate_current: bool | None = Field(default=None, description="the current direction is gated like the others")
    prune_past: bool | None = Field(default=None, description="earlier directions can be pruned too")
    carry: bool | None = Field(default=None, description="magnitudes and logits are carried across tasks")
    keep_pruned: bool = Field(default=False, description="keep pruned factors in the checkpoints")
    by_variant: ClassVar[Variants] = {
        "default": {
            "entropy_weight": 1e-3, "gate_current": True, "prune_past": False, "carry": True,
            "anneal_rate": None, "norm": "frobenius", "initial_magnitude": 1.0, "growth_threshold": 0.0,
            "head_start": "zeros",
        },
        "readme": {
            "entropy_weight": 1e-2, "gate_current": True, "prune_past": False, "carry": False,
            "anneal_rate": 0.999, "norm": "product", "initial_magnitude": 1.0, "growth_threshold": 0.0,
            "head_start": "kaiming",
        },
        "summary": {
            "entropy_weight": 1e-3, "gate_current": False, "prune_past": True, "carry": False,
            "anneal_rate": 0.999, "norm": "product", "initial_magnitude": 0.8, "growth_threshold": 1e-6,
            "head_start": "kaiming",
        },
    }  # fmt: skip


class GumbelCLLoRA(LinearHeadMethod):
    """Directions behind a sparse gate; those that it closes on are pruned."""

    name = "gumbel_cl_lora"
    rewritten = ("temperature",)
    Config = GumbelCLLoRAConfig
    config: GumbelCLLoRAConfig
    temperature: Tensor

    def __init__(self, config: GumbelCLLoRAConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        chosen = config.of_variant()
        self.entropy_weight, self.gate_current = chosen["entropy_weight"], chosen["gate_current"]
        self.prune_past, self.carry = chosen["prune_past"], chosen["carry"]
        self.anneal_rate, self.norm = chosen["anneal_rate"], NORMS[chosen["norm"]]
        self.initial_magnitude, self.threshold = chosen["initial_magnitude"], chosen["growth_threshold"]
        sites = encoder.select(config.projections)
        self.directions = LowRankUpdates(sites, device=self.device)
        self.stored: list[int] = []  # tasks whose directions are in memory, in the order of `magnitudes` and `logits`
        self.kept: list[int] = []  # those that the gate may open for
        self.magnitudes = nn.Parameter(torch.empty(0, device=self.device))
        groups = (len(encoder.blocks),) if config.gate == "block" else ()
        self.logits = nn.Parameter(torch.empty(0, *groups, device=self.device))
        self.register_buffer("temperature", torch.ones((), device=self.device))  # reached so far
        self.step, self.steps = 0, 1
        self.step_gates: Tensor | None = None  # during a training step, so that all projections see one draw of noise
        attach(encoder, sites, self.increment, together=config.gate == "network")

    @classmethod
    def fit_defaults(cls, variant: str | None) -> Mapping[str, Any]:
        return {"optimizer": "sgd"} if variant in ("readme", "summary") else {}

    def gates(self, *, noisy: bool, with_current: bool) -> Float[Tensor, "stored ..."]:
        """beta of (1), one for each stored direction (and block): 0 for pruned ones, 1 for a current direction outside
        the gate."""
        gated = [place for place, task in enumerate(self.stored) if task in self.kept]
        outside = not with_current and self.kept[-1:] == [self.task.index]
        if outside:
            gated.remove(len(self.stored) - 1)
        beta = torch.zeros_like(self.logits)
        if gated:
            places = torch.tensor(gated).to(self.device, non_blocking=True)
            scores = self.logits[places]
            if noisy:
                noise = -torch.log(-torch.log(torch.rand(scores.shape).clamp(1e-9, 1 - 1e-7)))
                scores = scores + self.config.noise * noise.to(scores, non_blocking=True)
            scores = scores / self.temperature
            if self.config.top_k:
                best = scores.topk(min(self.config.top_k, len(gated)), dim=0).indices
                others = torch.ones_like(scores, dtype=torch.bool).scatter(0, best, False)
                closed = scores.detach().amax(0, keepdim=True) - 2  # what is 1 or more below the top has gate 0
                scores = torch.where(others, closed, scores)
            beta = beta.index_copy(0, places, sparsemax(scores))
        if outside:
            beta = torch.cat([beta[:-1], torch.ones_like(beta[-1:])])
        return beta

    def settled_gates(self) -> Float[Tensor, "stored ..."]:
        """beta as predictions use it."""
        beta = self.gates(noisy=False, with_current=self.gate_current)
        if self.config.hard_evaluation and self.gate_current and self.kept:
            beta = F.one_hot(beta.argmax(0), len(beta)).movedim(-1, 0).to(beta)
        return beta

    def increment(self, site: Site | tuple[Site, ...]) -> Float[Tensor, "*sites out inp"]:
        """The sum in (1), for one projection; or, where all have one gate, for several of one shape."""
        gates = self.settled_gates() if self.step_gates is None else self.step_gates
        own = gates if self.config.gate == "network" else gates[:, cast(Site, site).block]
        coefficients, update = own * self.magnitudes, self.directions[site]
        if not update.up.shape[-1]:  # the current direction has been pruned
            return update(coefficients, 0.0)
        current = coefficients[-1]
        if self.gate_current:
            current = current / self.norm(update.up, update.down)
        return update(coefficients[:-1], current)

    def grow(self, task: Task) -> None:
        super().grow(task)
        self.directions.grow(self.config.rank, zero_up=not self.gate_current, norm=self.norm)
        magnitudes, logits = self.magnitudes.detach(), self.logits.detach()
        places = [place for place, index in enumerate(self.stored) if index in self.kept]
        level = (logits[places] if places else logits.new_zeros(1, *logits.shape[1:])).mean(0, keepdim=True)
        if not self.carry:
            magnitudes, logits = torch.full_like(magnitudes, self.initial_magnitude), torch.zeros_like(logits)
            level = torch.zeros_like(level)
        self.magnitudes = nn.Parameter(torch.cat([magnitudes, magnitudes.new_tensor([self.initial_magnitude])]))
        self.logits = nn.Parameter(torch.cat([logits, level]))
        self.stored.append(task.index)
        self.kept.append(task.index)

    def begin_task(self, context: Context) -> None:
        self.step, self.steps = 0, context.steps

    def trainable(self) -> list[nn.Parameter]:
        return [self.magnitudes, self.logits, *self.directions.factors(), *self.head_parameters()]

    def anneal(self) -> None:
        """Sets tau for the training step that comes next."""
        start, end = self.config.temperature
        if self.anneal_rate is None:
            tau = start * (end / start) ** (self.step / (self.steps - 1) if self.steps > 1 else 1)
        else:
            tau = end + (start - end) * self.anneal_rate**self.step
        self.temperature.fill_(tau)

    def edit_gradients(self) -> None:
        self.step += 1

    def losses(self, batch: Batch) -> Iterator[dict[str, Float[Tensor, ""]]]:
        self.anneal()
        self.step_gates = self.gates(noisy=True, with_current=self.gate_current)
        try:
            for terms in super().losses(batch):
                yield terms | {"entropy": self.entropy_weight * entropy(self.step_gates)}
        finally:
            self.step_gates = None

    @torch.no_grad()
    def end_task(self, context: Context) -> None:
        """Prunes what the gate is closed for."""
        gates = self.gates(noisy=False, with_current=True)
        gates = gates.reshape(len(gates), -1).amax(1).tolist()
        threshold = self.threshold / (len(self.kept) if self.config.adaptive_threshold else 1)
        closed = [task for task, beta in zip(self.stored, gates, strict=True) if beta <= threshold]
        candidates = self.kept if self.prune_past else self.kept[-1:]
        self._keep([task for task in self.kept if task not in candidates or task not in closed])

    def _keep(self, kept: list[int], stored: list[int] | None = None) -> None:
        stored = stored or (self.stored if self.config.keep_pruned else kept)
        places = [self.stored.index(task) for task in stored]
        self.directions.keep(places)
        self.magnitudes = nn.Parameter(self.magnitudes.detach()[places], requires_grad=False)
        self.logits = nn.Parameter(self.logits.detach()[places], requires_grad=False)
        self.stored, self.kept = list(stored), list(kept)

    def diagnostics(self) -> dict[str, Any]:
        """For every task's direction its gate as predictions use it (the mean over blocks) and its magnitude, 0 once
        pruned; what is kept; tau."""
        with torch.no_grad():
            gates = self.settled_gates()
            gates = gates.reshape(len(gates), -1).mean(1).tolist()
        place = {task: self.stored.index(task) for task in self.kept}
        magnitudes = self.magnitudes.tolist()
        return {
            "gates": [gates[place[task.index]] if task.index in place else 0.0 for task in self.tasks],
            "magnitudes": [magnitudes[place[task.index]] if task.index in place else 0.0 for task in self.tasks],
            "kept": list(self.kept),
            "temperature": self.temperature.item(),
        }

    def structure(self) -> dict[str, Any]:
        return {"kept": self.kept, "stored": self.stored, "step": self.step, "steps": self.steps}

    def restore_structure(self, structure: Mapping[str, Any]) -> None:
        kept, stored = (places_among(structure[key], len(self.tasks), key) for key in ("kept", "stored"))
        step, steps = structure.get("step", 0), structure.get("steps", 1)
        if not set(kept) <= set(stored):
            raise ValueError(f"kept is {kept}, expected some of those stored, {stored}")
        if not (type(step) is type(steps) is int and step >= 0 and steps >= 1):
            raise ValueError(f"step is {step!r:.60} of {steps!r:.60} steps, expected numbers")
        self._keep(kept, stored)
        self.step, self.steps = step, steps
