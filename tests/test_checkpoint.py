"""Checkpoints: what they hold, that they come back bit for bit, that nothing is stored twice, and which ones are
refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sealing import edit_journal, journal_lines, read_tensors, seal_journal, seal_state, write_tensors

from lorica.backbones.timm_vit import TimmViT
from lorica.checkpoint import Checkpoints
from lorica.errors import CheckpointError, TrainingError
from lorica.journal import Change, line_of_descent
from lorica.methods import Method, find_method, method_names
from lorica.results import Entry
from lorica.types import Task

MakeEncoder = Callable[..., TimmViT]
TASKS = (
    Task.of_new_classes(0, 0, ("wren", "lark")),
    Task.of_new_classes(1, 2, ("kite",)),
    Task.of_new_classes(2, 3, ("rook", "dove")),
)


# keys whose default is for deeper or wider backbones than the tiny one
OPTIONS: dict[str, dict[str, Any]] = {
    "dual_prompt": {"general_blocks": (0,), "blocks": (1,)},
    "ran_pac": {"width": 32},
    "sd_lora_rr": {"reduced_ranks": (2, 1)},
}


@pytest.fixture(params=method_names())
def kind_name(request: pytest.FixtureRequest) -> str:
    return request.param


def method(encoder: TimmViT, name: str = "sd_lora", **options: Any) -> Method:
    kind = find_method(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(kind.Config(name=name, **options), encoder)


def entry(task: int) -> Entry:
    return Entry(rows=[[1 / 3] * (task + 1)], train_seconds=0.1 + task, cost={"trainable": 7})


def learn(made: Method, task: Task, seed: int = 1) -> None:
    """Random numbers stand for what a task trains."""
    made.grow(task)
    generator = torch.Generator().manual_seed(seed + task.index)
    with torch.no_grad():
        for parameter in made.trainable():
            parameter.copy_(torch.rand(parameter.shape, generator=generator))


def saved_run(
    folder: Path, encoder: TimmViT, name: str = "sd_lora", tasks: tuple[Task, ...] = TASKS, **more: Any
) -> list[dict[str, torch.Tensor]]:
    """Saves a checkpoint after each task; returns the state that each had."""
    keep, options = more.pop("keep", "all"), more
    made, store, states = method(encoder, name, **options), Checkpoints(folder), []
    for task in tasks:
        learn(made, task)
        store.save(made.eval(), entry(task.index), keep=keep)
        states.append({key: value.clone() for key, value in made.own_state().items()})
    return states


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


@pytest.fixture
def saved(folder: Path, tiny_encoder: MakeEncoder) -> Path:
    folder.parent.mkdir()
    saved_run(folder, tiny_encoder())
    return folder


# ---- what comes back


@pytest.mark.parametrize(
    "name",
    ["sd_lora", "lora", "prototypes", "full_finetune", "ease", "ran_pac", "cl_lora", "l2p", "coda_prompt", "inf_lora"],
)
@pytest.mark.parametrize("keep", ["all", "everything"])
def test_every_checkpoint_comes_back_bit_for_bit(name: str, keep: str, folder: Path, tiny_encoder: MakeEncoder) -> None:
    folder.parent.mkdir()
    options = {"width": 32} if name == "ran_pac" else {}
    states = saved_run(folder, tiny_encoder(), name, keep=keep, **options)
    assert Checkpoints(folder).there() == [1, 2, 3]
    assert [each.rows for each in Checkpoints(folder).entries] == [entry(task).rows for task in range(3)]
    for number, state in enumerate(states, start=1):
        made = method(tiny_encoder(), name, **options)
        Checkpoints(folder).load(made, number)
        assert made.tasks == list(TASKS[:number])
        held = made.own_state()
        assert held.keys() == state.keys()
        left_out = set() if keep == "everything" or number == 3 else set(made.needed_to_learn_on())
        for key in state.keys() - left_out:
            assert torch.equal(state[key], held[key]), key
        assert not any(held[key].any() for key in left_out)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    assert made.predict(images).shape == (3, 5)


def test_a_run_that_is_taken_up_again_goes_on_adding(folder: Path, tiny_encoder: MakeEncoder) -> None:
    (folder.parent / "whole").mkdir(parents=True)
    saved_run(folder.parent / "whole", tiny_encoder())
    saved_run(folder, tiny_encoder(), tasks=TASKS[:2])
    with (folder / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"seal": "half a li')
    save_file({"of_a": torch.ones(1)}, folder / "task_0002.safetensors", {"lorica": "killed process"})
    (folder / "task_notes.safetensors").write_bytes(b"a user's")
    store, made = Checkpoints(folder), method(tiny_encoder())
    store.open()
    assert not (folder / "task_0002.safetensors").exists()
    store.load(made, to_learn=True)
    learn(made, TASKS[2])
    store.save(made.eval(), entry(2))
    assert (folder / "journal.jsonl").read_bytes() == (folder.parent / "whole" / "journal.jsonl").read_bytes()
    for file in ("task_0000", "task_0001", "task_0002"):
        one, other = (load_file(place / f"{file}.safetensors") for place in (folder, folder.parent / "whole"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert (folder / "task_notes.safetensors").read_bytes() == b"a user's"


def test_a_folder_that_was_copied_elsewhere_loads(saved: Path, tiny_encoder: MakeEncoder, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "elsewhere")
    shutil.rmtree(saved)
    Checkpoints(tmp_path / "elsewhere").load(method(tiny_encoder()), 2)


def test_loading_leaves_the_callers_random_state(saved: Path, tiny_encoder: MakeEncoder) -> None:
    fresh = method(tiny_encoder())
    before = torch.get_rng_state()
    Checkpoints(saved).load(fresh)
    assert torch.equal(before, torch.get_rng_state())


# ---- what is stored


def test_a_frozen_backbone_is_not_stored_and_a_trained_one_is(saved: Path, tiny_encoder: MakeEncoder) -> None:
    assert not [key for key in load_file(saved / "task_0000.safetensors") if key.startswith("encoder.")]
    other = saved.parent / "other"
    saved_run(other, tiny_encoder(), "full_finetune")
    stored = {key for key in load_file(other / "task_0000.safetensors") if key.startswith("encoder.")}
    assert stored == {f"encoder.{key}" for key in tiny_encoder().state_dict()}


@pytest.mark.parametrize("name", ["sd_lora", "prototypes", "coda_prompt", "dual_prompt"])
def test_storage_grows_by_what_is_new(name: str, folder: Path, tiny_encoder: MakeEncoder) -> None:
    """Forty tasks: what each adds is as large as what the others add, to within its list of magnitudes or counts."""
    folder.parent.mkdir()
    tasks = tuple(Task.of_new_classes(t, 2 * t, (f"a{t}", f"b{t}")) for t in range(40))
    options = {"general_blocks": (0,), "blocks": (1,)} if name == "dual_prompt" else {}
    saved_run(folder, tiny_encoder(), name, tasks=tasks, **options)
    sizes = [
        sum(tensor.numel() for tensor in load_file(folder / f"task_{t:04d}.safetensors").values()) for t in range(1, 40)
    ]
    assert max(sizes) - min(sizes) <= 80
    lines = (folder / "journal.jsonl").read_bytes().splitlines()
    lengths = [len(line) - len(json.dumps(json.loads(line)["entry"])) for line in lines[2:]]
    assert max(lengths) - min(lengths) < 100


def test_sums_that_only_learning_on_needs_do_not_multiply(folder: Path, tiny_encoder: MakeEncoder) -> None:
    folder.parent.mkdir()
    saved_run(folder, tiny_encoder(), "ran_pac", width=32)
    assert [file.name for file in folder.glob("*-sums.*")] == ["task_0002-sums.safetensors"]
    made = method(tiny_encoder(), "ran_pac", width=32)
    with pytest.raises(CheckpointError, match=r"learning on from task 2 needs this file, which is kept for the newest"):
        Checkpoints(folder).load(made, 2, to_learn=True)
    assert made.tasks == []
    Checkpoints(folder).load(made, 3, to_learn=True)
    everything = folder.parent / "everything"
    saved_run(everything, tiny_encoder(), "ran_pac", width=32, keep="everything")
    assert len(list(everything.glob("*-sums.*"))) == 3
    Checkpoints(everything).load(method(tiny_encoder(), "ran_pac", width=32), 1, to_learn=True)


def test_what_a_killed_process_did_not_come_to_remove_goes_when_the_run_is_taken_up(
    folder: Path, tiny_encoder: MakeEncoder
) -> None:
    folder.parent.mkdir()
    saved_run(folder, tiny_encoder(), "ran_pac", width=32, keep="everything")
    for keep, sums, files in (("everything", 3, 3), ("all", 1, 3), ("newest", 1, 3)):
        Checkpoints(folder).open(keep)  # type: ignore[arg-type]
        assert len(list(folder.glob("*-sums.*"))) == sums
        assert len(list(folder.glob("task_????.safetensors"))) == files
    newest = folder.parent / "newest"
    saved_run(newest, tiny_encoder(), keep="newest")
    (newest / "task_0000.safetensors").write_bytes(b"of an earlier task")
    Checkpoints(newest).open("newest")
    assert [file.name for file in newest.glob("*.safetensors")] == ["task_0002.safetensors"]


def test_a_number_that_json_lacks_is_no_entry() -> None:
    with pytest.raises(ValueError, match="finite number"):
        Entry(rows=[[float("nan")]], train_seconds=1.0)


# ---- refused


def refused(folder: Path, into: Method, tasks: int | None = None) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        Checkpoints(folder).load(into, tasks)
    assert into.tasks == []
    return list(caught.value.problems)


def test_another_backbone_is_refused(saved: Path, tiny_encoder: MakeEncoder) -> None:
    assert refused(saved, method(tiny_encoder(seed=1))) == [
        f"{saved}: learned on another backbone: tiny (tiny.random0), now tiny (tiny.random1)"
    ]


def test_every_option_of_the_method_that_differs_is_listed(saved: Path, tiny_encoder: MakeEncoder) -> None:
    problems = refused(saved, method(tiny_encoder(), rank=4, variant="released_code"))
    assert problems == [
        f"{saved}: method.rank was 10, now 4",
        f"{saved}: method.variant was 'paper', now 'released_code'",
    ]
    other = method(tiny_encoder(), "prototypes")
    assert f"{saved}: method.name was 'sd_lora', now 'prototypes'" in refused(saved, other)


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
@pytest.mark.parametrize("task", [0, 2])
def test_damaged_tensors_are_refused(damage: str, task: int, saved: Path, tiny_encoder: MakeEncoder) -> None:
    file = saved / f"task_{task:04d}.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
        expected = "no checkpoint after task 3" if task else "no task has been finished yet"
        assert expected in refused(saved, method(tiny_encoder()), 3)[0]
    else:
        if damage == "altered":
            content[-1] ^= 1
        file.write_bytes(content[:-100] if damage == "truncated" else content)
        back = "start anew (--overwrite)"
        if task:
            back = f"delete the lines of {saved / 'journal.jsonl'} after its first 3, to go back to the end of task 2"
        problem = f"{file}: missing, truncated or altered; restore it, or {back}"
        assert refused(saved, method(tiny_encoder())) == [problem]
        # and together with what else is wrong
        assert len(refused(saved, method(tiny_encoder(seed=1), rank=4))) == 3
    if task:  # the remedy, and earlier checkpoints, are as good as ever
        Checkpoints(saved).load(method(tiny_encoder()), 2)
        journal = saved / "journal.jsonl"
        journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:3]))
        store, made = Checkpoints(saved), method(tiny_encoder())
        store.open()
        store.load(made, to_learn=True)
        assert len(made.tasks) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[:-9],
        lambda line: line.replace(b"kite", b"crow"),
        lambda line: b"{}",
        lambda line: b"[]",
        lambda line: b"[" * 100_000,
        lambda line: b"\xff",
    ],
)
def test_a_damaged_line_is_refused_and_earlier_ones_are_not(
    damage: Callable[[bytes], bytes], saved: Path, tiny_encoder: MakeEncoder
) -> None:
    journal = saved / "journal.jsonl"
    lines = journal.read_bytes().splitlines()
    journal.write_bytes(b"\n".join([*lines[:2], damage(lines[2]), lines[3], b""]))
    remedy = f"delete the lines of {journal} after its first 2, to go back to the end of task 1"
    problem = f"{journal}: line 3 is truncated or altered; restore the file, or {remedy}"
    assert refused(saved, method(tiny_encoder())) == [problem]
    assert refused(saved, method(tiny_encoder()), 2) == [problem]
    with pytest.raises(CheckpointError, match="line 3 is truncated or altered"):
        Checkpoints(saved).open()
    Checkpoints(saved).load(method(tiny_encoder()), 1)


# ---- sealed, and wrong


def edited(folder: Path, number: int, path: str, value: Any) -> str:
    """Sets what a line of the journal has at a path, and seals it; returns how its refusal begins."""

    def edit(lines: list[dict[str, Any]]) -> None:
        *above, last = path.split(".")
        target = lines[number - 1]
        for key in above:
            target = target[key]
        target[last] = value

    edit_journal(folder / "journal.jsonl", edit)
    return f"{folder / 'journal.jsonl'}: line {number}: "


@pytest.mark.parametrize(
    ("number", "path", "value", "problem"),
    [
        (1, "backbone", {"name": "tiny"}, "backbone.tag is missing"),
        (1, "method", [], "method is [], expected an object"),
        (2, "base", False, "base is false, expected true"),
        (2, "entry.rows", [[0.5, 0.5]], "entry.rows has rows of [2] numbers, expected [1]"),
        (3, "task", None, "task is missing, in a line that says learned"),
        (3, "task.index", 7, "task.index is 7, expected 1"),
        (3, "task.index", "1", "task.index is '1', expected a valid integer"),
        (3, "task.index", True, "task.index is True, expected a valid integer"),
        (3, "task.classes", [], "task.classes is [], List should have at least 1 item"),
        (3, "task.classes", [999], "task.classes is [999], expected [2]"),
        (3, "task.classes", [2, 2], "task.classes is [2, 2], expected ascending numbers"),
        (3, "task.new_classes", [999], "task.new_classes is [999], expected [2]: those after"),
        (3, "task.new_classes", [], "task.classes is [2], expected []"),
        (3, "task.class_names", ["wren"], "task.class_names has 'wren' for class 2, another than in earlier tasks"),
        (3, "task.class_names", [["kite"]], "task.class_names[0] is ['kite'], expected a valid string"),
        (3, "task.class_names", [], "task.class_names has 0 names, expected 1"),
        (4, "task.class_names", ["rook", "rook"], "task.class_names is ['rook', 'rook'], expected different names"),
        (3, "saved.file", "../task_0001.safetensors",
         "saved.file is '../task_0001.safetensors', expected 'task_0001.s"),
        (3, "saved", None, "saved is None, with "),
        (3, "whole", ["head.biases.1", "head.biases.1"], "whole and extended are "),
        (3, "extended", {"head.biases.7": 0}, "extended and removed have 'head.biases.7', which no earlier line has"),
        (3, "removed", ["head.biases.7"], "extended and removed have 'head.biases.7', which no earlier line has"),
        (3, "entry.rows", [[0.5, float("nan")]], "entry.rows[0][1] is nan, expected a finite number"),
        (3, "entry.rows", [[0.5, 7.0]], "entry.rows[0][1] is 7.0, expected less than or equal to 1"),
        (3, "entry.rows", [[0.5]], "entry.rows has rows of [1] numbers, expected [2]"),
        (3, "entry.head_rows", [[0.5, 0.5]], "entry.head_rows has rows of [2] numbers, expected []"),
        (3, "entry.cost", {"stored": "7"}, "entry.cost: stored is '7', expected a valid integer"),
        (3, "history", -1, "history is -1, expected greater than or equal to 0"),
        (3, "more", 1, "more is unknown"),
    ],
)  # fmt: skip
def test_a_sealed_line_that_cannot_be_is_refused(
    number: int, path: str, value: Any, problem: str, saved: Path, tiny_encoder: MakeEncoder
) -> None:
    beginning = edited(saved, number, path, value)
    found = refused(saved, method(tiny_encoder()))
    remedy = "delete the lines" if number > 2 else "start anew"
    assert any(each.startswith(beginning + problem) for each in found), found
    assert all(f"; restore the file, or {remedy}" in each for each in found)
    with pytest.raises(CheckpointError):
        Checkpoints(saved).open()
    if number > 2:
        Checkpoints(saved).load(method(tiny_encoder()), number - 2)


# ---- changes of a model


SAVED = {"file": "task_0003-images.safetensors", "sha256": "0" * 64}
BACK = {"kind": "rolled back", "date": "2026-01-01"}


@pytest.fixture
def changed(folder: Path, tiny_encoder: MakeEncoder) -> Path:
    """Two tasks learned, the second class forgotten, the third task learned after going back to the second line."""
    folder.parent.mkdir()
    made, store = method(tiny_encoder(), "prototypes"), Checkpoints(folder)
    empty = Entry(rows=[], train_seconds=0.0)
    known = {"digests": torch.zeros(2, 16, dtype=torch.uint8), "digest_labels": torch.zeros(2, dtype=torch.long)}
    for task in TASKS[:2]:
        learn(made, task)
        store.save(made.eval(), empty, change=Change(kind="learned", date="2026-01-01"), images=known)
    store.save(made, empty, change=Change(kind="forgot", date="2026-01-02"), forgotten=[1])
    store.roll_back(2, Change(kind="rolled back", date="2026-01-03"))
    return folder


def test_lines_of_a_model_come_back(changed: Path, tiny_encoder: MakeEncoder) -> None:
    store = Checkpoints(changed)
    assert store.tasks == 4
    assert store.of_model
    assert [line.change.kind for line in store.lines if line.change] == ["learned", "learned", "forgot", "rolled back"]
    assert [line.restores for line in store.lines] == [None, None, None, 2]
    assert [line.forgotten for line in store.lines] == [[], [], [1], []]
    assert [line_of_descent(store.lines, number) for number in (1, 2, 3, 4)] == [[1], [1, 2], [1, 2, 3], [1, 2]]
    assert store.there() == [1, 2, 3, 4]
    assert store.learned_tasks == list(TASKS[:2])
    made = method(tiny_encoder(), "prototypes")
    store.open()
    store.load(made, to_learn=True)
    learn(made, TASKS[2])
    store.save(made.eval(), Entry(rows=[], train_seconds=0.0), change=Change(kind="learned", date="2026-01-04"))
    assert [line_of_descent(store.lines, 5), Checkpoints(changed).learned_tasks] == [[1, 2, 5], list(TASKS)]
    (changed / "task_0001.safetensors").unlink()
    assert Checkpoints(changed).there() == [1]


def test_the_lines_of_a_run_have_nothing_of_a_model(saved: Path) -> None:
    """So that their seals are what they were before there were models."""
    keys = {"change", "joined", "forgotten", "restores", "images", "parts"}
    assert all(keys.isdisjoint(line) for line in journal_lines(saved / "journal.jsonl"))
    assert not Checkpoints(saved).of_model


@pytest.mark.parametrize(
    ("number", "values", "problem"),
    [
        (5, {"restores": 4}, "restores is 4, and there are 3 lines before it"),
        (5, {"restores": 0}, "restores is 0, expected greater than or equal to 1"),
        (5, {"change": None}, "restores is given, expected in a line whose change is 'rolled back' alone"),
        (5, {"change": BACK | {"kind": "learned"}},
         "restores is given, expected in a line whose change is 'rolled back'"),
        (5, {"task": {"index": 2, "classes": [3], "new_classes": [3], "class_names": ["a"]}},
         "task is given, expected nothing: the line goes back"),
        (5, {"joined": [{"index": 2, "classes": [3], "new_classes": [3], "class_names": ["a"]}]},
         "joined is given, expected nothing"),
        (5, {"forgotten": [0]}, "forgotten is given, expected nothing"),
        (5, {"structure": {"kept": 1}}, "structure is given, expected nothing"),
        (5, {"whole": ["means.counts"]}, "whole is given, expected nothing"),
        (5, {"extended": {"means.counts": 0}}, "extended is given, expected nothing"),
        (5, {"removed": ["means.counts"]}, "removed is given, expected nothing"),
        (5, {"entry": {"rows": [[0.5]], "train_seconds": 0.0}}, "entry.rows is given, expected nothing"),
        (5, {"saved": SAVED}, "file is given, expected nothing"),
        (5, {"images": SAVED}, "file-images is given, expected nothing"),
        (5, {"parts": SAVED}, "file-parts is given, expected nothing"),
        (5, {"sums": SAVED}, "file-sums is given, expected nothing"),
        (4, {"restores": 2, "forgotten": []},
         "restores is given, expected in a line whose change is 'rolled back' alone"),
        (4, {"forgotten": []}, "forgotten is missing, in a line that says forgot"),
        (4, {"change": BACK | {"kind": "purged"}}, "forgotten is given, in a line that says purged"),
        (4, {"change": BACK | {"kind": "purged"}}, "base is false, expected true: what was purged is gone"),
        (5, {"restores": None, "change": BACK | {"kind": "purged"}}, "base is false, expected true"),
        (4, {"forgotten": [3]}, "forgotten has 3, expected the number of a class that is known"),
        (4, {"forgotten": [-1]}, "forgotten[0] is -1, expected greater than or equal to 0"),
        (4, {"change": BACK | {"kind": "learned"}}, "task is missing, in a line that says learned"),
        (4, {"change": BACK | {"kind": "joined"}}, "joined is missing, in a line that says joined"),
        (4, {"change": BACK | {"kind": "sold"}},
         "change.kind is 'sold', expected 'learned', 'rolled back', 'forgot', 'joined' or 'purged'"),
        (4, {"change": {"kind": "forgot"}}, "change.date is missing"),
        (4, {"change": None}, "task is missing, in a line that says learned"),
        (4, {"change": BACK}, "forgotten is given, in a line that says rolled back"),
        (3, {"forgotten": [0]}, "forgotten is given, in a line that says learned"),
        (3, {"change": BACK}, "task is given, in a line that says rolled back"),
        (3, {"change": None}, "images or parts are given, expected in a line with a change alone"),
        (3, {"entry": {"rows": [[0.5, 0.5]], "train_seconds": 0.0}}, "entry.rows has rows of [2] numbers, expected []"),
        (3, {"images": SAVED},
         "images.file is 'task_0003-images.safetensors', expected 'task_0001-images.safetensors'"),
        (3, {"parts": SAVED}, "parts.file is 'task_0003-images.safetensors', expected 'task_0001-parts.safetensors'"),
        (3, {"joined": [{"index": 2, "classes": [3], "new_classes": [3], "class_names": ["a"]}]},
         "joined is given, in a line that says learned"),
    ],
)  # fmt: skip
def test_a_sealed_change_that_cannot_be_is_refused(
    number: int, values: dict[str, Any], problem: str, changed: Path, tiny_encoder: MakeEncoder
) -> None:
    edit_journal(changed / "journal.jsonl", lambda lines: lines[number - 1].update(values))
    found = refused(changed, method(tiny_encoder(), "prototypes"))
    beginning = f"{changed / 'journal.jsonl'}: line {number}: "
    assert any(each.startswith(beginning + problem) for each in found), found


@pytest.mark.parametrize(
    ("joined", "problem"),
    [
        ([(3, [3], ["a"])], "task.index is 3, expected 2"),
        ([(2, [3], ["a"]), (2, [4], ["b"])], "task.index is 2, expected 3"),
        ([(2, [4], ["a"])], "task.new_classes is [4], expected [3]: those after earlier tasks'"),
        ([(2, [3], ["wren"])], "task.class_names has 'wren' for class 3, another than in earlier tasks"),
        ([(2, [3], ["a"]), (3, [4], ["a"])], "task.class_names has 'a' for class 4, another than in earlier tasks"),
    ],
)
def test_joined_tasks_that_cannot_be_are_refused(
    joined: list[tuple[int, list[int], list[str]]], problem: str, changed: Path, tiny_encoder: MakeEncoder
) -> None:
    def edit(lines: list[dict[str, Any]]) -> None:
        tasks = [{"index": i, "classes": c, "new_classes": c, "class_names": n} for i, c, n in joined]
        lines[3] |= {"change": BACK | {"kind": "joined"}, "joined": tasks}
        del lines[3]["forgotten"]

    edit_journal(changed / "journal.jsonl", edit)
    found = refused(changed, method(tiny_encoder(), "prototypes"))
    assert any(each.startswith(f"{changed / 'journal.jsonl'}: line 4: {problem}") for each in found), found


def test_a_class_that_is_forgotten_twice_and_one_that_is_learned_again(changed: Path) -> None:
    lines = journal_lines(changed / "journal.jsonl")
    again = lines[3] | {"change": BACK | {"kind": "forgot"}}
    seal_journal(changed / "journal.jsonl", [*lines[:4], again])
    with pytest.raises(CheckpointError, match=r"line 5: forgotten has 1, expected the number of a class that is known"):
        Checkpoints(changed).open()
    known = {"index": 2, "classes": [1], "new_classes": [], "class_names": ["lark"]}
    learned = lines[3] | {"change": BACK | {"kind": "learned"}, "task": known, "forgotten": []}
    seal_journal(changed / "journal.jsonl", [*lines[:4], learned, again])
    Checkpoints(changed).open()
    # and in the line after going back it had not been forgotten
    seal_journal(changed / "journal.jsonl", [*lines[:5], again])
    Checkpoints(changed).open()


def test_sums_of_versions_that_are_gone_back_from_stay(folder: Path, tiny_encoder: MakeEncoder) -> None:
    folder.parent.mkdir()
    made, store = method(tiny_encoder(), "ran_pac", width=32), Checkpoints(folder, undoable=2)
    empty, change = Entry(rows=[], train_seconds=0.0), Change(kind="learned", date="2026-01-01")
    for task in TASKS:
        learn(made, task)
        store.save(made.eval(), empty, change=change)
    for number in (1, 2, 1, 2):
        store.roll_back(number, Change(kind="rolled back", date="2026-01-02"))
    assert sorted(file.name for file in folder.glob("*-sums.*")) == [
        "task_0001-sums.safetensors",
        "task_0002-sums.safetensors",
    ]
    assert [number for number in range(1, 8) if store.can_learn_on_from(number)] == [2, 3, 5, 7]
    made = method(tiny_encoder(), "ran_pac", width=32)
    store.load(made, to_learn=True)
    learn(made, TASKS[2], seed=2)
    store.save(made.eval(), empty, change=change)
    assert [number for number in range(1, 9) if store.can_learn_on_from(number)] == [2, 3, 5, 7, 8]


def test_a_first_line_alone_is_begun_anew(saved: Path, tiny_encoder: MakeEncoder) -> None:
    journal = saved / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    store, made = Checkpoints(saved), method(tiny_encoder(), rank=4)
    store.open()
    assert not journal.exists()
    learn(made, TASKS[0])
    store.save(made.eval(), entry(0))
    Checkpoints(saved).load(method(tiny_encoder(), rank=4))


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half()


def _with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[0] = float("nan")
    return tensor


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda found: found | {"head.weights.0": _half(found["head.weights.0"])},
         "has dtype float16, expected float32"),
        (lambda found: found | {"head.weights.0": found["head.weights.0"].to(torch.int8)},
         "has dtype int8, expected float32"),
        (lambda found: found | {"head.weights.0": found["head.weights.0"][:1]}, "has shape (1, 32), expected (2, 32)"),
        (lambda found: found | {"head.weights.0": _with_nan(found["head.weights.0"])},
         "has 1 of 64 numbers that are not finite"),
        (lambda found: found | {"head.weights.0": found["head.weights.0"] / 0},
         "has 64 of 64 numbers that are not finite"),
        (lambda found: {key: found[key] for key in found if key != "head.weights.0"}, "is missing"),
        (lambda found: found | {"more": torch.ones(2)}, "more is unknown"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("format_2", [False, True])
def test_sealed_tensors_that_are_not_the_methods_are_refused(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    problem: str,
    format_2: bool,
    request: pytest.FixtureRequest,
    tiny_encoder: MakeEncoder,
) -> None:
    folder: Path = request.getfixturevalue("old" if format_2 else "saved")
    file = folder / ("task_01/state.safetensors" if format_2 else "task_0000.safetensors")
    tensors, metadata = read_tensors(file)
    write_tensors(file, change(tensors), metadata)
    if format_2:
        head = json.loads(file.with_name("state.json").read_bytes())
        seal_state(file.parent, {key: head[key] for key in head if key != "seal"})
    else:
        edit_journal(folder / "journal.jsonl", lambda lines: lines)
    [found] = refused(folder, method(tiny_encoder()))
    name = "" if "more" in problem else "head.weights.0 "
    assert found.startswith(f"{file}: {name}{problem}")


def test_a_file_that_is_sealed_and_no_tensors(saved: Path, tiny_encoder: MakeEncoder) -> None:
    (saved / "task_0001.safetensors").write_bytes(b"tensors")
    edit_journal(saved / "journal.jsonl", lambda lines: lines)
    [problem] = refused(saved, method(tiny_encoder()))
    assert problem.startswith(f"{saved / 'task_0001.safetensors'}: not a file of tensors that can be read")


def test_parts_that_do_not_continue_a_tensor(folder: Path, tiny_encoder: MakeEncoder) -> None:
    folder.parent.mkdir()
    saved_run(folder, tiny_encoder(), "prototypes")
    file = folder / "task_0001.safetensors"
    tensors, metadata = read_tensors(file)
    part = tensors["means.prototypes"]
    for wrong, why in ((part.double(), "has dtype"), (part[0], "has shape"), (part[:, :3], "do not fit together")):
        write_tensors(file, tensors | {"means.prototypes": wrong}, metadata)
        edit_journal(folder / "journal.jsonl", lambda lines: lines)
        assert why in refused(folder, method(tiny_encoder(), "prototypes"))[0]
    write_tensors(file, tensors, metadata)
    file = max(folder.glob("task_*.safetensors"))
    tensors, metadata = read_tensors(file)
    counts = tensors["means.counts"] - 9
    write_tensors(file, tensors | {"means.counts": counts}, metadata)
    edit_journal(folder / "journal.jsonl", lambda lines: lines)
    [problem] = refused(folder, method(tiny_encoder(), "prototypes"))
    assert "means.counts has -9, expected numbers of samples" in problem


def test_sums_of_other_tensors_are_refused(folder: Path, tiny_encoder: MakeEncoder) -> None:
    """They are read last, and could take the place of what predicts."""
    folder.parent.mkdir()
    saved_run(folder, tiny_encoder(), "ran_pac", width=32)
    file = folder / "task_0002-sums.safetensors"
    tensors, metadata = read_tensors(file)
    write_tensors(file, tensors | {"regression.weight": torch.ones(32, 5)}, metadata)
    edit_journal(folder / "journal.jsonl", lambda lines: lines)
    [problem] = refused(folder, method(tiny_encoder(), "ran_pac", width=32))
    assert problem.startswith(f"{file}: regression.weight is unknown")


@pytest.mark.parametrize(
    ("name", "structure", "problem"),
    [
        ("inf_lora", {}, "KeyError: 'block0'"),
        ("inf_lora", {"block0": [10**12, False], "block1": [0, False]},
         "block0 is [1000000000000, False], expected a number"),
        ("inf_lora", {"block0": [0, 1], "block1": [0, False]},
         "block0 is [0, 1], expected a number of columns from 0 to 32"),
        ("inf_lora", {"block0": [0, False], "block1": [0, False], "block2": 1}, "structure.block2 is 1, expected None"),
        ("sd_lora_kd", {"kept": [0, 0]}, "kept is [0, 0], expected different tasks from 0 to 2, ascending"),
        ("sd_lora_kd", {"kept": [0, 7]}, "kept is [0, 7], expected different tasks"),
        ("sd_lora_kd", {"kept": "012"}, "kept is '012', expected different tasks"),
        ("sd_lora_kd", {"kept": [0, 1]}, "directions."),
        ("gumbel_cl_lora", {"kept": [0, 1, 2], "stored": [0, 1], "step": 0, "steps": 1},
         "kept is [0, 1, 2], expected some"),
        ("gumbel_cl_lora", {"kept": [0, 1], "stored": [0, 1, 2], "step": -1, "steps": 1}, "step is -1 of 1 steps"),
        ("sd_lora", {"kept": [0]}, "structure.kept is [0], expected None"),
    ],
)  # fmt: skip
def test_a_sealed_structure_that_no_state_has(
    name: str, structure: dict[str, Any], problem: str, folder: Path, tiny_encoder: MakeEncoder
) -> None:
    folder.parent.mkdir()
    saved_run(folder, tiny_encoder(), name)
    edited(folder, 4, "structure", structure)
    assert any(problem in each for each in refused(folder, method(tiny_encoder(), name)))


def test_a_refusal_leaves_the_method_as_it_was(kind_name: str, folder: Path, tiny_encoder: MakeEncoder) -> None:
    """To the bit, with all that growing has changed: it learns on as if it had never been asked."""
    folder.parent.mkdir()
    saved_run(folder, tiny_encoder(), kind_name, **OPTIONS.get(kind_name, {}))
    lines = journal_lines(folder / "journal.jsonl")
    file = folder / f"task_{max(index for index, line in enumerate(lines[1:]) if line['saved']):04d}.safetensors"
    tensors, metadata = read_tensors(file)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel())
    write_tensors(file, tensors | {name: tensors[name] / 0}, metadata)
    seal_journal(folder / "journal.jsonl", lines)
    made = method(tiny_encoder(), kind_name, **OPTIONS.get(kind_name, {}))
    before = {key: value.clone() for key, value in made.state_dict().items()}
    structure = json.dumps(made.structure())
    assert "not finite" in refused(folder, made)[0]
    after = made.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert json.dumps(made.structure()) == structure
    untouched = method(tiny_encoder(), kind_name, **OPTIONS.get(kind_name, {}))
    for each in (made, untouched):
        torch.manual_seed(5)
        for task in TASKS:
            learn(each, task)
    one, other = made.own_state(), untouched.own_state()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_could_not_be_loaded_is_not_saved(folder: Path, tiny_encoder: MakeEncoder) -> None:
    folder.parent.mkdir()
    made = method(tiny_encoder())
    learn(made, TASKS[0])
    with torch.no_grad():
        made.trainable()[0].view(-1)[0] = float("inf")
    with pytest.raises(TrainingError, match=r"is not finite after task 1; start anew with a lower fit\.learning_rate"):
        Checkpoints(folder).save(made, entry(0))
    assert not folder.exists()


def test_a_line_of_another_run_is_refused(saved: Path, tiny_encoder: MakeEncoder) -> None:
    """Each line is sealed together with those before it."""
    other = saved.parent / "other"
    saved_run(other, tiny_encoder(), rank=4)
    lines = (saved / "journal.jsonl").read_bytes().splitlines()
    foreign = (other / "journal.jsonl").read_bytes().splitlines()
    (saved / "journal.jsonl").write_bytes(b"\n".join([*lines[:3], foreign[3], b""]))
    assert "line 4 is truncated or altered" in refused(saved, method(tiny_encoder()))[0]


def test_another_format_is_refused(saved: Path, tiny_encoder: MakeEncoder) -> None:
    file = saved / "journal.jsonl"
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([json.dumps(json.loads(lines[0]) | {"format": 99}).encode(), *lines[1:], b""]))
    assert refused(saved, method(tiny_encoder())) == [f"{file}: not of format 3; it needs another lorica version"]


def test_no_checkpoint(folder: Path, tiny_encoder: MakeEncoder) -> None:
    assert refused(folder, method(tiny_encoder())) == [
        f"{folder.parent}: no task has been finished yet; resume the run first"
    ]


# ---- format 2


@pytest.fixture
def old(folder: Path, tiny_encoder: MakeEncoder) -> Path:
    """What lorica wrote before the journal: a folder for each task, with all that had been learned by then."""
    made = method(tiny_encoder())
    for task in TASKS[:2]:
        learn(made, task)
        place = folder / f"task_{task.index:02d}"
        place.mkdir(parents=True)
        save_file({key: value.contiguous() for key, value in made.own_state().items()}, place / "state.safetensors")
        head = {
            "format": 2,
            "method": made.config.model_dump(mode="json"),
            "backbone": {"name": "tiny", "tag": "tiny.random0", "fingerprint": made.encoder.fingerprint},
            "tasks": [
                {"index": t.index, "first_class": t.classes[0], "class_names": list(t.class_names)} for t in made.tasks
            ],
            "structure": {},
            "sha256": hashlib.sha256((place / "state.safetensors").read_bytes()).hexdigest(),
            "record": {"accuracy": [[1.0]], "complete": False},
        }
        seal = hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()
        (place / "state.json").write_text(json.dumps(head | {"seal": seal}))
    return folder


def test_a_folder_of_format_2_still_loads(old: Path, tiny_encoder: MakeEncoder) -> None:
    assert Checkpoints(old).there() == [1, 2]
    for number in (1, 2):
        made = method(tiny_encoder())
        Checkpoints(old).load(made, number)
        state = load_file(old / f"task_0{number - 1}" / "state.safetensors")
        assert made.tasks == list(TASKS[:number])
        assert all(torch.equal(value, state[key]) for key, value in made.own_state().items())
    assert refused(old, method(tiny_encoder(), rank=4)) == [f"{old / 'task_01'}: method.rank was 10, now 4"]


def test_a_run_of_format_2_is_not_continued(old: Path) -> None:
    assert Checkpoints(old).tasks == 2
    with pytest.raises(
        CheckpointError, match="drew its random numbers otherwise; it can be loaded and evaluated, but not"
    ):
        _ = Checkpoints(old).entries


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        ("tasks.1.first_class", 999, "tasks[1].first_class is 999, expected 2: the number after earlier tasks'"),
        ("tasks.1.first_class", "2", "tasks[1].first_class is '2', expected a valid integer"),
        ("tasks.1.class_names", ["wren"], "tasks[1].class_names is ['wren'], expected names that no other class has"),
        ("tasks.1.class_names", "kite", "tasks[1].class_names is 'kite', expected a valid list"),
        ("tasks.1.index", 0, "tasks[1].index is 0, expected 1"),
        ("tasks", [], "tasks is [], List should have at least 1 item"),
        ("tasks", {"0": 1}, "tasks is {'0': 1}, expected a valid list"),
        ("backbone", "tiny", "backbone is 'tiny', expected an object"),
        ("structure", [1], "structure is [1], expected an object"),
        ("structure", {"kept": [1]}, "structure.kept is [1], expected None"),
        ("sha256", None, "sha256 is None, expected a valid string"),
    ],
)
def test_a_sealed_state_of_format_2_that_cannot_be(
    place: str, value: Any, problem: str, old: Path, tiny_encoder: MakeEncoder
) -> None:
    file = old / "task_01" / "state.json"
    head = {key: each for key, each in json.loads(file.read_bytes()).items() if key != "seal"}
    *above, last = place.split(".")
    target: Any = head
    for key in above:
        target = target[int(key) if isinstance(target, list) else key]
    target[last] = value
    seal = hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps(head | {"seal": seal}))
    found = refused(old, method(tiny_encoder()))
    assert any(each.startswith(f"{file}: {problem}") for each in found), found


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-9], lambda text: text.replace("wren", "crow"), lambda text: "{}"]
)
def test_a_damaged_checkpoint_of_format_2_is_refused(
    damage: Callable[[str], str], old: Path, tiny_encoder: MakeEncoder
) -> None:
    file = old / "task_01" / "state.json"
    file.write_text(damage(file.read_text()))
    [problem] = refused(old, method(tiny_encoder()))
    assert problem.startswith(f"{file}: ")
    assert "altered" in problem or "not a checkpoint of format 2" in problem
