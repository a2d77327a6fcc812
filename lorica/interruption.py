"""Signals that stop a run: kept waiting while a step is under way, so that what is saved is never half a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Terminated(SystemExit):
    """A scheduler asked the process to leave (SIGTERM, SIGHUP); its exit code is 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


class Followed(SystemExit):
    """Another process of the run has ended, and says why; this one ends without a word, with the same exit code."""


class Interruptions:
    """Ctrl-C, SIGTERM and SIGHUP for the length of a `with` block.

    Outside of `held` they raise at once: KeyboardInterrupt, or `Terminated`. Within, the first one waits for `release`;
    a second one raises at once. In another thread than the main one, which alone gets signals, this does nothing.
    """

    def __init__(self) -> None:
        self.waiting: int | None = None
        self._held = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruptions:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._arrived) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A signal that arrives in this block waits."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def release(self) -> None:
        """Raises for the signal that waits, if there is one."""
        if self.waiting is not None:
            number, self.waiting = self.waiting, None
            _leave(number)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self._held and self.waiting is None:
            self.waiting = number
        else:
            _leave(number)


def _leave(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)


@contextmanager
def held_back() -> Iterator[None]:
    """Whatever a signal that stops the process would raise in this block, it raises at its end; a second one at once.

    Python raises it between any two lines of the main thread, those of its own `concurrent.futures` and `threading`
    among them, which then leave a lock locked: a thread waits for it for ever, and so does who waits for that thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: found for number in _SIGNALS if callable(found := signal.getsignal(number))}
    waiting: list[int] = []
    holding = True

    def arrived(number: int, frame: FrameType | None) -> None:
        if holding and not waiting:
            waiting.append(number)
        else:
            handlers[number](number, frame)

    try:
        for number in handlers:
            signal.signal(number, arrived)
        yield
    finally:
        holding = False
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in waiting:
            handlers[number](number, None)
