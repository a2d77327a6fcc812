"""What a training step of SD-LoRA costs in other people's code, beside lorica's own, on the same backbone.

    python benchmarks/peers.py --sd-lora FOLDER --libcontinual FOLDER --backbone deit_tiny_patch16_224 --threads 1

A FOLDER is an unmodified checkout, and either may be left out:

    released code  github.com/WuYichen-97/SD-Lora-CL at 8bacded
    LibContinual   github.com/RL-VIG/LibContinual at a399ed4

Timed, on the CPU, on one fixed batch of random images with labels of the current task, in fp32:

  released code, LibContinual   one turn of the loop that they train with themselves, while task T of ten classes is
                                learned. Nothing of it is rewritten here: their loop gets a loader of one batch
  sd_lora                       a step of lorica's SD-LoRA after as many tasks, see benchmarks/step_time.py (Adam)
  sd_lora, released_code        the same in the variant that computes what those two compute (SGD with momentum)
  floor, PEFT                   the frozen backbone, and one LoRA adapter, from benchmarks/step_time.py

All have the same backbone with the same random weights, the same rank on q and v, and the same random factors for
earlier tasks. Before anything is timed, the loss of the first step, and its gradient for all magnitudes, have to be
those of lorica's `released_code`, to a thousandth: what is compared computes the same. `apart` in the JSON is how far
they are from each other, relative.

How to read the table. `x sd_lora` is a step's time over that of lorica's `sd_lora` at the same number of tasks in the
same round, `x floor` and `x PEFT` its time over theirs; medians over the rounds, with quartiles. Every round times each
configuration once, in an order of its own. With --threads 1 seconds are the processor's. `kept` is what one step keeps
in memory between its forward and its backward pass, without weights. `unused term` is what the released code spends, in
every step from the second task on, on a sum over files of all earlier tasks that does not enter its loss; it is in its
time.

What is patched, in this process and not in the checkouts, so that they start on a CPU with today's packages:

  both           `timm.create_model` gives the benchmark's backbone instead of downloading one; what they print is gone
  released code  `.cuda()` does nothing; `torch.load` unpickles, as it did before torch 2.6, the files that the code
                 itself has written to a temporary folder; `einops`, imported and not used, is an empty module where it
                 is missing; the width 768 of its head is that of the backbone; the test that follows an epoch, and the
                 progress bar, are left out
  LibContinual   the packages around the method and the trainer are imported without their `__init__`, which import all
                 other methods and data sets; its ViT, whose sizes are fixed, is built in the backbone's; block norms
                 have timm's epsilon, by an option of theirs; averages of loss and accuracy are not kept
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Annotated, Any, cast
from unittest.mock import patch

import numpy as np
import step_time
import timm
import torch
import typer
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from step_time import CLASSES, FLOOR, PEFT, Quartiles, Step
from torch import Tensor, nn

from lorica.backbones.timm_vit import TimmViT
from lorica.methods.sd_lora import SDLoRA, SDLoRAConfig
from lorica.progress import Reporter, Silent, progress_bar
from lorica.types import Batch, Task

OWN, OWN_RELEASED = "sd_lora", "sd_lora, released_code"
RELEASED, LIBCONTINUAL, UNUSED = "released code", "LibContinual", "unused term"
EXPECTED = {
    RELEASED: ("WuYichen-97/SD-Lora-CL", "8bacded", ("models/sdlora.py", "backbone/lora.py", "utils/inc_net.py")),
    LIBCONTINUAL: ("RL-VIG/LibContinual", "a399ed4", ("core/trainer.py", "core/model/sd_lora.py")),
}
RATE, MOMENTUM = 0.008, 0.9  # of both peers' configurations for CIFAR-100
AGREEMENT = 1e-3  # relative

Factors = Sequence[Sequence[tuple[Tensor, Tensor]]]
"""U and D by task and by projection: q, then v, of every block."""


@dataclass(frozen=True)
class Grown:
    """A method of somebody else's that is about to learn its last task.

    Attributes:
        step: takes a step of its own loop.
        magnitudes: one for each task, in order.
        head: weight and bias, of all tasks.
        unused: what a step spends on a term that does not enter its loss, where there is one.
    """

    step: Step
    module: nn.Module
    magnitudes: Sequence[nn.Parameter]
    head: tuple[Tensor, Tensor]
    unused: Step | None = None


@dataclass(frozen=True)
class Given:
    """What every peer is built from."""

    encoder: TimmViT
    images: Tensor
    labels: Tensor
    rank: int
    factors: Factors


@dataclass(frozen=True)
class Peer:
    """Somebody else's code, and the commit it is at."""

    name: str
    commit: str
    grow: Callable[[Given, int], Grown]


@dataclass(frozen=True)
class PeerTime:
    """The step of one implementation while it learns task number `tasks`; medians over the rounds."""

    what: str
    commit: str
    backbone: str
    size: int
    batch: int
    rank: int
    tasks: int
    seconds: float
    seconds_quartiles: Quartiles
    ratio_to_floor: float
    ratio_to_floor_quartiles: Quartiles
    ratio_to_peft: float
    ratio_to_peft_quartiles: Quartiles
    ratio_to_sd_lora: float
    ratio_to_sd_lora_quartiles: Quartiles
    unused_seconds: float | None
    kept_megabytes: float
    apart: float | None
    repeats: int
    threads: int
    torch: str
    timm: str


def measure(
    peers: Sequence[Peer],
    backbone: str,
    tasks: Sequence[int],
    *,
    batch: int = 32,
    repeats: int = 9,
    image_size: int | None = None,
    rank: int = 10,
    reporter: Reporter | None = None,
) -> list[PeerTime]:
    """Times all configurations, interleaved; one result for each implementation and number of tasks.

    Raises:
        ValueError: a peer computes something else.
    """
    reporter = reporter or Silent()
    encoder = step_time._encoder(backbone, image_size)
    size = encoder.image_size
    images, labels = torch.rand(batch, 3, size, size), torch.randint(CLASSES, (batch,))
    given = Given(encoder, images, labels, rank, drawn(encoder, max(tasks), rank))
    accelerator = Accelerator(cpu=True)
    steps: dict[str, Step] = {
        FLOOR: step_time.floor_step(encoder, images, labels),
        PEFT: step_time.peft_step(encoder, images, labels, rank, accelerator),
    }
    weights: dict[str, nn.Module] = {}
    apart: dict[str, float] = {}
    reporter.stage("growing", len(tasks) * (2 + len(peers)))
    for number in tasks:
        for name, variant in ((OWN, "paper"), (OWN_RELEASED, "released_code")):
            method = own(given, number, variant)
            chosen = dict(method.fit_defaults(variant))
            fit = replace(step_time.FIT, **chosen, learning_rate=RATE, momentum=MOMENTUM if chosen else 0.0)
            steps[f"{name} {number}"] = step_time.own_step(method, images, labels, accelerator, fit)
            weights[f"{name} {number}"] = method
            reporter.step()
        for peer in peers:
            grown = peer.grow(given, number)
            apart[f"{peer.name} {number}"] = distance(peer.name, given, grown)
            steps[f"{peer.name} {number}"], weights[f"{peer.name} {number}"] = grown.step, grown.module
            if grown.unused:
                steps[f"{UNUSED} {number}"] = grown.unused
            reporter.step()
    kept = {name: kept_for_backward(steps[name], module) for name, module in weights.items()}
    seconds = {name: np.array(times) for name, times in step_time.interleaved(steps, repeats, reporter).items()}
    for name, module in weights.items():
        if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
            raise ValueError(f"{name} tasks: the weights are not finite; the time of such a step says nothing")
    commits = {peer.name: peer.commit for peer in peers}
    return [
        PeerTime(
            name, commits.get(name, ""), backbone, size, batch, rank, number,
            *step_time._summary(times), *step_time._summary(times / seconds[FLOOR]),
            *step_time._summary(times / seconds[PEFT]), *step_time._summary(times / seconds[f"{OWN} {number}"]),
            float(np.median(seconds[f"{UNUSED} {number}"])) if name == RELEASED and f"{UNUSED} {number}" in seconds
            else None,
            kept[f"{name} {number}"], apart.get(f"{name} {number}"),
            repeats, torch.get_num_threads(), str(torch.__version__), timm.__version__,
        )
        for name in (OWN, OWN_RELEASED, *commits) for number in tasks for times in [seconds[f"{name} {number}"]]
    ]  # fmt: skip


def drawn(encoder: TimmViT, tasks: int, rank: int) -> Factors:
    """Random factors, of the size that training leaves them in."""
    sites = len(encoder.select(("q", "v")))
    width = encoder.width
    return [
        [(0.02 * torch.randn(width, rank), (2 * torch.rand(rank, width) - 1) / width**0.5) for _ in range(sites)]
        for _ in range(tasks)
    ]


def own(given: Given, tasks: int, variant: Any) -> SDLoRA:
    """lorica's own, about to learn its last task, with those factors."""
    method = SDLoRA(SDLoRAConfig(name="sd_lora", variant=variant, rank=given.rank), step_time._copy(given.encoder))
    for index in range(tasks):
        first = index * CLASSES
        method.grow(Task.of_new_classes(index, first, tuple(f"class {first + n}" for n in range(CLASSES))))
        with torch.no_grad():
            for update, (up, down) in zip(method.directions, given.factors[index], strict=True):
                update.up.copy_(up)
                update.down.copy_(down)
    return method


def distance(name: str, given: Given, grown: Grown) -> float:
    """How far a step of a peer is from one of lorica's `released_code`, relative: in its loss, or in the gradient of
    that for all magnitudes.

    Raises:
        ValueError: it is further than rounding.
    """
    tasks = len(grown.magnitudes)
    method = own(given, tasks, "released_code")
    weight, bias = (each.detach().clone() for each in grown.head)
    with torch.no_grad():
        method.magnitudes.copy_(torch.cat([each.detach().reshape(1) for each in grown.magnitudes]))
        for index in range(tasks):
            rows = slice(index * CLASSES, (index + 1) * CLASSES)
            method.head.weights[index].copy_(weight[rows])
            method.head.biases[index].copy_(bias[rows])
    for parameter in method.trainable():
        parameter.requires_grad_(True)
    batch = Batch(given.images, given.labels + (tasks - 1) * CLASSES)
    loss = next(iter(method.losses(batch)))["cross_entropy"]
    loss.backward()
    losses: list[Tensor] = []
    with watched_losses(losses):
        grown.step()
    theirs = torch.stack([losses[0], *(cast(Tensor, each.grad).reshape(()) for each in grown.magnitudes)])
    ours = torch.cat([loss.detach().reshape(1), cast(Tensor, method.magnitudes.grad)])
    found = [
        float((mine - other).norm() / mine.norm()) for mine, other in ((ours[:1], theirs[:1]), (ours[1:], theirs[1:]))
    ]
    apart = max(found)
    if not apart <= AGREEMENT:
        raise ValueError(
            f"{name}, {tasks} tasks: its loss or the gradients of its magnitudes differ from lorica's released_code by "
            f"{apart:.1e}, relative; it computes something else, so that times cannot be compared"
        )
    return apart


@contextlib.contextmanager
def watched_losses(found: list[Tensor]) -> Iterator[None]:
    """Collects the cross-entropies that anybody computes meanwhile."""
    plain = torch.nn.functional.cross_entropy

    def watched(*args: Any, **options: Any) -> Tensor:
        loss = plain(*args, **options)
        found.append(loss.detach())
        return loss

    with patch.object(torch.nn.functional, "cross_entropy", watched):
        yield


def kept_for_backward(step: Step, module: nn.Module) -> float:
    """Megabytes that one step keeps from its forward for its backward pass, but for the module's own tensors."""
    known = {each.untyped_storage().data_ptr() for each in (*module.parameters(), *module.buffers())}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(sizes.values()) / 1e6


def released(checkout: Path, work: Path) -> Peer:
    """The authors' own code; it writes to `work`."""
    learner_of = _imported(checkout, ("models", "backbone", "utils"), "models.sdlora")
    learner_of.tqdm = partial(learner_of.tqdm, disable=True)

    def grow(given: Given, tasks: int) -> Grown:
        width, device = given.encoder.width, torch.device("cpu")
        sizes = {"init_cls": CLASSES, "increment": CLASSES, "memory_size": 0}
        rates = {"init_lr": RATE, "lrate": RATE, "init_lr_decay": 0.1, "lrate_decay": 0.1}
        lengths = {"init_epoch": 1, "epochs": 1, "init_milestones": [10**9], "milestones": [10**9]}
        names = {"model_name": "sdlora", "backbone_type": "vit_base_patch16_224", "filepath": f"{work}/"}
        with giving(given.encoder), contextlib.redirect_stdout(io.StringIO()):
            learner = learner_of.Learner({**sizes, **rates, **lengths, **names, "device": [device]})
            network = learner._network
            for index in range(tasks - 1):
                _write(given.factors[index], network.backbone.w_Bs, network.backbone.w_As)
                network.backbone.save_lora_parameters(names["filepath"], index)
            network.backbone.out_dim = width
            learner._cur_task, learner._known_classes = tasks - 1, (tasks - 1) * CLASSES
            network.update_fc(tasks * CLASSES)
            built: list[Any] = []

            def before_the_first_step(train: Any, test: Any, optimizer: Any, schedule: Any) -> None:
                _write(given.factors[tasks - 1], network.backbone.w_Bs, network.backbone.w_As)
                built.extend([optimizer, schedule])

            loop = "_init_train" if tasks == 1 else "_update_representation"
            taken = getattr(learner, loop)
            setattr(learner, loop, before_the_first_step)
            learner._compute_accuracy = lambda *_: 0.0
            learner._train(None, None)
        network.backbone.task_id = tasks - 1  # saving, which follows training, has counted this task already
        loader = [(0, given.encoder.normalised(given.images), given.labels + (tasks - 1) * CLASSES)]
        earlier = [each.param for each in network.backbone.wrapped_param_prev[: tasks - 1]]
        return Grown(
            step=lambda: taken(loader, None, *built),
            module=network,
            magnitudes=[*earlier, network.backbone.wrapped_param[0].param],
            head=(network.fc.weight, network.fc.bias),
            unused=network.backbone.compute_ortho_loss if tasks > 1 else None,
        )

    return Peer(RELEASED, _commit(checkout), grow)


def libcontinual(checkout: Path) -> Peer:
    """SD-LoRA of that library."""
    bare = ("core", "core.model", "core.model.backbone", "core.data")
    names = ("core.model.sd_lora", "core.model.backbone.vit", "core.trainer")
    method_of, vit, trainer = _imported(checkout, ("core",), *names, bare=bare)

    def grow(given: Given, tasks: int) -> Grown:
        own_vit, blocks = given.encoder.vit, cast(Any, given.encoder.blocks)
        sizes = {
            "img_size": given.encoder.image_size,
            "patch_size": own_vit.patch_embed.patch_size[0],
            "embed_dim": given.encoder.width,
            "depth": len(blocks),
            "num_heads": blocks[0].attn.num_heads,
        }
        plain = vit.VisionTransformer
        in_sizes = patch.object(vit, "VisionTransformer", lambda **options: plain(**(options | sizes)))
        options = {"lora_rank": given.rank, "norm_layer_eps": blocks[0].norm1.eps}
        with giving(given.encoder), in_sizes, contextlib.redirect_stdout(io.StringIO()):
            backbone = vit.ViTZoo(pretrained=True, attn_layer="MultiHeadAttention_SDLoRA", **options)
            model = method_of.SD_LoRA(
                backbone, torch.device("cpu"), embd_dim=given.encoder.width, init_cls_num=CLASSES, inc_cls_num=CLASSES,
                task_num=tasks, init_mag=1.0, rank_reduction=[False], knowledge_dist=[False],
            )  # fmt: skip
            for index in range(tasks):
                model.before_task(index, None, None, None)
                ups, downs = [], []
                for module in model.attention_modules:
                    ups += [module.lora_B_q_list[-1], module.lora_B_v_list[-1]]
                    downs += [module.lora_A_q_list[-1], module.lora_A_v_list[-1]]
                _write(given.factors[index], ups, downs)
                if index < tasks - 1:
                    model.after_task(index, None, None, None)
        silent = SimpleNamespace(reset=lambda: None, update=lambda *_: None)
        running = SimpleNamespace(
            model=model,
            distribute=False,
            rank=1,  # shows no progress
            config={"classifier": {"name": "SD_LoRA"}, "seed": 0, "deterministic": False},
            train_meter=silent,
            optimizer=torch.optim.SGD(model.get_parameters({}), lr=RATE, momentum=MOMENTUM),
        )
        batch = {"image": given.encoder.normalised(given.images), "label": given.labels + (tasks - 1) * CLASSES}
        classifier = model._network.classifier
        return Grown(
            step=lambda: trainer.Trainer._train(running, 0, [batch]),
            module=model,
            magnitudes=list(model.attention_modules[0].mag_lora),
            head=(classifier.weight, classifier.bias),
        )

    return Peer(LIBCONTINUAL, _commit(checkout), grow)


@contextlib.contextmanager
def giving(encoder: TimmViT) -> Iterator[None]:
    """Whoever creates a model of timm gets that one's, without a classifier."""
    with patch.object(timm, "create_model", lambda *_, **__: step_time._copy(encoder).vit):
        yield


@contextlib.contextmanager
def shims() -> Iterator[None]:
    """What the peers' code needs for as long as it runs."""
    with contextlib.ExitStack() as stack:
        for kind in (Tensor, nn.Module):
            stack.enter_context(patch.object(kind, "cuda", lambda own, *_, **__: own))
        stack.enter_context(patch.object(torch, "load", partial(torch.load, weights_only=False)))
        yield


def _write(factors: Sequence[tuple[Tensor, Tensor]], ups: Sequence[Any], downs: Sequence[Any]) -> None:
    with torch.no_grad():
        for (up, down), layer_up, layer_down in zip(factors, ups, downs, strict=True):
            layer_up.weight.copy_(up)
            layer_down.weight.copy_(down)


def _imported(checkout: Path, roots: Sequence[str], *names: str, bare: Sequence[str] = ()) -> Any:
    """Modules of a checkout, which are not left behind under their names; `bare` packages are imported without what
    they import."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] in roots]:
            del sys.modules[name]

    forget()
    made = dict.fromkeys(bare)
    if importlib.util.find_spec("einops") is None:
        made["einops"] = None
    sys.path.insert(0, str(checkout))
    try:
        for name in made:
            module = ModuleType(name)
            module.__path__ = [str(checkout.joinpath(*name.split(".")))]
            # what is imported from packages whose contents are not
            vars(module).update({"rearrange": None, "get_dataloader": None})
            sys.modules[name] = module
        found = [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(checkout))
        forget()
        if "einops" in made:
            sys.modules.pop("einops", None)
    return found[0] if len(found) == 1 else found


def _commit(checkout: Path) -> str:
    done = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()[:7] if done.returncode == 0 else "unknown"


def _checkout(name: str, folder: Path) -> Path:
    repository, commit, files = EXPECTED[name]
    missing = [each for each in files if not (folder / each).is_file()]
    if missing:
        raise typer.BadParameter(
            f"{folder} has no {missing[0]}: expected a checkout of {repository}, such as git clone "
            f"https://github.com/{repository} && git checkout {commit}"
        )
    found = _commit(folder)
    if found != commit:
        typer.echo(f"{folder} is at {found}; this script was written for {commit} of {repository}", err=True)
    return folder.resolve()


def _table(results: Sequence[PeerTime]) -> Table:
    first = results[0]
    table = Table(
        title=f"Training step, {first.backbone} at {first.size} pixels, batch {first.batch}, rank {first.rank}",
        caption=f"medians of {first.repeats} rounds (quartiles), {first.threads} threads, torch {first.torch}, timm "
        f"{first.timm}",
    )
    for heading in ("", "tasks", "seconds", "x sd_lora", "x floor", "x PEFT", "unused term, s", "kept, MB"):
        table.add_column(heading, justify="right" if heading else "left")
    for result in results:
        ratios = [
            (result.ratio_to_sd_lora, *result.ratio_to_sd_lora_quartiles),
            (result.ratio_to_floor, *result.ratio_to_floor_quartiles),
            (result.ratio_to_peft, *result.ratio_to_peft_quartiles),
        ]
        cells = [f"{median:.2f} ({lower:.2f}-{upper:.2f})" for median, lower, upper in ratios]
        unused = "" if result.unused_seconds is None else f"{result.unused_seconds:.3f}"
        name = f"{result.what}, {result.commit}" if result.commit else result.what
        table.add_row(name, str(result.tasks), f"{result.seconds:.3f}", *cells, unused, f"{result.kept_megabytes:.0f}")
    return table


def main(
    sd_lora: Annotated[Path | None, typer.Option(help="a checkout of the released code")] = None,
    libcontinual_: Annotated[Path | None, typer.Option("--libcontinual", help="a checkout of LibContinual")] = None,
    backbone: Annotated[str, typer.Option(help="any plain timm ViT")] = "deit_tiny_patch16_224",
    tasks: Annotated[str, typer.Option(help="numbers of tasks, separated by commas; at most 20")] = "1,5,10,20",
    batch: Annotated[int, typer.Option(min=1, help="images in a step")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="rounds that count")] = 9,
    image_size: Annotated[int | None, typer.Option(help="side in pixels; absent: the backbone's own")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="absent: torch's choice")] = None,
    rank: Annotated[int, typer.Option(min=1, help="of each update; the released code has no other than 10")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per line of the table")] = False,
) -> None:
    """Times the training step of SD-LoRA's released code and of LibContinual beside lorica's."""
    numbers = step_time._numbers(tasks)
    if sd_lora is None and libcontinual_ is None:
        raise typer.BadParameter("give at least one checkout, by --sd-lora or --libcontinual")
    if sd_lora is not None and (rank != 10 or max(numbers) > 20):
        raise typer.BadParameter("the released code has rank 10 and room for 20 tasks")
    if threads is not None:
        torch.set_num_threads(threads)
    checkouts = {
        name: _checkout(name, folder)
        for name, folder in ((RELEASED, sd_lora), (LIBCONTINUAL, libcontinual_))
        if folder is not None
    }
    with tempfile.TemporaryDirectory() as work, shims(), progress_bar() as reporter:
        peers = []
        if RELEASED in checkouts:
            peers.append(released(checkouts[RELEASED], Path(work)))
        if LIBCONTINUAL in checkouts:
            peers.append(libcontinual(checkouts[LIBCONTINUAL]))
        results = measure(
            peers, backbone, numbers,
            batch=batch, repeats=repeats, image_size=image_size, rank=rank, reporter=reporter,
        )  # fmt: skip
    if as_json:
        for result in results:
            print(json.dumps(asdict(result)))
    else:
        Console().print(_table(results))


if __name__ == "__main__":
    typer.run(main)
