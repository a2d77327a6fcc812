"""An export takes its place only when it is whole and right, and nothing but an export gives way to it."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorica.errors import LoricaError
from lorica.export import export, staging
from lorica.export import timm as target
from lorica.predictor import Predictor

MakeLearner = Callable[..., Predictor]


@pytest.fixture(scope="module")
def learner(make_learner: MakeLearner) -> Predictor:
    return make_learner("linear_probe")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_record_says_what_it_is_and_how_far_apart(learner: Predictor, tmp_path: Path) -> None:
    done = export(learner, tmp_path / "out", "timm")
    record = json.loads((tmp_path / "out/export.json").read_text())
    assert (record["target"], record["method"]) == ("timm", "linear_probe")
    assert record["class_names"] == list(learner.class_names)
    assert record["files"].keys() == {"README.md", "config.json", "model.safetensors"}
    assert record["compared"]["largest_difference"] == done.difference
    assert (done.real, done.images) == (False, 10)
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with torch.no_grad():
        learner.method.head.weights[0][0, 0] += 1  # type: ignore[union-attr]
    export(learner, tmp_path / "out", "timm")
    assert json.loads((tmp_path / "out/export.json").read_text())["fingerprint"] != record["fingerprint"]


def test_a_name_that_is_none_and_an_image_that_is_none(learner: Predictor, tmp_path: Path) -> None:
    with pytest.raises(LoricaError, match="'onx': no target of that name; did you mean onnx"):
        export(learner, tmp_path / "out", "onx")
    with pytest.raises(LoricaError, match=r"absent.png"):
        export(learner, tmp_path / "out", "timm", [tmp_path / "absent.png"])
    assert not list(tmp_path.iterdir())


def test_of_many_images_some_from_everywhere_are_compared(learner: Predictor, tmp_path: Path) -> None:
    done = export(learner, tmp_path / "out", "timm", [np.full((32, 32), n % 256, np.uint8) for n in range(300)])
    assert (done.real, done.images) == (True, 64)


@pytest.mark.parametrize(
    ("to", "package", "extra"),
    [
        ("hf", "transformers", "export-hf"),
        ("peft", "peft", "export-peft"),
        ("onnx", "onnxscript", "export-onnx"),
        ("onnx", "onnxruntime", "export-onnx"),
    ],
)
def test_a_missing_package_is_named_with_the_extra(
    to: str, package: str, extra: str, make_learner: MakeLearner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = importlib.import_module

    def without(name: str, *given: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *given)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(LoricaError, match=rf"{package} is not installed, .*; pip install 'lorica\[{extra}\]'"):
        export(make_learner("sd_lora", rank=2), tmp_path / "out", to)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("notes.txt", "is in the way and not of an export"),
        ("model.safetensors", "is in the way"),
        (".git/config", "is in the way"),
        ("export.json", "is in the way"),
    ],
)
def test_a_folder_with_anything_else_is_refused_by_name(
    file: str, said: str, learner: Predictor, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    (folder / file).parent.mkdir(parents=True)
    (folder / file).write_text("{}")
    with pytest.raises(LoricaError, match=said) as caught:
        export(learner, folder, "timm")
    assert str(folder / file) in str(caught.value)
    assert contents(folder) == {file: b"{}"}


def test_a_file_of_an_export_that_was_altered_is_the_users(learner: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export(learner, folder, "timm")
    readme = folder / "README.md"
    readme.write_text("# my own words")
    (folder / "more.txt").write_text("mine")
    with pytest.raises(LoricaError) as caught:
        export(learner, folder, "timm")
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [str(readme), str(folder / "more.txt")]
    (tmp_path / "file").write_text("")
    with pytest.raises(LoricaError, match="file: is in the way and no folder"):
        export(learner, tmp_path / "file", "timm")


def test_an_export_gives_way_to_another_of_any_kind(learner: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    export(learner, folder, "timm")
    export(learner, folder, "hf")
    assert contents(folder).keys() == {
        "README.md", "config.json", "export.json", "model.safetensors", "preprocessor_config.json"
    }  # fmt: skip
    export(learner, folder, "timm")
    assert "preprocessor_config.json" not in contents(folder)
    (tmp_path / "link").symlink_to(folder)
    export(learner, tmp_path / "link", "hf")
    assert (tmp_path / "link").is_symlink()
    assert (folder / "preprocessor_config.json").exists()


@pytest.mark.parametrize("kind", ["other logits", "other names", "other pixels"])
def test_what_is_wrong_never_arrives(
    kind: str, learner: Predictor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, real = tmp_path / "out", target.config
    export(learner, folder, "timm")
    before = contents(folder)

    def wrong(subject: Any) -> dict[str, Any]:
        config = real(subject)
        config["label_names"] = config["label_names"][::-1] if kind == "other names" else config["label_names"]
        config["pretrained_cfg"] |= {"std": [0.4, 0.5, 0.5]} if kind == "other logits" else {}
        config["pretrained_cfg"] |= {"crop_pct": 0.5} if kind == "other pixels" else {}
        return config

    monkeypatch.setattr(target, "config", wrong)
    said = {
        "other logits": "gives other logits",
        "other names": "reads other class names",
        "other pixels": "prepares images otherwise",
    }
    with pytest.raises(LoricaError, match=f"linear_probe: nothing is exported, since timm {said[kind]}"):
        export(learner, folder, "timm")
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(LoricaError):
        export(learner, tmp_path / "a/b", "timm")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- killed ---


def killed(action: Callable[[], object]) -> None:
    """Runs this in a process that is to be killed on its way."""
    with warnings.catch_warnings(action="ignore"):  # of forks of processes with threads
        process = os.fork()
    if not process:
        try:
            action()
        finally:
            os._exit(1)
    assert os.waitpid(process, 0)[1] == 9 << 8, "the process was to leave with 9"


def leave(*_: object, **__: object) -> None:
    os._exit(9)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes of that kind")
@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("moment", ["begun", "half written", "before the place", "in between", "after"])
def test_a_kill_leaves_the_earlier_export_or_the_new_one(
    moment: str, exchanges: bool, learner: Predictor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    with staging.arriving(folder, record("old")) as new:
        finish(new, "old")
    old = contents(folder)
    if not exchanges:
        monkeypatch.setattr(staging, "_exchange", lambda *_: False)

    def make() -> None:
        with staging.arriving(folder, record("new")) as new:
            (new / "weights").write_text("ha")
            if moment == "half written":
                leave()
            finish(new, "new")

    with monkeypatch.context() as patched:
        if moment == "begun":
            patched.setattr(staging, "write_json", leave)
        elif moment == "before the place":
            patched.setattr(staging, "_replace", leave)
        elif moment == "in between":
            real, moves = os.replace, []

            def replace(one: Path, other: Path) -> None:
                if moves or exchanges:
                    leave()
                real(one, other)
                if Path(one).name == "out":
                    moves.append(one)

            patched.setattr(staging.os, "replace", replace)
        elif moment == "after":
            patched.setattr(staging, "sync_folder", lambda path: leave() if path == tmp_path else None)
        killed(make)
    if moment == "in between" and not exchanges:  # the one moment at which the earlier is beside its place
        assert contents(tmp_path / ".out.lorica/earlier") == old
    else:
        now = contents(folder)
        assert now == old or (moment in ("after", "in between") and now["weights"] == b"new")
    with pytest.raises(ZeroDivisionError), staging.arriving(folder, record("third")):
        raise ZeroDivisionError
    assert contents(folder)["weights"] in (b"old", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def record(text: str) -> dict[str, Any]:
    return {"lorica": "0", "target": "none", "fingerprint": text, "files": {}}


def finish(folder: Path, text: str) -> None:
    (folder / "weights").write_text(text)
    files = {"weights": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "export.json").write_text(json.dumps(record(text) | {"files": files}))


def test_what_is_not_an_export_in_the_workshop_stays(tmp_path: Path) -> None:
    workshop = tmp_path / ".out.lorica/new"
    workshop.mkdir(parents=True)
    (workshop / "thesis.tex").write_text("mine")
    with pytest.raises(LoricaError, match="new: is in the way"), staging.arriving(tmp_path / "out", record("a")):
        pass
    assert contents(tmp_path) == {".out.lorica/new/thesis.tex": b"mine"}


def test_two_at_once_are_told_apart(tmp_path: Path) -> None:
    with staging.arriving(tmp_path / "out", record("a")) as new:
        with pytest.raises(LoricaError, match="is at work in it"), staging.arriving(tmp_path / "out", record("b")):
            pass
        finish(new, "a")
    assert (tmp_path / "out/weights").read_text() == "a"
