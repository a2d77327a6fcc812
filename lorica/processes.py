"""The processes of a run, and all that they say to each other. A launcher (`torchrun`, `accelerate launch`) starts the
same program several times; each computes a share, the first of them is the main one, which alone writes.

A lone process is the ordinary case, in which nothing here costs anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from jaxtyping import Shaped
from torch import Tensor

from lorica import launch
from lorica.errors import LoricaError
from lorica.interruption import Followed, Terminated
from lorica.sharing import Share

_T = TypeVar("_T")
_blocks = itertools.count()  # of `ending_together`: the same in all processes


@dataclass(frozen=True)
class Processes:
    """The processes that share a run, this one among them: all must call the same of these methods in the same order.

    Attributes:
        number: of processes.
        index: of this one, from 0.
        device: where it computes.
    """

    number: int = 1
    index: int = 0
    device: torch.device = torch.device("cpu")

    @classmethod
    def of(cls, accelerator: Accelerator) -> Processes:
        """The processes that learn together with the one of this accelerator."""
        return cls(accelerator.num_processes, accelerator.process_index, accelerator.device)

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.number == 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.index == 0

    @property
    def taking(self) -> dict[str, Any]:
        """What `Data.batches` is told so that it gives this process's share; nothing in a lone process."""
        return {} if self.alone else {"share": Share(self.index, self.number)}

    # --- tensors ---

    def added(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sum of each over all processes, in which all have the same shapes; one exchange for each dtype."""
        if self.alone:
            return list(tensors)
        sums = list(tensors)
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
            flat = torch.cat([tensors[place].reshape(-1) for place in places])
            dist.all_reduce(flat)
            pieces = flat.split([tensors[place].numel() for place in places])
            for place, piece in zip(places, pieces, strict=True):
                sums[place] = piece.view(tensors[place].shape)
        return sums

    def gathered(self, rows: Shaped[Tensor, "n ..."] | None) -> Shaped[Tensor, "m ..."]:
        """The rows of all processes, those of the first one first; None where this one has none."""
        if self.alone:
            assert rows is not None
            return rows
        kinds: list[Any] = [None] * self.number
        dist.all_gather_object(kinds, None if rows is None else (rows.shape, rows.dtype))
        shape, dtype = next(kind for kind in kinds if kind)
        lengths = [kind[0][0] if kind else 0 for kind in kinds]
        padded = torch.zeros(max(lengths), *shape[1:], dtype=dtype, device=self.device)
        if rows is not None:
            padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in kinds]
        dist.all_gather(found, padded)
        return torch.cat([each[:length] for each, length in zip(found, lengths, strict=True)])

    def as_on_main(self, tensors: Iterable[Tensor]) -> None:
        """Makes these tensors the main process's, to the bit."""
        for tensor in () if self.alone else tensors:
            if tensor.numel():
                own = tensor.detach()
                sent = own.contiguous()
                dist.broadcast(sent, 0)
                own.copy_(sent)

    # --- plain values, and turns ---

    def largest(self, value: int) -> int:
        """The largest number that any of them gives."""
        if self.alone:
            return value
        found = torch.tensor(value, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def wait(self) -> None:
        """Until all have come here."""
        self.largest(0)

    def require_same(self, what: str, value: Any) -> None:
        """LoricaError, in all of them, unless all give an equal value."""
        if self.alone:
            return
        found: list[Any] = [None] * self.number
        dist.all_gather_object(found, value)
        if other := [index for index, each in enumerate(found) if each != found[0]]:
            raise LoricaError(
                f"{what}: process {other[0] + 1} of {self.number} has found another than the main one; all processes "
                "must see the same files, and run the same program on the same kind of device"
            )

    def by_main(self, call: Callable[[], _T]) -> _T:
        """What the main process gets by that call, or the error of the user's that it raises, in all of them."""
        if self.alone:
            return call()
        said: list[Any] = [None, None]
        if self.is_main:
            try:
                said[0] = call()
            except (LoricaError, OSError) as error:
                said[1] = error
        dist.broadcast_object_list(said)
        if said[1] is not None:
            raise said[1]
        return said[0]

    @contextmanager
    def entered_by_main(self, manager: AbstractContextManager[Any]) -> Iterator[None]:
        """A `with` block that the main process alone enters, and leaves once all are at its end."""
        with ExitStack() as stack:
            self.by_main(lambda: stack.enter_context(manager) and None)
            yield
            self.wait()

    @contextmanager
    def ending_together(self) -> Iterator[None]:
        """Where one of them raises in this block, all end, and one alone says why.

        The first one that raises goes on raising. The others find that it no longer answers, or have the same error,
        and leave.

        Raises:
            Followed: another one has raised before.
            LoricaError: another one has ended and did not come to raise.
        """
        block = next(_blocks)
        try:
            yield
        except BaseException as error:
            if self.alone or isinstance(error, Followed):
                raise
            try:
                first = dist.distributed_c10d._get_default_store().add(f"lorica/raised in {block}", 1) == 1
            except RuntimeError:  # the store has gone with the main process
                first = self.is_main
            if not first:
                raise Followed(_code(error)) from error
            launch.be_heard()
            if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
                raise LoricaError(
                    "another process of this run has ended, and did not come to say why (killed, or out of memory?); "
                    "what was saved is kept: start all of them again, with --resume"
                ) from error
            raise


def _code(error: BaseException) -> int:
    """The exit code that the command line gives an error."""
    if isinstance(error, Terminated):
        return 128 + error.signal
    return 130 if isinstance(error, KeyboardInterrupt) else 2
