"""From a recipe to the parts of a run: data, backbone, method, and where they are computed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from lorica.backbones import Encoder, load_backbone
from lorica.config import FREE, IN_MEMORY, Recipe, read_saved
from lorica.data.decoding import DECODING, Decoding
from lorica.data.reader import Reader, find_reader
from lorica.data.sources import Source, load_source
from lorica.data.stream import Split, Stream
from lorica.errors import LoricaError, RecipeError
from lorica.files import RunFolder
from lorica.methods import Method, Readout, build_method, find_method
from lorica.nested import flatten
from lorica.progress import Reporter, Silent
from lorica.randomness import Draws
from lorica.results import read_result
from lorica.types import Task

# what launchers set: how many processes there are, and which of them this one is
_SIZES = (
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "SLURM_STEP_NUM_TASKS",
)
_RANKS = ("RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_RANK", "PMI_RANK")


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
    recipe: Recipe, source: Source | None = None, shown: AbstractContextManager[Reporter] | None = None
) -> Assembly:
    """Builds data, backbone and a method that has learned nothing yet. The caller's random state is left as it was.

    `shown` is told of the data that is looked at, and closed before weights may be fetched, which has bars of its own.
    """
    accelerator = _accelerator(recipe)
    with shown or nullcontext(Silent()) as reporter:
        source = source or build_source(recipe, reporter=reporter)
    method = _build_method(recipe, accelerator)
    return Assembly(recipe, build_stream(recipe, source, method.encoder), method, accelerator)


def build_model(recipe: Recipe) -> tuple[Accelerator, Method]:
    """A method that has learned nothing yet around the recipe's backbone, and where it computes. The caller's random state is
    left as it was."""
    accelerator = _accelerator(recipe)
    return accelerator, _build_method(recipe, accelerator)


def _build_method(recipe: Recipe, accelerator: Accelerator) -> Method:
    with Draws(recipe.seed).seeded("build", torch.device("cpu")):
        encoder = load_backbone(**recipe.backbone.model_dump()).to(accelerator.device)
        encoder.requires_grad_(False)
        return build_method(recipe.method, encoder, **recipe.evaluate.reading)


def machine_facts(device: torch.device, encoder: Encoder) -> dict[str, Any]:
    """What environment.json says of where a method computes, and on what."""
    return {
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "backbone": {"name": encoder.name, "tag": encoder.tag, "fingerprint": encoder.fingerprint},
    }


def saved_recipe(folder: RunFolder, given: Mapping[str, Any] | None = None, *, method_file: Any = None) -> Recipe:
    """The recipe of a run's folder, which metrics.json repeats; arguments as those of `lorica.config.read_saved`.

    Raises:
        LoricaError: as there; or the two disagree, so that one of them is not what the run was made with.
    """
    saved = read_saved(folder.recipe, given or {}, method_file=method_file)
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
                f"{folder.recipe}: {key} is {one.get(key)!r:.80}, and {other.get(key)!r:.80} in {folder.metrics.name}, which repeats it; "
                "one of the two has been altered: restore the file"
                for key in differing
            ]
        )
    return saved


def build_source(recipe: Recipe, *, decode_all: bool = False, reporter: Reporter | None = None) -> Source:
    data = recipe.data
    if data.source == IN_MEMORY:
        raise RecipeError(
            "data.source: the data of this run was given as an object and is not on disk; give it again in Python: "
            "lorica.run(…, source=…, resume=True), or evaluate(…, source=…) from lorica.run"
        )
    keys = ("root", "test_fraction", "split_seed", "class_order", "unreadable")
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


def build_stream(recipe: Recipe, source: Source, encoder: Encoder) -> Stream:
    """The recipe's tasks, which its method can learn.

    Raises:
        LoricaError: all that is in the way.
    """
    data = recipe.data
    stream = Stream(
        source,
        tasks=recipe.stream.tasks,
        classes_per_task=recipe.stream.classes_per_task,
        seed=recipe.stream.seed,
        reader=build_reader(recipe, encoder),
        validation_fraction=data.validation_fraction,
        validation_seed=data.split_seed,
        cache_bytes=int(data.cache_gib * 2**30),
    )
    problems = list(_misfits(recipe, stream))
    if problems:
        raise RecipeError(problems)
    return stream


def _misfits(recipe: Recipe, stream: Stream) -> Iterator[str]:
    """Why this method cannot learn this stream, or not be read as the recipe says."""
    method = find_method(recipe.method.name)
    yield from method.misfits(recipe.method, [task for task, _ in arrivals(stream, method)])
    evaluate = recipe.evaluate
    if evaluate.readout != "head":
        yield from Readout.cannot_read(method, evaluate.readout, layers=evaluate.layers)


def require_device(recipe: Recipe) -> None:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if recipe.device != "auto" and not available[recipe.device]:
        have = ", ".join(name for name, there in available.items() if there)
        raise RecipeError(f"device: {recipe.device} is not available on this machine; it has {have}; use device=auto")


def _accelerator(recipe: Recipe) -> Accelerator:
    require_device(recipe)
    # Accelerate keeps its state for the whole process; runs that follow each other may differ in device and precision
    AcceleratorState._reset_state(reset_partial_state=True)
    with _one_process():
        return Accelerator(cpu=recipe.device == "cpu", mixed_precision="bf16" if recipe.precision == "bf16" else "no")


@contextmanager
def _one_process() -> Iterator[None]:
    """Accelerate does not see what launchers leave in the environment: a lone process is an ordinary one, whatever its rank.

    Raises:
        LoricaError: this process is one of several.
    """
    for name in _SIZES:
        if os.environ.get(name, "1") not in ("", "0", "1"):
            raise LoricaError(
                f"this is one of several processes ({name} is {os.environ[name]!r:.40}), and a run uses one; start it without "
                f"`torchrun`, `accelerate launch`, `mpirun` or `srun`, or unset {name}"
            )
    hidden = {name: os.environ.pop(name) for name in (*_SIZES, *_RANKS) if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def arrivals(stream: Stream, method: Method | type[Method]) -> list[tuple[Task, Any]]:
    """What the method is given to learn, one after another: the stream's tasks, or everything as one task."""
    if method.learns_all_at_once:
        everything = tuple(name for task in stream.tasks for name in task.class_names)
        return [(Task.of_new_classes(0, 0, everything), stream.train_all())]
    return [(task, stream.train(task)) for task in stream.tasks]
