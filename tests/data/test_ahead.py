"""The next item is made while the last one is used, and nothing else differs from making it when it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from lorica.data.ahead import ahead, sent
from lorica.errors import DataError


class Made:
    """The numbers below `count`, and which of them are being made."""

    def __init__(self, count: int, fails_at: int | None = None) -> None:
        self.begun = [threading.Event() for _ in range(count)]
        self.fails_at = fails_at

    def items(self) -> Iterator[int]:
        for number, begun in enumerate(self.begun):
            begun.set()
            if number == self.fails_at:
                raise DataError([f"image {number}: damaged", f"image {number + 1}: damaged"])
            yield number

    @property
    def last_begun(self) -> int:
        return max(number for number, event in enumerate(self.begun) if event.is_set())


def helpers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_same_items_in_their_order(count: int) -> None:
    assert list(ahead(Made(count).items())) == list(range(count))
    assert helpers() == []


def test_the_next_one_is_made_meanwhile_and_no_other() -> None:
    made = Made(4)
    items = ahead(made.items())
    assert not made.begun[0].is_set()  # a pass that nobody begins makes nothing
    assert next(items) == 0
    assert made.begun[1].wait(10)
    assert made.last_begun == 1
    assert next(items) == 1
    assert made.begun[2].wait(10)
    assert made.last_begun == 2
    items.close()


def test_an_error_is_itself_and_comes_when_its_item_is_asked_for() -> None:
    made = Made(4, fails_at=2)
    items = ahead(made.items())
    assert [next(items), next(items)] == [0, 1]
    assert made.begun[2].wait(10)
    with pytest.raises(DataError) as caught:
        next(items)
    assert caught.value.problems == ("image 2: damaged", "image 3: damaged")
    assert helpers() == []


def test_who_stops_early_leaves_no_thread_behind() -> None:
    for number in ahead(Made(4).items()):
        if number == 1:
            break
    assert helpers() == []

    def fails() -> None:
        for _ in ahead(Made(4).items()):
            raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        fails()
    items = ahead(Made(4, fails_at=1).items())
    assert next(items) == 0
    items.close()  # the error of an item that nobody took is nobody's
    assert helpers() == []


def test_what_is_sent_to_the_cpu_is_there() -> None:
    tensor = torch.arange(3)
    assert sent(tensor, torch.device("cpu")) is tensor
    assert sent(tensor, torch.device("meta")).device.type == "meta"
