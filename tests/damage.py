"""Bytes of a file, damaged."""

from __future__ import annotations

import numpy as np


def damaged(content: bytes, random: np.random.RandomState) -> bytes:
    """Cut short, or with bytes changed, taken out, doubled; more often near the beginning, where sizes and offsets
    are."""
    data = bytearray(content)
    for _ in range(random.randint(1, 5)):
        if len(data) < 2:
            break
        start = random.randint(min(len(data), 64) if random.rand() < 0.6 else len(data))
        length = int(random.choice([1, 2, 4, 16, 200]))
        match random.randint(6):
            case 0:
                del data[start + 1 :]
            case 1:
                del data[start : start + length]
            case 2:
                data[start : start + length] = random.bytes(length)
            case 3:
                data[start : start + length] = bytes([random.choice([0, 0x7F, 0xFF])]) * length
            case 4:
                data[start:start] = data[start : start + length]
            case 5:
                data[start] ^= 1 << random.randint(8)
    return bytes(data)
