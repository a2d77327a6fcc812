"""Pre-train `lorica_tiny`, a small vision transformer, on images that this script draws itself.

No photograph, no scan and no data set is read: the recipe is formula-driven supervised pre-training. A class is
a random formula, an instance of it the formula with jittered parameters, and the network learns to tell two
thousand formulae apart. Four families of formulae are drawn, on the fly and batched:

* strokes: one to five pen strokes (lines, arcs, loops, hooks), often starting on one another, like a made-up
  character. Every third of these classes is its neighbour with a single stroke replaced (and the other polarity);
* contours: one to three nested closed curves, each a radius with a few harmonics, outlined or filled;
* fractals: the attractor of a few random contractions, by a chaos game;
* textures: a few oriented waves, summed and bent by a nonlinearity.

What is nuisance rather than class also varies: the affine map, a smooth warp, pen width and softness, colours,
contrast, noise, and the resolution (a share of the images is reduced to 8..20 pixels and enlarged again). Half of the
classes are dark on light, half light on dark.

Training minimises the cross-entropy of a cosine classifier (normalised softmax with a fixed scale) on the pooled
feature itself, since the library reads that feature out by cosine similarity with class means. AdamW, linear
warm-up, cosine decay. Two things spare a run of minutes the plateau at its beginning: weights that start out
responding to patch and position together (see `initialise`), and classifier centres that start at the class means.
For most of the run a random half of the patches is dropped, which nearly doubles the rate; the end sees whole
images. What is printed as "novel" is the accuracy of class means on stroke classes that are not trained on.

Everything random in step `t` comes from the seed and `t` alone, so a run with `--steps` resumes exactly. With
`--minutes` the schedule follows the clock instead, for a machine whose speed is not known beforehand.

    python tools/pretrain_tiny_vit.py --minutes 43 --out lorica/backbones       (the model card has all three runs)
    python tools/pretrain_tiny_vit.py --sheet sheet.png

Where other programs use the same cores, set GOMP_SPINCOUNT=0: threads that spin while they wait cost most of the rate.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

NAME = "lorica_tiny"
CHECKPOINT_TAG = "lorica_tiny.fdsl1"
ARCHITECTURE: dict[str, int | str | bool] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 128,
    "depth": 4,
    "num_heads": 4,
    "num_classes": 0,
    "class_token": False,
    "global_pool": "avg",
}
MEAN = STD = 0.5


CLASS_SHARES = {"strokes": 0.64, "contours": 0.14, "fractals": 0.12, "textures": 0.1}


@dataclass(frozen=True)
class Recipe:
    """What determines a run, besides the code."""

    classes: int = 2000
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warm_up: float = 0.05  # share of the run
    scale: float = 20.0  # of the cosine classifier
    patch_drop: float = 0.5
    whole: float = 0.2  # last share of the run, on whole images
    coarse: float = 0.25  # share of the images reduced to a few pixels and enlarged again
    severity: float = 1.0  # how far the instances of a stroke class lie apart
    seed: int = 0
    architecture: dict[str, Any] = field(default_factory=lambda: dict(ARCHITECTURE))

    def class_counts(self) -> dict[str, int]:
        return {name: max(3, round(self.classes * share)) for name, share in CLASS_SHARES.items()}

    def rate_at(self, progress: float) -> float:
        if progress < self.warm_up:
            return self.learning_rate * max(progress / self.warm_up, 0.01)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - self.warm_up) / (1 - self.warm_up)))


# ----------------------------------------------------------------------------------------------- random helpers
class Dice:
    """Random tensors from one generator on one device."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device) * (high - low) + low

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def normal(self, scale: float, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device) * scale

    def chance(self, probability: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device) < probability

    def sign(self, *shape: int) -> Tensor:
        return self.chance(0.5, *shape) * 2.0 - 1.0

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator, device=self.device)

    def categorical(self, weights: list[float], count: int) -> Tensor:
        probabilities = torch.tensor(weights, device=self.device)
        return torch.multinomial(probabilities, count, replacement=True, generator=self.generator)


def rotation(angle: Tensor) -> Tensor:
    """Angles [...] to rotation matrices [..., 2, 2]."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


def random_affine(count: int, dice: Dice, turn: float, extent: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """An affine map [B, 2, 2] and shift [B, 2] that keeps the unit square roughly within the frame (-1..1)."""
    shear = torch.eye(2, device=dice.device).repeat(count, 1, 1)
    shear[:, 0, 1] = dice.normal(0.15, count)
    stretch = torch.diag_embed(dice.normal(0.12, count, 2).exp())
    size = dice.uniform(*extent, count)
    matrix = size[:, None, None] * rotation(dice.normal(turn, count)) @ shear @ stretch
    shift = dice.uniform(-1.0, 1.0, count, 2) * (1.0 - size[:, None]).clamp(min=0.05) * 0.9
    return matrix, shift


def splat(points: Tensor, weights: Tensor, width: Tensor, size: int) -> Tensor:
    """Sum of Gaussians of `width` [B] pixels at points [B, N, 2] in -1..1, as images [B, size, size].

    A Gaussian is separable, so the sum over the points is one batched matrix product. Weights are arc lengths in
    pixels; along a long line the result then peaks at one whatever the width.
    """
    pixels = (torch.arange(size, device=points.device) + 0.5) * (2.0 / size) - 1.0
    width = width[:, None, None, None] * (2.0 / size)
    bells = torch.exp(-0.5 * ((points[..., None] - pixels) / width) ** 2)  # [B, N, 2, size]
    scale = weights * (2.0 / size) / (width[:, :, 0, 0] * math.sqrt(2.0 * math.pi))
    return (bells[:, :, 1] * scale[..., None]).transpose(1, 2) @ bells[:, :, 0]


def harden(field_: Tensor, hardness: Tensor) -> Tensor:
    """Steepen a soft profile about its half height; hardness one leaves it as it is."""
    return ((field_ - 0.5) * hardness[:, None, None] + 0.5).clamp(0.0, 1.0)


# ----------------------------------------------------------------------------------------------------- families
class Family(Protocol):
    """Formula classes of one kind. `draw` gives a field in 0..1: how much of the foreground shows."""

    grey: float  # share of its images without colour
    own_colours: bool  # whether the two colours belong to the class

    def draw(self, classes: Tensor, size: int, dice: Dice, severity: float = 1.0) -> Tensor: ...


class Strokes:
    """Made-up characters. Control points follow a walk whose heading turns evenly, with corners and inflections."""

    grey, own_colours = 0.85, False
    strokes, knots, samples = 5, 6, 32

    def __init__(self, count: int, dice: Dice) -> None:
        shape = (count, self.strokes)
        kind = dice.uniform(0.0, 1.0, *shape)
        arc, loop = dice.uniform(0.25, 0.8, *shape), dice.uniform(0.9, 1.5, *shape)
        bend = torch.where(
            kind < 0.4, dice.normal(0.06, *shape), torch.where(kind < 0.8, arc, loop) * dice.sign(*shape)
        )
        turns = bend[..., None].repeat(1, 1, self.knots - 2)
        turns[..., (self.knots - 2) // 2 :] *= torch.where(dice.chance(0.2, *shape), -1.0, 1.0)[..., None]  # an S
        corner = dice.chance(0.35, *shape) * dice.sign(*shape) * dice.uniform(1.2, 2.6, *shape)
        turns.scatter_add_(2, dice.integers(self.knots - 2, *shape, 1), corner[..., None])
        heading = dice.integers(8, *shape) * (math.pi / 4) + dice.normal(0.2, *shape)
        headings = torch.cat([heading[..., None], turns], -1).cumsum(-1)
        length = dice.log_uniform(0.15, 0.5, *shape, 1) * dice.uniform(0.8, 1.2, *shape, self.knots - 1)
        steps = torch.stack([headings.cos(), headings.sin()], -1) * length[..., None]
        knots = torch.cat([torch.zeros(*shape, 1, 2, device=dice.device), steps.cumsum(2)], 2)
        knots = knots - knots.mean(2, keepdim=True) + dice.uniform(-0.7, 0.7, *shape, 1, 2)

        rows = torch.arange(count, device=dice.device)
        for stroke in range(1, self.strokes):  # most strokes touch an earlier one, with their beginning or anywhere
            target = knots[rows, (dice.uniform(0, 1, count) * stroke).long(), dice.integers(self.knots, count)]
            own = torch.where(dice.chance(0.5, count), 0, dice.integers(self.knots, count))
            moved = knots[:, stroke] + (target - knots[rows, stroke, own])[:, None]
            knots[:, stroke] = torch.where(dice.chance(0.65, count)[:, None, None], moved, knots[:, stroke])

        self.number = dice.categorical([0.15, 0.3, 0.27, 0.18, 0.1], count) + 1
        smooth = dice.chance(0.75, *shape)
        variant = rows % 3 == 2  # every third class: its neighbour with one stroke replaced
        self.number[variant] = self.number[rows[variant] - 1]
        replaced = (dice.uniform(0, 1, count) * self.number).long()
        kept = variant[:, None] & (torch.arange(self.strokes, device=dice.device) != replaced[:, None])
        knots = torch.where(kept[..., None, None], knots.roll(1, 0), knots)
        self.smooth = torch.where(kept, smooth.roll(1, 0), smooth)

        self.used = torch.arange(self.strokes, device=dice.device) < self.number[:, None]
        masked = knots.masked_fill(~self.used[..., None, None], torch.nan).flatten(1, 2)
        low = masked.nan_to_num(torch.inf).amin(1)
        high = masked.nan_to_num(-torch.inf).amax(1)
        knots = knots - ((low + high) / 2)[:, None, None]
        self.points = knots / ((high - low).amax(-1) / 2)[:, None, None, None]
        self.bases = torch.stack([self._basis(False), self._basis(True)]).to(dice.device)

    def _basis(self, smooth: bool) -> Tensor:
        """Weights [samples, knots] of a Catmull-Rom spline, or of straight pieces, through the control points."""
        basis = torch.zeros(self.samples, self.knots)
        for row, position in enumerate(torch.linspace(0, self.knots - 1, self.samples).tolist()):
            start = min(int(position), self.knots - 2)
            t = position - start
            cubic = [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]
            pieces = [0.5 * value for value in cubic] if smooth else [0.0, 1 - t, t, 0.0]
            for offset, value in zip(range(-1, 3), pieces, strict=True):
                basis[row, min(max(start + offset, 0), self.knots - 1)] += value
        return basis

    def draw(self, classes: Tensor, size: int, dice: Dice, severity: float = 1.0) -> Tensor:
        count = len(classes)
        knots, used = self.points[classes], self.used[classes]
        spread = severity * dice.uniform(0.4, 1.3, count)[:, None, None, None]
        centre = knots.mean(2, keepdim=True)
        grow = 1.0 + spread * dice.normal(0.1, count, self.strokes, 1, 2)
        knots = centre + (knots - centre) * grow + spread * dice.normal(0.06, count, self.strokes, 1, 2)
        knots = knots + spread * dice.normal(0.035, *knots.shape)
        basis = self.bases[self.smooth[classes].long()]  # [B, strokes, samples, knots]
        points = (basis @ knots).flatten(1, 2)
        wave = dice.normal(1.3, count, 2, 2)
        phase = dice.uniform(0.0, 2 * math.pi, count, 1, 2)
        points = points + 0.12 * spread[:, 0] * torch.sin(points @ wave + phase)
        matrix, shift = random_affine(count, dice, 0.17, (0.5, 0.95))
        points = points @ matrix.transpose(1, 2) + shift[:, None]

        lengths = points.view(count, self.strokes, self.samples, 2).diff(dim=2).norm(dim=-1) * (size / 2)
        lengths = F.pad(lengths, (0, 1)) * 0.5 + F.pad(lengths, (1, 0)) * 0.5
        extent = torch.linalg.det(matrix).abs().sqrt() * (size / 2)
        pen = (extent * dice.log_uniform(0.04, 0.14, count)).clamp(min=0.5)
        ink = splat(points, (lengths * used[..., None]).flatten(1), pen, size)
        return harden(ink, dice.uniform(1.0, 4.0, count))


class Contours:
    """Closed curves about a centre: radius times one plus a few harmonics of the angle."""

    grey, own_colours = 0.4, False
    nested, harmonics = 3, 6

    def __init__(self, count: int, dice: Dice) -> None:
        orders = torch.arange(2, 2 + self.harmonics, device=dice.device)
        loud = dice.chance(0.5, count, self.nested, self.harmonics)
        self.orders = orders
        self.amplitudes = dice.normal(0.6, count, self.nested, self.harmonics) * loud / orders
        self.phases = dice.uniform(0.0, 2 * math.pi, count, self.nested, self.harmonics)
        gaps = dice.uniform(0.35, 0.8, count, self.nested - 1)
        self.radii = torch.cat([torch.full((count, 1), 0.75, device=dice.device), 0.75 * gaps.cumprod(1)], 1)
        self.number = dice.categorical([0.4, 0.35, 0.25], count) + 1
        self.filled = dice.chance(0.5, count)
        self.turn = dice.uniform(0.0, 2 * math.pi, count)

    def draw(self, classes: Tensor, size: int, dice: Dice, severity: float = 1.0) -> Tensor:
        count = len(classes)
        pixels = (torch.arange(size, device=dice.device) + 0.5) * (2.0 / size) - 1.0
        grid = torch.stack(torch.meshgrid(pixels, pixels, indexing="xy"), -1).view(1, -1, 2)
        matrix, shift = random_affine(count, dice, 0.17, (0.5, 1.0))
        grid = (grid - shift[:, None]) @ torch.linalg.inv(matrix).transpose(1, 2)
        angle, radius = torch.atan2(grid[..., 1], grid[..., 0]) + self.turn[classes, None], grid.norm(dim=-1)

        amplitudes = self.amplitudes[classes] * (1.0 + dice.normal(0.15, count, self.nested, self.harmonics))
        phases = self.phases[classes] + dice.normal(0.15, count, self.nested, self.harmonics)
        waves = torch.cat([(amplitudes * phases.cos()), -(amplitudes * phases.sin())], -1)
        turned = angle[..., None] * self.orders
        bulge = torch.cat([turned.cos(), turned.sin()], -1) @ waves.transpose(1, 2)  # [B, pixels, nested]
        radii = self.radii[classes] * dice.normal(0.06, count, self.nested).exp()
        scale = torch.linalg.det(matrix).abs().sqrt()[:, None, None] * (size / 2)
        distance = (radius[..., None] - radii[:, None] * (1.0 + bulge).clamp(min=0.1)) * scale

        width = dice.log_uniform(0.6, 1.8, count)[:, None, None]
        drawn = torch.arange(self.nested, device=dice.device) < self.number[classes, None, None]
        outline = (torch.exp(-0.5 * (distance / width) ** 2) * drawn).amax(-1)
        sides = torch.where(drawn, torch.tanh(distance / width), 1.0).prod(-1)
        filled = torch.where(self.number[classes, None] % 2 == 0, 0.5 + 0.5 * sides, 0.5 - 0.5 * sides)
        filled = torch.where(distance[..., 0] > 3 * width[..., 0], filled.new_zeros(()), filled)
        both = torch.where(self.filled[classes, None], filled, outline)
        return harden(both.view(count, size, size), dice.uniform(1.0, 3.0, count))


class Fractals:
    """Attractors of two to five random affine contractions."""

    grey, own_colours = 0.3, True
    maps, chains, burn_in, kept = 5, 160, 8, 6

    def __init__(self, count: int, dice: Dice) -> None:
        shape = (count, self.maps)
        shrink = torch.diag_embed(dice.uniform(0.25, 0.8, *shape, 2))
        left, right = (rotation(dice.uniform(0.0, 2 * math.pi, *shape)) for _ in range(2))
        self.matrices = left @ shrink @ right
        self.shifts = dice.uniform(-1.0, 1.0, *shape, 2)
        number = dice.integers(self.maps - 1, count) + 2
        weights = torch.linalg.det(self.matrices).abs() + 0.05
        self.weights = weights * (torch.arange(self.maps, device=dice.device) < number[:, None])

    def draw(self, classes: Tensor, size: int, dice: Dice, severity: float = 1.0) -> Tensor:
        count = len(classes)
        matrices = self.matrices[classes] * dice.normal(0.05, count, self.maps, 1, 1).clamp(-0.15, 0.15).exp()
        shifts = self.shifts[classes] + dice.normal(0.05, count, self.maps, 2)
        rows = torch.arange(count, device=dice.device)[:, None]
        turns = self.chains * (self.burn_in + self.kept)
        chosen = torch.multinomial(self.weights[classes], turns, replacement=True, generator=dice.generator)
        points, kept = dice.uniform(-1.0, 1.0, count, self.chains, 2), []
        for turn, choice in enumerate(chosen.split(self.chains, dim=1)):
            points = (matrices[rows, choice] @ points[..., None])[..., 0] + shifts[rows, choice]
            if turn >= self.burn_in:
                kept.append(points)
        cloud = torch.cat(kept, 1)
        cloud = cloud - cloud.mean(1, keepdim=True)
        cloud = (cloud / (2.2 * cloud.std(1).amax(-1))[:, None, None].clamp(min=1e-3)).clamp(-2, 2)
        matrix, shift = random_affine(count, dice, 0.17, (0.6, 1.1))
        cloud = cloud @ matrix.transpose(1, 2) + shift[:, None]
        weights = dice.log_uniform(0.3, 1.0, count, 1).expand(count, cloud.shape[1])
        return 1.0 - torch.exp(-splat(cloud, weights, dice.log_uniform(0.45, 0.8, count), size))


class Textures:
    """Oriented waves, summed and then left, squared off, folded or multiplied."""

    grey, own_colours = 0.3, True
    waves = 4

    def __init__(self, count: int, dice: Dice) -> None:
        angle = dice.uniform(0.0, math.pi, count, self.waves)
        self.vectors = torch.stack([angle.cos(), angle.sin()], -1) * dice.log_uniform(0.5, 4.0, count, self.waves, 1)
        self.weights = dice.uniform(0.2, 1.0, count, self.waves) * (dice.chance(0.6, count, self.waves))
        self.weights[:, 0] = 1.0
        self.phases = dice.uniform(0.0, 2 * math.pi, count, self.waves)
        self.bend = dice.integers(4, count)

    def draw(self, classes: Tensor, size: int, dice: Dice, severity: float = 1.0) -> Tensor:
        count = len(classes)
        pixels = (torch.arange(size, device=dice.device) + 0.5) * (2.0 / size) - 1.0
        grid = torch.stack(torch.meshgrid(pixels, pixels, indexing="xy"), -1).view(1, -1, 2)
        matrix, _ = random_affine(count, dice, 0.12, (0.8, 1.25))
        grid = grid @ matrix.transpose(1, 2) + dice.uniform(-2.0, 2.0, count, 1, 2)
        grid = grid + 0.08 * torch.sin(grid @ dice.normal(1.5, count, 2, 2) + dice.uniform(0.0, 6.3, count, 1, 2))
        waves = torch.sin(math.pi * grid @ self.vectors[classes].transpose(1, 2) + self.phases[classes, None])
        weights = self.weights[classes] * dice.normal(0.1, count, self.waves).exp()
        total = (waves * weights[:, None]).sum(-1) / weights.norm(dim=-1, keepdim=True)
        bends = torch.stack([total, torch.tanh(4 * total), 2 * total.abs() - 1, 2 * waves[..., 0] * waves[..., 1]])
        bent = bends[self.bend[classes], torch.arange(count, device=dice.device)]
        return (0.5 + 0.5 * bent).clamp(0.0, 1.0).view(count, size, size)


FAMILIES: dict[str, type[Strokes] | type[Contours] | type[Fractals] | type[Textures]] = {
    "strokes": Strokes,
    "contours": Contours,
    "fractals": Fractals,
    "textures": Textures,
}
SAMPLE_SHARES = {"strokes": 0.7, "contours": 0.12, "fractals": 0.09, "textures": 0.09}


class FormulaImages:
    """All classes of all families, numbered one family after another, and the images drawn from them."""

    coarse_sizes = (8, 8, 10, 12, 16, 20)

    def __init__(
        self,
        classes: dict[str, int],
        seed: int,
        device: torch.device,
        size: int = 32,
        *,
        coarse: float = Recipe.coarse,
        severity: float = Recipe.severity,
    ) -> None:
        dice = Dice(seed, device)
        self.coarse, self.severity = coarse, severity
        self.size, self.device, self.counts = size, device, classes
        self.families: dict[str, Family] = {name: FAMILIES[name](count, dice) for name, count in classes.items()}
        ends = torch.tensor(list(classes.values())).cumsum(0).tolist()
        self.offsets = dict(zip(classes, [0, *ends[:-1]], strict=True))
        self.num_classes: int = ends[-1]
        self.colours = dice.uniform(0.0, 1.0, self.num_classes, 2, 3)  # for the families with colours of their own

    def batch(self, count: int, dice: Dice) -> tuple[Tensor, Tensor]:
        """Images [B, 3, size, size] in 0..1 and their classes, family by family in fixed shares."""
        total = sum(SAMPLE_SHARES[name] for name in self.families)
        labels = []
        for name in list(self.families)[::-1]:
            share = round(count * SAMPLE_SHARES[name] / total) if name != "strokes" else count - sum(map(len, labels))
            labels.append(dice.integers(self.counts[name], share) + self.offsets[name])
        classes = torch.cat(labels)
        return self.render(classes, dice), classes

    def render(self, classes: Tensor, dice: Dice) -> Tensor:
        """One fresh instance of each of the given classes: images [B, 3, size, size] in 0..1."""
        images = torch.empty(len(classes), 3, self.size, self.size, device=self.device)
        for name, family in self.families.items():
            first = self.offsets[name]
            rows = ((classes >= first) & (classes < first + self.counts[name])).nonzero()[:, 0]
            if len(rows):
                drawn = family.draw(classes[rows] - first, self.size, dice, self.severity)
                back, front = self._colours(classes[rows], family, dice)
                images[rows] = torch.lerp(back[..., None, None], front[..., None, None], drawn[:, None])
        noise = 0.05 * dice.uniform(0.0, 1.0, len(classes), 1, 1, 1) ** 3
        images = self._coarsen(images, dice)
        return (images + noise * dice.normal(1.0, *images.shape)).clamp_(0.0, 1.0)

    def _colours(self, classes: Tensor, family: Family, dice: Dice) -> tuple[Tensor, Tensor]:
        """Background and foreground [B, 3]: dark on light for every second class, grey or coloured."""
        count = len(classes)
        plain = dice.chance(0.5, count, 1)
        back = torch.where(plain, 0.0, dice.uniform(0.0, 0.35, count, 1)).expand(-1, 3)
        front = torch.where(plain, 1.0, dice.uniform(0.55, 1.0, count, 1)).expand(-1, 3)
        if family.own_colours:
            own = (self.colours[classes] + dice.normal(0.08, count, 2, 3)).unbind(1)
        else:
            own = (back + dice.normal(0.2, count, 3), front + dice.normal(0.2, count, 3))
        grey = dice.chance(family.grey, count, 1)
        back, front = (torch.where(grey, tone, tint).clamp(0, 1) for tone, tint in zip((back, front), own, strict=True))
        flip = (classes % 2 == 0)[:, None] & (grey | (not family.own_colours))
        return torch.where(flip, 1.0 - back, back), torch.where(flip, 1.0 - front, front)

    def _coarsen(self, images: Tensor, dice: Dice) -> Tensor:
        """Reduce a share of the images to a few pixels and enlarge them again."""
        choice = torch.where(
            dice.chance(self.coarse, len(images)), dice.integers(len(self.coarse_sizes), len(images)), -1
        )
        for index, coarse in enumerate(self.coarse_sizes):
            rows = (choice == index).nonzero()[:, 0]
            if len(rows) and coarse < self.size:
                small = F.interpolate(images[rows], size=(coarse, coarse), mode="area")
                mode = "bilinear" if index % 2 else "bicubic"
                images[rows] = F.interpolate(small, size=images.shape[-2:], mode=mode)
        return images


# ----------------------------------------------------------------------------------------------------- training
def initialise(model: VisionTransformer) -> None:
    """Start where the features already tell images apart, which saves a short run the long plateau.

    Position vectors are sinusoids of the patch's row and column; queries and keys share their weights, so that
    attention starts out between similar patches; all weights keep the variance of what they multiply, so that the
    first layers respond to patch and position together and not nearly linearly, as with timm's small weights.
    """
    side, width = model.patch_embed.grid_size[0], model.embed_dim
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    frequencies = 30.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = [place.flatten()[:, None] * frequencies for place in (column, row)]
    waves = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    with torch.no_grad():
        assert model.pos_embed is not None
        model.pos_embed.copy_(0.5 * waves[None])
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                if name.endswith("qkv"):
                    layer.weight[width : 2 * width] = layer.weight[:width]


class Trainer:
    """The network, its cosine classifier and the optimiser; one `step` trains on one freshly drawn batch."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, device
        self.images = FormulaImages(
            recipe.class_counts(),
            recipe.seed,
            device,
            int(recipe.architecture["img_size"]),
            coarse=recipe.coarse,
            severity=recipe.severity,
        )
        # the rate given here only makes timm build the layer that drops patches; `step` sets the share
        self.model = VisionTransformer(**recipe.architecture, patch_drop_rate=0.5).to(device)
        initialise(self.model)
        self.centres = nn.Parameter(self._first_centres())
        self.names = {f"model.{name}": value for name, value in self.model.named_parameters()}
        self.names["centres"] = self.centres
        decayed = [value for value in self.names.values() if value.ndim > 1]
        others = [value for value in self.names.values() if value.ndim <= 1]
        groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
        self.steps_done, self.seconds, self.loss, self.accuracy, self.drawing = 0, 0.0, math.nan, math.nan, 0.0

    @torch.no_grad()
    def _first_centres(self, instances: int = 2) -> Tensor:
        """Class means of the untrained features about their common mean: learning starts without a plateau."""
        dice = Dice(self.recipe.seed, self.device)
        classes = torch.arange(self.images.num_classes, device=self.device)
        means = torch.zeros(len(classes), self.model.num_features, device=self.device)
        self.model.eval()
        for _ in range(instances):
            drawn = [self.features(self.images.render(part, dice)) for part in classes.split(250)]
            means += F.normalize(torch.cat(drawn), dim=-1)
        return 0.5 * F.normalize(means - means.mean(0), dim=-1)

    def features(self, images: Tensor) -> Tensor:
        return self.model.forward_head(self.model.forward_features((images - MEAN) / STD), pre_logits=True)

    def step(self, progress: float) -> None:
        """Train on one batch; `progress` in 0..1 sets the learning rate and whether patches are dropped."""
        recipe = self.recipe
        seed = (recipe.seed << 32) + self.steps_done + 1
        torch.manual_seed(seed)
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate_at(progress)
        drop: Any = self.model.patch_drop
        drop.prob = recipe.patch_drop if progress < 1 - recipe.whole else 0.0
        self.model.train()
        started = time.perf_counter()
        images, labels = self.images.batch(recipe.batch_size, Dice(seed, self.device))
        self.drawing += time.perf_counter() - started
        cosines = F.normalize(self.features(images), dim=-1) @ F.normalize(self.centres, dim=-1).T
        loss = F.cross_entropy(recipe.scale * cosines, labels)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(list(self.names.values()), 1.0)
        self.optimiser.step()
        self.steps_done += 1
        hit = (cosines.argmax(-1) == labels).float().mean().item()
        keep = 0.0 if math.isnan(self.loss) else min(0.99, 1 - 1 / self.steps_done)
        self.loss = loss.item() if keep == 0.0 else keep * self.loss + (1 - keep) * loss.item()
        self.accuracy = hit if keep == 0.0 else keep * self.accuracy + (1 - keep) * hit

    @torch.inference_mode()
    def novel_accuracy(self, classes: int = 200, shots: int = 10, queries: int = 5) -> float:
        """Accuracy of cosine class means on stroke classes that are not trained on, whole images."""
        self.model.eval()
        images = FormulaImages({"strokes": classes}, self.recipe.seed + 1_000_003, self.device, self.images.size)
        dice = Dice(self.recipe.seed + 1_000_003, self.device)
        labels = torch.arange(classes, device=self.device)
        drawn = [F.normalize(self.features(images.render(labels, dice)), dim=-1) for _ in range(shots + queries)]
        means = F.normalize(torch.stack(drawn[:shots]).mean(0), dim=-1)
        hits = [((query @ means.T).argmax(-1) == labels).float().mean() for query in drawn[shots:]]
        return torch.stack(hits).mean().item()

    def save(self, path: Path) -> None:
        tensors = {name: value.detach() for name, value in self.names.items()}
        for name, value in self.names.items():
            tensors |= {f"{name}/{key}": state for key, state in self.optimiser.state[value].items()}
        progress = {"steps_done": self.steps_done, "seconds": self.seconds, "loss": self.loss}
        progress |= {"accuracy": self.accuracy, "drawing": self.drawing}
        write_tensors(tensors, path, {"recipe": json.dumps(asdict(self.recipe)), "progress": json.dumps(progress)})

    def start_from(self, path: Path) -> None:
        """Take the weights of an earlier run's checkpoint, and nothing else of it."""
        with safe_open(path, framework="pt", device=str(self.device)) as file, torch.no_grad():
            for name, value in self.names.items():
                value.copy_(file.get_tensor(name))

    def load(self, path: Path) -> None:
        with safe_open(path, framework="pt", device=str(self.device)) as file:
            metadata = file.metadata()
            if json.loads(metadata["recipe"]) != asdict(self.recipe):
                raise ValueError(f"{path} belongs to another recipe: {metadata['recipe']}")
            for key, value in json.loads(metadata["progress"]).items():
                setattr(self, key, value)
            keys = list(file.keys())
            for name, value in self.names.items():
                value.data.copy_(file.get_tensor(name))
                states = {key.split("/")[1]: file.get_tensor(key) for key in keys if key.startswith(f"{name}/")}
                self.optimiser.state[value] = {k: v.cpu() if k == "step" else v for k, v in states.items()}


# ------------------------------------------------------------------------------------------------------- output
def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file so that a reader sees the old one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, partial, metadata)
    partial.chmod(0o644)  # safetensors writes files that only their owner may read
    os.replace(partial, path)


def write_text(text: str, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def export(trainer: Trainer, out: Path, novel: float) -> None:
    """The weights as timm's VisionTransformer loads them, and a description beside them."""
    recipe = asdict(trainer.recipe)
    architecture = recipe.pop("architecture")
    description = {
        "name": NAME,
        "checkpoint": CHECKPOINT_TAG,
        "architecture": architecture,
        "mean": [MEAN] * 3,
        "std": [STD] * 3,
        "licence": "Apache-2.0",
        "provenance": {
            "method": "supervised pre-training on formula-driven images; no third-party image was used",
            "script": "tools/pretrain_tiny_vit.py",
            "recipe": recipe,
            "classes_by_family": trainer.images.counts,
            "steps": trainer.steps_done,
            "images": trainer.steps_done * trainer.recipe.batch_size,
            "minutes": round(trainer.seconds / 60, 1),
            "machine": f"{trainer.device.type}, {torch.get_num_threads()} threads, {platform.machine()}",
            "torch": torch.__version__,
            "training_loss": round(trainer.loss, 4),
            "training_accuracy": round(trainer.accuracy, 4),
            "novel_strokes_accuracy": round(novel, 4),
        },
    }
    weights = {name: value.detach() for name, value in trainer.model.state_dict().items()}
    write_tensors(weights, out / f"{NAME}.safetensors", {"checkpoint": CHECKPOINT_TAG})
    write_text(json.dumps(description, indent=2) + "\n", out / f"{NAME}.json")


def contact_sheet(images: FormulaImages, path: Path, seed: int, rows: int = 8, columns: int = 12) -> None:
    """Save a picture per family side by side: a class per row, an instance per column."""
    dice, sheets = Dice(seed, images.device), []
    for name in images.families:
        first = images.offsets[name]
        classes = (torch.arange(rows, device=images.device) + first).repeat_interleave(columns)
        drawn = F.pad(images.render(classes, dice), (1, 1, 1, 1), value=0.5)
        tiles = drawn.view(rows, columns, 3, images.size + 2, images.size + 2)
        sheets.append(tiles.permute(2, 0, 3, 1, 4).reshape(3, rows * (images.size + 2), -1))
    sheet = torch.cat([torch.cat(sheets[:2], 2), torch.cat(sheets[2:], 2)], 1)
    Image.fromarray((sheet * 255).byte().permute(1, 2, 0).cpu().numpy()).save(path)


def train(trainer: Trainer, steps: int | None, minutes: float, checkpoint: Path, every: float) -> None:
    """Run to the last step, or to the end of the time when there is no number of steps."""
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console()

    def progress_now() -> float:
        return trainer.steps_done / steps if steps is not None else trainer.seconds / (60 * minutes)

    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=1.0)
        before, saved, reported = trainer.seconds, 0.0, 0.0
        done_before, started = trainer.steps_done, time.monotonic()
        while (progress := progress_now()) < 1.0:
            trainer.step(progress)
            here = time.monotonic() - started
            trainer.seconds = before + here
            rate = (trainer.steps_done - done_before) * trainer.recipe.batch_size / here
            state = f"step {trainer.steps_done}, loss {trainer.loss:.3f}, accuracy {trainer.accuracy:.1%}"
            bar.update(task, completed=progress_now(), description=f"{state}, {rate:.0f} images/s")
            if here - saved > every:
                trainer.save(checkpoint)
                saved = here
            if not console.is_terminal and here - reported > 60:
                console.print(f"{trainer.seconds / 60:.1f} min, {progress:.1%}: {state}, {rate:.0f} images/s")
                reported = here
    trainer.save(checkpoint)


def main(
    out: Annotated[Path, typer.Option(help="folder for the weights and their description")] = Path("lorica/backbones"),
    minutes: Annotated[float, typer.Option(help="length of the run, unless --steps is given")] = 43.0,
    steps: Annotated[int | None, typer.Option(help="number of steps; makes the run reproducible")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    seed: Annotated[int, typer.Option()] = Recipe.seed,
    classes: Annotated[int, typer.Option(help="formula classes, all families together")] = Recipe.classes,
    batch_size: Annotated[int, typer.Option()] = Recipe.batch_size,
    learning_rate: Annotated[float, typer.Option()] = Recipe.learning_rate,
    patch_drop: Annotated[float, typer.Option(help="share of patches dropped, but for the end")] = Recipe.patch_drop,
    coarse: Annotated[float, typer.Option(help="share of images at a low resolution")] = Recipe.coarse,
    severity: Annotated[float, typer.Option(help="how far instances of a stroke class differ")] = Recipe.severity,
    start: Annotated[Path | None, typer.Option(help="begin with the weights of this earlier checkpoint")] = None,
    checkpoint: Annotated[Path, typer.Option(help="where the run is saved, and resumed from if it is there")] = Path(
        "runs/pretrain_tiny_vit.safetensors"
    ),
    save_every: Annotated[float, typer.Option(help="seconds between two checkpoints")] = 120.0,
    sheet: Annotated[Path | None, typer.Option(help="only save a picture of drawn images here")] = None,
) -> None:
    """Pre-train lorica_tiny on images drawn from formulae."""
    recipe = Recipe(
        classes=classes,
        batch_size=batch_size,
        learning_rate=learning_rate,
        patch_drop=patch_drop,
        coarse=coarse,
        severity=severity,
        seed=seed,
    )
    torch.set_flush_denormal(True)
    trainer = Trainer(recipe, torch.device(device))
    if sheet is not None:
        contact_sheet(trainer.images, sheet, seed)
        return
    if checkpoint.exists():
        trainer.load(checkpoint)
        print(f"resuming after step {trainer.steps_done} ({checkpoint})")
    elif start is not None:
        trainer.start_from(start)
    train(trainer, steps, minutes, checkpoint, save_every)
    novel = trainer.novel_accuracy()
    export(trainer, out, novel)
    print(
        f"{trainer.steps_done} steps, {trainer.seconds / 60:.1f} min, of which drawing "
        f"{trainer.drawing / max(trainer.seconds, 1e-9):.1%}; loss {trainer.loss:.3f}, "
        f"accuracy {trainer.accuracy:.1%}, novel strokes {novel:.1%}; written to {out}"
    )


if __name__ == "__main__":
    typer.run(main)
