"""What `tests/test_processes.py` starts in several processes: methods that learn two tasks, of which each process says
what it has then.

    python tests/in_processes.py FOLDER RECIPE CASE …      a case is method[:variant][+section.key=value …],
                                                       with +texts over texts in place of images

Then they run a recipe for one task, resume it until one of them gets a signal, and run it anew until one of them fails.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

import lorica
from lorica import cli
from lorica.backbones import load_backbone
from lorica.backbones.timm_vit import TimmViT
from lorica.data.images import ImageReader
from lorica.data.sources import Source, arrays
from lorica.data.stream import Stream
from lorica.data.texts import TextReader
from lorica.descent import Descent, Fit
from lorica.errors import DataError
from lorica.evaluation import accuracy_row
from lorica.methods import Method, build_method, find_method
from lorica.run import run
from lorica.session import Session
from lorica.training import learn_task

# the last batch has one image, too few for two processes; the others are divided unevenly
FIT: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 23,
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "momentum": 0.9,
    "weight_decay": 0.01,
    "schedule": "cosine",
    "augment": "crop_flip",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "dual_prompt": {"general_blocks": (0,), "blocks": (1,)},
    "hide_prompt": {"alignment_epochs": 1, "centroids": 2},
    "ran_pac": {"width": 64},
    "rolda": {"enough": 20},
    "sd_lora_rr": {"reduced_ranks": (2, 1)},
    "inf_lora": {"rank": 2},
}


def stream(case: str) -> Stream:
    """Four classes of 12 noisy squares, or of texts of one to nine words, to train, and 5 to test, in two tasks."""
    random = np.random.RandomState(0)
    if case.endswith(TEXTS):
        words = ["refund", "flight", "dinner", "weather", "please", "the", "tomorrow"]

        def texts(number: int) -> tuple[list[str], list[int]]:
            labels = np.repeat(np.arange(4), number).tolist()
            return [" ".join([words[label], *random.choice(words[4:], random.randint(9))]) for label in labels], labels

        reader = TextReader(**load_backbone("lorica_tiny_text").reading())
        return Stream(lorica.texts(texts(12), texts(5)), tasks=2, reader=reader)
    colours = np.array([(230, 30, 30), (30, 230, 30), (30, 30, 230), (230, 230, 30)])

    def some(number: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(4), number)
        noise = random.randint(-60, 61, (len(labels), 32, 32, 3))
        return (colours[labels][:, None, None, :] + noise).clip(0, 255).astype(np.uint8), labels

    source: Source = arrays(some(12), some(5), ["red", "green", "blue", "yellow"])
    return Stream(source, tasks=2, reader=ImageReader(32))


TEXTS = "+texts"


def method_of(case: str) -> tuple[Method, dict[str, Any]]:
    """The method that a case names, and what it says of `fit`."""
    name, *given = case.removesuffix(TEXTS).split("+")
    name, _, variant = name.partition(":")
    options = dict(OPTIONS.get(name, {})) | ({"variant": variant} if variant else {})
    cls = find_method(name)
    if "rank" in cls.Config.model_fields:
        options["rank"] = 2
    settings: dict[str, dict[str, Any]] = {"fit": {}, "method": options, "evaluate": {}}
    for pair in given:
        key, _, value = pair.partition("=")
        section, _, last = key.partition(".")
        settings[section][last] = json.loads(value)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
        encoder = TimmViT(vit, name="tiny", tag="tiny.random0", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        if case.endswith(TEXTS):
            settings["fit"]["augment"] = "none"
            encoder = load_backbone("lorica_tiny_text")
        config = cls.Config(name=name, **settings["method"])
        method = build_method(config, encoder.requires_grad_(False).eval(), **settings["evaluate"])
    return method, settings["fit"]


def learned(case: str, accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """The state of a method that has learned both tasks, and its row of accuracies."""
    method, fit = method_of(case)
    data = stream(case)
    arrivals = [(task, data.train(task)) for task in data.tasks]
    if method.learns_all_at_once:
        arrivals = arrivals[:1]
    for task, images in arrivals:
        learn_task(method, task, images, Fit(**(FIT | fit)), seed=3, accelerator=accelerator, eval_batch_size=7)
    row = accuracy_row(
        method,
        [task for task, _ in arrivals],
        lambda index: data.test(data.tasks[index]),
        accelerator=accelerator,
        batch_size=4,
    )
    state = {f"{case}/{name}": value.detach().clone().contiguous() for name, value in method.own_state().items()}
    return state | {f"{case}/accuracy": torch.tensor(row, dtype=torch.float64)}


def stopping(number: int) -> Callable[[Session, Descent], None]:
    """`Session._between_steps` where the process of that number gets a signal in its fourth step."""
    between = Session._between_steps

    def stop(session: Session, descent: Descent) -> None:
        if session.processes.index == number and descent.taken == 4:
            os.kill(os.getpid(), signal.SIGINT)
        between(session, descent)

    return stop


def fail(session: Session, descent: Descent) -> None:
    """`Session._between_steps` where the second process cannot go on."""
    if session.processes.index == 1:
        raise DataError("an image of the second process cannot be read")


def main(folder: Path, recipe: str, *cases: str) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    index = accelerator.process_index
    found = {name: value for case in cases for name, value in learned(case, accelerator).items()}
    save_file(found, folder / f"{index}.safetensors")
    told: dict[str, Any] = {}
    result = run(recipe, out=folder / "run", stop_after=1, progress=False)
    told["learned"] = len(result.accuracy)
    between = Session._between_steps
    Session._between_steps = stopping(1)
    try:
        run(recipe, out=folder / "run", resume=True, progress=False)
    except BaseException as error:
        told["stopped"] = type(error).__name__
    (folder / f"{index}.json").write_text(json.dumps(told))
    Session._between_steps = fail if index else between
    sys.argv = ["lorica", "run", recipe, "--out", str(folder / "failed")]
    cli.main()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
