"""Damaged and altered files of runs: lorica's own error or the original result, never anything else, quickly, in little
memory.

Seals and hashes are made right again after most changes, so that it is not a checksum that refuses them.

What is accepted must predict as before, to the bit, under the same class names, and give the same measures. Nobody can
tell a file that says something else, and says it well, from one that was learned. So these alone may come out
otherwise; they must still cause no error but lorica's:

    tensors       finite values of floating point, of the dtype and in the shape that they had
    class_names   another text that no other class has
    structure     what a method of that kind might have kept (`kept`, `stored`, counts of steps)
    place         of a snapshot: another place within its task, which rates and shapes of the optimiser agree with
    measured      rows of the journal, from which a stopped run goes on
    shorter       a journal without its last lines: that is how a user goes back to an earlier task
    manifest      of a stream: another stream of the same samples
    recipe        of a run without metrics.json, which repeats it: the text, with other settings
"""

from __future__ import annotations

import copy
import json
import logging
import random as stdlib_random
import resource
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import damaged
from sealing import (
    journal_lines,
    read_tensors,
    seal_journal,
    seal_manifest,
    seal_snapshot,
    seal_state,
    write_tensors,
)
from stopping import stopped_in

from lorica.analysis import _known_distances
from lorica.backbones import load_backbone
from lorica.errors import LoricaError
from lorica.files import write_json
from lorica.learner import load
from lorica.metrics import MEASURES
from lorica.report import tables
from lorica.results import find_runs, read_result
from lorica.run import check, evaluate, run

Recipe = dict[str, Any]
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 999, 2**31, -(2**63), 2**64, 10**40, 10**400, 0.5, -0.5, 1e-300, 1e308,
    float("nan"), float("inf"),
    "", "0", "wren", "NaN", "é\u2028\x00", "../x", "x" * 5000, [], [[]], [0], [None], ["a", "a"], {}, {"a": 1},
    {"": {}}, [[[[1]]]],
)  # fmt: skip
DTYPES = (
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.uint8,
    torch.int64,
    torch.bool,
    torch.complex64,
)


@dataclass
class Specimen:
    """The folder of a run, and what it gives as long as nobody changes it."""

    folder: Path
    recipe: Recipe
    images: np.ndarray
    finished: bool
    names: tuple[str, ...] = ()
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    accuracy: list[list[float]] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)
    about: tuple[Any, ...] = ()

    def learn_what_is_so(self) -> None:
        learner = load(self.folder)
        self.names, self.logits = learner.class_names, learner.logits(list(self.images))
        scratch = self.folder.with_name(f"{self.folder.name}-whole")
        shutil.copytree(self.folder, scratch)
        if (self.folder / "checkpoints" / "journal.jsonl").exists():
            self.accuracy = run(self.recipe, out=scratch, resume=True, progress=False).accuracy
        result = read_result(self.folder)
        self.measures = measures_of(result)
        self.about = (result.method, result.variant, result.seed, len(result.tasks), result.complete)
        shutil.rmtree(scratch)


def measures_of(result: Any) -> dict[str, float]:
    parts = {"": result.metrics} | ({"head.": result.head} if result.head else {})
    return {f"{prefix}{name}": getattr(part, name) for prefix, part in parts.items() for name in MEASURES}


# ---- changes


@dataclass
class Change:
    """What was done to a copy: for the message, and whether it may come out otherwise (see the top of this file)."""

    what: str
    free: str = ""
    file: str = ""


class Mutator:
    """Changes one file of a folder; the same seed makes the same change."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random, self.draw = folder, np.random.RandomState(seed), stdlib_random.Random(seed)

    def change(self) -> Change:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file() and path.suffix in KINDS)
        named = sorted({path.name if path.name in ASKED else path.suffix for path in files})
        kind = self.draw.choice(named)  # then one of its files: there are many of tensors
        file = self.draw.choice(
            [path for path in files if kind in (path.name, path.suffix) and path.name not in set(named) - {kind}]
        )
        how = self.draw.choice(KINDS[file.suffix])
        done = how(self, file)
        if file.name == "recipe.yaml" and not (self.folder / "metrics.json").exists():  # which repeats it
            done.free = done.free or "recipe"
        if file.name == "stream.jsonl":
            done.free = "manifest"
            if self.draw.random() < 0.7:
                seal_manifest(file)
        done.what, done.file = f"{file.relative_to(self.folder)}: {done.what}", file.name
        return done

    def bytes_of(self, file: Path) -> Change:
        before = file.read_bytes()
        content = damaged(before, self.random)
        file.write_bytes(content)
        # cut behind a line, as by hand
        free = (
            "shorter" if file.name == "journal.jsonl" and content[-1:] == b"\n" and before.startswith(content) else ""
        )
        if file.suffix == ".safetensors" and file.name != "snapshot.safetensors" and self.draw.random() < 0.7:
            free = "tensors"
            self.seal_again(file)
        return Change(f"bytes{', sealed' if free else ''}", free)

    def seal_again(self, file: Path) -> None:
        """After a file of tensors has changed, what has its hash."""
        if file.name == "state.safetensors":
            head = json.loads(file.with_name("state.json").read_bytes())
            head.pop("seal", None)
            seal_state(file.parent, head)
        elif file.name != "snapshot.safetensors":
            seal_journal(file.with_name("journal.jsonl"), journal_lines(file.with_name("journal.jsonl")))

    def values_of(self, file: Path) -> Change:
        """A JSON file: one place in it, or several."""
        if file.suffix == ".jsonl":
            content: Any = [json.loads(line) for line in file.read_bytes().splitlines()]
        else:
            content = json.loads(file.read_bytes())
        sealed = file.name in ("journal.jsonl", "state.json")
        if sealed:
            for each in content if isinstance(content, list) else [content]:
                each.pop("seal", None)
        before = json.dumps(content)
        done = Change("; ".join(self.one_value(content, file.name) for _ in range(self.draw.choice((1, 1, 1, 2)))))
        done.free = free_of(json.loads(before), content)
        if file.name == "journal.jsonl":
            seal_journal(file, content)
        elif file.name == "state.json":
            seal_state(file.parent, content)
        elif isinstance(content, list) and file.suffix == ".jsonl":
            file.write_text("".join(f"{json.dumps(line)}\n" for line in content))
        else:
            file.write_text(
                self.with_a_key_twice(json.dumps(content)) if self.draw.random() < 0.05 else json.dumps(content)
            )
        return done

    def with_a_key_twice(self, text: str) -> str:
        return text.replace('{"', '{"acc": 0.999, "acc": 0.5, "', 1)

    def one_value(self, content: Any, name: str) -> str:
        """Changes something at a place drawn from all that there are."""
        places = list(_places(content))
        if not places:
            return "nothing left"
        container, key, path = self.draw.choice(places)
        old = container[key]
        match self.draw.randrange(7):
            case 0:
                del container[key]
                return f"{path} gone"
            case 1 if isinstance(container, list):
                container.insert(self.draw.randrange(len(container) + 1), old)
                return f"{path} twice"
            case 1 | 2 if isinstance(old, int | float) and not isinstance(old, bool):
                container[key] = self.draw.choice([-old, old + 1, old * 1e30, old * 0.999, str(old), [old], float(old)])
            case 3:
                other, at, _ = self.draw.choice(places)
                try:
                    container[key] = json.loads(json.dumps(other[at]))
                except (KeyError, IndexError):
                    container[key] = None
            case 4 if isinstance(old, str):
                container[key] = self.draw.choice([old[:-1], old + "x", old.upper(), old[::-1]])
            case _:
                container[key] = self.draw.choice(VALUES)
        return f"{path} is {repr(container[key])[:60]}, was {repr(old)[:60]}"

    def tensor_of(self, file: Path) -> Change:
        tensors, metadata = read_tensors(file)
        name = self.draw.choice(sorted(tensors))
        old, free = tensors[name], ""
        whole = not old.is_floating_point()
        match self.draw.randrange(9):
            case 0:
                tensors[name], what = old.to(self.draw.choice(DTYPES)), "other dtype"
            case 1:
                tensors[name], what = old[..., :-1] if old.dim() else old.reshape(1), "shorter"
            case 2:
                tensors[name], what = torch.cat([old, old]) if old.dim() else old.reshape(1, 1), "longer"
            case 3:
                tensors[name], what = old.T if old.dim() == 2 else old[None], "other axes"
            case 4:
                bad = self.draw.choice([float("nan"), float("inf"), -float("inf")])
                changed = old.clone().reshape(-1)
                if whole or not changed.numel():
                    changed = changed * 0 - 9
                else:
                    changed[self.draw.randrange(changed.numel())] = bad
                tensors[name], what = changed.reshape(old.shape), f"{bad} in it"
            case 5:
                del tensors[name]
                what = "gone"
            case 6:
                tensors[name + "x"], what = tensors.pop(name), "renamed"
            case 7:
                tensors[self.draw.choice(["more", "encoder.norm.weight", "head.weights.0"])], what = (
                    torch.ones(3),
                    "another",
                )
            case _:
                factor = self.draw.choice([-1.0, 2.0, 1e30, 3e38, 0.0])
                changed = (old.double() * factor + (0.25 if old.is_floating_point() else 7)).clamp(-3e38, 3e38)
                tensors[name] = changed.clamp(-(2**62), 2**62).to(old.dtype) if whole else changed.to(old.dtype)
                what, free = f"times {factor}", "tensors"
        if file.name == "snapshot.safetensors":
            seal_snapshot(file, json.loads(metadata["lorica"]), tensors)
        else:
            write_tensors(file, tensors, metadata)
            self.seal_again(file)
        return Change(f"{name} {what}", free)

    def facts_of(self, file: Path) -> Change:
        """A snapshot's plain part."""
        if file.name != "snapshot.safetensors":
            return self.tensor_of(file)
        tensors, metadata = read_tensors(file)
        facts = json.loads(metadata["lorica"])
        before = json.dumps(facts)
        what = self.one_value(facts, file.name)
        seal_snapshot(file, facts, tensors)
        return Change(what, free_of(json.loads(before), facts))

    def away(self, file: Path) -> Change:
        file.unlink()
        return Change("gone")


KINDS: dict[str, tuple[Callable[[Mutator, Path], Change], ...]] = {
    ".json": (Mutator.values_of,) * 6 + (Mutator.bytes_of,),
    ".jsonl": (Mutator.values_of,) * 8 + (Mutator.bytes_of,),
    ".safetensors": (Mutator.tensor_of,) * 4 + (Mutator.facts_of, Mutator.bytes_of),
    ".yaml": (Mutator.bytes_of,),
}


def _places(content: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Every place in plain values, as container and key; what stands deep is as likely as the rest."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield content, key, f"{path}.{key}"
        yield from _places(value, f"{path}.{key}")


def free_of(before: Any, after: Any) -> str:
    """Which kind of the changes that may come out otherwise this one is; none for most."""
    if isinstance(before, list) and after == before[: len(after)] != before:
        return "shorter"
    one, other = dict(_leaves(before)), dict(_leaves(after))
    changed = {path for path in one.keys() | other.keys() if repr(one.get(path)) != repr(other.get(path))}
    kinds = {next((kind for key, kind in FREE.items() if key in path), "") for path in changed}
    return "; ".join(sorted(kinds)) if changed and "" not in kinds else ""


FREE = {
    "class_names": "class_names",
    ".structure": "structure",
    ".descent.": "place",
    ".rows": "measured",
    ".head_rows": "measured",
    ".entry": "measured",
}


def _leaves(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict | list) and content:
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _leaves(value, f"{path}.{key}")
    else:
        yield path, content


# ---- what is then asked of the folder


def predicting(made: Specimen, folder: Path, change: Change) -> None:
    learner = load(folder)
    logits = learner.logits(list(made.images))
    kinds = set(change.free.split("; ")) - {""}
    if kinds <= {"measured", "place", "class_names"}:  # no part of what predicts
        assert torch.equal(logits, made.logits), "other predictions"
    if "class_names" not in kinds and kinds <= {"measured", "place", "tensors", "structure"}:
        assert learner.class_names == made.names, "other class names"


def evaluating(made: Specimen, folder: Path, change: Change) -> None:
    row = evaluate(folder).accuracy
    if change.free in ("", "measured", "place") and made.finished and made.accuracy:
        assert row == made.accuracy[-1], "another accuracy"


def tabulating(made: Specimen, folder: Path, change: Change) -> None:
    result = read_result(folder)
    rows = tables.summarise([result])
    tables.to_markdown(rows, tables.notes([result]))
    tables.to_csv(rows)
    tables.to_latex(rows)
    assert find_runs([folder]) == [result]
    about = (result.method, result.variant, result.seed, len(result.tasks), result.complete)
    assert about == made.about, "of another run"
    found = measures_of(result)
    assert found.keys() == made.measures.keys()
    assert all(abs(value - made.measures[name]) < 1e-8 for name, value in found.items()), "other measures"


def resuming(made: Specimen, folder: Path, change: Change) -> None:
    result = run(made.recipe, out=folder, resume=True, progress=False)
    if not change.free and made.accuracy:
        assert result.accuracy == made.accuracy, "another run"


def checking(made: Specimen, folder: Path, change: Change) -> None:
    check(folder / "recipe.yaml")


def replaying(made: Specimen, folder: Path, change: Change) -> None:
    check(made.recipe, **{"stream.manifest": folder / "stream.jsonl", "stream.tasks": None}, progress=False)


def analysing(made: Specimen, folder: Path, change: Change) -> None:
    """Only reads what an analysis left: all else in it is asked elsewhere, and figures take long."""
    _known_distances(folder / "analysis.json")


# by the name of the file that was changed; what is asked often stands often
ASKED: dict[str, tuple[Callable[[Specimen, Path, Change], None], ...]] = {
    "metrics.json": (tabulating, tabulating, tabulating, tabulating, resuming),
    "cost.json": (tabulating, tabulating, tabulating, tabulating, resuming),
    "environment.json": (evaluating, resuming),
    "analysis.json": (analysing,),
    "history.jsonl": (tabulating, tabulating, resuming),
    "recipe.yaml": (checking, predicting, evaluating, resuming, tabulating),
    "snapshot.safetensors": (resuming,),
    "journal.jsonl": (predicting, predicting, predicting, predicting, evaluating, resuming),
    "stream.jsonl": (replaying, replaying, replaying, resuming),
    "state.json": (predicting, predicting, predicting, evaluating, resuming),
    "safetensors": (predicting, predicting, predicting, predicting, predicting, evaluating, resuming),
}


@dataclass
class Findings:
    """What a campaign came upon."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    longest: str = ""


def campaign(specimens: list[Specimen], number: int, seed: int, scratch: Path, *, seconds: float = 1e9) -> Findings:
    """That many changes, each to a fresh copy; or as many as fit."""
    found, began = Findings(), time.monotonic()
    draw = stdlib_random.Random(seed)
    for index in range(number):
        if time.monotonic() - began > seconds:
            break
        made = draw.choice(specimens)
        folder = scratch / "run"
        shutil.copytree(made.folder, folder)
        place = f"seed {seed}, change {index} of {made.folder.name}"
        change = Mutator(folder, draw.randrange(2**31)).change()
        asked = draw.choice(ASKED.get(change.file, ASKED["safetensors"]))
        started = time.process_time()  # of this process: others may have the machine
        try:
            asked(made, folder, change)
            outcome = "accepted" + (f", {change.free}" if change.free else "")
        except LoricaError as error:
            outcome = "refused"
            found.longest = max(found.longest, *error.problems, key=len)
        except Exception:
            outcome = "fault"
            found.faults.append(
                f"{place}: {change.what} [{change.free}]\n  {asked.__name__}: {traceback.format_exc(limit=-4)}"
            )
        found.outcomes[f"{asked.__name__}: {outcome}"] += 1
        found.slowest = max(found.slowest, (time.process_time() - started, f"{place}: {change.what}"))
        shutil.rmtree(folder)
    return found


# ---- the folders

FEW = ("class_means", "sd_lora", "stopped")


@contextmanager
def backbones_loaded_once() -> Iterator[None]:
    """The weights of a backbone are no file of a run, and reading them takes most of the time. A copy leaves torch's
    random state as loading does."""
    loaded: dict[str, tuple[Any, torch.Tensor]] = {}

    def once(**options: Any) -> Any:
        key = repr(options)
        if key not in loaded:
            loaded[key] = load_backbone(**options), torch.get_rng_state()
        encoder, state = loaded[key]
        torch.set_rng_state(state)
        return copy.deepcopy(encoder)

    with pytest.MonkeyPatch.context() as patch:
        for place in ("learner", "assembly"):
            patch.setattr(f"lorica.{place}.load_backbone", once)
        yield


def specimens_in(folder: Path, recipe: Recipe, only: Collection[str] = ()) -> list[Specimen]:
    """Runs of several kinds: what they leave behind differs in files and in the kinds of tensors."""
    with np.load(recipe["data"]["root"]) as data:
        images = data["x_test"][::7]
    runs: dict[str, dict[str, Any]] = {
        "sd_lora": {},
        "class_means": {"method": "sd_lora_kd", "evaluate": {"readout": "prototypes"}, "fit.epochs": 1},
        "inf_lora": {"method": "inf_lora", "fit.epochs": 1},
        "gumbel": {"method": "gumbel_cl_lora", "fit.epochs": 1},
        "ran_pac": {"method": {"name": "ran_pac", "width": 32, "tuning": "none"}, "checkpoints": "newest"},
        "prototypes": {"method": "prototypes"},
    }
    made = []
    for name, changes in runs.items():
        if only and name not in only:
            continue
        sections = {key: value for key, value in changes.items() if "." not in key}
        fit = recipe["fit"] | ({"epochs": 1} if "fit.epochs" in changes else {})
        own = {**recipe, "fit": fit, **sections}
        run(own, out=folder / name, progress=False)
        distances = [[0.5, 0.25], [0.25, 0.5]]
        known = {"label": "W", "to_start": [0.5, 0.75], "between": distances, "ratios": distances, "recipe": own}
        write_json(folder / name / "analysis.json", {"runs": [], "residuals": [], "distances": [known], "skipped": []})
        made.append(Specimen(folder / name, own, images, finished=True))
    quick = recipe | {"fit": recipe["fit"] | {"epochs": 1}}
    made.append(Specimen(stopped_in(folder / "stopped", quick), quick, images, finished=False))
    made.append(Specimen(earlier_in(folder / "earlier", folder / "sd_lora"), recipe, images, finished=True))
    for specimen in made:
        specimen.learn_what_is_so()
    return made


def earlier_in(folder: Path, original: Path) -> Path:
    """The same run as an earlier version left it: format 2."""
    shutil.copytree(original, folder, ignore=shutil.ignore_patterns("checkpoints"))
    lines = journal_lines(original / "checkpoints" / "journal.jsonl")
    for number in (1, 2, 3):
        method = load(original, tasks=number).method
        place = folder / "checkpoints" / f"task_{number - 1:02d}"
        place.mkdir(parents=True)
        write_tensors(place / "state.safetensors", method.own_state(), {})
        tasks = [
            {"index": task.index, "first_class": task.classes[0], "class_names": list(task.class_names)}
            for task in method.tasks
        ]
        head = lines[0] | {"format": 2, "tasks": tasks, "structure": {}, "sha256": "", "record": {}}
        seal_state(place, head)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("number", "only"), [(150, FEW), pytest.param(20_000, (), marks=pytest.mark.slow)])
def test_altered_runs(
    number: int,
    only: tuple[str, ...],
    small_recipe: Recipe,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    with backbones_loaded_once():
        specimens = specimens_in(tmp_path / "specimens", small_recipe, only)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = campaign(specimens, number, seed=number, scratch=tmp_path)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20  # GiB on Linux, less elsewhere
    assert not found.faults, "\n\n".join(found.faults[:20])
    assert found.slowest[0] < 5, found.slowest
    assert grown < 1
    assert len(found.longest) < 2000, found.longest
    refused = sum(count for outcome, count in found.outcomes.items() if outcome.endswith("refused"))
    assert number // 4 < refused < number, found.outcomes
