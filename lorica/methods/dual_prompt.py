"""DualPrompt: a prompt for all tasks in the first blocks, one for each task in the next (Wang et al., ECCV 2022).

The backbone stays frozen. A prompt is a prefix: rows of keys and rows of values that a block's attention finds before
its own, softmax(Q [P_K; K]' / sqrt(d)) [P_V; V] in each head. The G-prompt g enters blocks 0 and 1 whatever the task;
the E-prompt e_t of a task enters blocks 2, 3 and 4. With q(x) the feature of the untouched backbone and a key k_t for
each task,

    loss at task t = cross-entropy with g and e_t - lambda mean_x cos(q(x), k_t)                                    (1)
    prediction     = with g and e_i,  i = argmax_i cos(q(x), k_i)                                                   (2)

so that the task is known in training and each input finds its own at prediction, in two passes: one for q, one with
prompts. Task t trains g, e_t, k_t and its rows of the head; what earlier tasks left of e, k and the head is final, and
forgetting comes from g and from wrong choices in (2). e_t starts where e_{t-1} ended; k_t starts anew.

Numbers are those of the authors' CIFAR-100 configuration (google-research/l2p, in JAX): 5 rows of keys and 5 of values
in both prompts, lambda = 1, all start uniform in [0, 0.01), the head at zero, gradients clipped at norm 1. Their
ImageNet-R has 20 + 20 rows in the E-prompts (`length: 20`). Rates: Adam, constant at 0.03 B / 256 for a batch of B, on
ImageNet-R at 0.005 B / 256. The default is the first at the library's batch of 128, 0.015; for ImageNet-R give 0.0025.
Equation numbers are this file's.

Decided, or done otherwise than in released code:
  * the pool grows by a prompt for each task. Theirs has a fixed number; once these are used up, they and PyTorch ports
    train whichever prompt the keys pick, without a word;
  * the choice in (2) is each input's own. The authors' CIFAR setting lets a batch vote, which tells it its task where a
    test batch holds one task only (`batch_majority: true`, for replication only); their ImageNet-R setting does not;
  * `scrambled: true` hands out E-prompts as the PyTorch ports do (`lorica.adapters.prefix.scrambled`): half of a batch
    gets keys as keys and values, the other half values as both, at prediction from other inputs too. The authors' own
    code is free of it. For replication only: predictions then depend on the batch, and results must say so;
  * one key for each task, as in the authors' code; GT-RIPL/CODA-Prompt has one for each block, which may disagree;
  * the clipped norm is that of what trains. The authors' includes the gradients of the frozen backbone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from lorica.adapters.prefix import TaskPrompts, prefixes, query, scrambled
from lorica.backbones.encoder import Encoder
from lorica.errors import BackboneError
from lorica.heads import cosines
from lorica.methods.base import MethodConfig
from lorica.methods.linear_head import LinearHeadConfig, LinearHeadMethod
from lorica.types import Batch, Inputs, Task


class DualPromptConfig(LinearHeadConfig):
    """Options of DualPrompt. A length of 0 leaves that kind of prompt out."""

    general_length: int = Field(default=5, ge=0, description="rows of keys, and of values, in the G-prompt")
    general_blocks: tuple[int, ...] = Field(default=(0, 1), min_length=1, description="blocks of the G-prompt, from 0")
    length: int = Field(default=5, ge=0, description="rows of keys, and of values, in an E-prompt")
    blocks: tuple[int, ...] = Field(default=(2, 3, 4), min_length=1, description="blocks of the E-prompts, from 0")
    pull_weight: float = Field(default=1.0, ge=0, description="lambda")
    start: tuple[float, float] = Field(default=(0.0, 0.01), description="prompts and keys start uniform between these")
    copy_previous: bool = Field(default=True, description="an E-prompt starts as what the one before has become")
    gradient_clip: float = Field(default=1.0, ge=0, description="largest norm of a step's gradient, 0 for any")
    batch_majority: bool = Field(
        default=False,
        description="one E-prompt for a whole batch; replication only, predictions then depend on the batch",
    )
    scrambled: bool = Field(
        default=False,
        description="mix E-prompts up as ports do; replication only, predictions then depend on the batch",
    )

    @model_validator(mode="after")
    def _is_possible(self) -> DualPromptConfig:
        blocks = self.general_blocks + self.blocks
        if len(set(blocks)) < len(blocks):
            raise ValueError(
                f"general_blocks {list(self.general_blocks)} and blocks {list(self.blocks)}: expected each block once; "
                "give a block to one of the two prompts"
            )
        if not self.start[0] < self.start[1]:
            raise ValueError(f"start {list(self.start)}: expected first < second")
        return self


class DualPrompt(LinearHeadMethod):
    """A general prompt, and one for each task that inputs find by its key."""

    name = "dual_prompt"
    Config = DualPromptConfig
    config: DualPromptConfig

    def __init__(self, config: DualPromptConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        depth = len(encoder.blocks)
        if depth > 1 and all(block >= depth for block in config.blocks):  # the usual ones lie deeper
            numbers = [str(block) for block in range(depth)]
            general, own = (",".join(part) for part in (numbers[: (depth + 1) // 2], numbers[(depth + 1) // 2 :]))
            raise BackboneError(
                f"method.blocks: {encoder.name} has blocks 0 to {depth - 1}, asked for {list(config.blocks)}; "
                f"divide those among the two prompts: method.general_blocks=[{general}] method.blocks=[{own}]"
            )
        self.general_blocks = encoder.prefix_blocks(config.general_blocks, key="method.general_blocks")
        blocks = encoder.prefix_blocks(config.blocks, key="method.blocks")
        shape = (len(self.general_blocks), 2, config.general_length, encoder.width)
        self.general_prompt = nn.Parameter(torch.zeros(shape, device=self.device))
        self.prompts = TaskPrompts(blocks, config.length, encoder.width, start=config.start, device=self.device)
        self.keys = nn.ParameterList()

    @classmethod
    def undivided(cls, config: MethodConfig) -> Iterator[str]:
        yield from cls.unshared(config)

    @classmethod
    def unshared(cls, config: MethodConfig) -> Iterator[str]:
        for key, why in (
            ("batch_majority", "makes one choice for a whole batch"),
            ("scrambled", "mixes the inputs of a batch up"),
        ):
            if getattr(config, key, False):
                yield f"method.{key} {why}"

    @classmethod
    def fit_defaults(cls, variant: str | None) -> Mapping[str, Any]:
        return {"optimizer": "adam", "learning_rate": 0.015, "weight_decay": 0.0, "schedule": "constant"}

    def grow(self, task: Task) -> None:
        super().grow(task)
        self.prompts.grow(copy=self.config.copy_previous)
        self.keys.append(nn.Parameter(self.fresh(self.encoder.width)))
        if task.index == 0:
            self.general_prompt = nn.Parameter(self.fresh(*self.general_prompt.shape))

    def fresh(self, *shape: int) -> Float[Tensor, "*shape"]:
        """Where prompts and keys start."""
        return torch.empty(shape).uniform_(*self.config.start).to(self.device)

    def trainable(self) -> list[nn.Parameter]:
        return [self.general_prompt, self.prompts.rows[-1], self.keys[-1], *self.head_parameters()]

    def prompted(
        self, inputs: Inputs, rows: Float[Tensor, "m blocks 2 length dim"], *, layers: int | None = None
    ) -> Float[Tensor, "n features"]:
        """Features with the G-prompt and the rows of an E-prompt, for each input or one for all."""
        if self.config.scrambled:
            rows = scrambled(rows.expand(len(inputs), -1, -1, -1, -1))
        both = prefixes(self.general_blocks, self.general_prompt[None]) | prefixes(self.prompts.blocks, rows)
        return self.encoder.features(inputs, prefixes=both, layers=layers)

    def losses(self, batch: Batch) -> Iterator[dict[str, Float[Tensor, ""]]]:
        """Cross-entropy under the task's own prompts, and what pulls its key towards the queries (1)."""
        logits = self.head(self.prompted(batch.inputs, self.prompts.rows[-1][None]))
        similarity = cosines(query(self.encoder, batch.inputs), self.keys[-1][None])
        yield {
            "cross_entropy": self.cross_entropy(logits, batch.labels),
            "pull": -self.config.pull_weight * similarity.mean(),
        }

    def edit_gradients(self) -> None:
        if self.config.gradient_clip:
            nn.utils.clip_grad_norm_(self.trainable(), self.config.gradient_clip)

    def features(self, inputs: Inputs, *, layers: int | None = None) -> Float[Tensor, "n features"]:
        """Features under the prompt whose key is nearest to each input's query (2)."""
        chosen = cosines(query(self.encoder, inputs), torch.stack(list(self.keys))).argmax(dim=1)
        if self.config.batch_majority:
            chosen = chosen.bincount().argmax().expand_as(chosen)
        return self.prompted(inputs, self.prompts.of(chosen), layers=layers)
