"""Small linear algebra that several rooms share: where float64 can live, triangles of symmetric matrices, inner
products that keep their bits, random orthonormal rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

COLUMNS = 32
"""Of each matrix product in `products`."""


def float64_device(device: torch.device) -> torch.device:
    """The device itself, or the CPU where the device lacks float64."""
    return torch.device("cpu") if device.type == "mps" else device


def double(tensor: Float[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """In float64, on the tensor's device if that has it."""
    return tensor.to(float64_device(tensor.device)).double()


def packed(symmetric: Float[Tensor, "d d"]) -> Float[Tensor, " triangle"]:
    """The upper triangle, row by row: d (d + 1) / 2 numbers."""
    return torch.cat([row[number:] for number, row in enumerate(symmetric)])


def unpacked(triangle: Float[Tensor, " triangle"], size: int) -> Float[Tensor, "{size} {size}"]:
    """The symmetric matrix with that upper triangle."""
    full = triangle.new_empty(size, size)
    for number, part in enumerate(triangle.split(list(range(size, 0, -1)))):
        full[number, number:] = part
        full[number:, number] = part
    return full


def products(features: Float[Tensor, "n d"], rows: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """The inner product of each feature with each row; to the bit the same for a row whatever rows come after it.

    A matrix product alone does not promise that: how it adds up depends on its size. This one has always the same
    number of columns, `COLUMNS`, some of which may be zero.
    """
    blocks = [F.pad(block, (0, 0, 0, COLUMNS - len(block))).contiguous() for block in rows.split(COLUMNS)]
    return torch.cat([features @ block.T for block in blocks], dim=1)[:, : len(rows)]


def random_orthonormal_rows(rank: int, width: int, *, uniform: bool = False) -> Float[Tensor, "rank width"]:
    """Q' of the QR decomposition of a random width x rank matrix, Gaussian or uniform in [0, 1]; drawn on the CPU."""
    start = torch.rand(width, rank) if uniform else torch.randn(width, rank)
    return torch.linalg.qr(start).Q.T.contiguous()


def orthonormal_continuation(earlier: Float[Tensor, "blocks m size"], number: int) -> Float[Tensor, "blocks new size"]:
    """New random rows for each block, orthonormal among themselves and orthogonal to the earlier ones; drawn on the
    CPU.

    Where these leave no room, the oldest of them do not count; there must be room for the new ones alone.
    """
    blocks, m, size = earlier.shape
    rows = torch.cat([earlier[:, max(0, m + number - size) :], torch.randn(blocks, number, size)], dim=1)
    basis, triangle = torch.linalg.qr(double(rows).mT)  # the first columns span the earlier rows, dependent or not
    signs = torch.where(triangle.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0)  # else they would follow from the algorithm
    return (basis * signs[:, None])[:, :, -number:].mT.float().contiguous()
