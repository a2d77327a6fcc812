"""Dotted keys."""

from __future__ import annotations

from lorica.nested import flatten


def test_values_come_in_order_with_their_dotted_keys() -> None:
    values = {
        "seed": 1,
        "fit": {"epochs": 3, "optimizer": {"name": "sgd"}},
        "stream.tasks": 5,
        "empty": {},
        "last": [{}],
    }
    assert list(flatten(values)) == [
        ("seed", 1), ("fit.epochs", 3), ("fit.optimizer.name", "sgd"), ("stream.tasks", 5), ("last", [{}]),
    ]  # fmt: skip
