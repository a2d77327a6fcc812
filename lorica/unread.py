"""Inputs that are read when they are needed, and features that are computed once.

A pass over samples that are not augmented gives `Unread` inputs: they know which samples they are. An encoder that is
asked for features of them looks up what was computed before, by what the trunk is (its form, and the content of all its
tensors) and by the samples; whatever else is done with them reads them first. Nobody who computes features writes any
of that.

Features are computed in blocks of neighbours in their split, always the same, whatever batch asks for them: so they are
to the bit the same whether they were kept, computed again after something else took their room, or after the process
was started again.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from typing import IO, Any

import torch
from torch import Tensor, nn

BLOCK = 256
"""Samples whose features are computed together."""

_log = logging.getLogger(__name__)

_Key = tuple["Samples", Hashable, int]


class Memory:
    """Blocks of features: `budget` bytes of those used last in memory, the others in a temporary file without a name,
    which goes with the process however it ends. Where the disk is full, what finds no room is forgotten."""

    def __init__(self, budget: int = 2**28) -> None:
        self._budget, self._used = budget, 0
        self._held: OrderedDict[_Key, Tensor] = OrderedDict()
        self._written: dict[
            _Key, tuple[int, Tensor]
        ] = {}  # where in the file; and a tensor without numbers, of the same form
        self._free: dict[int, list[int]] = {}  # places in the file that were given up, by their size
        self._size, self._is_full = 0, False

    def get(self, key: _Key) -> Tensor | None:
        """That block, on the CPU; None where it is not known."""
        if key in self._held:
            self._held.move_to_end(key)
        elif key in self._written:
            place, form = self._written[key]
            with suppress(OSError):  # what cannot be read is computed again
                self._file.seek(place)
                if len(read := self._file.read(form.nbytes)) == form.nbytes:
                    numbers = torch.frombuffer(bytearray(read), dtype=form.dtype)
                    self._hold(key, block := numbers.reshape(form.shape))
                    return block
        return self._held.get(key)

    def put(self, key: _Key, block: Tensor) -> None:
        """Keeps a block."""
        if key not in self._held and key not in self._written:
            self._hold(key, block)

    def forget(self, samples: Samples) -> None:
        """Drops all blocks of some samples."""
        for key in [key for key in self._held if key[0] is samples]:
            self._used -= self._held.pop(key).nbytes
        for key in [key for key in self._written if key[0] is samples]:
            place, form = self._written.pop(key)
            self._free.setdefault(form.nbytes, []).append(place)

    def _hold(self, key: _Key, block: Tensor) -> None:
        self._held[key] = block
        self._used += block.nbytes
        while self._used > self._budget:
            oldest, dropped = self._held.popitem(last=False)
            self._used -= dropped.nbytes
            if oldest not in self._written:
                try:
                    self._write(oldest, dropped)
                except OSError as error:  # no room there either: it will be computed again
                    if not self._is_full:
                        _log.warning(
                            "features find no room in %s (%s) and are computed anew for each batch, which can take "
                            "many times as long; set TMPDIR to a folder with room, or raise data.cache_gib",
                            tempfile.gettempdir(),
                            error.strerror or error,
                        )
                    self._is_full = True

    def _write(self, key: _Key, block: Tensor) -> None:
        free = self._free.get(block.nbytes)
        place = free[-1] if free else self._size
        self._file.seek(place)
        if self._file.write(block.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()) != block.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if free:
            free.pop()
        else:
            self._size += block.nbytes
        self._written[key] = place, torch.empty_like(block, device="meta")

    @cached_property
    def _file(self) -> IO[bytes]:
        # not buffered, so that nothing that found no room is tried again when something else is read
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (open as long as this is)
        weakref.finalize(self, file.close)
        return file


class Pass:
    """One pass over samples. While it lasts, no trunk changes but one that trains: what each is, is looked at once.

    Attributes:
        ordered: the samples come in their order, and nothing trains meanwhile.
        reads: the batch that was used last had to be read, and so may the next one.
    """

    def __init__(self, *, ordered: bool) -> None:
        self.ordered, self.reads = ordered, False
        self._known: dict[tuple[nn.Module, ...], Hashable] = {}

    def key_of(self, *trunk: nn.Module, find: Callable[[], Hashable]) -> Hashable:
        """What `find` says that these modules are together; None: not a trunk whose features can be kept."""
        if trunk not in self._known:
            self._known[trunk] = find()
        return self._known[trunk]


class Samples:
    """The samples of a split, as often as they are wanted.

    Args:
        number: of samples.
        read: gives the inputs of samples by their places in the split, and a device.
        memory: where their features are kept.
    """

    def __init__(self, number: int, read: Callable[[Tensor, torch.device], Any], memory: Memory) -> None:
        self.number, self.read, self.memory = number, read, memory

    def features(
        self,
        places: Tensor,
        device: torch.device,
        key: Hashable,
        compute: Callable[[Any], Tensor],
        read: Callable[[], Any] | None = None,
    ) -> Tensor:
        """What `compute`, which `key` names, makes of the samples of these places: row by row, on the device. `read`
        gives their inputs, where they may be there already."""
        numbers = (places // BLOCK).tolist()

        def read_block(number: int) -> Any:
            block = torch.arange(number * BLOCK, min((number + 1) * BLOCK, self.number))
            return read() if read and torch.equal(block, places) else self.read(block, device)

        blocks = {number: self._block(number, key, compute, read_block) for number in dict.fromkeys(numbers)}
        if len(blocks) == 1:
            [block] = blocks.values()
            within = places % BLOCK
            whole = len(within) == len(block) and bool((within == torch.arange(len(block))).all())
            return (
                block.to(device, copy=True) if whole else block[within].to(device)
            )  # kept ones are nobody's to write into
        offsets = dict(zip(blocks, range(0, BLOCK * len(blocks), BLOCK), strict=True))
        # all but the last block of a split are full, and a shorter one among them is filled up so that places can be
        # counted
        rows = torch.cat([_filled(block) for block in blocks.values()])
        return rows[places % BLOCK + torch.tensor([offsets[number] for number in numbers])].to(device)

    def _block(
        self, number: int, key: Hashable, compute: Callable[[Any], Tensor], read: Callable[[int], Any]
    ) -> Tensor:
        found = self.memory.get((self, key, number))
        if found is None:
            with torch.no_grad():
                computed = compute(read(number))
            with torch.inference_mode(False):  # what training is to use must not be made for predicting alone
                found = computed.detach().to("cpu", copy=True)
            self.memory.put((self, key, number), found)
        return found


class Unread:
    """The inputs of some samples, which are read once something needs them; then it does as they do.

    Attributes:
        pass_: the pass that they are of.
    """

    def __init__(
        self,
        samples: Samples,
        places: Tensor,
        device: torch.device,
        pass_: Pass,
        whole: tuple[Unread, Any] | None = None,
    ) -> None:
        self.pass_ = pass_
        self._samples, self._places, self._device = samples, places, device
        self._whole = whole  # the inputs that these are some of, and which
        self._read: Any = None
        self._as_read: list[Any] = []
        self._needed = False

    def __len__(self) -> int:
        return len(self._places)

    def read(self) -> Any:
        """The inputs themselves."""
        self._needed = self.pass_.reads = True
        if self._read is None:
            self._take()
        return self._read

    def prepare(self) -> None:
        """Reads them before they are needed, if the last batch was."""
        if self.pass_.reads:
            self._take()

    def features(self, key: Hashable, compute: Callable[[Any], Tensor]) -> Tensor:
        """What `compute`, which `key` names, makes of them, computed before or now."""
        if self._is_changed or not len(self):
            return compute(self.read())
        device = self._device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        found = self._samples.features(self._places, self._device, (key, precision), compute, self.read)
        self.pass_.reads = self._needed
        return found

    def _take(self) -> None:
        if self._whole is not None:  # so that writing into some of them is writing into all, as with a tensor
            whole, which = self._whole
            self._read = whole.read()[which]
        else:
            with torch.inference_mode(False):  # whose tensors do not say whether they were written into
                self._read = self._samples.read(self._places, self._device)
        self._as_read = _standing(self._read)

    @property
    def _is_changed(self) -> bool:
        """Whether somebody has written into what was read, or wants its gradients: it is then no longer those
        samples."""
        if self._whole is not None and self._whole[0]._is_changed:
            return True
        return self._read is not None and _standing(self._read) != self._as_read

    def to(self, device: torch.device | str) -> Any:
        """The inputs, read and sent to that device."""
        return self.read().to(device)

    def __getitem__(self, which: Any) -> Any:
        """Some of them are unread whether these were read or not: a batch that was made ahead gives the same bits."""
        if isinstance(which, slice | list | Tensor) and not self._is_changed:
            places = self._places[which.cpu() if isinstance(which, Tensor) else which]
            if places.dim() == 1:
                return Unread(self._samples, places, self._device, self.pass_, (self, which))
        return self.read()[which]

    def __setitem__(self, which: Any, value: Any) -> None:
        self.read()[which] = _read(value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not there yet while it is being copied
            raise AttributeError(name)
        return getattr(self.read(), name)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        return function(*map(_read, args), **{name: _read(each) for name, each in (kwargs or {}).items()})


def _operator(name: str) -> Callable[..., Any]:
    def apply(self: Unread, *others: Any) -> Any:
        return getattr(self.read(), name)(*map(_read, others))

    return apply


_BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"]
for _name in (  # Python does not ask __getattr__ for these
    *(f"{side}{each}" for each in _BINARY for side in ("", "r", "i")),
    *("lt", "le", "gt", "ge", "eq", "ne", "neg", "abs", "invert"),
):
    setattr(Unread, f"__{_name}__", _operator(f"__{_name}__"))
Unread.__hash__ = object.__hash__


def _standing(inputs: Any) -> list[tuple[int, bool]]:
    """What changes in the tensors of inputs when they are written into, or asked for gradients."""
    tensors = [inputs] if isinstance(inputs, Tensor) else getattr(inputs, "__dict__", {}).values()
    return [(each._version, each.requires_grad) for each in tensors if isinstance(each, Tensor)]


def _read(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_read, value))
    return value.read() if isinstance(value, Unread) else value


def content(module: nn.Module) -> str:
    """A hash of the names, types, shapes and values of all its tensors, plain attributes among them, and of the plain
    settings of its modules (heads, what is pooled)."""
    digest = hashlib.sha256()
    for name, each in module.named_modules():
        digest.update(f"{name} {type(each).__qualname__} {_settings(each)};".encode())
    for name, tensor in [*module.named_parameters(), *module.named_buffers(), *_loose(module)]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _loose(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that are neither parameters nor buffers."""
    for prefix, each in module.named_modules():
        for name, value in vars(each).items():
            if isinstance(value, Tensor):
                yield f"{prefix}.{name}", value


def _settings(module: nn.Module) -> list[tuple[str, int | float | str]]:
    """Its public numbers and strings, but for its mode, which decides nothing where features are kept, and what it has
    computed once."""
    return sorted(
        (name, value)
        for name, value in vars(module).items()
        if isinstance(value, int | float | str)
        and not (name.startswith("_") or name == "training")
        and not isinstance(getattr(type(module), name, None), cached_property)
    )


def _filled(block: Tensor) -> Tensor:
    return block if len(block) == BLOCK else torch.cat([block, block.new_zeros(BLOCK - len(block), *block.shape[1:])])
