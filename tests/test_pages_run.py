"""What the pages of docs/ tell a reader to type is typed here: shell commands and Python, from the top of a page down.

A page's lines are run as they stand, in a folder with miniatures of what they name. A command that trains is given a
smaller recipe by further arguments behind it, `SMALLER`; what cannot be run is in `NOT_RUN`, with why.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import lorica as package
from lorica.backbones import load_backbone
from lorica.data.sources import Source
from lorica.data.texts import Texts
from tests.data.miniatures import build, expecting, hash_of, pictures
from tests.test_cli import Lorica
from tests.test_importing import SD_LORA
from tests.test_models_page import draw

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))

NOT_RUN = {
    r"make setup|python3 -m venv|(\.venv/bin/)?pip install|python tools/first_minutes": "fills an environment",
    r"torchrun .*nnodes|accelerate launch|torchrun .*nproc_per_node 4": "several GPUs or nodes",
    r"lorica serve|curl|tensorboard": "serves until it is stopped; tests/serving and tests/test_tracking.py ask",
    r"python benchmarks/peers": "checkouts of other people's code; tests/benchmarks/test_peers.py has a stand-in",
    r"python -m pytest": "tests, which run by themselves",
}
"""Commands that a test cannot give what they need."""

PLACEHOLDERS = {"RECIPE": "digits", "$KEYS": "", "8192": "64"}
"""What a reader puts something in place of, but for FOLDER and FILE, which are there by these names; and a width."""

TINY = "backbone.name=lorica_tiny backbone.weights=null backbone.image_size=32 fit.epochs=1"
SMALLER = {
    r"lorica run mine.yaml": "stream.classes_per_task=1",
    r"lorica run own_images": f"{TINY} stream.tasks=2 method.passes=1 fit.augment=none",
    r"lorica run digits": "fit.epochs=1",
    r"lorica run digits(?!.*manifest)": "stream.tasks=2",
    r"lorica run sd_lora_paper": f"{TINY} data.source=image_folder stream.tasks=2 fit.augment=none",
    r"lorica run cifar100": f"{TINY} data.source=image_folder data.root=FOLDER stream.tasks=2 fit.augment=none",
    r"lorica run clinc150": "stream.tasks=3 fit.epochs=1",
    r"lorica run clinc150(?!.*lorica_tiny)": "backbone.weights=ENCODER",
    r"lorica run o_lora_order_1": "fit.epochs=1",
    r"lorica run requests": "fit.epochs=1 method.passes=1",
    r"lorica sweep examples": "--dry-run",
    r"python benchmarks/step_time": "--backbone lorica_tiny --tasks 1,2 --batch 2 --repeats 1",
    r"python benchmarks/step_time.*--image-size": "--image-size 32",
    r"python benchmarks/scale": "--largest 100 --out .",
    r"python benchmarks/many_changes": "--each 2 --classes 4 --at 2,4 --out .",
    r"python benchmarks/prediction_time": "--batch 2 --rounds 3 --methods prototypes --out .",
    r"python benchmarks/testing_time": "fit.epochs=1 stream.classes_per_task=null backbone.image_size=32 "
    "data.source=image_folder --tasks 2",
    r"python benchmarks/operations": "--image-size 32 --batch 2 --repeats 1 --tasks 1,2",
    r"python benchmarks/data_path": f"--rounds 1 {TINY} stream.tasks=2 stream.classes_per_task=null",
    r"python benchmarks/bag_of_words": "--classes-per-task 2",
    r"python benchmarks/domains": "--classes 2",
    r"python benchmarks/unknowns": f"{TINY} stream.tasks=4 stream.classes_per_task=null --seeds 0 --out .",
    r"python benchmarks/unknowns.*sd_lora": "method.cross_entropy=all_seen",
}
"""By what a command begins with: what is put behind it, so that it takes seconds."""

SLOW = (
    r"lorica (export|sweep|analyze|merge|theorem)|lorica run .*recurring|lorica run clinc150|lorica learn topics"
    r"|torchrun|python benchmarks|python examples|python -c"
)
"""Commands that take more than a few seconds all the same. From the first of them on a page is slow, since what follows
may need what they leave."""
PROGRAMS = r"(OMP_NUM_THREADS=1 |\.venv/bin/)?(lorica|python3?|pip|torchrun|accelerate|make|tensorboard|curl)\b"


@dataclass(frozen=True)
class Step:
    """A command, a block of Python, or a file with its contents."""

    kind: str
    text: str


def steps(page: Path) -> list[Step]:
    """Fenced and indented blocks, in order; of the indented ones, which are equations and output as well, those that
    begin as a command or as Python does."""
    found = []
    fenced = r"^```(?P<language>[a-z]*)\n(?P<block>.*?)^```"
    for match in re.finditer(
        rf"{fenced}|^\n(?P<indented>(?:^    [^\n]*\n|^\n(?=    ))+)", page.read_text(), re.S | re.M
    ):
        language = match["language"]
        block = match["block"] or dedent(match["indented"])
        if language == "yaml":
            found.append(Step("file", block))
        elif language == "python" or (language is None and re.match(r"(from|import|for) ", block)):
            found.append(Step("python", block))
        elif re.match(rf"{PROGRAMS}|[A-Z]+=", block):
            lines = block.replace("\\\n", " ").splitlines()
            plain = [re.sub(r"^(OMP_NUM_THREADS=1 )?(\.venv/bin/)?", "", line) for line in lines]
            found += [Step("shell", line) for line in plain if re.match(PROGRAMS, line)]
    if page.stem == "models":  # tests/test_models_page.py has the others, which live with one model
        found = [step for step in found if step.text.startswith("python benchmarks")]
    return found


def matching(table: dict[str, str], step: Step) -> list[str]:
    return [pattern for pattern in table if step.kind == "shell" and re.match(pattern, step.text)]


@pytest.fixture(scope="module")
def digits() -> Iterator[None]:
    """scikit-learn's digits, 16 of each."""
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    kept = np.concatenate([np.flatnonzero(labels == label)[:16] for label in range(10)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_digits", lambda **_: (images[kept], labels[kept]))
        yield


@pytest.fixture(scope="module")
def digit_runs(digits: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that pages begin with, by the names of their methods."""
    folder = tmp_path_factory.mktemp("runs")
    for method in ("sd_lora", "lora"):
        package.run("digits", method=method, fit={"epochs": 1}, out=folder / method, progress=False)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random ones of DeiT-Ti."""
    file = tmp_path_factory.mktemp("weights") / "deit_tiny.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("deit_tiny_patch16_224").state_dict(), file)
    return file


@pytest.fixture
def place(
    digit_runs: Path,
    weights: Path,
    six_topics: Source,
    tiny_text_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder, the current one, with all that pages name."""
    place = tmp_path / "place"
    (place / "docs").mkdir(parents=True)
    for name in ("benchmarks", "examples", "lorica", "docs/results"):
        (place / name).symlink_to(ROOT / name)
    for runs, rows in (("runs/digits", ""), ("runs/family/rows", "-seed0")):
        for run in digit_runs.iterdir():
            shutil.copytree(run, place / runs / f"{run.name}{rows}")
    generator = np.random.default_rng(0)
    for kind in ("wren", "kite", "crow", "owl"):
        (place / "FOLDER" / kind).mkdir(parents=True)
        for number in range(12):
            draw(kind, generator).save(place / "FOLDER" / kind / f"{number}.png")
    (place / "photos").symlink_to("FOLDER")
    for domain in ("day", "night"):
        (place / "garden").mkdir(exist_ok=True)
        shutil.copytree(place / "FOLDER", place / "garden" / domain)
    for half in ("train", "test"):
        shutil.copytree(place / "FOLDER", place / "OMNIGLOT" / half)
    draw("wren", generator).save(place / "unknown.png")
    (place / "mine.yaml").write_text(
        "{method: {name: prototypes}, backbone: {name: lorica_tiny}, data: {source: digits}}"
    )
    (place / "exps").mkdir()
    (place / "exps" / "sdlora_c100.json").write_text(json.dumps(SD_LORA))
    write_texts(place, six_topics)
    (place / "ENCODER").symlink_to(tiny_text_folder)
    (place / "FILE").symlink_to(weights)
    images = pictures("imagenet_r")
    expecting("imagenet_r", "folders", images, monkeypatch)
    split = hash_of(place, "folders", build("folders", place / "data" / "imagenet-r", images))
    monkeypatch.setitem(PLACEHOLDERS, "5f3c09ab…", split)
    monkeypatch.chdir(place)
    return place


def write_texts(place: Path, topics: Source) -> None:
    """One set of texts as the pages' files: CLINC150's halves, tables, a folder of topics, O-LoRA's data sets."""
    rows = {}
    for half, samples in (("train", topics.train), ("test", topics.test)):
        assert isinstance(samples, Texts)
        rows[half] = list(zip(samples.texts, [topics.class_names[label] for label in samples.labels], strict=True))
    (place / "data_full.json").write_text(json.dumps(rows))

    def table(name: str, chosen: list[tuple[str, str]]) -> None:
        lines = [f"{text},{label}" for text, label in chosen]
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("\n".join(["text,label", *lines]) + "\n")

    first, *others = topics.class_names[:4]
    table("may.csv", [row for row in rows["train"] if row[1] != first])
    table("test.csv", rows["test"])
    (place / "june").mkdir()
    (place / "june" / f"{first}.txt").write_text("\n".join(text for text, label in rows["train"] if label == first))
    (place / "mail.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in rows["test"]))
    for name in ("ag", "amazon", "dbpedia", "yahoo"):
        for half in rows:
            table(f"CL_Benchmark/{name}/{half}.csv", [row for row in rows[half] if row[1] in others])


def known_names() -> dict[str, Any]:
    """What pages' Python is given: logits of three classes, and a method with an encoder."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    logits = 3 * torch.nn.functional.one_hot(labels, 3) + torch.randn(60, 3, generator=random)
    method = SimpleNamespace(encoder=load_backbone("lorica_tiny"))
    return {"logits": logits, "labels": labels, "new_logits": logits[:5], "method": method}


def able(page: Path) -> list[Step]:
    """What can be run."""
    return [step for step in steps(page) if not matching(NOT_RUN, step)]


def quick(page: Path) -> list[Step]:
    """What can be run before the first slow command of a page, or the file that it reads."""
    return list(takewhile(lambda step: step.kind != "file" and not matching({SLOW: ""}, step), able(page)))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch itself, where it loads its compiler
@pytest.mark.parametrize(
    ("page", "run"),
    [
        *(
            pytest.param(page, quick, id=page.stem)
            for page in PAGES
            if any(step.kind != "file" for step in quick(page))
        ),
        *(
            pytest.param(page, able, id=f"{page.stem}-whole", marks=pytest.mark.slow)
            for page in PAGES
            if quick(page) != able(page)
        ),
    ],
)
def test_a_page_does_what_it_says(
    page: Path,
    run: Callable[[Path], list[Step]],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lorica, names = Lorica(monkeypatch, capsys), known_names()

    for step in run(page):
        if step.kind == "file":
            (place / step.text.splitlines()[0].removeprefix("# ")).write_text(step.text)
        elif step.kind == "python":
            exec(step.text, names)
        else:
            more = " ".join(SMALLER[each] for each in matching(SMALLER, step))
            typed, _, into = step.text.partition(" > ")
            for placeholder, meant in PLACEHOLDERS.items():
                typed = typed.replace(placeholder, meant)
            program, *arguments = [*shlex.split(typed, comments=True), *more.split()]
            if program == "lorica":
                code, out, err = lorica(*arguments)
                assert code == 0, (step.text, out, err)
                if into:
                    (place / into).write_text(out)
            else:
                capsys.readouterr()
                program = {"python": sys.executable}.get(program, str(Path(sys.executable).with_name(program)))
                done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
                assert done.returncode == 0, (step.text, done.stdout, done.stderr)


def test_nothing_is_left_out_without_a_page_that_has_it() -> None:
    """A pattern that no command matches any more goes from the tables above."""
    all_steps = [step for page in PAGES for step in steps(page)]
    assert [each for each in (*NOT_RUN, *SMALLER) if not any(matching({each: ""}, step) for step in all_steps)] == []
    assert len(NOT_RUN) <= 5
