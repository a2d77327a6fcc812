"""What prompt methods share: the query of the frozen backbone, prompts of tasks, and their rows as prefixes.

A prompt for prefix tuning has rows [blocks, 2, length, width]: for each block that it enters, keys and values. The
attention itself belongs to the encoder (`lorica.backbones.encoder.Prefix`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lorica.backbones.encoder import Encoder, Prefix
from lorica.types import Inputs


@torch.no_grad()
def query(encoder: Encoder, inputs: Inputs) -> Float[Tensor, "n features"]:
    """q(x), what the frozen backbone makes of the inputs without any prompt: a pass through it, without gradients."""
    return encoder.features(inputs)


def prefixes(blocks: Sequence[int], rows: Float[Tensor, "n blocks 2 length dim"]) -> dict[int, Prefix]:
    """The rows of prompts, one for each input (or a single one for all), as prefixes of the blocks."""
    return {block: Prefix(rows[:, i, 0], rows[:, i, 1]) for i, block in enumerate(blocks)}


def scrambled(rows: Float[Tensor, "n blocks 2 length dim"]) -> Float[Tensor, "n blocks 2 length dim"]:
    """The rows as a common defect hands them out, for replication only.

    The PyTorch ports of DualPrompt gather prompts as [blocks, 2, n, …] and *reshape* that to [blocks, n, 2, …] where
    they would have to transpose it. An input in the first half of a batch then gets the keys of two inputs, as its keys
    and as its values, and one in the second half the values of two: predictions depend on the batch.
    """
    gathered = rows.permute(1, 2, 0, 3, 4)
    return gathered.reshape(gathered.shape[0], len(rows), 2, *rows.shape[3:]).transpose(0, 1)


class TaskPrompts(nn.Module):
    """A prompt for each task, one parameter [blocks, 2, length, width] each, so that all but the newest stay out of the
    optimiser.

    Args:
        blocks: the blocks that it enters, see `Encoder.prefix_blocks`.
        length: rows of keys, and of values.
        width: of the rows.
        start: entries of a prompt start uniform between these bounds.
    """

    def __init__(
        self, blocks: Sequence[int], length: int, width: int, *, start: tuple[float, float], device: torch.device
    ) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        self.shape, self.start, self.device = (len(self.blocks), 2, length, width), start, device
        self.rows = nn.ParameterList()

    def grow(self, *, copy: bool = False) -> None:
        """Adds a task's prompt; `copy` starts it where the task before has ended, if there is one."""
        fresh = torch.empty(self.shape).uniform_(*self.start).to(self.device)
        self.rows.append(nn.Parameter(self.rows[-1].detach().clone() if copy and len(self.rows) else fresh))

    def of(self, tasks: Int[Tensor, " n"]) -> Float[Tensor, "n blocks 2 length dim"]:
        """The prompt of each of these tasks."""
        return torch.stack(list(self.rows))[tasks]
