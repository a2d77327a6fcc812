"""Sweeps: the file, which trial comes next and whose it is, the rule of the tables in docs/results, and whole sweeps in
processes that are killed."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import yaml
from filelock import FileLock
from optuna.trial import TrialState

from lorica import cli
from lorica.config import Recipe
from lorica.errors import LoricaError, RecipeError, TrainingError
from lorica.methods import method_names
from lorica.progress import Reporter, Silent
from lorica.report import figures
from lorica.results import Result, read_result
from lorica.sweep import page
from lorica.sweep.board import Board, Claim
from lorica.sweep.plan import Plan, Search, Settings, Space, Sweep, chosen_settings, read_plan
from lorica.sweep.worker import work

PROJECT = Path(__file__).parents[1]
EXAMPLES = PROJECT / "examples"
HISTORY = sorted((PROJECT / "docs" / "results").glob("*-tuning.json"))
RATES = {"fit.learning_rate": {"factors": [0.3, 1, 3], "beyond": 3}}

Written = Callable[..., Path]
Begun = Callable[..., Board]


@pytest.fixture
def written(small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """`written(**keys)`: the file of a sweep of the small recipe, in the folder that the test is in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_recipe))

    def write(name: str = "sweep.yaml", **keys: Any) -> Path:
        (tmp_path / name).write_text(yaml.safe_dump({"recipe": "small.yaml", "methods": ["linear_probe"]} | keys))
        return Path(name)

    return write


@pytest.fixture
def begun(written: Written) -> Begun:
    """`begun(**keys)`: the board of that sweep, as a worker opens it."""
    return lambda **keys: Board(read_plan(written(**keys)))


@pytest.fixture
def lorica(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`lorica(*arguments)` -> (exit code, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lorica", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        said = capsys.readouterr()
        return int(leaving.value.code or 0), said.out, said.err

    return call


def problems(file: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as raised:
        read_plan(file, overrides)
    return str(raised.value)


def carried_out(board: Board, score: Callable[[Claim], float]) -> list[Claim]:
    """Every trial there is, each ended with that score in place of a run; in their order."""
    done = []
    while claim := board.claim():
        done.append(claim)
        claim.end(score(claim))
    return done


# --- the file ---


def test_everything_wrong_with_a_file_is_said_at_once_with_the_nearest_key(written: Written) -> None:
    search = {"space": RATES, "held_out": 2, "tsks": 3}
    own = {"method": "sd_lora", "nam": "x", "search": {"space": {"fit.learning_rate": {"facters": [1]}}}}
    told = problems(written(methods=["lora", own], seeds=[0, 0], search=search, serch=1))
    assert "sweep.yaml: serch: unknown key; did you mean search?" in told
    assert "sweep.yaml: search.tsks: unknown key; did you mean search.tasks?" in told
    assert "methods.1.nam: unknown key; did you mean methods.1.name?" in told
    assert "did you mean methods.1.search.space.fit.learning_rate.factors?" in told
    assert "search.held_out: Input should be less than 1, given 2" in told
    assert "seeds are 0 or above, and each is there once" in told


def test_what_is_wrong_in_the_recipes_is_said_once_and_of_whom(written: Written) -> None:
    told = problems(written(methods=["lora", "linear_prob", "sd_lora+rnk=3"], overrides={"fit.epoch": 1})).splitlines()
    assert told == [
        "sweep.yaml: small.yaml: fit.epoch: unknown key; did you mean fit.epochs?",
        "sweep.yaml: small.yaml: method.name: no method 'linear_prob'; did you mean linear_probe? (linear_prob)",
        "sweep.yaml: small.yaml: method.rnk: unknown key; did you mean method.rank? (sd_lora+rnk=3)",
    ]
    space = {"fit.learning_rate": {"values": [-1, 0.1, "much"]}, "fit.epochs": {"values": [0]}}
    told = problems(written(search={"space": space}))
    assert "search.space: small.yaml: fit.epochs: Input should be greater than or equal to 1, given 0" in told
    assert "fit.learning_rate: Input should be greater than 0, given -1" in told
    assert "fit.learning_rate: Input should be a valid number, given 'much'" in told
    space = {"fit.learning_rate": {"low": -1, "high": 0.1}}
    assert "given -1" in problems(written(search={"space": space, "trials": 3}))
    space = {"fit.optimizer": {"factors": [1, 2]}}
    assert "factors are of a number, and the recipe has 'adam'" in problems(written(search={"space": space}))


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ({"space": {}}, "at least 1 item"),
        ({"space": {"fit.epochs": {"values": [1, 2, 1]}}}, "space.fit.epochs: a value is there twice"),
        ({"space": {"fit.epochs": {"values": [1], "low": 1, "high": 2}}}, "either values, or factors, or low and high"),
        ({"space": {"fit.epochs": {"low": 3, "high": 2}}, "trials": 1}, "low is below high; given 3 and 2"),
        ({"space": {"fit.epochs": {"low": 0, "high": 2, "log": True}}, "trials": 1}, "above 0 for log; given 0 and 2"),
        ({"space": {"fit.epochs": {"values": [1], "log": True}}}, "log says how to draw between low and high"),
        ({"space": {"fit.epochs": {"values": [1], "beyond": 3}}}, "beyond goes on from factors"),
        ({"space": {"fit.epochs": {"factors": [0]}}}, "factors are above 0"),
        ({"space": {"fit.epochs": {"values": [1]}, **RATES}}, "sampler factors searches one key"),
        ({"space": RATES, "sampler": "tpe", "trials": 2}, "factors are for the sampler of that name; give tpe values"),
        ({"space": {"fit.epochs": {"low": 1, "high": 2}}, "sampler": "grid"}, "a grid has values"),
        ({"space": {"fit.epochs": {"low": 1, "high": 2}}}, "trials is missing: the sampler is tpe"),
        ({"space": RATES, "trials": 2}, "trials goes with random and tpe: the sampler is factors"),
        ({"space": RATES, "tasks": 3, "final_tasks": 3}, "final_tasks are more than the 3 tasks"),
        ({"space": RATES, "measure": "forgetting"}, "given 'forgetting'"),
    ],
)
def test_a_search_that_cannot_be_is_refused(written: Written, search: dict[str, Any], told: str) -> None:
    assert told in problems(written(search=search))


def test_test_data_cannot_be_asked_for(written: Written) -> None:
    """Nor what methods, seeds and search say themselves; by the file, the command line, or the recipe."""
    key = "data.evaluate_on"
    told = problems(written(overrides={"data": {"evaluate_on": "test"}, "seed": 1, "method.name": "lora"}))
    assert f"overrides.{key}: is not for a sweep: a search looks at held-out training data alone" in told
    assert "overrides.seed: is not for a sweep: seeds says them" in told
    assert "overrides.method.name: is not for a sweep: methods names them" in told
    own = {"method": "lora", "overrides": {key: "test"}, "search": {"space": {key: {"values": ["test"]}}}}
    told = problems(written(methods=[own], search={"space": RATES}))
    assert f"methods.0.overrides.{key}: is not" in told
    assert f"methods.0.search.space.{key}: is not" in told
    assert f"{key}: is not for overrides" in problems(written(), f"{key}=test")
    assert "data.validation_fraction: is not" in problems(written(), "data.validation_fraction=0.5")
    recipe = yaml.safe_load(Path("small.yaml").read_text())
    recipe["data"] |= {"evaluate_on": "validation", "validation_fraction": 0.2}
    Path("small.yaml").write_text(yaml.safe_dump(recipe))
    assert "data.evaluate_on is validation" in problems(written())


def test_a_program_is_executed_only_if_it_is_named_by_hand(written: Written, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from lorica.methods import LinearHeadMethod\nopen('executed', 'w').close()\n"
        "class Mine(LinearHeadMethod):\n    name = 'mine'\n"
    )
    file = written(methods=["lora", "mine.py"])
    assert "methods.1: mine.py is a program" in problems(file)
    hidden = written("hidden.yaml", methods=[f"lora+name={mine}"])
    assert "methods.0.method.name: is not for a sweep: methods names them" in problems(hidden)
    assert not Path("executed").exists()
    assert [each.name for each in read_plan(file, method_files=[Path("mine.py")]).methods] == ["lora", "mine.py"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("data.evaluate_on", "validation", "is not for a sweep: a search looks at held-out training data alone"),
        ("method.name", "mine.py", "is not for a sweep: methods names them"),
        ("data.root", "elsewhere", "a search chooses settings, and no data or weights; take it out"),
    ],
)
def test_settings_of_an_earlier_search_say_no_more_than_a_search_does(
    key: str, value: str, words: str, written: Written
) -> None:
    Path("search.json").write_text(json.dumps({"chosen": {"lora": {key: value}}}))
    assert f"chosen.lora.{key}: {words}" in problems(written(methods=["lora"], settings="search.json"))


def test_names_folders_and_what_is_drawn(written: Written) -> None:
    assert "lora: there more than once; give each a name" in problems(written(methods=["lora", {"method": "lora"}]))
    assert "drawn: rolda: not among the methods" in problems(written(drawn=["rolda"]))
    methods = ["sd_lora_kd:absorbing", {"method": "cl_lora+distillation=false", "name": "cl_lora, alone"}]
    plan = read_plan(written(methods=methods), ["fit.epochs=1", "data.root=/somewhere"])
    assert [plan.row_folder(each, 2).as_posix() for each in plan.methods] == [
        "runs/sweep/rows/sd_lora_kd-absorbing-seed2",
        "runs/sweep/rows/cl_lora,alone-seed2",
    ]
    assert plan.command == "lorica sweep sweep.yaml fit.epochs=1 data.root=…"
    row = plan.row(plan.methods[1], {"fit.batch_size": 3}, 2).resolved()
    assert (row["method"]["distillation"], row["fit"]["batch_size"], row["fit"]["epochs"], row["seed"]) == (
        False,
        3,
        1,
        2,
    )


def test_trials_never_look_at_test_data_and_rows_do(written: Written) -> None:
    plan = read_plan(written(search={"space": RATES, "held_out": 0.25, "seed": 77}, seeds=[5]))
    (method,) = plan.methods
    trial, row = plan.searched(method, {"fit.learning_rate": 0.5}), plan.row(method, {"fit.learning_rate": 0.5}, 5)
    assert (trial.data.evaluate_on, trial.data.validation_fraction, trial.seed) == ("validation", 0.25, 77)
    assert (row.data.evaluate_on, row.data.validation_fraction, row.seed) == ("test", 0, 5)
    assert trial.fit.learning_rate == row.fit.learning_rate == 0.5


def test_a_method_has_the_common_search_its_own_or_none(written: Written) -> None:
    own = {"method": "sd_lora", "search": {"tasks": 2, "space": {"method.rank": {"values": [2, 4]}}}}
    methods = ["linear_probe", own, {"method": "prototypes", "search": False}, {"method": "lora", "search": False}]
    plan = read_plan(written(methods=[*methods, "lora_fixed"], search={"space": RATES, "tasks": 3}))
    searches = [each.search for each in plan.methods]
    assert [search and (search.tasks, search.by) for search in searches] == [
        (3, "factors"), (2, "grid"), None, None, (3, "factors")
    ]  # fmt: skip
    assert plan.methods[0].points == tuple({"fit.learning_rate": rate} for rate in (0.003, 0.01, 0.03))
    assert plan.methods[1].points == ({"method.rank": 2}, {"method.rank": 4})


def test_ablations_take_the_settings_of_their_method(begun: Begun, tmp_path: Path) -> None:
    """From the same sweep; or, as in the older tables, from a file, also from tune.py's."""
    bare = {"method": "sd_lora+rank=2", "search": False}
    board = begun(methods=["sd_lora", bare], search={"space": RATES})
    carried_out(board, lambda claim: 0.5 if claim.settings == {"fit.learning_rate": 0.01} else 0.1)
    assert [board.settings_of(each) for each in board.plan.methods] == 2 * [{"fit.learning_rate": 0.01}]
    named = {"method": "sd_lora", "name": "mine"}
    narrow = {"method": "sd_lora+rank=2", "name": "narrow", "search": False}
    board = begun(name="named.yaml", methods=[named, narrow], search={"space": {"method.rank": {"values": [3, 4]}}})
    carried_out(board, lambda claim: 0.5)
    assert [board.settings_of(each) for each in board.plan.methods] == [{"method.rank": 3}, {}]  # its own rank stays
    assert [board.plan.row(each, {}, 0).method.rank for each in board.plan.methods][1] == 2  # type: ignore[attr-defined]
    (tmp_path / "old.json").write_text('{"chosen": {"sd_lora": 0.123, "lora": 1}}')
    (tmp_path / "new.json").write_text('{"chosen": {"sd_lora": {"fit.epochs": 1}}}')
    board = begun(name="old.yaml", methods=["sd_lora", "sd_lora+rank=2", "prototypes"], settings="old.json")
    assert [each.settings for each in board.plan.methods] == 2 * [{"fit.learning_rate": 0.123}] + [{}]
    assert chosen_settings(tmp_path / "new.json") == {"sd_lora": {"fit.epochs": 1}}
    (tmp_path / "old.json").write_text("[]")
    with pytest.raises(LoricaError, match=r"old.json: not what a sweep has chosen .* expected its search.json"):
        chosen_settings(tmp_path / "old.json")


def test_what_is_written_with_a_method_is_not_written_over(begun: Begun, written: Written) -> None:
    plan = begun(methods=["sd_lora", "sd_lora+rank=2"], overrides={"method.rank": 8}).plan
    assert [plan.row(each, {}, 0).method.rank for each in plan.methods] == [8, 2]  # type: ignore[attr-defined]
    said = problems(written(methods=["sd_lora+rank=2"], search={"space": {"method.rank": {"values": [3, 4]}}}))
    assert "search.space.method.rank: sd_lora+rank=2 has a value of its own" in said


def test_a_look_makes_no_database(
    written: Written, lorica: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    file = written(methods=["prototypes"], storage=f"sqlite:///{tmp_path / 'trials.db'}")
    code, out, _ = lorica("sweep", file, "--dry-run")
    assert (code, "to do" in out) == (0, True)
    assert not (tmp_path / "trials.db").exists()


@pytest.mark.parametrize("file", sorted((EXAMPLES / "sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_examples_can_begin(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    plan = read_plan(file, ["data.root=somewhere"])
    page.require_place(plan)
    assert len(plan.sweep.seeds) == 3
    if file.stem == "omniglot":
        ablations = {"lora_fixed", "lora_frozen", "lora_single"}
        assert {each.name.partition(":")[0] for each in plan.methods} == set(method_names()) - ablations


def test_no_row_has_the_seed_of_a_search(written: Written) -> None:
    told = problems(written(search={"space": RATES}, seeds=[0, 1000]))
    assert "seeds: 1000: a search trains with it, whose settings would suit that row; give another, or search" in told
    own = {"method": "lora", "search": {"seed": 3}}
    assert "seeds: 3: " in problems(written(methods=["joint", own], search={"space": RATES}, seeds=[2, 3]))
    read_plan(written(search={"space": RATES, "seed": 5}, seeds=[0, 1000]))


@pytest.mark.parametrize("title", ["", " of old", "two\nlines"])
def test_a_title_is_a_line(written: Written, title: str) -> None:
    with pytest.raises(LoricaError, match="title"):
        read_plan(Path(written(title=title)))


def test_the_page_has_every_key_and_a_file_that_can_begin(written: Written) -> None:
    text = (PROJECT / "docs" / "sweeps.md").read_text()
    keys = [key for model in (Sweep, Search, Space) for key in model.model_fields]
    assert [key for key in keys if f"`{key}" not in text and f"{key}: " not in text] == []
    (example,) = re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    Path("first.yaml").write_text(example)
    plan = read_plan(Path("first.yaml"))
    assert [(each.name, len(each.points)) for each in plan.methods] == [
        ("linear_probe", 3), ("sd_lora", 3), ("prototypes", 0)
    ]  # fmt: skip


class Stopped(Exception):
    """A worker has been stopped."""


def test_a_search_alone_scores_all_tasks_that_it_learned_however_rarely_rows_test_them(
    written: Written, lorica: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    space = {"fit.learning_rate": {"values": [0.01]}}
    file = written(overrides={"evaluate.every": 7}, seeds=[], search={"space": space, "tasks": 2})
    code, _, told = lorica("sweep", str(file))
    assert code == 0, told
    [metrics] = (tmp_path / "runs" / "sweep" / "search").rglob("metrics.json")
    accuracy = json.loads(metrics.read_text())["accuracy"]
    assert [len(row) for row in accuracy] == [1, 2]
    assert None not in accuracy[1]
    plan = read_plan(file)
    assert plan.row(plan.methods[0], {}, 0).evaluate.every == 7


def test_one_search_is_of_one_set_of_data(written: Written, small_recipe: dict[str, Any]) -> None:
    with np.load(small_recipe["data"]["root"]) as held:
        content = dict(held)
    np.savez("own.npz", **content)
    space = {"fit.learning_rate": {"values": [0.01, 0.02]}}
    file = written(overrides={"data.root": "own.npz"}, seeds=[], search={"space": space, "tasks": 1})
    asked: list[Claim | None] = []

    def until_the_second(claim: Claim | None) -> Reporter:
        asked.append(claim)
        if len(asked) == 2:
            raise Stopped
        return Silent()

    with pytest.raises(Stopped):
        work(Board(read_plan(file)), until_the_second)
    np.savez("own.npz", **content | {"x_train": 255 - content["x_train"]})
    with pytest.raises(LoricaError, match=r"data of other contents than when .*=0.01 was tried"):
        work(Board(read_plan(file)), lambda claim: Silent())


# --- which trial is next ---


@pytest.mark.parametrize("file", HISTORY, ids=lambda file: file.stem)
def test_the_rule_of_the_tables_tries_and_chooses_what_it_did(file: Path, written: Written) -> None:
    """Each search in docs/results, by the scores that it had: the same rates are tried, and the same one is chosen."""
    history = json.loads(file.read_text())
    recipe = file.stem.split("-")[0]
    methods = []
    for method, budget in history["budget"].items():
        tasks, final = budget["tasks"], budget["final_tasks"]
        space = {"fit.learning_rate": {"factors": list(map(float, budget["factors"].split(","))), "beyond": 3}}
        search = {"space": space, "tasks": tasks} | ({"final_tasks": final} if final > tasks else {})
        methods.append({"method": method, "search": search})
    board = Board(read_plan(written(recipe=recipe, methods=methods, seeds=[])))

    def score(claim: Claim) -> float:
        scores = history["scores" if claim.stage == "search" else "final_scores"][claim.method.name]
        return scores[f"{claim.settings['fit.learning_rate']:g}"]

    done = carried_out(board, score)
    assert board.is_done
    for method in board.plan.methods:
        known = history["scores"][method.name], history["final_scores"][method.name]
        for stage, scores in zip(("search", "final"), known, strict=True):
            tried = {f"{c.settings['fit.learning_rate']:g}" for c in done if (c.method, c.stage) == (method, stage)}
            if tried or stage == "search":
                assert tried == set(scores), method.name
        assert board.settings_of(method) == {"fit.learning_rate": history["chosen"][method.name]}


def test_the_rule_goes_on_at_either_end_and_no_further(begun: Begun) -> None:
    """By hand: from 0.003, 0.01, 0.03 up to 0.081 and 0.24, where the best is 0.09; nothing where all fail."""
    board = begun(methods=["linear_probe", "lora"], search={"space": RATES}, seeds=[])

    def score(claim: Claim) -> float:
        rate = claim.settings["fit.learning_rate"]
        return 0.0 if claim.method.name == "lora" else 1 / (1 + abs(rate - 0.09))

    tried = [claim.settings["fit.learning_rate"] for claim in carried_out(board, score)]
    assert tried == [0.003, 0.01, 0.03, 0.09, 0.27, 0.003, 0.01, 0.03]
    assert board.settings_of(board.plan.methods[0]) == {"fit.learning_rate": 0.09}


def test_a_grid_is_every_combination_and_the_best_go_on(begun: Begun) -> None:
    space = {"fit.learning_rate": {"values": [0.1, 0.2]}, "fit.schedule": {"values": ["constant", "cosine"]}}
    board = begun(search={"space": space, "tasks": 1, "final_tasks": 2, "finalists": 3}, seeds=[7, 3])
    order = [(0.1, "constant"), (0.1, "cosine"), (0.2, "constant"), (0.2, "cosine")]
    first = dict(zip(order, (0.5, 0.8, 0.1, 0.7), strict=True))
    final = {(0.1, "cosine"): 0.4, (0.2, "cosine"): 0.6, (0.1, "constant"): 0.5}

    def score(claim: Claim) -> float:
        return (
            0.9
            if claim.stage == "rows"
            else {"search": first, "final": final}[claim.stage][tuple(claim.settings.values())]
        )

    done = carried_out(board, score)
    assert [(c.stage, c.tasks, *c.settings.values()) for c in done] == [
        *(("search", 1, *point) for point in order),
        *(("final", 2, *point) for point in final),  # the best first
        ("rows", None, 7),
        ("rows", None, 3),
    ]
    assert done[1].folder == done[4].folder  # what goes on, goes on from its checkpoint
    assert done[-1].recipe.fit.schedule == "cosine"
    assert done[-1].recipe.fit.learning_rate == 0.2


def test_rows_come_seed_by_seed(begun: Begun) -> None:
    board = begun(methods=["linear_probe", "lora"], seeds=[0, 1])
    done = carried_out(board, lambda claim: 0.5)
    assert [(c.method.name, c.settings["seed"]) for c in done] == [
        ("linear_probe", 0), ("lora", 0), ("linear_probe", 1), ("lora", 1)
    ]  # fmt: skip


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_what_is_drawn_depends_on_its_number_and_not_on_who_asks(begun: Begun, sampler: str) -> None:
    space = {
        "fit.learning_rate": {"low": 1e-4, "high": 1.0, "log": True},
        "fit.epochs": {"low": 1, "high": 9},
        "fit.optimizer": {"values": ["adam", "sgd"]},
    }
    search = {"space": space, "sampler": sampler, "trials": 13}
    alone = [claim.settings for claim in carried_out(begun(name="one.yaml", search=search, seeds=[]), _by_rate)]
    first = begun(name="two.yaml", search=search, seeds=[])
    second = Board(first.plan)
    together: dict[int, Settings] = {}
    while claim := first.claim():
        if sampler == "random" and (other := second.claim()):  # TPE learns from what has ended by then
            together[other.trial.number] = other.settings
            other.end(_by_rate(other))
        together[claim.trial.number] = claim.settings
        if claim.trial.number % 3:
            claim.end(_by_rate(claim))
        else:
            claim.give_back()  # its worker is gone, and the next one has the same
            again = second.claim()
            assert again is not None
            assert (again.trial.number, again.settings) == (claim.trial.number, claim.settings)
            again.end(_by_rate(again))
    assert [together[number] for number in sorted(together)] == alone
    assert len(alone) == 13
    assert all(1e-4 <= each["fit.learning_rate"] <= 1 and 1 <= each["fit.epochs"] <= 9 for each in alone)
    assert {type(each["fit.epochs"]) for each in alone} == {int}


def test_what_is_drawn_twice_has_two_folders_and_goes_on_once(begun: Begun) -> None:
    space = {"fit.epochs": {"low": 1, "high": 2}}
    search = {"space": space, "sampler": "random", "trials": 6, "tasks": 1, "final_tasks": 2, "finalists": 3}
    done = carried_out(begun(search=search, seeds=[]), lambda claim: claim.settings["fit.epochs"] / 4)
    trials, finals = done[:6], done[6:]
    assert len({claim.folder for claim in trials}) == 6
    assert [claim.settings["fit.epochs"] for claim in finals] == [2, 1]
    for final in finals:
        first = next(claim for claim in trials if claim.settings == final.settings)
        assert final.folder == first.folder


def _by_rate(claim: Claim) -> float:
    return 1 - abs(claim.settings["fit.learning_rate"] - 0.3)


# --- whose a trial is ---


def test_no_two_workers_have_the_same_trial_and_a_dead_ones_comes_first(begun: Begun) -> None:
    board = begun(search={"space": RATES}, seeds=[])
    others = [Board(board.plan) for _ in range(3)]
    claims = [other.claim() for other in others]
    assert [claim and claim.settings["fit.learning_rate"] for claim in claims] == [0.003, 0.01, 0.03]
    assert board.claim() is None  # what is beyond is known once these have ended
    assert not board.is_done
    assert claims[1] is not None
    claims[1].give_back()
    again = board.claim()
    assert again is not None
    assert again.settings == claims[1].settings
    for claim in (claims[0], again, claims[2]):
        assert claim is not None
        claim.end(0.5)
    assert [each.state for each in board.trials(board.plan.methods[0], "search")] == 3 * [TrialState.COMPLETE]


@pytest.mark.parametrize("killed_after", ["create_study", "enqueue_trial", "ask", "suggest"])
def test_a_worker_may_die_while_it_takes_a_trial(
    begun: Begun, monkeypatch: pytest.MonkeyPatch, killed_after: str
) -> None:
    class Killed(BaseException):
        pass

    def dying(*given: Any, **named: Any) -> None:
        call(*given, **named)
        raise Killed

    from lorica.sweep import board as module

    board = begun(search={"space": RATES}, seeds=[0])
    home, name = {
        "create_study": (module.optuna, "create_study"),
        "suggest": (module, "_suggested"),
    }.get(killed_after, (module.Study, killed_after))
    call = getattr(home, name)
    with monkeypatch.context() as patch:
        patch.setattr(home, name, dying)
        with pytest.raises(Killed):
            board.claim()
    _let_go(board.plan)
    done = carried_out(Board(board.plan), lambda claim: 0.5)
    assert [list(claim.settings.values()) for claim in done] == [[0.003], [0.01], [0.03], [0.001], [0]]


def _let_go(plan: Plan) -> None:
    """What the system does with the locks of a process that has died."""
    import gc

    gc.collect()
    for file in (plan.folder / ".claims").iterdir():
        with FileLock(file, timeout=0):
            pass


def test_half_a_line_of_the_journal_is_nothing(begun: Begun) -> None:
    board = begun(search={"space": RATES}, seeds=[])
    claim = board.claim()
    assert claim is not None
    claim.end(0.25)
    journal = board.plan.folder / "journal.log"
    whole = journal.read_bytes()
    for cut in (1, 20):
        journal.write_bytes(whole + whole.splitlines(keepends=True)[-1][:-cut])
        assert Board(board.plan, look=True).count() == (1, 3)
    done = carried_out(Board(board.plan), lambda claim: 0.1)
    assert [each.settings["fit.learning_rate"] for each in done] == [0.01, 0.03, 0.001]
    assert all(json.loads(line) for line in journal.read_bytes().splitlines())
    assert Board(board.plan, look=True).count() == (4, 4)


@pytest.mark.parametrize("line", ["[1]", "{}", '{"op_code": "x"}', "null", "3"])
def test_a_journal_that_optuna_did_not_write(line: str, begun: Begun) -> None:
    board = begun(search={"space": RATES}, seeds=[])
    assert board.claim() is not None
    with (board.plan.folder / "journal.log").open("a") as journal:
        journal.write(f"{line}\n")
    with pytest.raises(LoricaError, match=r"journal\.log: not the journal of a sweep, or damaged"):
        Board(board.plan, look=True)


def test_a_database_will_do_too(begun: Begun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = begun(search={"space": RATES}, seeds=[0], storage=f"sqlite:///{tmp_path}/trials.db")
    other = Board(board.plan)
    claim = other.claim()
    assert claim is not None
    claim.give_back()
    assert len(carried_out(board, lambda claim: 0.5)) == 5
    assert Board(board.plan, look=True).is_done
    assert not (board.plan.folder / "journal.log").exists()
    with pytest.raises(LoricaError, match="storage: the database cannot be opened"):
        begun(name="other.yaml", storage="nothing://here")
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(LoricaError, match=r"storage: the driver of this database is not installed \(.*psycopg2"):
        begun(name="third.yaml", storage="postgresql+psycopg2://localhost/trials")


def test_what_has_begun_keeps_its_settings(begun: Begun, written: Written) -> None:
    keys: dict[str, Any] = {"search": {"space": RATES, "tasks": 1}, "seeds": [0], "methods": ["linear_probe", "lora"]}
    carried_out(begun(**keys), lambda claim: 0.5)
    assert Board(read_plan(written(**keys | {"seeds": [0, 1]}))).claim() is not None  # more is no change
    assert begun(**keys | {"overrides": {"device": "cpu", "checkpoints": "newest"}}).is_done
    with pytest.raises(LoricaError) as raised:
        begun(**keys | {"search": {"space": RATES, "tasks": 2}, "overrides": {"fit.batch_size": 5}})
    lines = str(raised.value).splitlines()
    assert len(lines) == 6  # of both methods: tasks of the search; batches of the search, and of the rows
    assert "linear_probe: the search began with search.tasks=1, now 2; give the same value" in str(raised.value)
    assert "lora: the rows began with fit.batch_size=12, now 5" in str(raised.value)


def test_hopeless_trials_are_given_up(begun: Begun) -> None:
    """A trial below the median of five that ended, after its newest task: however well it began."""
    space = {"fit.learning_rate": {"values": [0.1 * i for i in range(1, 8)]}}
    board = begun(search={"space": space, "prune": True}, seeds=[])
    for score in (0.1, 0.2, 0.3, 0.4, 0.5):
        claim = board.claim()
        assert claim is not None
        assert claim.goes_on([[0.9]])
        assert claim.goes_on([[0.9], [score, score]])
        claim.end(score)
    sixth = board.claim()
    assert sixth is not None
    assert sixth.goes_on([[0.9]])
    sixth.give_back()
    sixth = Board(board.plan).claim()  # another worker goes on with it
    assert sixth is not None
    assert not sixth.goes_on([[0.9], [0.2, 0.3]])
    sixth.end(None, TrialState.PRUNED, "given up after task 2")
    seventh = board.claim()
    assert seventh is not None
    assert seventh.goes_on([[0.9], [0.3, 0.3]])
    seventh.end(0.3)
    assert board.settings_of(board.plan.methods[0]) == {"fit.learning_rate": 0.5}
    page.write_search(board)
    found = json.loads(Path("runs/sweep/table-search.json").read_text())
    assert found["not_finished"] == {"linear_probe": {f"fit.learning_rate={0.1 * 6}": "given up after task 2"}}


# --- whole sweeps ---


def test_a_sweep_from_its_file_to_its_table(
    written: Written, lorica: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Scores are those of the runs, recomputed here; failed runs score 0, and are told where they would be rows."""
    Path("time.json").write_text(json.dumps({"recipe": "small", "tasks": 3, "totals": {"sd_lora": 1.0, "lora": 0.456}}))
    search = {"space": {"fit.learning_rate": {"factors": [0.1, 1, 1e30], "beyond": 3}}, "tasks": 2, "final_tasks": 3}
    broken = {"method": "lora+rank=3", "name": "broken", "search": False}
    module = importlib.import_module("lorica.run")
    learn = module.run

    def failing(recipe: Recipe, *, out: Path, **named: Any) -> Result:
        if "broken" in out.name:
            raise TrainingError("broken: the loss became nan")
        return learn(recipe, out=out, **named)

    monkeypatch.setattr(module, "run", failing)
    file = written(
        methods=["lora", {"method": "prototypes", "search": False}, broken],
        search=search, seeds=[0, 4], out="results/small", times="time.json", drawn=["prototypes"],
        title="Six digits: what is small",
    )  # fmt: skip
    code, said, _ = lorica("sweep", file, "--dry-run")
    assert code == 0
    assert said.count("to do") == 3 + 1 + 6
    assert "learning_rate=0.001" in said
    assert not Path("runs").exists()
    in_figures: list[str] = []
    draw = figures.accuracy_curves
    monkeypatch.setattr(
        figures, "accuracy_curves", lambda runs: in_figures.extend(run.label for run in runs) or draw(runs)
    )
    code, said, errors = lorica("sweep", file, "fit.batch_size=6")
    assert (code, errors) == (0, "")
    assert "results" in said
    assert in_figures == ["prototypes", "prototypes"]

    found = json.loads(Path("results/small-search.json").read_text())
    tried = {float(key.partition("=")[2]): score for key, score in found["scores"]["lora"].items()}
    assert set(tried) >= {0.001, 0.01, 1e28}
    assert tried[1e28] == 0
    assert "the loss became" in found["not_finished"]["lora"]["fit.learning_rate=1e+28"]
    ordered = sorted(tried)
    assert ordered[0] < max(tried, key=lambda rate: tried[rate]) < ordered[-1]
    assert all(b / a == pytest.approx(3, rel=0.2) for a, b in pairwise(ordered) if b < 0.001 or 0.01 < b < 1)
    finals = {float(key.partition("=")[2]): score for key, score in found["final_scores"]["lora"].items()}
    assert set(finals) == set(sorted(tried, key=lambda rate: -tried[rate])[:2])
    assert found["chosen"] == {"lora": {"fit.learning_rate": max(finals, key=lambda rate: finals[rate])}}
    budget = found["budget"]["lora"]
    expected = {
        "score": "aaa on held-out data",
        "sampler": "factors",
        "held_out": 0.2,
        "seed": 1000,
        "tasks": 2,
        "final_tasks": 3,
    }
    assert budget.items() >= expected.items()
    for rate in set(tried) - {1e28}:
        run = read_result(Path("runs/sweep/search/lora") / f"learning_rate={rate}")
        assert (run.recipe["data"]["evaluate_on"], run.seed, run.recipe["fit"]["batch_size"]) == ("validation", 1000, 6)
        assert len(run.accuracy) == (3 if rate in finals else 2)
        assert tried[rate] == pytest.approx(fmean(map(fmean, run.accuracy[:2])))
        assert rate not in finals or finals[rate] == pytest.approx(run.aaa)

    text = Path("results/small.md").read_text()
    assert text.startswith("# Six digits: what is small\n\n")
    assert "    lorica sweep sweep.yaml fit.batch_size=6\n" in text
    cells = {line.split(" | ")[0]: line.split(" | ")[-1] for line in text.splitlines() if line.startswith("| ")}
    assert cells == {"| Method": "Time |", "| ---": "---: |", "| lora": "0.46 |", "| prototypes": "– |"}
    assert "Time: of learning all tasks, relative to sd_lora" in text
    assert "Left out, failed: broken, seed 4 (broken: the loss became nan)." in text
    runs = json.loads(Path("results/small.json").read_text())
    assert [(run["label"], run["seed"]) for run in runs] == [
        ("lora", 0), ("prototypes", 0), ("lora", 4), ("prototypes", 4)
    ]  # fmt: skip
    row = read_result(Path("runs/sweep/rows/lora-seed4"))
    assert (row.recipe["data"]["evaluate_on"], row.seed) == ("test", 4)
    assert row.recipe["fit"]["learning_rate"] == found["chosen"]["lora"]["fit.learning_rate"]

    monkeypatch.setattr(module, "run", lambda *_, **__: pytest.fail("what is done is done"))
    code, said, _ = lorica("sweep", file, "--dry-run", "fit.batch_size=6")
    assert "to do" not in said
    assert f"done, {100 * row.aaa:.1f} %" in said
    before = {path: path.read_bytes() for path in Path("results").glob("*.md")}
    assert lorica("sweep", file, "fit.batch_size=6")[0] == 0
    assert before == {path: path.read_bytes() for path in Path("results").glob("*.md")}


def test_two_workers_of_which_one_is_killed_end_with_the_same_table(
    written: Written, small_recipe: dict[str, Any], lorica: Callable[..., tuple[int, str, str]]
) -> None:
    """As one worker alone has it that nobody kills; the other one takes up the trial of the dead one."""
    search = {"space": {"fit.learning_rate": {"values": [0.003, 0.01]}}, "tasks": 2, "final_tasks": 3}
    keys: dict[str, Any] = {"overrides": {"fit.epochs": 6}, "methods": ["sd_lora"], "seeds": [0, 1], "search": search}
    code, _, errors = lorica("sweep", written(**keys, folder="runs/alone", out="alone/table"))
    assert code == 0, errors
    file = written(**keys, folder="runs/two", out="two/table")
    command = [sys.executable, "-m", "lorica", "sweep", str(file), "--jobs", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    sweep = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    victim, left = _one_at_work(Path("runs/two"), sweep)
    os.kill(victim, signal.SIGKILL)
    said, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, errors
    assert "a worker failed, others did its part: a worker ended with exit code -9" in errors
    assert (left / "metrics.json").exists()
    assert Path("alone/table.md").read_text().startswith("# table\n\n")
    for name in ("table.md", "table.json", "table-search.json"):
        assert (Path("two") / name).read_bytes() == (Path("alone") / name).read_bytes()
    assert "sd_lora" in said


def _one_at_work(folder: Path, sweep: subprocess.Popen[str]) -> tuple[int, Path]:
    """A worker that has learned a task of a run, and the folder of this one."""
    began = time.monotonic()
    while sweep.poll() is None and time.monotonic() < began + 120:
        for lock in folder.glob("*/**/.lorica.lock"):
            try:
                process = json.loads(lock.read_text())["process"]
            except (OSError, ValueError):
                continue
            if (lock.parent / "checkpoints" / "task_0001.safetensors").exists():
                return process, lock.parent
        time.sleep(0.005)
    sweep.kill()
    pytest.fail(f"nobody was at work: {sweep.communicate()}")


def test_a_mistake_of_the_users_stops_every_worker_with_its_message(
    written: Written, lorica: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(overrides={"data.root": "nowhere.npz"}, seeds=[0, 1])
    Board(read_plan(file))  # it began while the data was there
    code, _, errors = lorica("sweep", file, "--jobs", "2")
    assert code == 2
    assert errors.count("nowhere.npz") == 1
    assert "what is done is kept; the same command goes on" in errors
    board = Board(read_plan(file), look=True)
    assert not board.is_done
    assert board.claim() is not None  # they are left to whoever comes when it is mended


@pytest.mark.parametrize(
    ("name", "content"), [("mine.md", "# mine\n"), ("mine-search.json", "{}"), ("mine.json", '[{"label": "my own"}]')]
)
def test_what_is_not_a_sweeps_stays(
    name: str, content: str, written: Written, lorica: Callable[..., tuple[int, str, str]]
) -> None:
    Path(name).write_text(content)
    code, _, errors = lorica("sweep", written(out="mine"))
    assert (code, f"{name}: is in the way and not of a sweep" in errors) == (2, True)
    assert Path(name).read_text() == content
    assert not Path("runs").exists()


def test_a_page_that_somebody_went_on_with_stays(written: Written, lorica: Callable[..., tuple[int, str, str]]) -> None:
    file = written(methods=["prototypes"], seeds=[0], out="mine")
    assert lorica("sweep", file)[0] == 0
    assert lorica("sweep", file)[0] == 0  # its own page is no hindrance
    noted = Path("mine.md").read_text() + "\nWhat I make of it.\n"
    Path("mine.md").write_text(noted)
    code, _, errors = lorica("sweep", file)
    assert (code, "mine.md: is in the way and not of a sweep" in errors) == (2, True)
    assert Path("mine.md").read_text() == noted


def test_a_page_says_whose_settings_differ(written: Written, lorica: Callable[..., tuple[int, str, str]]) -> None:
    longer = {"method": "lora", "overrides": {"fit.epochs": 2, "stream.seed": 1}}
    file = written(methods=[longer, "sd_lora", "prototypes"], overrides={"fit.epochs": 1}, seeds=[0], out="mine")
    code, _, errors = lorica("sweep", file)
    assert code == 0, errors
    said = Path("mine.md").read_text()
    assert all(part in said for part in ("1 (sd_lora", "2 (lora", ") epochs a task, batches of "))
    assert " tasks, class order RandomState(1993) (prototypes, sd_lora), RandomState(1) (lora), backbone " in said


def test_times_are_of_the_same_recipe(written: Written, lorica: Callable[..., tuple[int, str, str]]) -> None:
    Path("time.json").write_text(json.dumps({"recipe": "other", "tasks": 3, "totals": {"sd_lora": 1}}))
    code, _, errors = lorica("sweep", written(times="time.json"))
    assert (code, "has the times of other, not of small" in errors) == (2, True)


def test_a_missing_package_is_named(
    written: Written, lorica: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorica.commands.sweep.find_spec", lambda name: None)
    code, _, errors = lorica("sweep", written())
    assert (code, errors.strip()) == (
        2, "lorica sweep needs a package that is not installed (optuna): pip install 'lorica[sweep]'"
    )  # fmt: skip
