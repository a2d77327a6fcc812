"""The command line, through its entry point: what it prints, and with which exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

import lorica as package
from lorica import cli, report
from lorica.commands.report import Form
from lorica.config import packaged_recipes, read_recipe
from lorica.data.sources import benchmark_names
from lorica.errors import LoricaError
from lorica.merging import RULES
from lorica.methods import find_method, method_names
from lorica.report import figures
from lorica.results import Result

HEAVY = {
    *("torch", "torchvision", "timm", "accelerate", "transformers", "huggingface_hub", "safetensors", "peft", "onnx"),
    *(
        "onnxruntime",
        "onnxscript",
        "sklearn",
        "scipy",
        "pandas",
        "matplotlib",
        "fastapi",
        "uvicorn",
        "optuna",
        "sqlalchemy",
    ),
}


class Lorica:
    """`lorica(*arguments)` -> (exit code, standard output, standard error)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["lorica", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        said = self.capsys.readouterr()
        return int(leaving.value.code or 0), said.out, said.err


@pytest.fixture
def lorica(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lorica:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(cli, "console", cli.Screen(width=200))
    return Lorica(monkeypatch, capsys)


@pytest.fixture
def recipe_file(small_recipe: dict[str, Any], tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(small_recipe))
    return file


def test_help(lorica: Lorica) -> None:
    code, out, _ = lorica("--help")
    assert code == 0
    assert all(
        command in out
        for command in (
            *(
                "demo",
                "run",
                "sweep",
                "check",
                "list",
                "table",
                "evaluate",
                "export",
                "analyze",
                "merge",
                "serve",
                "report",
            ),
            *("learn", "predict", "history", "rollback", "forget", "join", "data", "--debug"),
        )
    )


def test_what_computes_nothing_waits_for_nothing_that_does(
    finished_run: Result, recipe_file: Path, tmp_path: Path
) -> None:
    """Help, lists, tables and errors in a recipe, one after the other in a process that has not imported torch."""
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("method: {name: sd_lora, rank: 0}\ndata: {rot: here}\nfit: {epochs: many}\n")
    commands = [
        (0, "--help"),
        *((0, f"{command} --help") for command in ("run", "sweep", "learn", "merge", "export", "serve", "data")),
        *((0, f"data show {name}") for name in ("", *benchmark_names())),
        (2, "data check imagenet --root ."),
        *((0, f"list {what}{plain}") for what in ("methods", "sources", "recipes") for plain in ("", " --plain")),
        *((0, f"table {finished_run.path} --format {form}") for form in cli.Format),
        (0, f"table {finished_run.path} --properties --spread error"),
        *((0, f"report {finished_run.path} --format {form}") for form in Form),
        (2, "report nowhere"),
        (2, "table nowhere"),
        (2, "list nothing"),
        (2, "run digitz"),
        (2, "run digits data.rot=here"),
        (2, "run digits fit.epochs=0 method.rnk=3"),
        (2, "run digits method=sd_lara"),
        (2, f"run {wrong}"),
        (2, f"check {recipe_file} method.rank=none"),
        (2, "check digits fit.epochs"),
        (2, "run own_images"),
        (2, "check own_images data.dataset=x data.domain_column=y fit.epochs=0"),
        (2, "run sd_lora_paper/full_finetune-cub200"),
        (2, f"learn {tmp_path}/model --data {tmp_path} fit.epoch=3"),
        (2, f"learn {tmp_path}/model --data {tmp_path} --recipe own_image"),
    ]
    program = (
        "import json, sys\nfrom lorica import cli\n"
        "for code, command in json.loads(sys.argv.pop()):\n"
        "    sys.argv[1:] = command.split()\n"
        "    try: cli.main()\n"
        "    except SystemExit as leaving: assert (leaving.code or 0) == code, command\n"
        f"    found = {HEAVY} & set(sys.modules)\n"
        "    assert not found, f'{command} imports {found}'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    for said in (
        *(f"{wrong}: method.rank: ", f"{wrong}: data.rot: ", f"{wrong}: fit.epochs: ", "did you mean sd_lora?"),
        "sd_lora_paper/full_finetune-cub200: data.root: the source cub200 needs a path; give data.root=PATH",
        "own_images: fit.epochs: ",
        *(f"data.{key}: the source image_folder does not read it" for key in ("dataset", "domain_column")),
    ):
        assert said in done.stderr  # all at once
    assert done.stderr.count("data.root: the source image_folder needs a path; give data.root=PATH") == 2
    assert not (tmp_path / "model").exists()


# ---- run, evaluate, table


def test_a_run_left_early_says_how_to_go_on(lorica: Lorica, recipe_file: Path, tmp_path: Path) -> None:
    code, out, _ = lorica("run", recipe_file, "method.rank=2", "--out", tmp_path / "run", "--stop-after", 1)
    assert code == 0
    assert "1 of 3 tasks learned" in out
    assert "--resume goes on" in out


def test_run_then_evaluate(lorica: Lorica, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    code, out, _ = lorica("run", recipe_file, "method.rank=2", "--out", folder)
    assert code == 0
    assert "sd_lora" in out
    assert str(folder) in out.replace("\n", "")
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["method"]["rank"] == 2
    assert list((folder / "figures").glob("*.pdf"))
    metrics = json.loads((folder / "metrics.json").read_text())

    code, out, _ = lorica("evaluate", folder)
    assert code == 0
    assert re.findall(r"\d+\.\d", out)[-3:] == [f"{100 * accuracy:.1f}" for accuracy in metrics["accuracy"][-1]]
    code, out, _ = lorica("evaluate", folder, "--tasks", 1)
    assert code == 0
    assert metrics["tasks"][1]["classes"][0] not in out

    monkeypatch.setattr(figures, "draw_all", lambda *_: [])  # seconds, and seen above
    assert lorica("run", recipe_file, "method.rank=2", "--out", folder)[0] == 2
    assert lorica("run", recipe_file, "method.rank=2", "--out", folder, "--resume")[0] == 0


def test_a_run_read_by_class_means_shows_both_accuracies(
    lorica: Lorica, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "draw_all", lambda *_: [])
    code, out, _ = lorica("run", recipe_file, "method.rank=2", "evaluate.readout=prototypes", "--out", tmp_path / "run")
    assert code == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    by_head = metrics["head"]
    assert f"By its own head: Acc {100 * by_head['acc']:.1f}, AAA {100 * by_head['aaa']:.1f}" in out
    code, out, _ = lorica("evaluate", tmp_path / "run")
    assert code == 0
    pairs = zip(metrics["accuracy"][-1], by_head["accuracy"][-1], strict=True)
    assert re.findall(r"\d+\.\d", out)[-6:] == [f"{100 * each:.1f}" for pair in pairs for each in pair]


def test_a_run_goes_to_its_default_folder(
    lorica: Lorica, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "draw_all", lambda *_: [])
    assert lorica("run", recipe_file, "method=prototypes", "seed=1")[0] == 0
    assert (tmp_path / "runs/mine/prototypes-seed1/metrics.json").is_file()


@pytest.mark.parametrize(
    ("form", "sign"),
    [("text", "sd_lora"), ("markdown", "| sd_lora"), ("latex", r"\begin{tabular}"), ("csv", "sd_lora,")],
)
def test_table_formats(form: str, sign: str, lorica: Lorica, finished_run: Result) -> None:
    code, out, _ = lorica("table", finished_run.path, "--format", form)
    assert code == 0
    assert sign in out


def test_table_draws_the_comparison(lorica: Lorica, finished_run: Result, tmp_path: Path) -> None:
    assert lorica("table", finished_run.path, "--figures", tmp_path / "figures")[0] == 0
    assert list((tmp_path / "figures").glob("*.png"))


# ---- analyze


def test_analyze_draws_into_the_run_and_says_what_was_left_out(
    lorica: Lorica, finished_run: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "all_figures", lambda *_: {})
    shutil.copytree(finished_run.path or "", tmp_path / "run")
    code, out, err = lorica("analyze", tmp_path / "run", "--points", 3)
    assert (code, err.strip()) == (0, "")
    assert re.search(r"drawn +residuals, straight_line *\n", out)
    assert re.search(r"left out +distances: they need training; ask for it with --fine-tune 5", out)
    drawn = json.loads((tmp_path / "run/analysis/analysis.json").read_text())
    assert drawn["straight_lines"][0]["positions"] == [0, 0.5, 1]
    assert (tmp_path / "run/analysis/straight_line.pdf").is_file()


def test_analyze_draws_what_it_can_and_then_says_what_is_wrong(
    lorica: Lorica, finished_run: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "draw_all", lambda *_: [])
    code, out, err = lorica("analyze", finished_run.path, "--task", 7, "--out", tmp_path)
    assert code == 2
    assert "residuals" in out
    assert err.strip().splitlines() == [
        f"straight line, sd_lora: {finished_run.path}: no straight line at task 7: the run has learned 3 tasks; "
        "give --task from 2 to 3, or 0 for none"
    ]
    assert (tmp_path / "residuals.png").is_file()


# ---- merge


def test_merge_compares_rules_with_the_run_itself(lorica: Lorica, finished_run: Result, tmp_path: Path) -> None:
    options = ("--rule", "sum,ties", "--readout", "ridge", "--layers", 1, "--drift", "affine", "--scale", 0.5)
    code, out, err = lorica("merge", finished_run.path, *options, "--out", tmp_path)
    assert (code, err.strip()) == (0, "")
    written = json.loads((tmp_path / "merging.json").read_text())
    assert {key: written[key] for key in ("readout", "layers", "drift", "scale")} == {
        "readout": "ridge",
        "layers": 1,
        "drift": "affine",
        "scale": 0.5,
    }
    assert "3 tasks, read by ridge regression of 1 layer, affine drift, scale 0.5; percent" in " ".join(out.split())
    shown = ("acc", "aaa", "forgetting", "new_task")
    for label, found in [*written["rules"].items(), ("not merged: sd_lora", written["own"]["sd_lora"])]:
        assert re.search(rf"{label} +" + " +".join(f"{100 * found[name]:z.1f}" for name in shown), out), label
    assert written["own"]["sd_lora"]["accuracy"] == finished_run.accuracy
    assert str(tmp_path / "merging.json") in out.replace("\n", "")


def test_merge_names_its_rules(lorica: Lorica) -> None:
    _, out, _ = lorica("merge", "--help")
    assert f"all, or some of {', '.join(RULES)}, with commas" in " ".join(out.replace("│", "").split())


# ---- list and check


@pytest.mark.parametrize(
    ("what", "expected"),
    [("methods", method_names()), ("recipes", list(packaged_recipes())), ("sources", ["digits", "image_folder"])],
)
def test_lists(what: str, expected: list[str], lorica: Lorica) -> None:
    code, out, _ = lorica("list", what, "--plain")
    assert code == 0
    assert set(expected) <= set(out.split("\n"))
    code, out, _ = lorica("list", what)
    assert code == 0
    assert all(name in out for name in expected)


def test_every_method_is_described_in_a_line(lorica: Lorica) -> None:
    _, out, _ = lorica("list", "methods")
    for name in method_names():
        assert (find_method(name).__doc__ or "").splitlines()[0] in out


def test_backbones_start_with_the_embedded_one(lorica: Lorica) -> None:
    _, out, _ = lorica("list", "backbones", "--plain")
    names = out.split()
    assert names[0] == "lorica_tiny"
    assert "vit_base_patch16_224" in names


def test_check_describes_the_stream(lorica: Lorica, recipe_file: Path, tmp_path: Path) -> None:
    code, out, _ = lorica("check", recipe_file, "stream.classes_per_task=[2, 4]")
    assert code == 0
    assert out.startswith("valid: sd_lora on test_vit, arrays: 6 classes in 2 tasks of 2 to 4, 72 training and 36 test")
    assert [file.name for file in tmp_path.iterdir()] == ["mine.yaml"]


# ---- mistakes


def test_mistakes_are_lines_and_exit_code_2(lorica: Lorica, recipe_file: Path) -> None:
    code, out, err = lorica("run", recipe_file, "method.rnak=4", "fit.epochs=0")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"{recipe_file}: method.rnak: unknown key; did you mean method.rank?",
        f"{recipe_file}: fit.epochs: Input should be greater than or equal to 1, given 0",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "digts"],
        ["check", "own_images"],
        ["check", "own_images", "data.root=nowhere"],
        ["evaluate", "nowhere"],
        ["table", "nowhere"],
        ["analyze", "nowhere"],
        ["analyze", "nowhere", "--points", "1"],
        ["merge", "nowhere"],
        ["merge", "nowhere", "--rule", "tie"],
        ["merge", "nowhere", "--readout", "head"],
        ["merge", "nowhere", "--scale", "-1"],
        ["run"],
        ["list", "nothing"],
        ["rn", "digits"],
        ["evaluate", "nowhere", "--tasks", "0"],
        ["run", "digits", "--nope"],
    ],
)
def test_every_mistake_exits_with_2_and_without_a_traceback(
    arguments: list[str], lorica: Lorica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = lorica(*arguments)
    assert code == 2
    assert err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_no_good_is_left_out_of_a_table(lorica: Lorica, finished_run: Result, tmp_path: Path) -> None:
    assert finished_run.path is not None
    for name in ("good", "bad"):
        shutil.copytree(finished_run.path, tmp_path / name)
    metrics = tmp_path / "bad" / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"acc": 0.', '"acc": 0.9'))
    code, out, err = lorica("table", tmp_path, "--format", "csv")
    assert (code, len(out.split())) == (0, 2)
    assert err.startswith(f"left out: {metrics}: acc is 0.9")
    code, out, err = lorica("table", tmp_path, tmp_path / "bad")
    assert (code, out) == (2, "")
    assert err.startswith(f"{metrics}: acc is 0.9")


@pytest.mark.parametrize("place", [0, 2, 3])
def test_debug_shows_the_traceback(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["run", "digits", "fit.epochs=0"]
    monkeypatch.setattr(sys, "argv", ["lorica", *arguments[:place], "--debug", *arguments[place:]])
    with pytest.raises(LoricaError, match=r"fit.epochs"):
        cli.main()


def test_settings_with_which_matplotlib_cannot_be_imported(
    lorica: Lorica, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the run, and not after it."""

    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "lorica.report.figures":
                raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    monkeypatch.delitem(sys.modules, "lorica.report.figures")
    monkeypatch.delattr(report, "figures")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    code, _, err = lorica("run", recipe_file, "--out", tmp_path / "run")
    assert code == 2
    assert "matplotlib cannot be imported ('utf-8' codec can't decode" in err
    assert "mend or remove its settings: the file matplotlibrc" in err
    assert not (tmp_path / "run").exists()
    assert lorica("list", "methods")[0] == 0


def test_ctrl_c_says_that_the_run_can_be_resumed(
    lorica: Lorica, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "run", interrupted)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)  # it ignores Ctrl-C from then on
    code, _, err = lorica("run", recipe_file)
    assert code == 130
    assert (
        "interrupted: what was finished is kept, and of a task under way its last snapshot; the same command "
        "continues, a run's "
        "with --resume" in " ".join(err.split())
    )


# ---- recipe and import


def test_a_packaged_recipe_is_printed_and_can_be_run_from_a_file(lorica: Lorica, tmp_path: Path) -> None:
    for name in ("digits", "sd_lora_paper/sd_lora-imagenet_r"):
        code, out, _ = lorica("recipe", name)
        assert code == 0
        (tmp_path / "mine.yaml").write_text(out)
        assert read_recipe(tmp_path / "mine.yaml") == read_recipe(name)
    code, _, error = lorica("recipe", "sd_lora_paper/sd_lora-imagenet")
    assert code == 2
    assert "did you mean sd_lora_paper/sd_lora-imagenet_" in error


def test_a_foreign_configuration_is_printed_as_a_recipe(lorica: Lorica, tmp_path: Path) -> None:
    theirs, mine = tmp_path / "simplecil.json", tmp_path / "mine.yaml"
    theirs.write_text(
        '{"model_name": "simplecil", "dataset": "cub", "init_cls": 10, "increment": 10, "batch_size": 9, '
        '"backbone_type": "pretrained_vit_b16_224_in21k", "colour": "red"}'
    )
    code, out, _ = lorica("import", theirs)
    assert code == 0
    assert "# No effect in the original: batch_size=9 (the original never reads it)" in out
    assert '# Not known, and not carried over: colour="red"' in out
    mine.write_text(out)
    assert read_recipe(mine).data.source == "cub200"


# ---- versions and completion


def test_versions_that_a_report_should_name(lorica: Lorica) -> None:
    code, out, _ = lorica("--version")
    assert code == 0
    lines = dict(line.split(" ", 1) for line in out.strip().splitlines())
    assert lines["lorica"] == package.__version__ == version("lorica")
    assert lines["torch"] == version("torch")
    assert {"python", "timm", "numpy", "transformers"} <= set(lines)


def test_a_shell_completes_commands() -> None:
    asked = {**os.environ, "_LORICA_COMPLETE": "complete_bash", "COMP_WORDS": "lorica ro", "COMP_CWORD": "1"}
    done = subprocess.run(
        [Path(sys.executable).with_name("lorica")], env=asked, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["rollback"]
