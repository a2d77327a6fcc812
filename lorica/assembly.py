"""From a recipe to the parts of a run: data, backbone, method, and where they are computed."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from lorica.backbones import Encoder, load_backbone
from lorica.config import FREE, IN_MEMORY, Recipe, read_saved
from lorica.data.decoding import DECODING, Decoding
from lorica.data.manifest import read_manifest
from lorica.data.reader import Reader, find_reader
from lorica.data.sources import KEYS, OF_ROWS, Source, load_source, require_keys
from lorica.data.stream import Split, Stream
from lorica.errors import LoricaError, RecipeError
from lorica.files import RunFolder
from lorica.launch import as_a_lone_one, require_alone
from lorica.methods import Method, Readout, build_method, find_method
from lorica.nested import flatten
from lorica.progress import Reporter, Silent
from lorica.randomness import Draws
from lorica.results import read_result
from lorica.types import Task


@dataclass
class Assembly:
    """The parts of a run, built from its recipe."""

    recipe: Recipe
    stream: Stream
    method: Method
    accelerator: Accelerator

    def test_data(self, index: int) -> Split:
        """What a task's accuracy is measured on: its test data, or its validation data when the recipe says so."""
        task = self.stream.tasks[index]
        return self.stream.test(task) if self.recipe.data.evaluate_on == "test" else self.stream.validation(task)


def assemble(
    recipe: Recipe,
    source: Source | None = None,
    shown: AbstractContextManager[Reporter] | None = None,
    *,
    accelerator: Accelerator | None = None,
) -> Assembly:
    """Builds data, backbone and a method that has learned nothing yet. The caller's random state is left as it was.

    Args:
        shown: is told of the data that is looked at, and closed before weights may be fetched, which has bars of its
            own.
        accelerator: of whoever is one of several processes, which is otherwise refused.
    """
    accelerator = accelerator or _of_lone_process(recipe)
    with shown or nullcontext(Silent()) as reporter:
        source = source or build_source(recipe, reporter=reporter)
    method = _build_method(recipe, accelerator)
    stream = build_stream(recipe, source, method.encoder, shared=accelerator.num_processes > 1)
    return Assembly(recipe, stream, method, accelerator)


def _of_lone_process(recipe: Recipe) -> Accelerator:
    require_alone("this is computed by one")
    return make_accelerator(recipe)


def build_model(recipe: Recipe) -> tuple[Accelerator, Method]:
    """A method that has learned nothing yet around the recipe's backbone, and where it computes. The caller's random
    state is left as it was."""
    accelerator = _of_lone_process(recipe)
    return accelerator, _build_method(recipe, accelerator)


def _build_method(recipe: Recipe, accelerator: Accelerator) -> Method:
    with Draws(recipe.seed).seeded("build", torch.device("cpu")):
        encoder = load_backbone(**recipe.backbone.model_dump()).to(accelerator.device)
        encoder.requires_grad_(False)
        if recipe.compile:
            _compile(encoder)
        return build_method(recipe.method, encoder, **recipe.evaluate.reading)


def _compile(encoder: Encoder) -> None:
    """Has the blocks compiled: one program for all of them, which what is attached to them enters as inputs.

    Raises:
        RecipeError: they cannot be compiled here.
    """
    example = encoder.example(1)
    with torch.no_grad():
        encoder.tokens(example)  # a fault of the backbone itself is not the compiler's
        for block in encoder.blocks:
            block.compile()
        try:
            encoder.tokens(example)
        except Exception as error:  # of whatever the compiler is made of
            why = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise RecipeError(
                f"compile: torch.compile cannot compile the blocks of {encoder.name} here ({why:.300}); leave the key "
                "out"
            ) from error


def machine_facts(device: torch.device, encoder: Encoder, processes: int = 1) -> dict[str, Any]:
    """What environment.json says of where a method computes, and on what."""
    return {
        "device": str(device),
        "processes": processes,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        # in which CUDA takes float32: tf32 has 10 bits of mantissa, and is torch's own choice for convolutions
        "float32_on_cuda": {
            "matmul": torch.backends.cuda.matmul.fp32_precision,
            "convolution": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        },
        "backbone": {"name": encoder.name, "tag": encoder.tag, "fingerprint": encoder.fingerprint},
    }


def saved_recipe(folder: RunFolder, given: Mapping[str, Any] | None = None, *, method_file: Any = None) -> Recipe:
    """The recipe of a run's folder, which metrics.json repeats; arguments as those of `lorica.config.read_saved`.

    Raises:
        LoricaError: as there; or the two disagree, so that one of them is not what the run was made with.
    """
    saved = _with_own_stream(folder, read_saved(folder.recipe, given or {}, method_file=method_file), given or {})
    try:
        repeated = read_result(folder.path).recipe if folder.metrics.exists() else {}
    except LoricaError:  # it says nothing, and is written again when the run is resumed
        repeated = {}
    if not repeated:
        return saved
    told = {key: value for key, value in (given or {}).items() if key == "method.name"}
    one, other = (
        dict(flatten(each.resolved())) for each in (saved, read_saved(repeated, told, method_file=method_file))
    )
    if differing := sorted(
        key for key in one.keys() | other.keys() if key not in FREE and one.get(key) != other.get(key)
    ):
        raise RecipeError(
            [
                f"{folder.recipe}: {key} is {one.get(key)!r:.80}, and {other.get(key)!r:.80} in {folder.metrics.name}, "
                "which repeats it; one of the two has been altered: restore the file"
                for key in differing
            ]
        )
    return saved


def _with_own_stream(folder: RunFolder, saved: Recipe, given: Mapping[str, Any]) -> Recipe:
    """A run that replayed a manifest has a copy of it, which is still there when the other is not."""
    if saved.stream.manifest is None or "stream.manifest" in given or not folder.stream.exists():
        return saved
    own = saved.stream.model_copy(update={"manifest": folder.stream.absolute()})
    return saved.model_copy(update={"stream": own})


def build_source(recipe: Recipe, *, decode_all: bool = False, reporter: Reporter | None = None) -> Source:
    data = recipe.data
    if data.source == IN_MEMORY:
        raise RecipeError(
            "data.source: the data of this run was given as an object and is not on disk; give it again in Python: "
            "lorica.run(…, source=…, resume=True), or evaluate(…, source=…) from lorica.run"
        )
    require_keys(data.source, data.chosen(KEYS))
    keys = ("root", "test_fraction", "split_seed", "class_order", "unreadable", *OF_ROWS)
    return load_source(
        data.source,
        **{key: getattr(data, key) for key in keys},
        decoding=Decoding(**{key: getattr(data, key) for key in DECODING}),
        decode_all=decode_all,
        reporter=reporter,
    )


def build_reader(recipe: Recipe, encoder: Encoder) -> Reader:
    """What makes the encoder's inputs of samples. DataError where there is none for its modality."""
    kind = find_reader(encoder.modality)
    return kind(**encoder.reading(), **{key: getattr(recipe.data, key) for key in kind.options})


def build_stream(recipe: Recipe, source: Source, encoder: Encoder, *, shared: bool = False) -> Stream:
    """The recipe's tasks, which its method can learn; in several processes, if they are `shared`.

    Raises:
        LoricaError: all that is in the way.
    """
    data, reader, manifest = recipe.data, build_reader(recipe, encoder), recipe.stream.manifest
    stream = Stream(
        source,
        manifest=read_manifest(manifest) if manifest else None,
        **recipe.stream.division,
        reader=reader,
        validation_fraction=data.validation_fraction,
        validation_seed=data.split_seed,
        cache_bytes=int(data.cache_gib * 2**30),
    )
    problems = list(_misfits(recipe, stream, reader, shared=shared))
    if problems:
        raise RecipeError(problems)
    return stream


def _misfits(recipe: Recipe, stream: Stream, reader: Reader, *, shared: bool) -> Iterator[str]:
    """Why this method cannot learn this stream so, or not be read as the recipe says."""
    yield from unsuited(recipe, reader, shared=shared)
    method = find_method(recipe.method.name)
    yield from method.misfits(recipe.method, [task for task, _ in arrivals(stream, method)])
    if recipe.data.evaluate_on == "validation":
        empty = [task.index + 1 for task in stream.tasks if not len(stream.validation(task))]
        if empty:
            yield (
                f"data.evaluate_on: {len(empty)} of {len(stream.tasks)} tasks have no validation samples, task "
                f"{empty[0]} for one; "
                f"{'give the manifest some' if recipe.stream.manifest else 'raise data.validation_fraction'}"
            )


def unsuited(recipe: Recipe, reader: Reader, *, shared: bool = False) -> Iterator[str]:
    """Why nothing can be learned as the recipe says, or its method not be read so, whatever there is to be learned; in
    several processes, if it is `shared`."""
    if recipe.fit.augment not in reader.augmentations:
        yield (
            f"fit.augment: the backbone reads what cannot be augmented by {recipe.fit.augment}; use "
            f"{' or '.join(reader.augmentations)}"
        )
    if recipe.data.max_tokens is not None and "max_tokens" not in reader.options:
        yield "data.max_tokens: the backbone reads no texts; leave the key out"
    method, evaluate = find_method(recipe.method.name), recipe.evaluate
    for why in method.unshared(recipe.method) if shared else ():
        yield f"{why}, and several processes have other batches than one; start a lone process"
    for why in method.undivided(recipe.method) if recipe.fit.accumulate > 1 else ():
        yield (
            f"fit.accumulate: {why}, so that a batch cannot be computed in parts; leave it out, and use smaller batches"
        )
    if evaluate.readout != "head":
        yield from Readout.cannot_read(method, evaluate.readout, layers=evaluate.layers)


def require_device(recipe: Recipe) -> None:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if recipe.device != "auto" and not available[recipe.device]:
        have = ", ".join(name for name, there in available.items() if there)
        raise RecipeError(f"device: {recipe.device} is not available on this machine; it has {have}; use device=auto")


def make_accelerator(recipe: Recipe, *, of: int = 1) -> Accelerator:
    """Where the recipe is computed, by this process, or by this one among several.

    Args:
        of: how many processes there are, see `lorica.launch.launched`.

    Raises:
        LoricaError: a device that is not there; or, for several processes, not for each of them.
    """
    require_device(recipe)
    # Accelerate keeps its state for the whole process; runs that follow each other may differ in device and precision
    AcceleratorState._reset_state(reset_partial_state=True)
    precision = "bf16" if recipe.precision == "bf16" else "no"
    if of == 1:
        with as_a_lone_one():
            return Accelerator(cpu=recipe.device == "cpu", mixed_precision=precision)
    on_gpus = recipe.device == "cuda" or (recipe.device == "auto" and torch.cuda.is_available())
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1 + int(os.environ["LOCAL_RANK"])))
    if recipe.device == "mps" or (on_gpus and here > torch.cuda.device_count()):
        raise RecipeError(
            f"device: each process needs a GPU of its own, and this machine has {torch.cuda.device_count()} for {here} "
            "processes; start as many as there are, or let all of them compute with device=cpu"
        )
    found = Accelerator(cpu=not on_gpus, mixed_precision=precision)
    atexit.unregister(_leave)
    atexit.register(_leave)
    if found.num_processes != of or found.distributed_type not in ("MULTI_GPU", "MULTI_CPU"):
        raise LoricaError(
            f"WORLD_SIZE is {of}, and Accelerate finds {found.num_processes} processes of kind "
            f"{found.distributed_type.value}; start them by `torchrun`, or by `accelerate launch` without other "
            "settings than their number"
        )
    if found.gradient_accumulation_steps != 1:
        raise LoricaError(
            "--gradient_accumulation_steps of `accelerate launch`: the recipe says it, as fit.accumulate; leave it out"
        )
    return found


def _leave() -> None:
    """Ends the exchange with other processes while the interpreter is whole: what is left of it at its end may abort,
    where another process has gone before."""
    if dist.is_initialized():
        dist.destroy_process_group()


def arrivals(stream: Stream, method: Method | type[Method]) -> list[tuple[Task, Any]]:
    """What the method is given to learn, one after another: the stream's tasks, or everything as one task."""
    if method.learns_all_at_once:
        return [(Task.of_new_classes(0, 0, stream.class_names), stream.train_all())]
    return [(task, stream.train(task)) for task in stream.tasks]
