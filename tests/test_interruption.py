"""Signals wait where nothing may be left half done, and are never lost."""

from __future__ import annotations

import signal

import pytest

from lorica.interruption import Interruptions, Terminated, held_back


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_block(number: signal.Signals) -> None:
    done = []

    def work() -> None:
        with Interruptions(), held_back():
            signal.raise_signal(number)
            done.append("the rest of the block")

    with pytest.raises((KeyboardInterrupt, Terminated)):
        work()
    assert done


def test_a_second_signal_raises_at_once() -> None:
    done = []

    def work() -> None:
        with Interruptions(), held_back():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            done.append("the rest of the block")

    with pytest.raises((KeyboardInterrupt, Terminated)):
        work()
    assert not done


def test_a_signal_that_a_step_holds_back_goes_on_waiting() -> None:
    with Interruptions() as interruptions, interruptions.held():
        with held_back():
            signal.raise_signal(signal.SIGTERM)
        assert interruptions.waiting == signal.SIGTERM
        with pytest.raises(Terminated):
            interruptions.release()


def test_handlers_are_as_they_were() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ValueError, match="of the block"), held_back():
        raise ValueError("of the block")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
