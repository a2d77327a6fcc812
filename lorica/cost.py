"""What a learned method costs, measured on the live model."""

from __future__ import annotations

from typing import Any

from lorica.methods.base import Method


def measure(method: Method) -> dict[str, Any]:
    """Parameters and storage after the latest task, in numbers of floats.

    Returns:
        `backbone`: parameters of the backbone; `trainable`: parameters trained on the latest task, and of these
        `trainable_head`; `stored`: floats in a checkpoint, `stored_head` the classifier's share of them.
    """
    head = {id(parameter) for name, parameter in method.named_parameters() if name.startswith("head.")}
    trainable = method.trainable()
    stored = method.own_state()
    return {
        "backbone": sum(parameter.numel() for parameter in method.encoder.parameters()),
        "trainable": sum(parameter.numel() for parameter in trainable),
        "trainable_head": sum(parameter.numel() for parameter in trainable if id(parameter) in head),
        "stored": sum(tensor.numel() for tensor in stored.values()),
        "stored_head": sum(tensor.numel() for name, tensor in stored.items() if name.startswith(("head.", "means."))),
    }
