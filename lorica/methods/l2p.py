"""L2P: prompts picked from a pool by how well their keys match the input (Wang et al., CVPR 2022).

The backbone stays frozen. A pool holds M prompts P_m with keys k_m. With q(x) the feature of the untouched backbone, an
input x gets the N prompts whose keys are most like its query, and everything that the pool holds stays trainable in all
tasks:

    I(x) = the N indices m of largest cos(q(x), k_m), in falling order                                              (1)
    loss = cross-entropy - lambda mean_x sum_{m in I(x)} cos(q(x), k_m)                                             (2)

The choice in (1) has no gradient: the second term of (2) alone moves keys, and only those that are picked.

`variant: paper` (default)  prompt tuning, with L tokens in a prompt: [P_I1; …; P_IN; class token; patches] enter the
                            first block, prompts without a position. The head reads the mean over the N L tokens that
                            come out where the prompts went in, normalised as the backbone does it, and nothing else.
                            M, L, N = 10, 10, 4; prompts and keys start uniform in [0, 0.01), the head
                            at zero; gradients are clipped at norm 1.
`variant: prefix`           prefix tuning: L rows of keys and L of values in a prompt; attention of block 0 finds the N
                            L rows of each before its own. The head reads the backbone's own feature.
                            M, L, N = 30, 10, 5; start uniform in [0, 1), the head as `nn.Linear`; no clipping.

Equation numbers are this file's. The numbers of `paper` are those of the authors' CIFAR-100 configuration
(google-research/l2p, in JAX), and so is lambda = 1. `prefix` is what GT-RIPL/CODA-Prompt calls L2P++; its M (20 + 1)
768 = 0.48 million parameters are what the SD-LoRA paper states for L2P. Predictions take two passes: one for q, one
with prompts.

Rates: the authors use Adam at 0.03 B / 256, constant, for a batch of B: 0.015 at the library's 128 (they: 0.015, B =
128). L2P++ uses Adam at 1e-3 with B = 128, falling by a cosine to 1.6% of that in the last of 20 epochs; here to 0.

Decided, or done otherwise than in released code:
  * `batch_majority: true` gives all inputs of a batch the N prompts that were picked most often in it, in training and
    at prediction. The authors' CIFAR-100 configuration does so, and several ports do. A test batch of one task then
    tells its task, and a prediction depends on its batch: for replication only, and results must say so;
  * the clipped norm is that of what trains. The authors' includes the gradients of the frozen backbone;
  * in (2) `prefix` has the mean over the batch. L2P++ has a sum, and by a slip over all pairs of inputs: each is pulled
    to the keys of every other one;
  * nothing counts how often a prompt was picked (the authors can penalise that in training; their CIFAR setting does
    not).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from lorica.adapters.prefix import prefixes, query
from lorica.backbones.encoder import Encoder
from lorica.heads import cosines
from lorica.methods.base import MethodConfig, Variants
from lorica.methods.linear_head import LinearHeadConfig, LinearHeadMethod
from lorica.types import Batch, Inputs, Task


class L2PConfig(LinearHeadConfig):
    """Options of L2P; what is absent is as the variant does."""

    variant: Literal["paper", "prefix"] = "paper"
    pool_size: int | None = Field(default=None, ge=1, description="M; paper: 10, prefix: 30")
    selected: int | None = Field(default=None, ge=1, description="N, prompts of an input; paper: 4, prefix: 5")
    length: int = Field(default=10, ge=1, description="L, tokens of a prompt; of prefix: rows of keys, and of values")
    blocks: tuple[int, ...] = Field(
        default=(0,), min_length=1, description="that prompts enter, from 0; paper: block 0"
    )
    pull_weight: float = Field(default=1.0, ge=0, description="lambda")
    start: tuple[float, float] | None = Field(
        default=None, description="prompts and keys start uniform between these; paper: 0 and 0.01, prefix: 0 and 1"
    )
    gradient_clip: float | None = Field(
        default=None, ge=0, description="largest norm of a step's gradient, 0 for any; paper: 1, prefix: 0"
    )
    batch_majority: bool = Field(
        default=False,
        description="one choice for a whole batch; replication only, predictions then depend on the batch",
    )
    by_variant: ClassVar[Variants] = {
        "paper": {
            "as_tokens": True, "pool_size": 10, "selected": 4, "start": (0.0, 0.01), "gradient_clip": 1.0,
            "head_start": "zeros",
        },
        "prefix": {
            "as_tokens": False, "pool_size": 30, "selected": 5, "start": (0.0, 1.0), "gradient_clip": 0.0,
            "head_start": "linear",
        },
    }  # fmt: skip

    @model_validator(mode="after")
    def _is_possible(self) -> L2PConfig:
        chosen = self.of_variant()
        if chosen["selected"] > chosen["pool_size"]:
            raise ValueError(
                f"selected {chosen['selected']}: expected no more than pool_size, {chosen['pool_size']}; "
                "pick fewer or enlarge the pool"
            )
        if not chosen["start"][0] < chosen["start"][1]:
            raise ValueError(f"start {list(chosen['start'])}: expected first < second")
        if self.variant == "paper" and self.blocks != (0,):
            raise ValueError(
                f"blocks {list(self.blocks)}: the prompts of variant paper enter block 0; leave the key out, or use "
                "variant: prefix"
            )
        return self


class L2P(LinearHeadMethod):
    """A pool of prompts that all tasks share; each input picks its own."""

    name = "l2p"
    Config = L2PConfig
    config: L2PConfig

    def __init__(self, config: L2PConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        chosen = config.of_variant()
        self.selected, self.start, self.gradient_clip = chosen["selected"], chosen["start"], chosen["gradient_clip"]
        size, shape = chosen["pool_size"], (config.length, encoder.width)
        self.as_tokens: bool = chosen["as_tokens"]
        if not self.as_tokens:
            self.blocks = encoder.prefix_blocks(config.blocks, key="method.blocks")
            shape = (len(self.blocks), 2, *shape)
        self.prompts = nn.Parameter(torch.zeros(size, *shape, device=self.device))
        self.keys = nn.Parameter(torch.zeros(size, encoder.width, device=self.device))

    @classmethod
    def undivided(cls, config: MethodConfig) -> Iterator[str]:
        yield from cls.unshared(config)

    @classmethod
    def unshared(cls, config: MethodConfig) -> Iterator[str]:
        if getattr(config, "batch_majority", False):
            yield "method.batch_majority makes one choice for a whole batch"

    @classmethod
    def fit_defaults(cls, variant: str | None) -> Mapping[str, Any]:
        own = {"learning_rate": 1e-3, "schedule": "cosine"} if variant == "prefix" else {"learning_rate": 0.015}
        return {"optimizer": "adam", "weight_decay": 0.0, "schedule": "constant"} | own

    @torch.no_grad()
    def grow(self, task: Task) -> None:
        super().grow(task)
        if task.index == 0:
            for each in (self.prompts, self.keys):
                each.copy_(torch.empty(each.shape).uniform_(*self.start))

    def trainable(self) -> list[nn.Parameter]:
        return [self.prompts, self.keys, *self.head_parameters()]

    def select(self, similarity: Float[Tensor, "n m"]) -> Int[Tensor, "n selected"]:
        """Which prompts each input takes by (1), given the cosines of its query with all keys."""
        order = similarity.argsort(dim=1, descending=True, stable=True)[:, : self.selected]
        if not self.config.batch_majority:
            return order
        counts = torch.bincount(order.flatten(), minlength=similarity.shape[1])
        return counts.argsort(descending=True, stable=True)[: self.selected].expand_as(order)

    def prompted(
        self, inputs: Inputs, chosen: Int[Tensor, "n selected"], *, layers: int | None = None
    ) -> Float[Tensor, "n features"]:
        """What the head reads when each input has these prompts; or, of the last `layers` blocks, what the prompts have
        made of the other tokens."""
        prompts = self.prompts[chosen]
        if self.as_tokens:
            prompt = prompts.flatten(1, 2)
            if layers is not None:
                return self.encoder.features(inputs, prompt=prompt, layers=layers)
            return self.encoder.average(self.encoder.tokens(inputs, prompt=prompt)[:, : prompt.shape[1]])
        rows = prompts.permute(0, 2, 3, 1, 4, 5).flatten(3, 4)  # keys with keys, values with values
        return self.encoder.features(inputs, prefixes=prefixes(self.blocks, rows), layers=layers)

    def answer(
        self, inputs: Inputs, *, layers: int | None = None
    ) -> tuple[Float[Tensor, "n features"], Float[Tensor, "n selected"]]:
        """Features under the prompts that each input picks, and the cosines of the keys that were picked."""
        similarity = cosines(query(self.encoder, inputs), self.keys)
        chosen = self.select(similarity)
        return self.prompted(inputs, chosen, layers=layers), similarity.gather(1, chosen)

    def losses(self, batch: Batch) -> Iterator[dict[str, Float[Tensor, ""]]]:
        """Cross-entropy, and what pulls the picked keys towards their queries (2)."""
        features, picked = self.answer(batch.inputs)
        yield {
            "cross_entropy": self.cross_entropy(self.head(features), batch.labels),
            "pull": -self.config.pull_weight * picked.sum(dim=1).mean(),
        }

    def edit_gradients(self) -> None:
        if self.gradient_clip:
            nn.utils.clip_grad_norm_(self.trainable(), self.gradient_clip)

    def features(self, inputs: Inputs, *, layers: int | None = None) -> Float[Tensor, "n features"]:
        return self.answer(inputs, layers=layers)[0]
