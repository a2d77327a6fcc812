"""How to keep adapting without images of earlier classes: ways that were tried for RoLDA's `adapt: always`, on held-out
data.

    python benchmarks/keep_adapting.py omniglot --ways "once;free;averaged" --root FOLDER --weights FILE
    python benchmarks/keep_adapting.py mixed --root OUT --weights FILE        (OUT from mixed.py)

The trunk is adapted to the first task as RoLDA adapts it. Then each way goes on from there, in the same one pass a
prediction: of every later task it makes a low-rank update of all projections, by the same loss on the same rotations. A
fifth of each class's training images is held out (and those alone are tested); statistics of earlier classes stay, or
follow a map fitted on the new task's images in four rotations: affine, layer by layer, or the identity but for a few
directions. At the end all images are encoded again, which a learner without them could not do: the most that a trunk's
discriminant can have.

It is a study of its own, in a ViT written out so that weights can be anything: augmentations are not the recipes' to
the bit. Prints one JSON line for each way; `lorica run … method.name=rolda method.adapt=always` is what came of it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from lorica.methods.rolda import rotated
from lorica.statistics import affine_drift

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RANK, RATE, SCALE, LAYERS, SEED = 10, 2e-3, 16.0, 5, 1000
TOKEN = 192  # width of a token
MAP_RANK = 64  # of a map that is the identity but for so many directions


@dataclass(frozen=True)
class Stream:
    """How images come: side in pixels, classes a task, augmentation, batch, and passes over the first task."""

    side: int
    classes: int
    augmentation: str
    batch: int
    seed: int | None = 1993
    passes: int = 20


STREAMS = {
    "omniglot": Stream(96, 22, "shift", 32),
    "caltech": Stream(128, 10, "crop", 16),
    "mixed": Stream(96, 20, "shift", 32, seed=None),
}


@dataclass(frozen=True)
class Way:
    """How later tasks are adapted to.

    Attributes:
        adapts: at all.
        averaged: of the update of task t, counted from 1, the t-th part is kept.
        rate: of RATE, for the update; the rows of the head always have all of it.
        passes: over a later task; None for as many as over the first.
        distilled: weight of the squared distance to the features from before the task, over their number.
        projected: updates are U D P, P = (C / (p tr(C) / d) + I)^-1 with C the sum of x x' over inputs of earlier
            tasks.
        regression: after training the update D is the least squares of D x on the task's inputs and of 0, this many
            times, on earlier ones.
        magnitudes: the first task's update stays, U diag(m) D, and tasks train m alone, one number for each direction
            of each projection.
        cores: the same with a matrix for m, U M D.
        negatives: moved means of earlier classes are further rows of the head.
        pseudo: these rows train along, and this is the weight of the same loss on draws from earlier classes' Gaussians
            (their moved means, the moved covariance that they share).
    """

    adapts: bool = True
    averaged: bool = False
    rate: float = 1.0
    passes: int | None = None
    distilled: float = 0.0
    projected: float = 0.0
    regression: float = 0.0
    magnitudes: bool = False
    cores: bool = False
    negatives: bool = False
    pseudo: float = 0.0


WAYS = {
    "once": Way(adapts=False),
    "free": Way(),
    "averaged": Way(averaged=True),
    "averaged, 5 passes": Way(averaged=True, passes=5),
    "a tenth of the rate": Way(rate=0.1),
    "a thirtieth of the rate": Way(rate=0.03),
    "distilled, 10": Way(distilled=10.0),
    "projected, 0.1": Way(projected=0.1),
    "projected, 0.01": Way(projected=0.01),
    "projected, 0.001": Way(projected=0.001),
    "regression, 1": Way(regression=1.0),
    "regression, 3": Way(regression=3.0),
    "magnitudes": Way(magnitudes=True),
    "magnitudes, averaged": Way(magnitudes=True, averaged=True),
    "magnitudes, three times the rate": Way(magnitudes=True, rate=3.0),
    "cores": Way(magnitudes=True, cores=True),
    "cores, averaged": Way(magnitudes=True, cores=True, averaged=True),
    "negatives": Way(negatives=True),
    "pseudo-features": Way(pseudo=1.0),
    "pseudo-features, averaged": Way(pseudo=1.0, averaged=True),
    "negatives, distilled 10, projected 0.01": Way(negatives=True, distilled=10.0, projected=0.01),
}


class ViT:
    """DeiT-Ti with weights given at each call: those of qkv, proj, fc1 and fc2 of each block."""

    def __init__(self, side: int, weights: Path) -> None:
        model: Any = timm.create_model("deit_tiny_patch16_224", num_classes=0)
        model.load_state_dict({key: value for key, value in load_file(weights).items() if not key.startswith("head")})
        model.set_input_size(img_size=side)
        self.model = model.to(DEVICE).eval().requires_grad_(False)
        self.weights = [
            linear.weight
            for block in model.blocks
            for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
        ]

    def __call__(
        self, x: Tensor, weights: list[Tensor], note: Callable[[int, Tensor], None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The class token, and RoLDA's features of the last blocks; `note` is shown the inputs of each weight."""
        model, outputs = self.model, []

        def linear(place: int, module: torch.nn.Linear, inputs: Tensor) -> Tensor:
            if note is not None:
                note(place, inputs)
            return F.linear(inputs, weights[place], module.bias)

        x = model.patch_embed(x)
        x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1) + model.pos_embed
        for index, block in enumerate(model.blocks):
            inputs = block.norm1(x)
            number, tokens, width = inputs.shape
            qkv = linear(4 * index, block.attn.qkv, inputs).reshape(number, tokens, 3, block.attn.num_heads, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            x = x + linear(4 * index + 1, block.attn.proj, mixed.reshape(number, tokens, width))
            hidden = F.gelu(linear(4 * index + 2, block.mlp.fc1, block.norm2(x)))
            x = x + linear(4 * index + 3, block.mlp.fc2, hidden)
            outputs.append(x)
        parts = [model.norm(part) for each in outputs[-LAYERS:] for part in (each[:, 0], each[:, 1:].mean(1))]
        return parts[-2], torch.cat([math.sqrt(part.shape[1]) * F.normalize(part, dim=1) for part in parts], 1)

    @torch.no_grad()
    def features(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        return torch.cat([self(part, weights)[1] for part in x.split(256)]).double()

    @torch.no_grad()
    def products(self, x: Tensor, weights: list[Tensor]) -> list[Tensor]:
        """sum x x' over the inputs of each weight."""
        sums = [torch.zeros(weight.shape[1], weight.shape[1], device=DEVICE) for weight in weights]

        def note(place: int, inputs: Tensor) -> None:
            rows = inputs.flatten(0, 1)
            sums[place].addmm_(rows.T, rows)

        for part in x.split(256):
            self(part, weights, note)
        return sums


class Update:
    """U D for each weight, of q, k and v each its own."""

    def __init__(self, weights: list[Tensor]) -> None:
        self.up, self.down, self.magnitudes = [], [], []
        for weight in weights:
            parts = 3 if weight.shape[0] == 3 * weight.shape[1] else 1
            down = torch.randn(parts, RANK, weight.shape[1], device=DEVICE) / math.sqrt(weight.shape[1])
            self.down.append(down.requires_grad_())
            self.up.append(torch.zeros(parts, weight.shape[0] // parts, RANK, device=DEVICE).requires_grad_())

    def rest(self, *, cores: bool = False) -> None:
        """From now on magnitudes, or matrices between the factors, are all that trains."""
        start = torch.eye(RANK, device=DEVICE) if cores else torch.ones(1, RANK, device=DEVICE)
        self.magnitudes = [start.repeat(len(up), 1, 1).requires_grad_() for up in self.up]
        for factor in (*self.up, *self.down):
            factor.requires_grad_(False)

    def trainable(self) -> list[Tensor]:
        return self.magnitudes or self.up + self.down

    def dense(self, projections: list[Tensor] | None = None) -> list[Tensor]:
        ups = self.up
        if self.magnitudes:
            ups = [up @ m if len(m[0]) > 1 else up * m for up, m in zip(ups, self.magnitudes, strict=True)]
        products = [(up @ down).flatten(0, 1) for up, down in zip(ups, self.down, strict=True)]
        if projections is None:
            return products
        return [product @ projection for product, projection in zip(products, projections, strict=True)]


class Statistics:
    """Means and scatter as `lorica.statistics.Discriminant` has them, read by a discriminant and by nearest mean."""

    def __init__(self, classes: int, width: int) -> None:
        self.means = torch.zeros(classes, width, device=DEVICE).double()
        self.scatter = torch.zeros(width, width, device=DEVICE).double()
        self.seen: list[int] = []
        self.number = 0

    def add(self, features: Tensor, labels: Tensor) -> None:
        for label in labels.unique().tolist():
            own = features[labels == label]
            self.means[label] = own.mean(0)
            own = own - self.means[label]
            self.scatter += own.T @ own
            self.number += len(own)
            self.seen.append(label)

    def move(self, weight: Tensor, bias: Tensor, left: Tensor | None = None) -> None:
        """`left`: covariance of what the map leaves unexplained, which the scatter is widened by."""
        self.means[self.seen] = self.means[self.seen] @ weight.T + bias
        self.scatter = weight @ self.scatter @ weight.T
        if left is not None:
            self.scatter += self.number * left

    def discriminant(self, features: Tensor) -> Tensor:
        covariance = self.scatter / (self.number - len(self.seen))
        identity = torch.eye(len(covariance), device=DEVICE).double()
        covariance = 0.8 * covariance + 0.2 * covariance.diagonal().mean() * identity
        means = self.means[self.seen]
        centre = means.mean(0)
        solved = torch.linalg.solve(covariance, (means - centre).T)
        return (features - centre) @ solved - ((means - centre) * solved.T).sum(1) / 2

    def nearest(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=1) @ F.normalize(self.means[self.seen], dim=1).T

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Of the class token after the last block: means of the classes so far, and a factor of their covariance."""
        own = slice(-2 * TOKEN, -TOKEN)
        covariance = self.scatter[own, own] / (self.number - len(self.seen))
        covariance = covariance + 1e-4 * torch.eye(TOKEN, device=DEVICE).double()
        return self.means[self.seen][:, own].float(), torch.linalg.cholesky(covariance).float()

    def correct(self, scores: Tensor, labels: Tensor) -> float:
        return (torch.tensor(self.seen, device=DEVICE)[scores.argmax(1)] == labels).double().mean().item()


def load(stream: Stream, root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels in stream order, those to learn from and those held out."""

    def key(name: str) -> list[int | str]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    names = sorted((path.name for path in (root / "train").iterdir()), key=key)
    order = np.arange(len(names))
    if stream.seed is not None:
        order = np.random.RandomState(stream.seed).permutation(len(names))
    pictures: dict[bool, list[np.ndarray]] = {True: [], False: []}
    labels: dict[bool, list[int]] = {True: [], False: []}
    for label, place in enumerate(order):
        files = sorted((root / "train" / names[place]).iterdir())
        held_out = max(1, round(0.2 * len(files)))
        for number, chosen in enumerate(np.random.RandomState(label).permutation(len(files))):
            pictures[number < held_out].append(_square(files[chosen], stream))
            labels[number < held_out].append(label)
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    found = []
    for half in (False, True):
        pixels = torch.from_numpy(np.stack(pictures[half])).permute(0, 3, 1, 2).float() / 255
        found += [((pixels - mean) / deviation).to(DEVICE), torch.tensor(labels[half]).to(DEVICE)]
    return found[0], found[1], found[2], found[3]


def _square(file: Path, stream: Stream) -> np.ndarray:
    picture, side = Image.open(file).convert("RGB"), stream.side
    scale = side / min(picture.size) / (0.875 if stream.augmentation == "crop" else 1)
    width, height = (max(side, round(length * scale)) for length in picture.size)
    left, top = (width - side) // 2, (height - side) // 2
    picture = picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    return np.asarray(picture)


def augmented(images: Tensor, kind: str) -> Tensor:
    number, side = len(images), images.shape[-1]
    maps = torch.zeros(number, 2, 3, device=DEVICE)
    if kind == "shift":
        maps[:, 0, 0] = maps[:, 1, 1] = 1
        maps[:, :, 2] = torch.randint(-side // 10, side // 10 + 1, (number, 2), device=DEVICE) * 2 / side
        grid = F.affine_grid(maps, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False, mode="nearest")
    scale = (0.3 + 0.7 * torch.rand(number, device=DEVICE)).sqrt()
    maps[:, 0, 0] = scale * (1 - 2 * (torch.rand(number, device=DEVICE) < 0.5).float())
    maps[:, 1, 1] = scale
    maps[:, :, 2] = (2 * torch.rand(number, 2, device=DEVICE) - 1) * (1 - scale)[:, None]
    return F.grid_sample(images, F.affine_grid(maps, list(images.shape), align_corners=False), align_corners=False)


def train(
    vit: ViT,
    weights: list[Tensor],
    images: Tensor,
    labels: Tensor,
    stream: Stream,
    way: Way,
    update: Update,
    *,
    projections: list[Tensor] | None = None,
    earlier: tuple[Tensor, Tensor] | None = None,
) -> list[Tensor]:
    """What one task changes in each weight; `update` is left trained. `earlier`: of earlier classes, `tokens`."""
    positions = torch.searchsorted(labels.unique(), labels)
    rows = torch.randn(4 * len(labels.unique()), TOKEN, device=DEVICE)
    head = (0.2 * F.normalize(rows, dim=1)).requires_grad_()
    old = None if earlier is None else earlier[0].clone().requires_grad_(way.pseudo > 0)
    passes = way.passes or stream.passes
    steps, step = passes * math.ceil(len(labels) / stream.batch), 0
    groups = [{"params": update.trainable(), "lr": way.rate * RATE}]
    groups += [{"params": [head, *([old] if old is not None and way.pseudo else [])], "lr": RATE}]
    optimizer = torch.optim.Adam(groups, foreach=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    with torch.no_grad():
        before = update.dense(projections)
    for _ in range(passes):
        for chosen in torch.randperm(len(labels), device=DEVICE).split(stream.batch):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            step += 1
            batch = augmented(images[chosen], stream.augmentation)
            turns = torch.randint(4, (len(chosen),), device=DEVICE)
            batch = rotated(batch, turns)
            now = update.dense(projections)
            changed = [w + new - start for w, new, start in zip(weights, now, before, strict=True)]
            token, features = vit(batch, changed)
            every = F.normalize(head if old is None else torch.cat([head, old]), dim=1)
            logits = SCALE * F.normalize(token, dim=1) @ every.T
            loss = F.cross_entropy(logits, 4 * positions[chosen] + turns)
            if way.distilled:
                with torch.no_grad():
                    features_before = vit(batch, weights)[1]
                loss = loss + way.distilled * (features - features_before).square().mean()
            if way.pseudo and earlier is not None:
                means, factor = earlier
                classes = torch.randint(len(means), (len(chosen),), device=DEVICE)
                drawn = means[classes] + torch.randn(len(chosen), TOKEN, device=DEVICE) @ factor.T
                logits = SCALE * F.normalize(drawn, dim=1) @ every.T
                loss = loss + way.pseudo * F.cross_entropy(logits, len(head) + classes)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return [new - start for new, start in zip(update.dense(projections), before, strict=True)]


def learn(stream: Stream, way: Way, data: tuple[Tensor, Tensor, Tensor, Tensor], vit: ViT, tasks: int | None) -> dict:
    """Accuracy in percent after the last task, and its mean over tasks, by what reads the features."""
    torch.manual_seed(SEED)
    images, labels, held_images, held_labels = data
    classes, width = int(labels.max()) + 1, 2 * LAYERS * 192
    _, moved, widened, by_layer, of_low_rank = every = [Statistics(classes, width) for _ in range(5)]
    weights, earlier, first_update = vit.weights, None, Update(vit.weights)
    names = ("stay", "moved", "moved and widened", "moved layer by layer", f"moved, rank {MAP_RANK}")
    found: dict[str, list[float]] = {name: [] for name in (*names, "moved means")}
    for task in range(min(classes // stream.classes, tasks or classes)):
        first, stop = task * stream.classes, (task + 1) * stream.classes
        own = (labels >= first) & (labels < stop)
        x, y, before = images[own], labels[own], weights
        if task == 0:
            changes = train(vit, weights, x, y, stream, Way(), first_update)
            weights = [weight + change for weight, change in zip(weights, changes, strict=True)]
            first_update.rest(cores=way.cores)
        elif way.adapts:
            update = first_update if way.magnitudes else Update(weights)
            weights = _adapted(vit, weights, x, y, stream, way, update, task, earlier, moved)
        if way.projected or way.regression:
            products = vit.products(x, weights)
            earlier = products if earlier is None else [a + b for a, b in zip(earlier, products, strict=True)]
        features = vit.features(x, weights)
        if task and weights is not before:
            turned = torch.cat([torch.rot90(x, turn, (2, 3)) for turn in range(4)])
            old, new = vit.features(turned, before), vit.features(turned, weights)
            weight, bias = affine_drift(old, new)
            moved.move(weight, bias)
            widened.move(weight, bias, _unexplained(old, new))
            by_layer.move(*_layer_by_layer(old, new))
            of_low_rank.move(*_of_low_rank(weight, old, new))
        for statistics in every:
            statistics.add(features, y)
        seen = held_labels < stop
        tested, truth = vit.features(held_images[seen], weights), held_labels[seen]
        for name, statistics in zip(names, every, strict=True):
            found[name].append(statistics.correct(statistics.discriminant(tested), truth))
        found["moved means"].append(moved.correct(moved.nearest(tested), truth))
    again, seen = Statistics(classes, width), labels < stop
    again.add(vit.features(images[seen], weights), labels[seen])
    encoded_again = again.correct(again.discriminant(tested), truth)
    return {
        "acc": {name: round(100 * each[-1], 1) for name, each in found.items()}
        | {"all encoded again": round(100 * encoded_again, 1)},
        "aaa": {name: round(100 * float(np.mean(each)), 1) for name, each in found.items()},
    }


def _adapted(
    vit: ViT,
    weights: list[Tensor],
    x: Tensor,
    y: Tensor,
    stream: Stream,
    way: Way,
    update: Update,
    task: int,
    earlier: list[Tensor] | None,
    moved: Statistics,
) -> list[Tensor]:
    projections = None
    if way.projected:
        assert earlier is not None
        projections = [
            torch.linalg.inv(
                product.double() / (way.projected * product.trace() / len(product))
                + torch.eye(len(product), device=DEVICE)
            ).float()
            for product in earlier
        ]
    old = moved.tokens() if way.negatives or way.pseudo else None
    starts = [magnitudes.detach().clone() for magnitudes in update.magnitudes]
    changes = train(vit, weights, x, y, stream, way, update, projections=projections, earlier=old)
    if way.regression:
        assert earlier is not None
        trained = [weight + change for weight, change in zip(weights, changes, strict=True)]
        solved = []
        for change, new, old in zip(changes, vit.products(x, trained), earlier, strict=True):
            total = (new + way.regression * old).double()
            total += 1e-4 * total.diagonal().mean() * torch.eye(len(total), device=DEVICE)
            solved.append(torch.linalg.solve(total, (change.double() @ new.double()).T).T.float())
        changes = solved
    share = 1 / (task + 1) if way.averaged else 1.0
    if way.magnitudes:
        for magnitudes, start in zip(update.magnitudes, starts, strict=True):
            magnitudes.data = torch.lerp(start, magnitudes.data, share)
    return [weight + share * change for weight, change in zip(weights, changes, strict=True)]


def _unexplained(old: Tensor, new: Tensor) -> Tensor:
    """Covariance of what a map fitted on one half of the rows leaves of the other."""
    order, left = torch.randperm(len(old), device=DEVICE), torch.zeros(old.shape[1], old.shape[1]).to(old)
    halves = order[: len(old) // 2], order[len(old) // 2 :]
    for fitted, other in (halves, halves[::-1]):
        weight, bias = affine_drift(old[fitted], new[fitted])
        errors = new[other] - old[other] @ weight.T - bias
        left += errors.T @ errors / len(old)
    return left


def _layer_by_layer(old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """An affine map of the features of each block to those of the same block."""
    maps = [affine_drift(*parts) for parts in zip(old.chunk(LAYERS, 1), new.chunk(LAYERS, 1), strict=True)]
    weights, biases = zip(*maps, strict=True)
    return torch.block_diag(*weights), torch.cat(biases)


def _of_low_rank(weight: Tensor, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """The affine map, of which only the largest directions differ from the identity."""
    identity = torch.eye(len(weight)).to(weight)
    with torch.random.fork_rng():  # its draws are not those of the training
        up, values, down = torch.svd_lowrank(weight - identity, MAP_RANK, niter=4)
    weight = identity + (up * values) @ down.T
    return weight, new.mean(0) - weight @ old.mean(0)


def main(
    stream: str,
    root: Annotated[Path, typer.Option(help="an image folder")],
    weights: Annotated[Path, typer.Option(help="of DeiT-Ti")],
    ways: Annotated[str, typer.Option(help="separated by ;")] = ";".join(WAYS),
    tasks: Annotated[int | None, typer.Option(help="the first tasks alone")] = None,
) -> None:
    """Try each way on a stream."""
    data, vit = load(STREAMS[stream], root), ViT(STREAMS[stream].side, weights)
    for name in ways.split(";"):
        found = learn(STREAMS[stream], WAYS[name], data, vit, tasks)
        print(json.dumps({"stream": stream, "way": name, **asdict(WAYS[name]), **found}), flush=True)


if __name__ == "__main__":
    typer.run(main)
