"""What a training step of SD-LoRA costs, and whether that grows with the number of tasks learned before.

    python benchmarks/step_time.py --backbone vit_base_patch16_224 --tasks 1,10,50,100
    python benchmarks/step_time.py --backbone hf:minilm --weights FOLDER --methods sd_lora,o_lora,lora --tasks 1,10

Timed, on the CPU, on one fixed batch of random images, or texts, with labels of the current task:

  SD-LoRA  one step of the library's own method (paper variant, q and v of every block), really grown through T tasks of
           ten classes, taken by the library's own loop (`lorica.descent.Descent.take`): forward, cross-entropy over the
           current task's classes, backward, one step of Adam, and the loop's checks. One configuration for each T.
           --methods asks for others, grown alike.
  floor    the same backbone with frozen weights and no adapters, and a linear head that trains: forward,
           cross-entropy, and backward down to the input images. There is no optimiser step.
  token floor  the same, but backward only down to the tokens that enter the first block. This is the stricter
           yardstick: nothing that trains lies below the first block, so SD-LoRA and PEFT never compute the images'
           gradient, and PyTorch's CPU kernel for it is slow (on one core 15 % of the floor for deit_tiny at 96 pixels).
  PEFT     the LoRA of the `peft` package with the same rank, on the same projections, beside a trainable head of ten
           classes: same loss, same optimiser, same loop. PEFT adapts whole linear layers, and timm fuses q, k and v in
           one, so its copy of the backbone gets the three as separate layers (`SplitAttention`), which are slices of
           the same weights. No concatenation is added, and the logits are verified to be those of the fused model.

Of texts, whose tokens are ids, both floors are the second one. It is that of transformers' own model, and PEFT adapts
that, too: so what lorica's blocks add (padding that is marked in the tokens) is in the ratios. Texts have up to
--tokens tokens, the shortest three quarters of that.

How to read the ratios. Every round times each configuration once, in an order shuffled anew, so that slow phases of the
machine fall on all of them alike. With --threads 1 seconds are the processor's, of which others that use the core take
none. `ratio_to_floor` is SD-LoRA's time over the floor's time in the same round,
`ratio_to_token_floor` and `ratio_to_peft` its time over those two; reported are the medians over the rounds, with
quartiles. A ratio to the floor of 1.10 means that everything learning adds to the bare backbone takes a tenth of its
time. A column of equal ratios means that a step costs the same at the hundredth task as at the first. PEFT's LoRA is a
single update that knows nothing of tasks: it is a yardstick for adapting once, not for remembering. With --precisions
fp32,bf16 everything is timed in both, and the ratios of each are over the floors and PEFT in the same.

Weights are random (time does not depend on their values) except those of lorica_tiny, and all configurations share
the frozen ones in memory; of texts, those of lorica do.
"""

from __future__ import annotations

import copy
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
import typer
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from timm.layers.attention import Attention
from torch import Tensor, nn

from lorica.backbones import TEXT, TINY, Encoder
from lorica.backbones.hf_text import FAMILIES, HFText, TextClassifier, load_hf_text
from lorica.backbones.timm_vit import TimmViT, load_timm_vit
from lorica.backbones.tiny import load_tiny
from lorica.descent import Descent, Fit
from lorica.methods import Method, find_method
from lorica.methods.sd_lora import SDLoRA
from lorica.progress import Reporter, Silent, progress_bar
from lorica.randomness import Draws
from lorica.types import Batch, Task, Tokens

CLASSES = 10  # in each task
FIT = Fit(
    epochs=1,
    batch_size=0,
    optimizer="adam",
    learning_rate=0.008,
    momentum=0.0,
    weight_decay=0.0,
    schedule="constant",
    augment="none",
)
WARM_UP_ROUNDS = 1
FLOOR, TOKEN_FLOOR, PEFT = "floor", "token floor", "peft"

Step = Callable[[], None]
Quartiles = tuple[float, float]


@dataclass(frozen=True)
class StepTime:
    """The step of a method while it learns task number `tasks`; times and ratios are medians over the rounds. A size is
    a side in pixels, or a length in tokens."""

    method: str
    backbone: str
    size: int
    batch: int
    rank: int
    tasks: int
    precision: str
    ratio_to_floor: float
    ratio_to_floor_quartiles: Quartiles
    ratio_to_token_floor: float
    ratio_to_token_floor_quartiles: Quartiles
    ratio_to_peft: float
    ratio_to_peft_quartiles: Quartiles
    seconds: float
    seconds_quartiles: Quartiles
    floor_seconds: float
    floor_seconds_quartiles: Quartiles
    peft_seconds: float
    peft_seconds_quartiles: Quartiles
    repeats: int
    threads: int
    torch: str


def measure(
    backbone: str,
    tasks: Sequence[int],
    *,
    batch: int = 32,
    repeats: int = 20,
    image_size: int | None = None,
    rank: int = 10,
    methods: Sequence[str] = (SDLoRA.name,),
    precisions: Sequence[str] = ("fp32",),
    weights: Path | None = None,
    length: int = 64,
    reporter: Reporter | None = None,
) -> list[StepTime]:
    """Times all configurations, interleaved, with the number of threads that torch is set to; one result for each
    method, T and precision."""
    reporter = reporter or Silent()
    encoder = _encoder(backbone, image_size, weights)
    labels = torch.randint(CLASSES, (batch,))
    accelerator = Accelerator(cpu=True)
    inputs: Any
    if isinstance(encoder, HFText):
        inputs, size = texts(encoder, batch, length), length
        floor = text_floor_step(encoder, inputs, labels)
        steps = {FLOOR: floor, PEFT: peft_text_step(encoder, inputs, labels, rank, accelerator)}
    else:
        size = encoder.image_size
        inputs = torch.rand(batch, 3, size, size)
        steps = {
            FLOOR: floor_step(encoder, inputs, labels),
            TOKEN_FLOOR: token_floor_step(encoder, inputs, labels),
            PEFT: peft_step(encoder, inputs, labels, rank, accelerator),
        }
    wanted = [(name, number) for name in methods for number in tasks]
    reporter.stage("growing", len(wanted))
    for name, number in wanted:
        steps[f"{name} {number}"] = own_step(grown(encoder, number, rank, name), inputs, labels, accelerator)
        reporter.step()
    timed = {
        f"{key} {precision}": in_precision(precision, step) for key, step in steps.items() for precision in precisions
    }
    seconds = {name: np.array(times) for name, times in interleaved(timed, repeats, reporter).items()}
    results = []
    for name, number, precision in ((*method, precision) for method in wanted for precision in precisions):
        own, floor, peft = (seconds[f"{key} {precision}"] for key in (f"{name} {number}", FLOOR, PEFT))
        token_floor = seconds.get(f"{TOKEN_FLOOR} {precision}", floor)
        results.append(
            StepTime(
                name, backbone, size, batch, rank, number, precision,
                *_summary(own / floor), *_summary(own / token_floor), *_summary(own / peft),
                *_summary(own), *_summary(floor), *_summary(peft),
                repeats, torch.get_num_threads(), str(torch.__version__),
            )
        )  # fmt: skip
    return results


def in_precision(precision: str, step: Step) -> Step:
    """The step under torch's autocast where that is bf16, which is what `precision: bf16` turns on."""
    if precision == "fp32":
        return step

    def cast_step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            step()

    return cast_step


def interleaved(steps: Mapping[str, Step], repeats: int, reporter: Reporter) -> dict[str, list[float]]:
    """Seconds that each step took in each round: a round runs every step once, in an order of its own."""
    shuffler, order = random.Random(0), list(steps)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    reporter.stage("timing", repeats + WARM_UP_ROUNDS)
    for completed in range(repeats + WARM_UP_ROUNDS):
        shuffler.shuffle(order)
        for name in order:
            start = clock()
            steps[name]()
            if completed >= WARM_UP_ROUNDS:
                seconds[name].append(clock() - start)
        reporter.step()
    return seconds


def floor_step(encoder: Encoder, images: Tensor, labels: Tensor) -> Step:
    """Forward and backward of the plain backbone, down to the images."""
    classifier = Classifier(encoder)
    images = images.clone().requires_grad_()

    def step() -> None:
        loss = F.cross_entropy(classifier(images), labels)
        torch.autograd.grad(loss, [images, *classifier.head.parameters()])

    return step


def token_floor_step(encoder: Encoder, images: Tensor, labels: Tensor) -> Step:
    """Forward of the plain backbone, and backward down to the tokens that enter its first block."""
    head = nn.Linear(encoder.width, CLASSES)

    def step() -> None:
        start = tokens = encoder.embed(images).requires_grad_()
        for block in encoder.blocks:
            tokens = block(tokens)
        loss = F.cross_entropy(head(encoder.pool(tokens)), labels)
        torch.autograd.grad(loss, [start, *head.parameters()])

    return step


def texts(encoder: HFText, number: int, length: int) -> Tokens:
    """Of random tokens, the longest of that length and the shortest of three quarters of it."""
    vocabulary = cast(Any, encoder.model).get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (number, length))
    lengths = length - torch.arange(number)[:, None] % max(1, length // 4)
    return Tokens(ids, torch.arange(length) < lengths)


def text_floor_step(encoder: HFText, inputs: Tokens, labels: Tensor) -> Step:
    """Forward of transformers' own model, and backward down to the tokens that enter its first layer."""
    classifier = text_classifier(encoder)
    start: list[Tensor] = []
    embeddings = classifier.model.get_submodule(FAMILIES[classifier.model.config.model_type].embeddings)
    embeddings.register_forward_hook(lambda module, given, found: start.append(found.requires_grad_()))

    def step() -> None:
        loss = F.cross_entropy(classifier(inputs), labels)
        torch.autograd.grad(loss, [start.pop(), *classifier.head.parameters()])

    return step


def peft_text_step(encoder: HFText, inputs: Tokens, labels: Tensor, rank: int, accelerator: Accelerator) -> Step:
    """PEFT's LoRA on transformers' own model, and a head of its own.

    Raises:
        ValueError: q and v are parts of one layer, which PEFT would adapt as a whole.
    """
    sites = encoder.select(("q", "v"))
    if any(encoder.get_submodule(site.linear).out_features != site.rows[1] - site.rows[0] for site in sites):
        raise ValueError(f"{encoder.name}: q and v are parts of one layer; time an encoder in which they are layers")
    targets = [f"model.{encoder.plain_name(site.linear)}" for site in sites]
    config = LoraConfig(r=rank, target_modules=targets, modules_to_save=["head"])
    return _trained(get_peft_model(cast(Any, text_classifier(encoder)), config).train(), inputs, labels, accelerator)


def text_classifier(encoder: HFText) -> Any:
    """Transformers' own model, with an ordinary linear head for one task."""
    return TextClassifier(encoder.plain_model(), encoder.pooling, nn.Linear(encoder.width, CLASSES))


def own_step(method: Method, inputs: Any, labels: Tensor, accelerator: Accelerator, fit: Fit = FIT) -> Step:
    """One step of the library's own loop."""
    batch = Batch(inputs, labels + method.task.classes[0])
    descent = Descent(
        method.train(),
        method.trainable(),
        fit,
        losses=method.losses,
        data=OneBatch(),
        draws=Draws(0, task=method.task.index, stage=0),
        accelerator=accelerator,
    )

    def step() -> None:
        descent.take(batch)
        descent.require_finite()

    return step


def peft_step(encoder: TimmViT, images: Tensor, labels: Tensor, rank: int, accelerator: Accelerator) -> Step:
    """The same for PEFT's LoRA and a head of its own."""
    config = LoraConfig(r=rank, target_modules=["q", "v"], modules_to_save=["head"])
    model = get_peft_model(cast(Any, Classifier(split_qkv(encoder))), config).train()
    return _trained(model, images, labels, accelerator)


def _trained(model: nn.Module, inputs: Any, labels: Tensor, accelerator: Accelerator) -> Step:
    """One step of an ordinary loop."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = accelerator.prepare_optimizer(torch.optim.Adam(parameters, lr=FIT.learning_rate))

    def step() -> None:
        with accelerator.autocast():
            loss = F.cross_entropy(model(inputs), labels)
        _require_finite(loss)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()

    return step


def grown(encoder: Encoder, tasks: int, rank: int, name: str = SDLoRA.name) -> Any:
    """A method as it stands when it is about to learn its last task."""
    kind = find_method(name)
    ranks = {"rank": rank} if "rank" in kind.Config.model_fields else {}
    method = kind(kind.Config.model_validate({"name": name, **ranks}), _copy(encoder))
    for index in range(tasks):
        first = index * CLASSES
        method.grow(Task.of_new_classes(index, first, tuple(f"class {first + n}" for n in range(CLASSES))))
    return method


class OneBatch:
    """Data of one batch, which the benchmark hands over itself."""

    def number_of_batches(self, batch_size: int) -> int:
        return 1

    def batches(self, batch_size: int, **_: object) -> Iterator[Batch]:
        raise NotImplementedError


class Classifier(nn.Module):
    """An encoder with an ordinary linear head for one task."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder.features(images))


class SplitAttention(nn.Module):
    """timm's attention with q, k and v as three linear layers, whose weights are slices of the fused one's."""

    def __init__(self, fused: Attention) -> None:
        super().__init__()
        self.q, self.k, self.v = _thirds(fused.qkv)
        self.q_norm, self.k_norm, self.norm = fused.q_norm, fused.k_norm, fused.norm
        self.proj, self.proj_drop = fused.proj, fused.proj_drop
        self.head_dim, self.dropout = fused.head_dim, fused.attn_drop.p

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, attn_mask, dropout, is_causal)
        return self.proj_drop(self.proj(self.norm(x.transpose(1, 2).flatten(2))))


def split_qkv(encoder: TimmViT) -> TimmViT:
    """A copy of the encoder with `SplitAttention` in every block.

    Raises:
        ValueError: its features are not the original's, for an attention that this benchmark does not know.
    """
    split = _copy(encoder)
    for block in split.blocks:
        block.attn = SplitAttention(cast(Attention, block.attn))
    with torch.no_grad():
        probe = torch.rand(1, 3, encoder.image_size, encoder.image_size)
        if not torch.allclose(split.eval().features(probe), encoder.eval().features(probe), rtol=1e-3, atol=1e-4):
            raise ValueError(f"{encoder.name}: splitting its fused qkv changes what it computes")
    return split


def _thirds(qkv: nn.Linear) -> list[nn.Linear]:
    layers: list[nn.Linear] = []
    biases = [None] * 3 if qkv.bias is None else qkv.bias.chunk(3)
    for weight, bias in zip(qkv.weight.chunk(3), biases, strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
        layers.append(layer)
    return layers


def _encoder(name: str, image_size: int | None, weights: Path | None = None) -> Any:
    if name.startswith(TEXT):
        encoder: Encoder = load_hf_text(name.removeprefix(TEXT), weights=weights, pretrained=False)
    elif name == TINY:
        encoder = load_tiny(image_size=image_size)
    else:
        encoder = load_timm_vit(name, image_size=image_size, pretrained=False)
    return encoder.requires_grad_(False)


def _copy(encoder: Any) -> Any:
    """A copy with modules of its own, around the same weights in memory."""
    return copy.deepcopy(encoder, {id(parameter): parameter for parameter in encoder.parameters()})


def _require_finite(loss: Tensor) -> None:
    """ValueError for a loss that is not: the time of such a step says nothing."""
    if not math.isfinite(loss.item()):
        raise ValueError("the loss is not finite; the time of such a step says nothing")


def _summary(values: np.ndarray) -> tuple[float, Quartiles]:
    lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return median, (lower, upper)


def _table(results: Sequence[StepTime]) -> Table:
    first = results[0]
    of_texts = first.backbone.startswith(TEXT)
    table = Table(
        title=f"Training step, {first.backbone} at {first.size} {'tokens' if of_texts else 'pixels'}, batch "
        f"{first.batch}",
        caption=f"medians of {first.repeats} rounds (quartiles), {first.threads} threads, torch {first.torch}; "
        + "; ".join(
            f"{precision}: floor {floor:.4f} s, PEFT {peft:.4f} s"
            for precision, floor, peft in sorted({(r.precision, r.floor_seconds, r.peft_seconds) for r in results})
        ),
    )
    for heading in ("method", "tasks", "seconds", "x floor", "x token floor", "x PEFT"):
        table.add_column(heading, justify="right")
    for result in results:
        ratios = [
            (result.ratio_to_floor, *result.ratio_to_floor_quartiles),
            (result.ratio_to_token_floor, *result.ratio_to_token_floor_quartiles),
            (result.ratio_to_peft, *result.ratio_to_peft_quartiles),
        ]
        cells = [f"{median:.3f}\n({lower:.2f}-{upper:.2f})" for median, lower, upper in ratios]
        name = result.method if result.precision == "fp32" else f"{result.method}, {result.precision}"
        table.add_row(name, str(result.tasks), f"{result.seconds:.4f}", *cells)
    return table


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"expected task counts from 1 up, such as 1,10,50; got {text!r}")
    return numbers


def _precisions(text: str) -> list[str]:
    found = text.split(",")
    if not set(found) <= {"fp32", "bf16"}:
        raise typer.BadParameter(f"expected fp32, bf16, or both, separated by a comma; got {text!r}")
    return found


def main(
    backbone: Annotated[str, typer.Option(help="lorica_tiny, any timm ViT, or hf:NAME")] = "vit_base_patch16_224",
    tasks: Annotated[str, typer.Option(help="numbers of tasks, separated by commas")] = "1,10,50,100",
    batch: Annotated[int, typer.Option(min=1, help="images or texts in a step")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="rounds that count")] = 20,
    image_size: Annotated[int | None, typer.Option(help="side in pixels; absent: the backbone's own")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="absent: torch's choice")] = None,
    rank: Annotated[int, typer.Option(min=1, help="of each update")] = 10,
    methods: Annotated[str, typer.Option(help="names, separated by commas")] = SDLoRA.name,
    precisions: Annotated[str, typer.Option(help="fp32, bf16, or both, separated by a comma")] = "fp32",
    weights: Annotated[Path | None, typer.Option(help="of hf:NAME: its folder; absent: the hub's")] = None,
    length: Annotated[int, typer.Option("--tokens", min=4, help="of the longest text")] = 64,
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON object per method and task count, one per line")
    ] = False,
) -> None:
    """Times a method's training step against the frozen backbone and PEFT's LoRA."""
    numbers = _numbers(tasks)
    if threads is not None:
        torch.set_num_threads(threads)
    with progress_bar() as reporter:
        results = measure(
            backbone,
            numbers,
            batch=batch,
            repeats=repeats,
            image_size=image_size,
            rank=rank,
            methods=methods.split(","),
            precisions=_precisions(precisions),
            weights=weights,
            length=length,
            reporter=reporter,
        )
    if as_json:
        for result in results:
            print(json.dumps(asdict(result)))
    else:
        Console().print(_table(results))


if __name__ == "__main__":
    typer.run(main)
